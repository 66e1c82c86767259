"""Smaller models out of sparse ones."""

from .exporting import Export, export
from .shrinking import Change, Shrinking, plan_shrinking, shrink
from .vocabulary import trim_vocabulary

__all__ = ["Change", "Export", "Shrinking", "export", "plan_shrinking", "shrink", "trim_vocabulary"]
