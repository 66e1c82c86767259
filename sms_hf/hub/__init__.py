"""Sparse models on the Hub: lineage, model card, upload, and what a folder holds."""

from .inspection import describe_folder
from .push import push_to_hub

__all__ = ["describe_folder", "push_to_hub"]
