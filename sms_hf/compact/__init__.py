"""The sparse file: masks and kept values. Importing it teaches `from_pretrained` to read compact files."""

from ..files.forms import CompactError
from . import quantizer as quantizer
from .compact_file import CompactFile
from .folders import pack, unpack
from .loading import load
from .rescue import RescueError, rescue

__all__ = ["CompactError", "CompactFile", "RescueError", "load", "pack", "rescue", "unpack"]
