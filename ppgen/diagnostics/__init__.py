"""Diagnostics: the posterior in ArviZ, and whether it can be trusted."""

from ppgen.diagnostics.arviz import to_arviz
from ppgen.diagnostics.importance import Importance, weigh_up
from ppgen.diagnostics.versions import from_netcdf, to_netcdf

__all__ = ["Importance", "from_netcdf", "to_arviz", "to_netcdf", "weigh_up"]
