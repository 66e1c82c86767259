"""A folder of safetensors as a mapping of tensors that are read when they are asked for."""

import json
import struct
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .folder import CheckpointError, weight_files
from .writing import whole_file

# Names of the dtypes in a safetensors header.
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class Checkpoint:
    """
    The weights of a model folder, one file or several, without loading them.

    Use it as a context manager: files stay mapped, not read, until it is left.

    Args:
        folder (`str` or `Path`): What `save_pretrained` wrote.

    Attributes:
        shapes (`dict[str, tuple[int, ...]]`): Tensor name -> shape, in the order of the files.
        dtypes (`dict[str, str]`): Tensor name -> dtype as safetensors names it (`"F32"`, `"BF16"`, ...).

    Raises:
        CheckpointError: If the folder holds no safetensors weights, or they are damaged.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._stack = ExitStack()
        self._file_of: dict = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        try:
            for path in weight_files(self.folder):
                file = self._stack.enter_context(safe_open(path, framework="pt"))
                for name in file.keys():  # noqa: SIM118
                    part = file.get_slice(name)
                    self._file_of[name] = file
                    self.shapes[name] = tuple(part.get_shape())
                    self.dtypes[name] = part.get_dtype()
        except (SafetensorError, OSError) as error:
            self._stack.close()
            raise CheckpointError(
                f"The weights in {self.folder} cannot be read: {error}. Write the folder again."
            ) from error

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop` of a tensor; a 0-d tensor whole."""
        if not self.shapes[name]:
            return self._file_of[name].get_tensor(name)
        return self._file_of[name].get_slice(name)[start:stop]

    def tensor(self, name: str) -> Tensor:
        """A whole tensor."""
        return self.rows(name, 0, self.shapes[name][0] if self.shapes[name] else 1)

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(self, *exception) -> None:
        self._stack.close()


def write_streamed(
    path: Path, shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, str], pieces: Iterator[Tensor]
) -> None:
    """
    Write tensors of known shapes without holding them.

    Args:
        path (`Path`): The file to write.
        shapes, dtypes (`Mapping`): Name -> shape and safetensors dtype, in the order of the bytes.
        pieces (`Iterator[Tensor]`): The contiguous pieces of the tensors, in that order.
    """
    header: dict = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + DTYPES[dtypes[name]].itemsize * torch.Size(shape).numel()
        header[name] = {"dtype": dtypes[name], "shape": list(shape), "data_offsets": [start, end]}
    with SafetensorsWriter(path, len(json.dumps(header, separators=(",", ":")))) as file:
        for piece in pieces:
            file.write(piece)
        if file.written != end:
            raise CheckpointError(f"{path} should hold {end} bytes of weights, {file.written} were written.")
        file.finish(header)


class SafetensorsWriter:
    """
    A safetensors file that is written piece by piece, its header last.

    `safetensors.torch.save_file` wants every tensor in memory at once; the format itself (a JSON header, then the bytes
    of the tensors one after the other) does not. The file appears under its name only when it is whole.

    Args:
        path (`Path`): The file to write.
        reserve (`int`): Bytes that the header may take; what it leaves is filled with spaces, as the format allows.

    Attributes:
        start (`int`): Where in the file the tensors begin.
        written (`int`): Bytes of tensors so far.
    """

    def __init__(self, path: Path, reserve: int):
        self.path, self.written = path, 0
        self._whole = whole_file(path)
        self._reserved = reserve + -reserve % 8
        self.start = 8 + self._reserved

    def write(self, piece: Tensor) -> None:
        """Append the bytes of a tensor."""
        data = piece.contiguous().reshape(-1).view(torch.uint8).numpy().data
        self._file.write(data)
        self.written += len(data)

    def flush(self) -> Path:
        """Where what was written can be read already."""
        self._file.flush()
        return Path(self._file.name)

    def finish(self, header: Mapping) -> None:
        """Write the header: `"__metadata__"`, and name -> dtype, shape and data offsets."""
        text = json.dumps(header, separators=(",", ":")).encode().ljust(self._reserved)
        assert len(text) == self._reserved, "the header is longer than what was reserved"
        self._file.seek(0)
        self._file.write(struct.pack("<Q", len(text)) + text)

    def __enter__(self) -> "SafetensorsWriter":
        self._file = self._whole.__enter__()
        self._file.seek(self.start)
        return self

    def __exit__(self, *exception) -> None:
        self._whole.__exit__(*exception)
