"""The section with the configuration of a run."""

import yaml

from ppgen.report.context import FitContext
from ppgen.report.page import Listing, Section

__all__ = ["configuration"]


def configuration(context: FitContext) -> Section | None:
    """The configuration as YAML; None if there is none."""
    if context.config is None:
        return None
    text = yaml.safe_dump(dict(context.config), sort_keys=False, allow_unicode=True)
    return Section("Configuration", "", [Listing(text)])
