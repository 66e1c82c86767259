"""A figure of matplotlib as an SVG element of an HTML page, in the colours of the page."""

import io
import re
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

from .figure import new_figure

INK, CANDIDATE, MEAN, SOUP, DENSE = "#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04", "#0a0b05"
"""Marker colours: drawn by matplotlib, and named after what they become in the page, which knows light and dark."""
SERIES = tuple(f"#0a0b{number}" for number in range(10, 16))
_PAGE_COLOURS = {
    INK: "currentColor",
    CANDIDATE: "var(--candidate)",
    MEAN: "var(--mean)",
    SOUP: "var(--soup)",
    DENSE: "var(--dense)",
    **{colour: f"var(--series-{number})" for number, colour in enumerate(SERIES, 1)},
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # Text stays text: it can be read aloud, searched for, and is in the font of the page.
    "svg.hashsalt": "sms_hf",  # Equal figures are equal bytes.
    "text.parse_math": False,
    "font.size": 11,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "grid.color": INK,
    "grid.alpha": 0.18,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


def figure_svg(name: str, title: str, text: str, size: tuple[float, float], draw: Callable[[Any], None]) -> str:
    """
    Draw a figure that can stand in an HTML page.

    Args:
        name (`str`): Of this figure alone in its page: all its ids begin with it.
        title (`str`), text (`str`): What those hear who do not see it.
        size (`tuple[float, float]`): Inches.
        draw (`Callable`): Draws into axes of matplotlib.

    Returns:
        `str`: `<svg ...>...</svg>`, the same bytes for the same drawing.

    Raises:
        ImportError: Without matplotlib.
    """
    figure = new_figure(*size)
    import matplotlib

    file = io.StringIO()
    with matplotlib.rc_context(_STYLE):
        draw(figure.subplots())
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inlined(file.getvalue(), name, title, text)


def _inlined(document: str, name: str, title: str, text: str) -> str:
    """An SVG document as an element of HTML: no namespaces, no style sheet (it would hold for the whole page), its own ids."""
    root = ElementTree.fromstring(document)
    for parent in list(root.iter()):
        for child in list(parent):
            if _local(child.tag) in ("metadata", "style"):
                parent.remove(child)
    used = set(re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", document))
    for element in root.iter():
        element.tag = _local(element.tag)
        attributes = {_local(key): value for key, value in element.attrib.items()}
        if attributes.get("id") not in used:
            attributes.pop("id", None)
        element.attrib.clear()
        element.attrib.update({key: _attribute(key, value, name) for key, value in attributes.items()})
    root.attrib = {
        "viewBox": root.attrib["viewBox"],
        "role": "img",
        "aria-labelledby": f"{name}-title {name}-desc",
        "style": f"max-width:{float(root.attrib['viewBox'].split()[2]) * 1.45:.0f}px",
    }
    for position, (tag, content) in enumerate((("title", title), ("desc", text))):
        element = ElementTree.Element(tag, {"id": f"{name}-{tag}"})
        element.text = content
        root.insert(position, element)
    return re.sub(r">\s+<", "><", ElementTree.tostring(root, encoding="unicode"))


def _local(tag: str) -> str:
    return tag.rpartition("}")[2]


def _attribute(key: str, value: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    if key == "href" and value.startswith("#"):
        return f"#{name}-{value[1:]}"
    if key == "style":
        # Sizes stay, families are the page's. Older releases of matplotlib write both as one.
        value = re.sub(r"font: ([^;']*?px) [^;]*", r"font-size: \1", re.sub(r"font-family:[^;]*;? ?", "", value))
    value = value.replace("url(#", f"url(#{name}-")
    for colour, meaning in _PAGE_COLOURS.items():
        value = value.replace(colour, meaning)
    return value
