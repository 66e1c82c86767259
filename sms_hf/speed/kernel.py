"""The kernel: compiled once per machine, by the compiler that is there."""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("kernel.c")
# Not -ffast-math: linked into a library it makes the whole process take tiny numbers for zeros.
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fopenmp", "-shared", "-fPIC")
MOST_COLUMNS = 1 << 16
"""Columns are numbered in 16 bits."""


def cache_folder() -> Path:
    """Where compiled kernels and measurements of this machine lie: `sms_hf` in `$XDG_CACHE_HOME`, by default `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sms_hf"


@contextmanager
def cached_file(path: Path) -> Iterator[Path]:
    """Where to write a file of the cache, which then appears at `path`, whole, however many processes write it at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        partial = Path(folder) / path.name
        yield partial
        os.replace(partial, path)


@functools.cache
def processor() -> str:
    """What a compiled kernel and a measurement hold for: the processor's name and the instructions it knows."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name += "".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
    except OSError:
        pass  # Not Linux: the name has to do.
    return name


@functools.cache
def load_kernel() -> ctypes.CDLL | None:
    """The compiled kernel; `None` where no C compiler is there, or it fails."""
    compiler = shutil.which(os.environ.get("CC") or "cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    key = hashlib.sha256(
        "\0".join([SOURCE.read_text(encoding="utf-8"), *FLAGS, compiler, processor()]).encode()
    ).hexdigest()
    path = cache_folder() / f"kernel-{key[:16]}.so"
    try:
        if not path.is_file():
            with cached_file(path) as built:
                _compile(compiler, built)
        library = ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError):
        return None
    library.sparse_linear.restype = None
    library.sparse_linear.argtypes = [ctypes.c_void_p] * 7 + [ctypes.c_long] * 3 + [ctypes.c_int]
    library.tile_rows.restype = ctypes.c_long
    library.int8_linear.restype = None
    library.int8_linear.argtypes = [ctypes.c_void_p] * 5 + [ctypes.c_long] * 3 + [ctypes.c_int]
    return library


def _compile(compiler: str, target: Path) -> None:
    """Raise `CalledProcessError` where the compiler refuses, with threads and without."""
    for flags in (FLAGS, [flag for flag in FLAGS if flag != "-fopenmp"]):
        command = [compiler, *flags, str(SOURCE), "-o", str(target)]
        done = subprocess.run(command, check=False, capture_output=True, timeout=120)
        if done.returncode == 0:
            return
    done.check_returncode()


class SparseMatrix:
    """
    A matrix of `(outputs, columns)` for the kernel: its kept values row by row, each with a 16-bit column.

    Args:
        weight (`Tensor`): Float32, of at most 65,536 columns.
    """

    def __init__(self, weight: Tensor):
        library = load_kernel()
        assert library is not None
        kept = weight != 0
        self.outputs, self.columns = weight.shape
        start = torch.zeros(len(weight) + 1, dtype=torch.int32)
        start[1:] = kept.sum(1).cumsum(0)
        self._parts = (start, kept.nonzero()[:, 1].to(torch.uint16), weight[kept].contiguous())
        self._pointers = [part.data_ptr() for part in self._parts]
        self._multiply, self._tile_size = library.sparse_linear, library.tile_rows() * self.columns

    def multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """`x W^T + b` for a contiguous float32 `x` of `(rows, columns)`."""
        rows = len(x)
        y = torch.empty(rows, self.outputs)
        tile = torch.empty(self._tile_size if rows > 1 else 0)
        ends = (None if bias is None else bias.data_ptr(), *self._pointers, tile.data_ptr())
        self._multiply(x.data_ptr(), y.data_ptr(), *ends, rows, self.columns, self.outputs, torch.get_num_threads())
        return y


class ByteMatrix:
    """
    A dense matrix of `(outputs, columns)` for the kernel, rounded to 8 bits: the largest weight of each output is 127 steps.

    Args:
        weight (`Tensor`): Float32.
    """

    def __init__(self, weight: Tensor):
        library = load_kernel()
        assert library is not None
        self.outputs, self.columns = weight.shape
        scale = (weight.abs().amax(1) / 127).clamp_min(torch.finfo(torch.float32).tiny)
        self._parts = ((weight / scale[:, None]).round().to(torch.int8), scale)
        self._pointers = [part.data_ptr() for part in self._parts]
        self._multiply = library.int8_linear

    def multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """`x W^T + b` for a contiguous float32 `x` of `(rows, columns)`."""
        y = torch.empty(len(x), self.outputs)
        ends = (None if bias is None else bias.data_ptr(), *self._pointers)
        self._multiply(x.data_ptr(), y.data_ptr(), *ends, len(x), self.columns, self.outputs, torch.get_num_threads())
        return y
