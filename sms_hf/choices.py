"""A name that is none of those there are, and the one that was probably meant."""

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(given: object, known: Iterable[str]) -> str:
    """` Did you mean 'uniform'?`, or nothing where no name comes near."""
    found = get_close_matches(str(given).lower(), list(known), n=1)
    return f" Did you mean {found[0]!r}?" if found else ""


def nearest_option(rest: Iterable[str], known: Iterable[str]) -> str:
    """The same for the first option in what a parser could not take."""
    return nearest(next((text.split("=")[0] for text in rest if text.startswith("--")), ""), known)


def check_choice(option: str, given: object, known: Iterable[str]) -> None:
    """Raise `ValueError` unless an option has one of the values that there are."""
    known = list(known)
    if given not in known:
        raise ValueError(f"{option} must be one of {known}, got {given!r}.{nearest(given, known)}")
