"""Small tools that know nothing of programs: ODE solvers, files, means of distributions, versions of ArviZ, torch."""
