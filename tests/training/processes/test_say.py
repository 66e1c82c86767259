"""Lines of several processes on one terminal."""

import io
import re
import sys

from sms_hf.training.processes.say import say


def test_a_line_is_written_in_one_piece(monkeypatch):
    """What is written apart, lines of other processes come between."""
    pieces = []

    class Out(io.StringIO):
        def write(self, text):
            pieces.append(text)
            return len(text)

        def flush(self):
            pieces.append("flush")

    monkeypatch.setattr(sys, "stdout", Out())
    say("phase 1: candidate-2")
    line, flush = pieces
    assert re.fullmatch(r"\d\d:\d\d:\d\d phase 1: candidate-2\n", line)
    assert flush == "flush"
