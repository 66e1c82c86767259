"""Numbers and foreign text as people read them."""

import re
from typing import Any


def format_bytes(count: float) -> str:
    """`4.2 GB`: two digits, powers of 1000."""
    units = ["bytes", "kB", "MB", "GB", "TB"]
    while len(units) > 1 and count >= 999.5:
        count, units = count / 1000, units[1:]
    return f"{count:.1f} {units[0]}" if count < 9.95 and units[0] != "bytes" else f"{count:.0f} {units[0]}"


def format_seconds(seconds: float) -> str:
    """`about 3 h 20 min`: no more digits than an estimate has."""
    if seconds < 90:
        return f"about {max(round(seconds), 1)} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"about {minutes} min"
    tens = round(minutes / 10) * 10
    if tens < 48 * 60:
        return f"about {tens // 60} h {tens % 60} min" if tens % 60 else f"about {tens // 60} h"
    hours = round(minutes / 60)
    return f"about {hours // 24} days {hours % 24} h" if hours % 24 else f"about {hours // 24} days"


def escaped(text: str) -> str:
    """Text for a table of Markdown, as it is: entities, because parsers differ in what a backslash escapes."""
    return re.sub(r"[&|<>`\[\]*\\!#~$]", lambda m: f"&#{ord(m[0])};", text)


def plain(value: Any) -> str:
    """Text that cannot leave its place in Markdown, code included: one line, no markup, no table cells, no HTML."""
    text = re.sub(r"\s+", " ", str(value))
    return re.sub(r"[|<>`\[\]*\\!#\"]", lambda m: {"<": "&lt;", ">": "&gt;"}.get(m[0], ""), text)[:200]
