"""Runs that are killed, damaged and starved, and must end bit-identical. A package, so that scripts find its parts."""
