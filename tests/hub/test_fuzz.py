"""Ten thousand damaged files: the same weights, or an error with a name; never a crash, never other weights."""

import hashlib
import json
import random
import struct

import pytest
import torch
from safetensors.torch import save_file

from sms_hf import CompactError, CompactFile
from sms_hf.hub.compact_file import write_compact

MUTATIONS = 10_000


@pytest.fixture
def original(tmp_path):
    """A small file with every coding: plain bits, a Rice code, 2:4, a tensor stored as it is."""
    torch.manual_seed(0)
    kept = torch.rand(8, 16, 4).argsort(-1) < 2
    weights = {
        "rice.weight": torch.randn(6, 40) * (torch.rand(6, 40) > 0.9),
        "plain.weight": torch.randn(8, 16) * (torch.rand(8, 16) > 0.4),
        "nm.weight": (torch.randn(8, 16, 4) * kept).flatten(1).half(),
        "bias": torch.randn(5),
    }
    save_file(weights, tmp_path / "dense.safetensors")
    write_compact(tmp_path / "dense.safetensors", tmp_path / "compact.safetensors", "t5", entropy_coded=True)
    with CompactFile(tmp_path / "compact.safetensors") as file:
        assert {stored.coding for stored in file.tensors.values()} == {"rice", "bitmask", "2:4", ""}
    return weights, (tmp_path / "compact.safetensors").read_bytes()


def mutate(raw, chance):
    """Change, insert, remove, copy or cut bytes, once or a few times; half of the changes hit the header."""
    data = bytearray(raw)
    (length,) = struct.unpack("<Q", raw[:8])
    for _ in range(chance.choice([1, 1, 1, 2, 5])):
        if len(data) < 2:
            break
        limit = min(8 + length, len(data)) if chance.random() < 0.5 else len(data)
        at = chance.randrange(limit)
        kind = chance.randrange(6)
        if kind == 0:
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            data[at] = chance.choice([0, 255, 0x7F, 0x80, ord("9"), ord("-"), ord('"'), ord("{")])
        elif kind == 2:
            data[at:at] = bytes(chance.randrange(256) for _ in range(chance.randrange(1, 9)))
        elif kind == 3:
            del data[at : at + chance.randrange(1, 17)]
        elif kind == 4:
            del data[at:]
        else:
            other = chance.randrange(len(data))
            data[at : at + 8] = data[other : other + 8]
    return bytes(data)


def seal(raw):
    """The file with a right checksum, as a hostile writer would leave it; as it is where its header is no longer one."""
    try:
        (length,) = struct.unpack("<Q", raw[:8])
        text = raw[8 : 8 + length]
        header = json.loads(text)
        about = json.loads(header["__metadata__"]["sms_hf.compact"])
        tensors = {name: e for name, e in header.items() if name != "__metadata__"}
        known = {"about": {k: v for k, v in about.items() if k != "sha256"}, "tensors": tensors}
        canonical = json.dumps(known, sort_keys=True, separators=(",", ":")).encode()
        digest = hashlib.sha256(raw[8 + length :] + canonical).hexdigest()
        return raw[:8] + text.replace(about["sha256"].encode(), digest.encode()) + raw[8 + length :]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error):
        return raw


def read(path):
    with CompactFile(path) as file:
        return {name: file.read(name) for name in file.tensors}


def test_a_mutated_file_is_the_same_or_an_error(tmp_path, original):
    weights, raw = original
    chance, path = random.Random(0), tmp_path / "mutated.safetensors"
    errors = 0
    for _ in range(MUTATIONS):
        path.write_bytes(mutate(raw, chance))
        try:
            found = read(path)
        except CompactError:
            errors += 1
        else:
            assert found.keys() == weights.keys()
            assert all(torch.equal(found[name], weights[name]) for name in weights)
    assert errors > 0.9 * MUTATIONS


def test_a_mutated_file_with_a_right_checksum_is_read_or_an_error(tmp_path, original):
    """The checksum guards against damage, the checks of every field against a hostile writer."""
    _, raw = original
    chance, path = random.Random(1), tmp_path / "mutated.safetensors"
    errors = 0
    for _ in range(MUTATIONS // 2):
        path.write_bytes(seal(mutate(raw, chance)))
        try:
            found = read(path)
        except CompactError:
            errors += 1
        else:
            assert sum(tensor.nbytes for tensor in found.values()) < 1000 * len(raw), (
                "no more memory than the format allows"
            )
    assert MUTATIONS // 4 < errors < MUTATIONS // 2, "some mutated values are read: the fuzz reaches the decoder"
