"""report.json -> what a person reads."""

from .schema import read_lineage, read_report
from .table import format_report

__all__ = ["format_report", "read_lineage", "read_report"]
