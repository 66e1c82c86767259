"""Files and folders that appear whole or not at all."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """
    Write a file aside, and give it its name when it is complete and on the disk.

    What lay under the name aside goes first: if it were a link, the bytes would go where it leads.
    """
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)
    try:
        with open(partial, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    partial.replace(path)


def write_text(path: Path, text: str) -> None:
    """Write a text file, in UTF-8, whole or not at all."""
    with whole_file(path) as file:
        file.write(text.encode("utf-8"))


def write_json(path: Path, value: Any, sort_keys: bool = False) -> None:
    """Write a JSON file, whole or not at all; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(value, indent=2, sort_keys=sort_keys) + "\n")


def aside(output: Path) -> Path:
    """Where a folder grows until it is whole. What lies there is deleted."""
    return output.with_name(output.name + ".partial")


def check_unused(output: Path, error: type[ValueError] = ValueError) -> None:
    """Raise an error if something lies where a new folder is to be."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise error(f"output must be a new or empty folder, got {output}. Choose another one.")


@contextmanager
def new_folder(output: Path, error: type[ValueError] = ValueError) -> Iterator[Path]:
    """
    Fill a folder aside, and give it its name when it is complete.

    Raises:
        error: If something lies at `output` already; nothing is changed then.
    """
    check_unused(output, error)
    partial = aside(output)
    shutil.rmtree(partial, ignore_errors=True)  # Of a process that was killed.
    partial.mkdir(parents=True)
    try:
        yield partial
        if output.exists():
            output.rmdir()
        partial.rename(output)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
