"""
The compact file: safetensors in which a sparse matrix is its kept values and a coded mask, and exponents may be coded.

`docs/compact-format.md` describes it for other programs. What is left of the values stands under the weight's own name, so
that a program which does not know the format meets a tensor of the wrong shape: an error, and never random weights.
"""

import hashlib
import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..files.ahead import ahead
from ..files.checkpoint import DTYPES, SafetensorsWriter, write_streamed
from ..files.folder import CheckpointError
from ..files.forms import CompactError
from ..sparsity.masks import Masks, check_zeros, nonzero
from .mask_codings import MaskHead, decode_mask, encode_mask, read_head
from .value_codings import ExponentHead, can_code, check_rest, decode_values, encode_values, read_exponents

FORMAT = "sms_hf.compact"
VERSION = 2
MASK = "_mask"
"""What follows a weight's name in the name of its mask."""

EXPONENTS = "_exponents"
"""What follows a weight's name in the name of its exponents."""

PARTS = {1: (MASK,), 2: (MASK, EXPONENTS)}
"""Version -> what may stand beside a tensor. Version 1 is read, no longer written."""

PIECE = 1 << 22
"""Bytes that are hashed at a time. From version 2 on the checksum is one of pieces, which several threads hash."""

MAX_EXPANSION = 1000
"""A tensor is at most so many times larger than its bytes in the file: a small file cannot ask for all memory."""

_MAX_HEADER = 100_000_000  # As in safetensors.
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_NUMPY = {1: np.int8, 2: np.int16, 4: np.int32, 8: np.int64}


@dataclass(frozen=True)
class Stored:
    """
    A tensor in a compact file.

    Attributes:
        shape (`tuple[int, ...]`): Of the tensor that it stands for.
        dtype (`str`): As safetensors names it.
        num_bytes (`int`): In the file, mask included.
        mask (`MaskHead`, *optional*): Of a packed tensor; None where no weight is left out.
        exponents (`ExponentHead`, *optional*): None where they are not coded.
    """

    shape: tuple[int, ...]
    dtype: str
    num_bytes: int
    mask: MaskHead | None
    exponents: ExponentHead | None = None

    @property
    def num_weights(self) -> int:
        return math.prod(self.shape)

    @property
    def coding(self) -> str:
        """How mask and exponents are stored: `"bitmask"`, `"rice+exponents"`; empty for a tensor that is stored as it is."""
        found = [] if self.mask is None else [self.mask.name]
        return "+".join(found if self.exponents is None else [*found, "exponents"])

    @property
    def parts(self) -> list[str]:
        """What stands beside the tensor: of `MASK` and `EXPONENTS`."""
        return [part for part, head in ((MASK, self.mask), (EXPONENTS, self.exponents)) if head is not None]

    @property
    def sparsity(self) -> float:
        """Fraction removed, in `[0, 1]`; 0 for a tensor that is stored as it is."""
        return 0.0 if self.mask is None else 1.0 - self.mask.num_kept / self.num_weights


# ---- One tensor --------------------------------------------------------------------------------------------------------


def pack_tensor(name: str, weight: Tensor, mask: Tensor | None, entropy_coded: bool) -> dict[str, Tensor]:
    """
    A weight in the form in which it is stored.

    Args:
        name (`str`): For errors.
        weight (`Tensor`): On the CPU.
        mask (`Tensor`, *optional*): bool, of the weight's shape. Default: where the weight is not zero. Without it a
            negative zero becomes a zero, and so does one that the mask removes; everything else is kept bit for bit.
        entropy_coded (`bool`): Also try the Rice code for the mask, and code the exponents.

    Returns:
        `dict[str, Tensor]`: `""`: the weight as it is, or its kept values, or their signs and mantissas; `MASK` and `EXPONENTS`,
        rows of uint8, where they are.

    Raises:
        MaskError: If a weight that the mask removes is not zero.
    """
    values, parts = weight, {}
    if (found := _kept(name, weight, mask, entropy_coded)) is not None:
        values, parts[MASK] = found
    if entropy_coded and can_code(weight):
        values, parts[EXPONENTS] = encode_values(values)
    return {"": values, **parts}


def _kept(name: str, weight: Tensor, mask: Tensor | None, entropy_coded: bool) -> tuple[Tensor, Tensor] | None:
    """The kept values and the mask, or None where that would not be smaller."""
    if weight.dim() < 2 or weight.dim() > 8 or weight.numel() == 0 or not weight.is_floating_point():
        return None
    if mask is None:
        mask = nonzero(weight)
    else:
        check_zeros(name, weight, mask)
    kept = int(np.count_nonzero(mask.numpy()))
    if kept * weight.itemsize + weight.numel() // 16 >= weight.numel() * weight.itemsize:
        return None  # Not even a mask of half a bit a weight would help.
    coded = encode_mask(mask.numpy(), entropy_coded)
    if weight.nbytes > MAX_EXPANSION * (kept * weight.itemsize + coded.size):
        coded = encode_mask(mask.numpy())
    if kept * weight.itemsize + coded.size >= weight.nbytes:
        return None
    bits = weight.contiguous().reshape(-1).view(_BITS[weight.itemsize]).numpy()
    values = torch.empty(kept, dtype=weight.dtype)
    # Five times as fast as an index of bools.
    bits.take(np.flatnonzero(mask.numpy()), out=values.view(_BITS[weight.itemsize]).numpy(), mode="clip")
    return values, torch.from_numpy(coded)


def unpack_tensor(parts: Mapping[str, Tensor]) -> Tensor:
    """
    Inverse of [`pack_tensor`].

    Raises:
        CompactError: If mask or exponents are damaged, or do not fit the values.
    """
    values = parts[""]
    num_bytes = sum(part.nbytes for part in parts.values())
    if EXPONENTS in parts:
        values = decode_values(values, parts[EXPONENTS])
    if MASK not in parts:
        return values
    blob = parts[MASK].numpy()
    head = read_head(blob)
    check_packed(values.shape, values.element_size(), head, num_bytes)
    positions = decode_mask(blob, head)
    bits = _BITS[values.element_size()]
    # Zeros of numpy, which asks for huge pages: most of the time would go into page faults.
    weight = np.zeros(head.num_weights, _NUMPY[values.element_size()])
    weight[positions] = values.contiguous().view(bits).numpy()
    return torch.from_numpy(weight).view(values.dtype).reshape(head.shape)


def check_packed(values: tuple[int, ...], item_size: int, head: MaskHead, num_bytes: int) -> None:
    """Raise [`CompactError`] unless the shape of the values fits the mask, and the tensor its bytes in the file."""
    if tuple(values) != (head.num_kept,):
        raise CompactError(f"A mask keeps {head.num_kept} weights, but the values have shape {tuple(values)}: damaged.")
    if head.num_weights * item_size > MAX_EXPANSION * num_bytes:
        raise CompactError(
            f"A tensor of shape {head.shape} cannot come from {num_bytes} bytes: a compact file expands a tensor at most "
            f"{MAX_EXPANSION} times."
        )


# ---- A file ------------------------------------------------------------------------------------------------------------


class CompactFile:
    """
    A compact file, checked when it is opened and read tensor by tensor.

    Use it as a context manager.

    Args:
        path (`str` or `Path`): The file.

    Attributes:
        tensors (`dict[str, Stored]`): Name -> what is stored, in the order of the file.
        model_type (`str`): That of the configuration of the model whose weights these are.

    Raises:
        CompactError: If the file is damaged, of a later version, or no compact file.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            self._open()
        except CompactError as error:
            raise CompactError(f"{self.path}: {error}") from None
        except (SafetensorError, OSError, struct.error) as error:
            raise CompactError(f"{self.path} cannot be read: {error}. Fetch or write the file anew.") from error

    def _open(self) -> None:
        self._file = safe_open(self.path, framework="pt")  # Checks offsets and sizes.
        header, start = _read_header(self.path)
        about = _about(header)
        self.model_type: str = about["model_type"]
        if _digest(self.path, start, header, about) != about["sha256"]:
            raise CompactError("The file does not match its checksum: fetch or write it anew.")
        self.tensors: dict[str, Stored] = {}
        entries = {name: e for name, e in header.items() if name != "__metadata__"}
        suffixes = PARTS[about["version"]]
        beside = {name + part for name in entries for part in suffixes if _is_part(name + part, name, entries)}
        for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
            if name not in beside:
                self.tensors[name] = self._stored(
                    name, entry, {p: entries[name + p] for p in suffixes if name + p in beside}
                )

    def _stored(self, name: str, entry: Mapping[str, Any], beside: Mapping[str, Mapping[str, Any]]) -> Stored:
        size = sum(e["data_offsets"][1] - e["data_offsets"][0] for e in (entry, *beside.values()))
        dtype, shape, mask, exponents = entry["dtype"], tuple(entry["shape"]), None, None
        try:
            if EXPONENTS in beside:
                exponents = read_exponents(self._bytes(name + EXPONENTS))
                check_rest(shape, exponents)
                if dtype != "U8":
                    raise CompactError(f"Signs and mantissas must be U8, got {dtype}: the file is damaged.")
                dtype, shape = exponents.dtype, exponents.shape
                if math.prod(shape) * DTYPES[dtype].itemsize > MAX_EXPANSION * size:
                    raise CompactError(f"A tensor of shape {shape} cannot come from {size} bytes: the file is damaged.")
            if MASK in beside:
                if dtype not in DTYPES or not DTYPES[dtype].is_floating_point:
                    raise CompactError(f"The values of a packed tensor must be floating, got {dtype}.")
                mask = read_head(self._bytes(name + MASK))
                check_packed(shape, DTYPES[dtype].itemsize, mask, size)
                shape = mask.shape
        except CompactError as error:
            raise CompactError(f"tensor {name!r}: {error}") from None
        return Stored(shape, dtype, size, mask, exponents)

    def _bytes(self, name: str) -> np.ndarray:
        return self._file.get_tensor(name).numpy()

    def read(self, name: str) -> Tensor:
        """
        A tensor, unpacked.

        Raises:
            CompactError: If its mask or its exponents are damaged.
        """
        try:
            return unpack_tensor({part: self._file.get_tensor(name + part) for part in ("", *self.tensors[name].parts)})
        except CompactError as error:
            raise CompactError(f"{self.path}: tensor {name!r}: {error}") from None

    def masks(self) -> Masks:
        """The masks of the packed tensors."""
        masks = {}
        for name, stored in self.tensors.items():
            if stored.mask is not None:
                mask = torch.zeros(stored.num_weights, dtype=torch.bool)
                mask.numpy()[decode_mask(self._bytes(name + MASK), stored.mask)] = True
                masks[name] = mask.reshape(stored.shape)
        return Masks(masks)

    def __enter__(self) -> "CompactFile":
        return self

    def __exit__(self, *_) -> None:
        self._file.__exit__(None, None, None)


def is_compact(path: str | Path) -> bool:
    """Whether a safetensors file says that it is a compact file."""
    try:
        with safe_open(path, framework="pt") as file:
            return FORMAT in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def write_compact(
    source: Path, path: Path, model_type: str, masks: Mapping[str, Tensor] | None = None, entropy_coded: bool = False
) -> None:
    """
    Write the compact form of a safetensors file; in memory are as many tensors as there are threads.

    Args:
        source (`Path`): What `save_pretrained` wrote.
        path (`Path`): The compact file.
        model_type (`str`): That of the model's configuration.
        masks (`Mapping[str, Tensor]`, *optional*): Of the tensors that have one; others are packed by their zeros.
        entropy_coded (`bool`, *optional*): As in [`pack_tensor`].

    Raises:
        CheckpointError: If the source cannot be read, or is a compact file already.
        MaskError: If a weight that its mask removes is not zero.
    """
    if is_compact(source):
        raise CheckpointError(f"{source} is a compact file already. Pack the dense one, or unpack this one first.")
    masks = masks or {}
    about = {"version": VERSION, "model_type": model_type, "sha256": "0" * 64}
    try:
        with safe_open(source, framework="pt") as file:
            shapes = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            clash = [name + part for name in shapes for part in PARTS[VERSION] if name + part in shapes]
            if clash:
                raise CheckpointError(f"{clash[0]!r} is the name of a tensor in {source}: it cannot be packed.")

            def packed(name: str) -> dict[str, Tensor]:
                weight, mask = file.get_tensor(name), masks.get(name)
                fits = mask is not None and mask.shape == weight.shape
                return pack_tensor(name, weight, mask if fits else None, entropy_coded)

            # Wide numbers first, then every tensor begins at a multiple of its item size.
            order = sorted(shapes, key=lambda name: -DTYPES[shapes[name].get_dtype()].itemsize)
            with SafetensorsWriter(path, _reserve(shapes, about)) as target:
                header: dict[str, Any] = {}
                for name, parts in zip(order, ahead(packed, order), strict=True):
                    for key, part in parts.items():
                        begin = target.written
                        target.write(part)
                        header[name + key] = {
                            "dtype": "U8" if key or EXPONENTS in parts else shapes[name].get_dtype(),
                            "shape": list(part.shape),
                            "data_offsets": [begin, target.written],
                        }
                about["sha256"] = _digest(target.flush(), target.start, header, about)
                target.finish({"__metadata__": _metadata(about), **header})
    except (SafetensorError, OSError, KeyError) as error:
        raise CheckpointError(f"{source} cannot be packed: {error}. Write the folder again.") from error


def write_dense(source: Path, path: Path) -> list[str]:
    """Inverse of [`write_compact`]: an ordinary safetensors file; the names of its tensors."""
    with CompactFile(source) as file:
        shapes = {name: stored.shape for name, stored in file.tensors.items()}
        dtypes = {name: stored.dtype for name, stored in file.tensors.items()}
        pieces: Iterator[Tensor] = ahead(file.read, list(file.tensors))
        write_streamed(path, shapes, dtypes, pieces)
    return list(shapes)


# ---- The header --------------------------------------------------------------------------------------------------------


def _is_part(name: str, of: str, entries: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether this is the mask, say, of another tensor: it has its name, and is a row of bytes."""
    entry = entries.get(name)
    return entry is not None and of in entries and entry["dtype"] == "U8" and len(entry["shape"]) == 1


def _metadata(about: Mapping[str, Any]) -> dict[str, str]:
    return {"format": "pt", FORMAT: json.dumps(about, sort_keys=True, separators=(",", ":"))}


def _reserve(shapes: Mapping[str, Any], about: Mapping[str, Any]) -> int:
    """Length of the longest header that these tensors can need."""
    end = sum(DTYPES[s.get_dtype()].itemsize * math.prod(s.get_shape()) + 256 for s in shapes.values())
    header: dict[str, Any] = {"__metadata__": _metadata(about)}
    for name, part in shapes.items():
        shape = part.get_shape()
        header[name] = {"dtype": part.get_dtype(), "shape": shape, "data_offsets": [end, end]}
        for suffix in PARTS[VERSION] if len(shape) > 1 else ():
            header[name + suffix] = {"dtype": "U8", "shape": [end], "data_offsets": [end, end]}
    return len(json.dumps(header, separators=(",", ":")))


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file that `safe_open` has checked, and where the tensors begin."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > min(_MAX_HEADER, path.stat().st_size):
            raise CompactError(f"A header of {length} bytes is longer than the file or the format allows.")
        return json.loads(file.read(length)), 8 + length


def _about(header: Mapping[str, Any]) -> dict[str, Any]:
    """What a compact file says about itself, checked."""
    metadata = header.get("__metadata__") or {}
    if FORMAT not in metadata:
        raise CompactError(
            f"This must be a compact file ({FORMAT}), got metadata {sorted(metadata)}. Is it a dense one?"
        )
    try:
        about = json.loads(metadata[FORMAT])
    except (json.JSONDecodeError, RecursionError) as error:
        raise CompactError(f"The description of the file is no JSON ({error}): fetch or write it anew.") from None
    kinds = {"version": int, "model_type": str, "sha256": str}
    if not isinstance(about, dict) or any(not isinstance(about.get(key), kind) for key, kind in kinds.items()):
        raise CompactError(f"The description of the file must hold {', '.join(kinds)}: fetch or write it anew.")
    if about["version"] not in PARTS:
        raise CompactError(
            f"The file has version {about['version']} of the format, this sms_hf reads {' and '.join(map(str, PARTS))}. Upgrade "
            "sms_hf."
        )
    return about


def _canonical(tensors: Mapping[str, Any], about: Mapping[str, Any]) -> bytes:
    """What of the header goes into the checksum: all but the checksum itself."""
    known = {key: value for key, value in about.items() if key != "sha256"}
    return json.dumps({"about": known, "tensors": tensors}, sort_keys=True, separators=(",", ":")).encode()


def _digest(path: Path, start: int, header: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    """Of version 1: of all bytes in one go; else of the digests of pieces."""
    tensors = {name: e for name, e in header.items() if name != "__metadata__"}
    pieces = range(start, path.stat().st_size, PIECE)
    digest = hashlib.sha256()
    if about["version"] == 1:
        for at in pieces:
            digest.update(_piece(path, at))
    else:
        for hashed in ahead(lambda at: hashlib.sha256(_piece(path, at)).digest(), pieces):
            digest.update(hashed)
    digest.update(_canonical(tensors, about))
    return digest.hexdigest()


def _piece(path: Path, start: int) -> bytes:
    with open(path, "rb", buffering=0) as file:
        file.seek(start)
        return file.read(PIECE)
