"""The rows of all reports that judge and show a posterior."""

from ppgen.report.context import FitContext
from ppgen.report.registry import Row
from ppgen.report.sections.evidence import evidence_bound
from ppgen.report.sections.posterior_draws import posterior_draws
from ppgen.report.sections.restarts import restarts
from ppgen.report.sections.two_sample import two_sample_tests
from ppgen.report.sections.verdict import verdict_section
from ppgen.report.sections.weights import importance_weights

__all__ = ["POSTERIOR_SECTIONS"]

POSTERIOR_SECTIONS: tuple[Row[FitContext], ...] = (
    Row(verdict_section),
    Row(posterior_draws),
    Row(importance_weights),
    Row(evidence_bound),
    Row(restarts),
    Row(two_sample_tests),
)
