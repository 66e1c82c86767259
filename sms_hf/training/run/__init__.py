"""The run, told top to bottom."""
