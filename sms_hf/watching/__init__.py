"""Runs looked at from outside, finished or going on."""

from .pages import write_page
from .reading import read_run
from .server import watch

__all__ = ["read_run", "watch", "write_page"]
