"""Ten thousand damaged files: the same weights, or an error with a name; never a crash, never other weights."""

import hashlib
import json
import random
import struct

import pytest
import torch
from safetensors.torch import save_file

from sms_hf import MaskError, Masks
from sms_hf.compact import CompactError, CompactFile
from sms_hf.compact.compact_file import write_compact
from sms_hf.files.folder import CheckpointError, read_index

MUTATIONS = 10_000


@pytest.fixture
def original(tmp_path):
    """A small file with every coding: plain bits, a Rice code, 2:4, exponents, a tensor stored as it is."""
    torch.manual_seed(0)
    kept = torch.rand(8, 16, 4).argsort(-1) < 2
    weights = {
        "rice.weight": torch.randn(6, 40) * (torch.rand(6, 40) > 0.9),
        "plain.weight": torch.randn(8, 16) * (torch.rand(8, 16) > 0.4),
        "nm.weight": (torch.randn(8, 16, 4) * kept).flatten(1).half(),
        "dense.weight": torch.randn(32, 33).bfloat16(),
        "both.weight": torch.randn(32, 40) * (torch.rand(32, 40) > 0.9),
        "bias": torch.randn(5),
    }
    save_file(weights, tmp_path / "dense.safetensors")
    write_compact(tmp_path / "dense.safetensors", tmp_path / "compact.safetensors", "t5", entropy_coded=True)
    with CompactFile(tmp_path / "compact.safetensors") as file:
        assert {stored.coding for stored in file.tensors.values()} == {
            "rice",
            "bitmask",
            "2:4",
            "exponents",
            "rice+exponents",
            "",
        }
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
        data = raw[8 + length :]
        if about["version"] != 1 and data:
            data = hashlib.sha256(data).digest()
        digest = hashlib.sha256(data + canonical).hexdigest()
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


# ---- Headers that somebody wrote ----------------------------------------------------------------------------------------


def dtype_renamed(header, names, chance):
    header[chance.choice(names)]["dtype"] = chance.choice(["F8_E4M3", "f32", "F64", "BOOL", "", None, 4])


def offsets_swapped(header, names, chance):
    a, b = chance.sample(names, 2)
    header[a]["data_offsets"], header[b]["data_offsets"] = header[b]["data_offsets"], header[a]["data_offsets"]


def offsets_overlapping(header, names, chance):
    header[chance.choice(names)]["data_offsets"] = list(header[chance.choice(names)]["data_offsets"])


def offsets_huge(header, names, chance):
    header[chance.choice(names)]["data_offsets"] = chance.choice(
        [[0, 1 << 62], [-8, 8], [1 << 63, 1 << 64], [8, 0], []]
    )


def shape_huge(header, names, chance):
    header[chance.choice(names)]["shape"] = chance.choice([[1 << 40], [1 << 31, 1 << 31], [-1, -4], [1e308], [[4]], 7])


def tensor_gone(header, names, chance):
    del header[chance.choice(names)]


def tensor_renamed(header, names, chance):
    header[chance.choice(["", "../x", "x\0y", "rice.weight", "rice.weight_mask_mask"])] = header.pop(
        chance.choice(names)
    )


def nested_deep(header, names, chance):
    deep = []
    for _ in range(chance.choice([100, 400])):
        deep = [deep]
    header[chance.choice(names)]["shape"] = deep


def about_changed(header, names, chance):
    about = json.loads(header["__metadata__"]["sms_hf.compact"])
    key = chance.choice(sorted(about))
    about[key] = chance.choice([None, 1e308, -1, "2" * 1000, [], {}, True])
    header["__metadata__"]["sms_hf.compact"] = json.dumps(about)


def about_gone(header, names, chance):
    header["__metadata__"] = chance.choice([{}, {"format": "pt"}, {"sms_hf.compact": "{"}, {"sms_hf.compact": "[]"}])


HEADERS = [
    dtype_renamed,
    offsets_swapped,
    offsets_overlapping,
    offsets_huge,
    shape_huge,
    tensor_gone,
    tensor_renamed,
    nested_deep,
    about_changed,
    about_gone,
]


def with_header(raw, change):
    """The file with its header changed, and the tensors as they were."""
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + raw[8 + length :]


@pytest.mark.parametrize("change", HEADERS, ids=lambda change: change.__name__)
def test_a_header_that_is_written_anew_is_the_same_or_an_error(tmp_path, original, change):
    weights, raw = original
    chance, path = random.Random(2), tmp_path / "mutated.safetensors"
    for sealed in (False, True):
        for _ in range(30):
            data = with_header(raw, lambda header: change(header, [n for n in header if n != "__metadata__"], chance))
            path.write_bytes(seal(data) if sealed else data)
            try:
                found = read(path)
            except CompactError:
                continue
            if not sealed:
                assert all(torch.equal(found[name], weights[name]) for name in weights)
            assert sum(tensor.nbytes for tensor in found.values()) < 1000 * len(raw)


LENGTHS = [0, 1, 7, 1 << 20, 1 << 40, (1 << 64) - 1]
TEXTS = [b"", b"\xff\xfe{}", b'{"a": 1', b"[]", b"null", b'{"a":' * 5000, b'{"x":{}, "x":{}}', b"\0" * 64]


@pytest.mark.parametrize(
    "data",
    [struct.pack("<Q", n) + b"{}" * 50 for n in LENGTHS]
    + [b"", b"\0", b"PK\3\4"]
    + [struct.pack("<Q", len(text)) + text for text in TEXTS],
)
def test_what_is_no_header_is_an_error(tmp_path, data):
    for load in (read, Masks.load):
        path = tmp_path / "mutated.safetensors"
        path.write_bytes(data)
        with pytest.raises((CompactError, MaskError), match="mutated"):
            load(path)


def test_mutated_masks_are_the_same_or_an_error(tmp_path):
    torch.manual_seed(0)
    masks = Masks({"a": torch.rand(5, 7) > 0.5, "b": torch.rand(64) > 0.9})
    masks.save(tmp_path / "masks.safetensors")
    raw, chance, path = (
        (tmp_path / "masks.safetensors").read_bytes(),
        random.Random(3),
        tmp_path / "mutated.safetensors",
    )
    errors = 0
    for _ in range(MUTATIONS // 4):
        path.write_bytes(mutate(raw, chance))
        try:
            found = Masks.load(path)
        except MaskError:
            errors += 1
        else:
            assert found.fingerprint() == masks.fingerprint()
    assert errors > 0.9 * MUTATIONS // 4


def test_mutated_indexes_are_the_same_or_an_error(tmp_path):
    """An index has no checksum: what is read must still be names of files that are here."""
    for name in ("model-1.safetensors", "model-2.safetensors"):
        save_file({name: torch.ones(1)}, tmp_path / name)
    text = {"metadata": {"total_size": 8}, "weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    raw, chance, path = json.dumps(text, indent=2).encode(), random.Random(4), tmp_path / "index.json"
    errors = 0
    for _ in range(MUTATIONS // 4):
        data = bytearray(raw)
        for _ in range(chance.choice([1, 1, 2, 5])):
            at = chance.randrange(len(data))
            data[at : at + chance.randrange(3)] = bytes(
                chance.choice([0, 10, 46, 47, 92, 255, 34, 123, 55]) for _ in range(2)
            )
        path.write_bytes(bytes(data))
        try:
            found = read_index(path)
        except CheckpointError:
            errors += 1
        else:
            assert set(found.values()) <= {"model-1.safetensors", "model-2.safetensors"}
    assert errors > MUTATIONS // 8
