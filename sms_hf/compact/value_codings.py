"""
Values as bytes with their exponents coded: lossless, and smaller because trained weights use few exponents.

The layout is that of `docs/compact-format.md`, section "The exponents of a tensor". A Huffman code (Huffman 1952) is near the
entropy of such exponents, and zlib's (`Z_HUFFMAN_ONLY`) is everywhere; signs and mantissas look random and stay as they are.
"""

import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..files.checkpoint import DTYPES
from ..files.forms import CompactError
from .mask_codings import MAX_DIMS, Bytes

FEWEST = 1024
"""Smaller tensors would not pay for what describes them. A rule by shape, so that tensors that a model fuses are alike."""

PART = 1 << 16

_FIXED = struct.Struct("<4sBxxxQQ")
_CODED = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


@dataclass(frozen=True)
class ExponentHead:
    """
    What stored exponents say about their tensor.

    Attributes:
        dtype (`str`): As safetensors names it.
        count (`int`): Values.
        payload (`int`): Bytes of the coded exponents.
        shape (`tuple[int, ...]`): Of the values: that of the tensor, or one dimension where a mask holds it.
    """

    dtype: str
    count: int
    payload: int
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes before the payload."""
        return _FIXED.size + 8 * len(self.shape)

    @property
    def rest(self) -> int:
        """Bytes that signs and mantissas take: all but one a value, up to a multiple of 8."""
        return _padded(self.count * (DTYPES[self.dtype].itemsize - 1))


def can_code(weight: Tensor) -> bool:
    """Whether exponents of such a tensor are coded: by dtype and shape alone."""
    return weight.dtype in _CODED and 2 <= weight.dim() <= MAX_DIMS and weight.numel() >= FEWEST


def encode_values(values: Tensor) -> tuple[Tensor, Tensor]:
    """
    Signs and mantissas, and the coded exponents.

    Args:
        values (`Tensor`): float32, bfloat16 or float16, on the CPU, 1 to 8 dimensions.

    Returns:
        `tuple[Tensor, Tensor]`: Two rows of uint8, each a multiple of 8 bytes long.
    """
    kind, whole = _kinds(values.element_size())
    bits = values.contiguous().reshape(-1).view(whole).numpy().view(kind)
    rest, low, middle = _rest(bits.size, kind.itemsize)
    coder, coded = zlib.compressobj(1, zlib.DEFLATED, 15, 9, zlib.Z_HUFFMAN_ONLY), []
    for part in _parts(bits.size):
        # The sign goes to the lowest bit, so that the highest byte is the exponent (of float16: and three bits of the mantissa).
        turned = bits[part] << kind.type(1)
        turned |= bits[part] >> kind.type(8 * kind.itemsize - 1)
        planes = turned.view(np.uint8).reshape(-1, kind.itemsize)
        coded.append(coder.compress(np.ascontiguousarray(planes[:, -1]).data))
        middle[part] = planes[:, -2]
        if low is not None:
            low[part] = turned.view("<u2")[::2]
    coded = b"".join([*coded, coder.flush()])
    head = _FIXED.pack(_CODED[values.dtype].encode(), values.dim(), bits.size, len(coded))
    head += struct.pack(f"<{values.dim()}Q", *values.shape)
    row = np.frombuffer((head + coded).ljust(_padded(len(head) + len(coded)), b"\0"), np.uint8)
    return torch.from_numpy(rest), torch.from_numpy(row.copy())


def decode_values(rest: Tensor, coded: Tensor) -> Tensor:
    """
    Inverse of [`encode_values`].

    Raises:
        CompactError: If the two do not fit each other, or the code is damaged.
    """
    blob, size = coded.numpy(), DTYPES[(head := read_exponents(coded.numpy())).dtype].itemsize
    check_rest(rest.shape, head)
    kind, _ = _kinds(size)
    _, low, middle = _rest(head.count, size, rest.numpy())
    if rest.numpy()[head.count * (size - 1) :].any() or blob[head.size + head.payload :].any():
        raise CompactError("The bytes after signs, mantissas and exponents must be zero: the file is damaged.")
    bits, coder = np.empty(head.count, kind), zlib.decompressobj()
    code = blob[head.size : head.size + head.payload].tobytes()
    try:
        for part in _parts(head.count):
            exponents = coder.decompress(code, part.stop - part.start)
            code = coder.unconsumed_tail
            turned = np.empty(part.stop - part.start, kind)
            planes = turned.view(np.uint8).reshape(-1, size)
            planes[:, -1], planes[:, -2] = np.frombuffer(exponents, np.uint8), middle[part]
            if low is not None:
                turned.view("<u2")[::2] = low[part]
            np.right_shift(turned, kind.type(1), out=bits[part])
            bits[part] |= turned << kind.type(8 * size - 1)
        ends = coder.decompress(code, 1) == b"" and coder.eof and not coder.unused_data
    except (zlib.error, ValueError) as error:  # Too few exponents do not fit into their place.
        raise CompactError(f"{head.count} exponents cannot be decoded ({error}): the file is damaged.") from None
    if not ends:
        raise CompactError(f"A tensor must have {head.count} exponents, its code has more: the file is damaged.")
    return torch.from_numpy(bits.view(kind.str.replace("u", "i"))).view(DTYPES[head.dtype]).reshape(head.shape)


def read_exponents(blob: Bytes) -> ExponentHead:
    """
    Read what stands before the payload, and check it.

    Raises:
        CompactError: If a field is out of its range or disagrees with the length.
    """
    start = blob[: _FIXED.size + 8 * MAX_DIMS].tobytes()
    if len(start) < _FIXED.size:
        raise CompactError(f"Exponents have at least {_FIXED.size} bytes, got {len(start)}: the file is damaged.")
    name, ndim, count, payload = _FIXED.unpack_from(start)
    dtype = name.rstrip(b"\0").decode("ascii", "replace")
    if dtype not in _CODED.values():
        raise CompactError(f"Exponents are those of {', '.join(_CODED.values())}, got {dtype!r}: damaged.")
    if not 1 <= ndim <= MAX_DIMS or start[5:8] != b"\0\0\0" or len(start) < _FIXED.size + 8 * ndim:
        raise CompactError(f"Exponents must have 1 to {MAX_DIMS} dimensions and their whole head, got {ndim}: damaged.")
    head = ExponentHead(dtype, count, payload, struct.unpack_from(f"<{ndim}Q", start, _FIXED.size))
    if math.prod(head.shape) != count or count >= 2**48:
        raise CompactError(f"A tensor of shape {head.shape} cannot have {count} exponents: the file is damaged.")
    if not 0 <= blob.size - head.size - payload < 8:
        raise CompactError(f"Exponents say that they have {head.size + payload} bytes, got {blob.size}: damaged.")
    return head


def check_rest(shape: tuple[int, ...], head: ExponentHead) -> None:
    """Raise [`CompactError`] unless signs and mantissas of this shape fit the exponents."""
    if tuple(shape) != (head.rest,):
        raise CompactError(f"{head.count} values of {head.dtype} need {head.rest} bytes, got {tuple(shape)}: damaged.")


def _kinds(item_size: int) -> tuple[np.dtype, torch.dtype]:
    """Whole numbers of that size, of numpy (unsigned) and of torch."""
    return np.dtype(f"<u{item_size}"), {2: torch.int16, 4: torch.int32}[item_size]


def _parts(count: int) -> Iterator[slice]:
    """Pieces that stay in the cache of a processor."""
    return (slice(start, min(start + PART, count)) for start in range(0, count, PART))


def _rest(count: int, item_size: int, row: Bytes | None = None) -> tuple[Bytes, NDArray[np.uint16] | None, Bytes]:
    """The row of signs and mantissas, and in it the two lowest bytes (of four) and the one above them."""
    if row is None:
        row = np.zeros(_padded(count * (item_size - 1)), np.uint8)
    begin = count * (item_size - 2)
    return row, row[:begin].view("<u2") if item_size == 4 else None, row[begin : begin + count]


def _padded(size: int) -> int:
    return size + -size % 8
