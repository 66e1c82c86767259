"""The command `sms-hf`, thin: every command imports what it needs itself, so that `sms-hf --help` answers at once."""

import sys
from collections.abc import Sequence

# Imported in the order in which the help lists their commands.
from . import making, models  # noqa: F401
from .app import app


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command: 0 where it succeeded, 1 with one line on stderr where it did not, 2 where it was called wrongly."""
    # Frames and colours for a person, plain lines for a file or a pipe.
    app.rich_markup_mode = "rich" if sys.stdout.isatty() else None
    try:
        app(argv, prog_name="sms-hf")
    except SystemExit as end:
        return int(end.code or 0)
    return 0
