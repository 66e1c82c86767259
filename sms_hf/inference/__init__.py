"""Smaller models out of sparse ones."""

from .depth import choose_layers, drop_layers
from .exporting import Export, export
from .shrinking import Change, Shrinking, plan_shrinking, shrink
from .vocabulary import trim_vocabulary

__all__ = [
    "Change",
    "Export",
    "Shrinking",
    "choose_layers",
    "drop_layers",
    "export",
    "plan_shrinking",
    "shrink",
    "trim_vocabulary",
]
