"""Smaller models out of sparse ones."""

from .compaction import Change, Compaction, compact, plan_compaction

__all__ = ["Change", "Compaction", "compact", "plan_compaction"]
