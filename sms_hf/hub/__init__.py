"""Sparse checkpoints in and out. Importing it teaches `from_pretrained` to read compact files."""

from . import quantizer as quantizer
from .compact_file import CompactFile
from .folders import pack, unpack
from .loading import load
from .mask_codings import CompactError
from .push import push_to_hub

__all__ = ["CompactError", "CompactFile", "load", "pack", "push_to_hub", "unpack"]
