"""Masks as bytes: literal codes, round trips, sizes near the entropy, and damage that is named."""

import math
import struct

import numpy as np
import pytest

from sms_hf.compact import CompactError
from sms_hf.compact.mask_codings import decode_mask, encode_mask, find_nm, read_head

HEAD = 24 + 32  # Besides 8 bytes a dimension.


def payload_of(blob):
    head = read_head(blob)
    return head, blob[head.size : head.size + head.payload].tolist()


def read(blob):
    head = read_head(blob)
    mask = np.zeros(math.prod(head.shape), dtype=bool)
    mask[decode_mask(blob, head)] = True
    return mask.reshape(head.shape)


def random_mask(shape, sparsity, seed=0):
    return np.random.default_rng(seed).random(shape) >= sparsity


def test_plain_bits_are_rows_flattened_lowest_bit_first():
    blob = encode_mask(np.array([[1, 0, 0, 1], [0, 1, 0, 0]], dtype=bool))
    head, payload = payload_of(blob)
    assert payload == [0b00101001]
    assert blob[:24].tobytes() == struct.pack("<BBBBBxxxQQ", 0, 0, 0, 0, 2, 3, 1)
    assert blob[24:40].tobytes() == struct.pack("<QQ", 2, 4)
    assert (head.name, head.shape, head.num_kept, blob.size) == ("bitmask", (2, 4), 3, 80)


def test_a_rice_code_is_low_bits_then_unary():
    mask = np.zeros((1, 24), dtype=bool)
    mask[0, [0, 3, 5, 20]] = True  # Gaps 0, 2, 1, 14: low bits 0, 2, 1, 2 and quotients 0, 0, 0, 3 for k = 2.
    head, payload = payload_of(encode_mask(mask, entropy_coded=True))
    assert (head.name, head.first) == ("rice", 2)
    assert payload == [0b10_01_10_00, 0b1000111]


def test_an_nm_mask_is_the_place_of_each_group_among_its_patterns():
    groups = [[1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 1, 0], [0, 1, 0, 1]] * 2  # Places 0, 5, 1, 4 of 3, 5, 6, 9, 10, 12.
    head, payload = payload_of(encode_mask(np.array(groups, dtype=bool).reshape(1, 32)))
    assert (head.name, head.axis) == ("2:4", 1)
    codes = [0, 5, 1, 4] * 2
    assert int.from_bytes(bytes(payload), "little") == sum(code << (3 * i) for i, code in enumerate(codes))


@pytest.mark.parametrize("entropy_coded", [False, True])
@pytest.mark.parametrize("shape", [(7,), (5, 13), (64, 64), (3, 4, 5), (2, 3, 1, 1, 2)])
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.8, 0.97, 1.0])
def test_round_trip(shape, sparsity, entropy_coded):
    mask = random_mask(shape, sparsity)
    blob = encode_mask(mask, entropy_coded)
    assert blob.size % 8 == 0
    assert np.array_equal(read(blob), mask)


@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 4), (1, 4), (3, 7), (4, 8), (8, 16), (15, 16)])
@pytest.mark.parametrize("axis", [0, 1])
def test_nm_round_trip_along_either_dimension(n, m, axis):
    groups = np.argsort(np.random.default_rng(1).random((40 * 3, m)), axis=1) < n
    mask = groups.reshape(40, 3 * m)
    mask = mask if axis == 1 else np.ascontiguousarray(mask.T)
    blob = encode_mask(mask)
    assert find_nm(mask) == (n, m, axis)
    assert np.array_equal(read(blob), mask)
    bits = (math.comb(m, n) - 1).bit_length() / m
    # Where the code of a group is as long as the group, plain bits are taken.
    assert read_head(blob).name == (f"{n}:{m}" if bits < 1 else "bitmask")
    assert (blob.size - HEAD - 16) * 8 <= mask.size * bits + 64


def test_a_mask_that_breaks_the_pattern_once_is_no_nm_mask():
    mask = np.tile(np.array([1, 1, 0, 0], dtype=bool), (8, 16))
    assert find_nm(mask) == (2, 4, 1)
    mask[5, 0] = False
    assert find_nm(mask) is None


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("sparsity", [0.8, 0.9, 0.95, 0.99])
def test_entropy_coded_size_is_within_5_percent_of_the_bound(sparsity, bits):
    mask = random_mask((1000, 1000), sparsity)
    s = 1 - mask.mean()
    entropy = -s * math.log2(s) - (1 - s) * math.log2(1 - s)
    size = mask.mean() + encode_mask(mask, entropy_coded=True).size * 8 / mask.size / bits
    assert size <= 1.05 * ((1 - s) + entropy / bits)


def corrupt(blob, at, value):
    changed = blob.copy()
    changed[at] = value
    return changed


@pytest.mark.parametrize(
    ("field", "at", "value", "says"),
    [
        ("coding", 0, 9, "below 3"),
        ("dimensions", 4, 0, "1 to 8 dimensions"),
        ("dimensions", 4, 255, "1 to 8 dimensions"),
        ("reserved", 6, 1, "whole head"),
        ("kept", 15, 1, "cannot keep"),
        ("payload", 16, 99, "got"),
        ("payload", 23, 255, "got"),
        ("shape", 24, 200, "needs"),
        ("shape", 31, 255, "cannot keep"),
        ("checksum", 45, 0, "checksum"),
        ("bits", 72, 0b00101010, "checksum"),
        ("bits", 72, 0b00001001, "must keep 3"),
        ("padding", 79, 1, "must be zero"),
    ],
)
def test_damage_of_a_mask_is_named(field, at, value, says):
    blob = encode_mask(np.array([[1, 0, 0, 1], [0, 1, 0, 0]], dtype=bool))
    assert blob[at] != value
    with pytest.raises(CompactError, match=says):
        read(corrupt(blob, at, value))


def test_a_shape_whose_product_overflows_is_refused():
    blob = encode_mask(np.ones((2, 4), dtype=bool))
    blob[24:40] = np.frombuffer(struct.pack("<QQ", 2**33, 2**33), dtype=np.uint8)
    with pytest.raises(CompactError, match="cannot keep"):
        read_head(blob)


@pytest.mark.parametrize("size", [0, 10, 23, 40, 72])
def test_a_truncated_mask_is_refused(size):
    blob = encode_mask(np.array([[1, 0, 0, 1], [0, 1, 0, 0]], dtype=bool))
    with pytest.raises(CompactError):
        read(blob[:size])


def test_a_rice_code_that_counts_beyond_the_tensor_is_refused():
    mask = random_mask((32, 32), 0.95)
    blob = encode_mask(mask, entropy_coded=True)
    head = read_head(blob)
    assert head.name == "rice"
    last = head.size + -(-head.num_kept * head.first // 8)
    with pytest.raises(CompactError):
        read(corrupt(blob, last, 0))


def test_a_group_without_such_a_pattern_is_refused():
    mask = np.tile(np.array([1, 1, 0, 0], dtype=bool), (8, 16))
    blob = encode_mask(mask)
    with pytest.raises(CompactError, match="no pattern 7"):
        read(corrupt(blob, 72, 0xFF))
