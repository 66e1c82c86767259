"""report.json -> what a person reads."""

from .table import format_report

__all__ = ["format_report"]
