"""The section that compares data with draws of a model without a density."""

from ppgen.report.context import FitContext
from ppgen.report.page import Section, Table

__all__ = ["two_sample_tests"]

TEXT = "The model has no density of the data. Instead, MMD tests compare the observed rows with draws of the model."


def two_sample_tests(context: FitContext) -> Section | None:
    """MMD tests of observed rows against draws of the model; None for a model with a density."""
    if (tests := context.group("two_sample")) is None:
        return None
    rows = [(str(name), *map(float, test.values[0])) for name, test in tests.data_vars.items()]
    return Section("Draws compared with data", TEXT, [Table(("site", "statistic", "p-value"), rows)])
