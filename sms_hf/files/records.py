"""
Records: JSON files that are sealed with checksums of themselves and of the files that they speak of.

A record is written last and in one piece: where it is, its files are whole, and damage that comes later is noticed.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from .writing import write_json

CHECKSUM = "checksum"
FILES = "files"


class DamagedError(ValueError):
    """A record or a file that is not what was written."""


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def write_record(path: Path, value: dict[str, Any], files: Iterable[Path] = ()) -> dict[str, Any]:
    """Write a record with checksums of itself and of files; returns it as it will be read, without them."""
    listed = {os.path.relpath(file, path.parent): _digest(file) for file in sorted(files)}
    value = json.loads(json.dumps(value))
    write_json(path, {**value, FILES: listed, CHECKSUM: _checksum({**value, FILES: listed})})
    return value


def read_record(path: Path) -> dict[str, Any]:
    """
    Read what [`write_record`] wrote.

    Raises:
        DamagedError: If it is something else.
    """
    return _read_sealed(path)[0]


def check_files(record: Path, besides: Callable[[str], bool] = lambda name: False) -> None:
    """
    Raise [`DamagedError`] for the first file of a record that is missing or not what its checksum says.

    Args:
        record (`Path`): What [`write_record`] wrote.
        besides (`Callable`, *optional*): Name of a file -> whether nothing is asked of it.
    """
    for name, digest in _read_sealed(record)[1].items():
        path = Path(os.path.normpath(record.parent / name))
        if besides(path.name):
            continue
        if not path.is_file():
            raise DamagedError(f"{path} is missing")
        if _digest(path) != digest:
            raise DamagedError(f"{path} does not match its checksum")


def _read_sealed(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """A record and its files."""
    try:
        value = read_json(path)
        checksum, is_right = value.pop(CHECKSUM), isinstance(value, dict)
        if not is_right or checksum != _checksum(value):
            raise DamagedError(f"{path} does not match its checksum")
        return value, value.pop(FILES)
    except DamagedError:
        raise
    except (ValueError, KeyError, AttributeError, TypeError, OSError) as error:
        raise DamagedError(f"{path} is no whole record ({type(error).__name__})") from error


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _checksum(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
