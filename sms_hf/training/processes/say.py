"""Lines on the terminal that several processes share."""

import sys


def say(line: str) -> None:
    """Print a line in one piece.

    Launchers run Python unbuffered, where `print` writes a line and its end one after the other, so that lines of processes
    break into each other.
    """
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
