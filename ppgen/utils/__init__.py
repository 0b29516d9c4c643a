"""Small tools that know nothing of programs: ODE solvers, files, lazy tables, warnings, versions of ArviZ and torch."""
