"""What one run of a Pyro program holds: traces of model and guide, their sites, many particles at once."""
