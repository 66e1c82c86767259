"""A disk that is soon full, or that cannot be written to."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SIZE = 64 << 20


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """
    A file system of `SIZE` bytes in memory, mounted on a folder. Needs root: `unshare -rm python ...` gives it to anybody.

    Raises:
        PermissionError: Where mounting is not allowed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    with suppress(FileNotFoundError):
        mounted = subprocess.run(command, capture_output=True, text=True)
        if mounted.returncode == 0:
            try:
                yield folder
            finally:
                subprocess.run(["umount", "-l", str(folder)], check=True)
            return
    raise PermissionError(f"Expected to be allowed to mount a tmpfs on {folder}. Start with `unshare -rm`.")


def can_mount(folder: Path) -> bool:
    """Whether `small_disk` works here."""
    try:
        with small_disk(folder):
            return True
    except PermissionError:
        return False


def fill(disk: Path, leave: int) -> Path:
    """Occupy a disk but for so many bytes; removing the file that is returned makes room."""
    ballast = disk / "ballast"
    size = max(shutil.disk_usage(disk).free - leave, 0)
    with open(ballast, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, size)
    return ballast


def set_writable(disk: Path, writable: bool) -> bool:
    """Whether it could be done: a disk stays writable while a file on it is open for writing."""
    command = ["mount", "-o", f"remount,{'rw' if writable else 'ro'},size={SIZE}", str(disk)]
    return subprocess.run(command, capture_output=True).returncode == 0


def used(disk: Path) -> int:
    return shutil.disk_usage(disk).used
