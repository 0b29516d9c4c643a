"""A run as one self-contained HTML page."""

from ppgen.report.page import Figure, Listing, Report, Section, Table, write_report
from ppgen.report.run import report_of_run

__all__ = ["Figure", "Listing", "Report", "Section", "Table", "report_of_run", "write_report"]
