"""
One mask as bytes: plain bits, entropy coded, or N:M.

The layout is that of `docs/compact-format.md`, section "The mask of a tensor". A mask carries its shape and a checksum, so
that it can be read without anything else. Everything is decoded into positions: of the weights that are kept, in row-major
order.
"""

import hashlib
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..files.forms import CompactError

Bytes = NDArray[np.uint8]
Positions = NDArray[np.int64]

MAX_DIMS = 8
MAX_RICE = 24
MAX_GROUP = 16
"""A table of all patterns of M bits is made to encode and to decode them."""

_FIXED = struct.Struct("<BBBBBxxxQQ")
_CHECKSUM = 32


@dataclass(frozen=True)
class MaskHead:
    """
    What a stored mask says about itself.

    Attributes:
        coding (`int`): Row of `CODINGS`.
        first, second, axis (`int`): Parameters of the coding: the Rice parameter; N, M and the dimension of the groups.
        num_kept (`int`): Weights that are kept.
        payload (`int`): Bytes of the coded mask.
        shape (`tuple[int, ...]`): Of the weight.
        checksum (`bytes`): SHA-256 of shape and plain bits.
    """

    coding: int
    first: int
    second: int
    axis: int
    num_kept: int
    payload: int
    shape: tuple[int, ...]
    checksum: bytes

    @property
    def size(self) -> int:
        """Bytes before the payload."""
        return _FIXED.size + 8 * len(self.shape) + _CHECKSUM

    @property
    def num_weights(self) -> int:
        return math.prod(self.shape)

    @property
    def name(self) -> str:
        """The coding in words: `"bitmask"`, `"rice"`, `"2:4"`."""
        return CODINGS[self.coding].name.format(n=self.first, m=self.second)


def encode_mask(mask: NDArray[np.bool_], entropy_coded: bool = False) -> Bytes:
    """
    The shortest form of a mask.

    Args:
        mask (`ndarray`): bool, 1 to 8 dimensions, none of them 0; `True` = kept.
        entropy_coded (`bool`, *optional*, defaults to `False`): Also try the Rice code, which is near the entropy of the
            mask but slower to read. N:M masks are always found and stored as such where that is shorter.

    Returns:
        `ndarray`: uint8, 1-D, a multiple of 8 bytes long.
    """
    bits = np.packbits(mask.reshape(-1), bitorder="little")
    first = second = axis = coding = 0
    payload = bits
    if entropy_coded:
        k, rice = _encode_rice(mask)
        if rice.size < payload.size:
            coding, first, payload = 1, k, rice
    nm = find_nm(mask)
    if nm is not None and -(-(mask.size // nm[1]) * _width(*nm[:2]) // 8) < payload.size:
        coding, (first, second, axis) = 2, nm
        payload = _encode_nm(mask, *nm)
    kept = int(np.count_nonzero(mask))
    fixed = _FIXED.pack(coding, first, second, axis, mask.ndim, kept, payload.size)
    dims = struct.pack(f"<{mask.ndim}Q", *mask.shape)
    head = np.frombuffer(fixed + dims + _checksum(dims, bits), dtype=np.uint8)
    padding = np.zeros(-(head.size + payload.size) % 8, dtype=np.uint8)
    return np.concatenate([head, payload, padding])


def read_head(blob: Bytes) -> MaskHead:
    """
    Read what stands before the payload, and check it; at most 120 bytes are looked at besides the length.

    Raises:
        CompactError: If a field is out of its range or disagrees with the length.
    """
    start = blob[: _FIXED.size + 8 * MAX_DIMS + _CHECKSUM].tobytes()
    if len(start) < _FIXED.size:
        raise CompactError(f"A mask has at least {_FIXED.size} bytes, got {len(start)}: the file is damaged.")
    coding, first, second, axis, ndim, kept, payload = _FIXED.unpack_from(start)
    if coding >= len(CODINGS):
        raise CompactError(f"Coding of a mask must be below {len(CODINGS)}, got {coding}: a later version, or damage.")
    if not 1 <= ndim <= MAX_DIMS or start[5:8] != b"\0\0\0" or len(start) < _FIXED.size + 8 * ndim + _CHECKSUM:
        raise CompactError(f"A mask must have 1 to {MAX_DIMS} dimensions and its whole head, got {ndim}: damaged.")
    shape = struct.unpack_from(f"<{ndim}Q", start, _FIXED.size)
    checksum = start[_FIXED.size + 8 * ndim :][:_CHECKSUM]
    head = MaskHead(coding, first, second, axis, kept, payload, shape, checksum)
    if not 0 < head.num_weights < 2**48 or kept > head.num_weights:
        raise CompactError(f"A mask of shape {shape} cannot keep {kept} weights: the file is damaged.")
    if not 0 <= blob.size - head.size - payload < 8:
        raise CompactError(
            f"A mask says that it has {head.size + payload} bytes, got {blob.size}: the file is damaged."
        )
    if (problem := CODINGS[coding].problem(head)) is not None:
        raise CompactError(f"A mask of shape {shape} coded as {CODINGS[coding].name!r} {problem}: the file is damaged.")
    return head


def decode_mask(blob: Bytes, head: MaskHead) -> Positions:
    """
    Positions of the kept weights in the flattened tensor, ascending: `(num_kept,)`, int64.

    The caller bounds `head.num_weights`, which memory and time depend on.

    Raises:
        CompactError: If the payload is damaged.
    """
    payload = blob[head.size : head.size + head.payload]
    if blob[head.size + head.payload :].any():
        raise CompactError("The bytes after a mask must be zero: the file is damaged.")
    positions = CODINGS[head.coding].decode(payload, head)
    if positions.size != head.num_kept or (positions.size and positions[-1] >= head.num_weights):
        raise CompactError(f"A mask must keep {head.num_kept} weights, its bits keep {positions.size}: damaged.")
    if head.coding == 0:
        bits = payload
    else:
        mask = np.zeros(head.num_weights, dtype=bool)
        mask[positions] = True
        bits = np.packbits(mask, bitorder="little")
    if _checksum(struct.pack(f"<{len(head.shape)}Q", *head.shape), bits) != head.checksum:
        raise CompactError(
            f"The mask of a tensor of shape {head.shape} does not match its checksum: fetch the file anew."
        )
    return positions


def _checksum(dims: bytes, bits: Bytes) -> bytes:
    digest = hashlib.sha256(dims)
    digest.update(bits.data)
    return digest.digest()


# ---- Plain bits --------------------------------------------------------------------------------------------------------


def _bitmask_problem(head: MaskHead) -> str | None:
    needed = -(-head.num_weights // 8)
    return None if head.payload == needed else f"needs {needed} bytes, got {head.payload}"


def _decode_bitmask(payload: Bytes, head: MaskHead) -> Positions:
    return np.flatnonzero(np.unpackbits(payload, bitorder="little").view(bool))


# ---- Gaps in a Golomb-Rice code (Golomb 1966; Rice and Plaunt 1971) -------------------------------------------------------


def _encode_rice(mask: NDArray[np.bool_]) -> tuple[int, Bytes]:
    """
    The Rice parameter `k` of the shortest code, and the code.

    A gap is the number of removed weights before a kept one. Its lowest `k` bits stand in the first part, `k` a gap;
    what remains of it, q, in the second part as q zeros and a one.
    """
    positions = np.flatnonzero(mask)
    gaps = np.diff(positions, prepend=-1) - 1
    mean = max(float(gaps.mean()) if gaps.size else 0.0, 1e-9)
    guess = max(0, round(math.log2(mean * math.log(2)))) if mean > 1 else 0
    sizes = {k: gaps.size * k + int((gaps >> k).sum()) for k in range(max(0, guess - 1), min(guess + 2, MAX_RICE))}
    k = min(sizes, key=lambda k: sizes[k])
    low = (gaps[:, None] >> np.arange(k)) & 1
    ones = np.cumsum((gaps >> k) + 1) - 1
    unary = np.zeros(int(ones[-1]) + 1 if ones.size else 0, dtype=np.uint8)
    unary[ones] = 1
    parts = [np.packbits(bits.astype(np.uint8).reshape(-1), bitorder="little") for bits in (low, unary)]
    return k, np.concatenate(parts)


def _rice_problem(head: MaskHead) -> str | None:
    if head.first > MAX_RICE:
        return f"has a parameter of {head.first}, the highest is {MAX_RICE}"
    needed = -(-head.num_kept * head.first // 8) + -(-head.num_kept // 8)
    return None if head.payload >= needed else f"needs {needed} bytes or more, got {head.payload}"


def _decode_rice(payload: Bytes, head: MaskHead) -> Positions:
    k, kept = head.first, head.num_kept
    size = -(-kept * k // 8)
    ones = np.flatnonzero(np.unpackbits(payload[size:], bitorder="little").view(bool))
    if ones.size != kept:
        raise CompactError(f"A mask must keep {kept} weights, its code keeps {ones.size}: the file is damaged.")
    # A hostile code could count beyond 64 bits.
    if kept and ((int(ones[-1]) + 1) << k) > 2**62:
        raise CompactError("A mask counts beyond any tensor: the file is damaged.")
    gaps = (np.diff(ones, prepend=-1) - 1) << k
    low = np.unpackbits(payload[:size], count=kept * k, bitorder="little").reshape(kept, k)
    for bit in range(k):
        gaps += low[:, bit].astype(np.int64) << bit
    return np.cumsum(gaps + 1) - 1


# ---- N of M ------------------------------------------------------------------------------------------------------------


def find_nm(mask: NDArray[np.bool_]) -> tuple[int, int, int] | None:
    """
    `(N, M, axis)` where exactly N of every M neighbours along `axis` are kept, of the smallest such M up to 16.

    >>> find_nm(np.array([[True, False, False, True], [False, True, False, True]]))
    (1, 2, 1)
    """
    for axis in reversed(range(mask.ndim)):
        line = mask[tuple(slice(None) if d == axis else 0 for d in range(mask.ndim))]
        for m in range(2, MAX_GROUP + 1):
            # The first line tells nearly always, so that a mask without the pattern costs nothing.
            if line.size % m or not _equal_counts(line, m):
                continue
            n = int(np.count_nonzero(line[:m]))
            groups = np.moveaxis(mask, axis, -1).reshape(-1, m)
            if 0 < n < m and bool((np.count_nonzero(groups, axis=1) == n).all()):
                return n, m, axis
    return None


def _equal_counts(line: NDArray[np.bool_], m: int) -> bool:
    counts = np.count_nonzero(line.reshape(-1, m), axis=1)
    return bool((counts == counts[0]).all())


def _patterns(n: int, m: int) -> NDArray[np.uint16]:
    """All numbers of M bits of which N are set, ascending: the code of a group is its place in this list."""
    numbers = np.arange(1 << m, dtype=np.uint32)
    counts = sum((numbers >> bit) & 1 for bit in range(m))
    return numbers[counts == n].astype(np.uint16)


def _width(n: int, m: int) -> int:
    """Bits of a group's code."""
    return (math.comb(m, n) - 1).bit_length()


def _encode_nm(mask: NDArray[np.bool_], n: int, m: int, axis: int) -> Bytes:
    groups = np.moveaxis(mask, axis, -1).reshape(-1, m)
    code_of = np.zeros(1 << m, dtype=np.uint16)
    patterns = _patterns(n, m)
    code_of[patterns] = np.arange(patterns.size)
    numbers = np.zeros(len(groups), dtype=np.uint16)
    for bit in range(m):
        numbers |= groups[:, bit].astype(np.uint16) << bit
    codes = code_of[numbers]
    bits = np.stack([(codes >> bit) & 1 for bit in range(_width(n, m))], axis=1)
    return np.packbits(bits.astype(np.uint8).reshape(-1), bitorder="little")


def _nm_problem(head: MaskHead) -> str | None:
    n, m, axis = head.first, head.second, head.axis
    if not (1 <= n < m <= MAX_GROUP and axis < len(head.shape) and head.shape[axis] % m == 0):
        return f"has groups of {n}:{m} along dimension {axis}, which do not fit"
    if head.num_kept != head.num_weights // m * n:
        return f"keeps {head.num_weights // m * n} weights, not {head.num_kept}"
    needed = -(-(head.num_weights // m) * _width(n, m) // 8)
    return None if head.payload == needed else f"needs {needed} bytes, got {head.payload}"


def _decode_nm(payload: Bytes, head: MaskHead) -> Positions:
    n, m, axis = head.first, head.second, head.axis
    groups, width = head.num_weights // m, _width(n, m)
    bits = np.unpackbits(payload, count=groups * width, bitorder="little").reshape(groups, width)
    codes = np.zeros(groups, dtype=np.uint16)
    for bit in range(width):
        codes |= bits[:, bit].astype(np.uint16) << bit
    patterns = _patterns(n, m)
    if int(codes.max()) >= patterns.size:
        raise CompactError(f"A group of {n}:{m} has no pattern {int(codes.max())}: the file is damaged.")
    kept = ((patterns[:, None] >> np.arange(m, dtype=np.uint16)) & 1).astype(bool)[codes]
    moved = [size for d, size in enumerate(head.shape) if d != axis] + [head.shape[axis]]
    return np.flatnonzero(np.moveaxis(kept.reshape(moved), -1, axis))


@dataclass(frozen=True)
class Coding:
    """
    A way to store a mask.

    Attributes:
        name (`str`): In words.
        problem (`Callable`): Head -> what is wrong with its fields, or None.
        decode (`Callable`): Payload and head -> positions.
    """

    name: str
    problem: Callable[[MaskHead], str | None]
    decode: Callable[[Bytes, MaskHead], Positions]


CODINGS = (
    Coding("bitmask", _bitmask_problem, _decode_bitmask),
    Coding("rice", _rice_problem, _decode_rice),
    Coding("{n}:{m}", _nm_problem, _decode_nm),
)
"""Number in the file -> coding."""
