"""Reports on a fit or a run: a single self-contained HTML page."""

from ppgen.report.fit import report_of_fit
from ppgen.report.page import Figure, Listing, Report, Section, Table, write_report
from ppgen.report.run import report_of_run

__all__ = ["Figure", "Listing", "Report", "Section", "Table", "report_of_fit", "report_of_run", "write_report"]
