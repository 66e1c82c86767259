"""Smaller models out of sparse ones."""

from .shrinking import Change, Shrinking, plan_shrinking, shrink

__all__ = ["Change", "Shrinking", "plan_shrinking", "shrink"]
