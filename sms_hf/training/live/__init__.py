"""A run to watch: its view on a terminal, its lines, the log files of its candidates."""
