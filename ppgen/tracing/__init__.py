"""Traces of a model and its guide: running the programs, reading their sites, many particles at once."""
