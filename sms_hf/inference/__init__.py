"""Smaller models out of sparse ones."""

from .shrinking import Change, Shrinking, plan_shrinking, shrink
from .vocabulary import trim_vocabulary

__all__ = ["Change", "Shrinking", "plan_shrinking", "shrink", "trim_vocabulary"]
