"""The compact file: exact in every dtype, readable from its description alone, and never wrong in silence."""

import hashlib
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sms_hf import MaskError
from sms_hf.compact import CompactError, CompactFile
from sms_hf.compact.compact_file import (
    EXPONENTS,
    MASK,
    MAX_EXPANSION,
    pack_tensor,
    unpack_tensor,
    write_compact,
    write_dense,
)
from sms_hf.files.folder import CheckpointError

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
DTYPE_NAMES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
VERSION_1 = Path(__file__).parent / "fixtures" / "version-1"


def sparse(shape, sparsity=0.9, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator)
    return (weight * (torch.rand(shape, generator=generator) >= sparsity)).to(dtype)


def tensors(dtype=torch.float32):
    torch.manual_seed(0)
    return {
        "layer.0.weight": sparse((32, 48), dtype=dtype),
        "layer.0.bias": torch.randn(33).to(dtype),
        "layer.1.weight": sparse((16, 3, 3, 3), dtype=dtype, seed=1),
        "embed.weight": torch.randn(40, 32).to(dtype),
        "norm.weight": torch.ones(7).half(),
        "steps": torch.tensor(3),
        "empty.weight": torch.zeros(8, 64).to(dtype),
    }


def write(folder, values, masks=None, entropy_coded=False):
    save_file(values, folder / "dense.safetensors", metadata={"format": "pt"})
    write_compact(folder / "dense.safetensors", folder / "compact.safetensors", "t5", masks, entropy_coded)
    return folder / "compact.safetensors"


def read_all(path):
    with CompactFile(path) as file:
        return {name: file.read(name) for name in file.tensors}


def same(first, second):
    return set(first) == set(second) and all(
        first[n].dtype == second[n].dtype and torch.equal(first[n], second[n]) for n in first
    )


@pytest.mark.parametrize("entropy_coded", [False, True])
@pytest.mark.parametrize("dtype", FLOATS)
def test_what_is_packed_comes_back(tmp_path, dtype, entropy_coded):
    values = tensors(dtype)
    path = write(tmp_path, values, entropy_coded=entropy_coded)
    assert same(read_all(path), values)
    write_dense(path, tmp_path / "again.safetensors")
    assert same(load_file(tmp_path / "again.safetensors"), values)
    with CompactFile(path) as file:
        packed = {name for name, stored in file.tensors.items() if stored.mask}
        assert packed == {"layer.0.weight", "layer.1.weight", "empty.weight"}
        assert file.tensors["layer.0.weight"].shape == (32, 48)
        assert file.tensors["empty.weight"].sparsity == 1.0
        assert file.masks()["layer.0.weight"].equal(values["layer.0.weight"] != 0)
        coded = {name for name, stored in file.tensors.items() if stored.exponents}
        large = {"layer.0.weight", "embed.weight"} if entropy_coded and dtype != torch.float64 else set()
        assert coded == large, "those of 1024 values and more"
        assert {stored.dtype for name, stored in file.tensors.items() if name in coded} <= {DTYPE_NAMES[dtype]}


@pytest.mark.parametrize("name", ["plain", "entropy"])
def test_version_1_is_still_read(tmp_path, name):
    """Written by the last release of it; one of its tensors has a name that is now that of exponents."""
    expected = load_file(VERSION_1 / "dense.safetensors")
    assert same(read_all(VERSION_1 / f"{name}.safetensors"), expected)
    path = tmp_path / "damaged.safetensors"
    raw = (VERSION_1 / f"{name}.safetensors").read_bytes()
    path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(CompactError, match="checksum"):
        CompactFile(path)


@pytest.mark.parametrize("entropy_coded", [False, True])
def test_special_values_keep_their_bits(entropy_coded):
    weight = torch.zeros(64, 64)
    special = torch.tensor([float("inf"), -float("inf"), 1e-45, -0.0])
    weight[0, :4] = special
    weight[1, 0] = torch.tensor([0x7FC12345], dtype=torch.int32).view(torch.float32)[0]
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[0, :4] = mask[1, 0] = True
    parts = pack_tensor("w", weight, mask, entropy_coded)
    assert set(parts) == {"", MASK} | ({EXPONENTS} if entropy_coded else set())
    assert torch.equal(unpack_tensor(parts).view(torch.int32), weight.view(torch.int32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_exponent_and_every_pattern_of_16_bits_comes_back(dtype):
    kind = {4: torch.int32, 2: torch.int16}[dtype.itemsize]
    bits = torch.arange(1 << 16, dtype=torch.int32) * (1 << 16 if dtype.itemsize == 4 else 1) + 0x1234 * (
        dtype.itemsize == 4
    )
    weight = bits.to(kind).view(dtype).reshape(256, 256)
    parts = pack_tensor("w", weight, torch.ones(256, 256, dtype=torch.bool), True)
    assert set(parts) == {"", EXPONENTS}
    assert torch.equal(unpack_tensor(parts).view(kind), weight.view(kind))


@pytest.mark.parametrize(("dtype", "bits"), [(torch.float32, 32), (torch.bfloat16, 16)])
def test_coded_exponents_are_within_2_percent_of_their_entropy(dtype, bits):
    values = torch.randn(512, 512, generator=torch.Generator().manual_seed(0)).to(dtype)
    exponents = torch.frexp(values.float()).exponent
    share = torch.unique(exponents, return_counts=True)[1].double() / values.numel()
    bound = values.numel() * (bits - 8 - float((share * share.log2()).sum())) / 8
    size = sum(part.nbytes for part in pack_tensor("w", values, None, True).values())
    assert bound < size < 1.02 * bound
    assert size / values.nbytes == pytest.approx({32: 0.83, 16: 0.66}[bits], abs=0.01)


def test_a_kept_weight_that_is_zero_stays_kept(tmp_path):
    weight = sparse((32, 48))
    mask = weight != 0
    mask[0, :5] = True
    weight[0, :5] = 0.0
    path = write(tmp_path, {"w": weight}, {"w": mask})
    with CompactFile(path) as file:
        assert file.masks()["w"].equal(mask)
        assert file.read("w").equal(weight)


def test_a_weight_that_its_mask_removes_is_refused(tmp_path):
    weight = sparse((32, 48))
    mask = weight != 0
    mask[weight.nonzero()[0][0], weight.nonzero()[0][1]] = False
    with pytest.raises(MaskError, match="must be exactly"):
        write(tmp_path, {"w": weight}, {"w": mask})
    assert not (tmp_path / "compact.safetensors").exists(), "nothing half-written"
    assert list(tmp_path.glob("*.partial")) == []


@pytest.mark.parametrize(("dtype", "bits"), [(torch.float32, 32), (torch.bfloat16, 16)])
@pytest.mark.parametrize("sparsity", [0.5, 0.8, 0.9])
def test_size_is_kept_values_and_a_bit_a_weight(tmp_path, dtype, bits, sparsity):
    weight = sparse((512, 512), sparsity, dtype)
    path = write(tmp_path, {"w": weight})
    kept = float((weight != 0).float().mean())
    expected = (kept + 1 / bits) * weight.nbytes
    assert expected <= path.stat().st_size <= expected + 600


def test_a_tensor_that_packing_would_not_shrink_stays_dense(tmp_path):
    # A bit a weight is 1/16 of bf16: at 5 % zeros packing costs more than it saves.
    path = write(tmp_path, {"a.weight": sparse((64, 64), 0.05, torch.bfloat16), "b.weight": sparse((64, 64), 0.2)})
    with CompactFile(path) as file:
        assert {name: stored.coding for name, stored in file.tensors.items()} == {"a.weight": "", "b.weight": "bitmask"}


def described(path):
    """Bytes of every tensor of a file, its header without the description, and the description: docs/compact-format.md."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header, data = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    about = json.loads(header.pop("__metadata__")["sms_hf.compact"])
    known = {"about": {k: v for k, v in about.items() if k != "sha256"}, "tensors": header}
    canonical = json.dumps(known, sort_keys=True, separators=(",", ":")).encode()
    pieces = b"".join(hashlib.sha256(data[at : at + 2**22]).digest() for at in range(0, len(data), 2**22))
    assert about["sha256"] == hashlib.sha256(pieces + canonical).hexdigest()
    assert (about["version"], about["model_type"]) == (2, "t5")
    return {name: data[slice(*e["data_offsets"])] for name, e in header.items()}, header


def test_another_program_can_read_it_from_its_description(tmp_path):
    """docs/compact-format.md in 10 lines of numpy."""
    weight = sparse((32, 48))
    # Two pieces of the checksum, and a little.
    part, _ = described(write(tmp_path, {"w": weight, "large": torch.ones(2**21 + 5)}))
    values, mask = np.frombuffer(part["w"], np.float32), part["w_mask"]
    coding, _, _, _, dims, kept, size = struct.unpack("<BBBBBxxxQQ", mask[:24])
    shape = struct.unpack(f"<{dims}Q", mask[24 : 24 + 8 * dims])
    begin = 24 + 8 * dims + 32
    bits = np.unpackbits(np.frombuffer(mask[begin : begin + size], np.uint8), bitorder="little")[: np.prod(shape)]
    expected = np.zeros(shape, np.float32)
    expected[bits.reshape(shape).astype(bool)] = values
    assert (coding, kept) == (0, values.size)
    assert np.array_equal(expected, weight.numpy())
    assert mask[24 + 8 * dims : begin] == hashlib.sha256(mask[24 : 24 + 8 * dims] + mask[begin : begin + size]).digest()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_another_program_can_read_exponents_from_their_description(tmp_path, dtype):
    weight = torch.randn(32, 33).to(dtype)
    part, header = described(write(tmp_path, {"w": weight}, entropy_coded=True))
    name, dims, count, size = struct.unpack("<4sBxxxQQ", part["w_exponents"][:24])
    assert (name, dims, count) == ({4: b"F32\0", 2: b"BF16"}[dtype.itemsize], 2, 32 * 33)
    assert struct.unpack("<2Q", part["w_exponents"][24:40]) == (32, 33)
    assert header["w"]["dtype"] == "U8"
    exponents = np.frombuffer(zlib.decompress(part["w_exponents"][40 : 40 + size]), np.uint8).astype(np.uint32)
    rest, low = np.frombuffer(part["w"], np.uint8), np.uint32(0)
    if dtype == torch.float32:
        low, rest = rest[: 2 * count].view("<u2").astype(np.uint32), rest[2 * count :]
    high = rest[:count].astype(np.uint32)
    turned = exponents << 24 | high << 16 | low
    sign = np.uint32(1 if dtype == torch.float32 else 1 << 16)
    values = ((turned & ~sign) >> 1 | np.where(turned & sign, np.uint32(1 << 31), np.uint32(0))).view(np.float32)
    assert np.array_equal(values.reshape(32, 33), weight.float().numpy())


def test_loaders_that_do_not_know_the_format_meet_a_wrong_shape(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(48, 32, bias=False))
    for weight in (sparse((32, 48)), torch.randn(32, 48)):
        path = write(tmp_path, {"0.weight": weight}, entropy_coded=True)
        with pytest.raises(RuntimeError, match="size mismatch"):
            model.load_state_dict(load_file(path), strict=False)


def test_equal_weights_are_equal_files(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert write(tmp_path / "a", tensors()).read_bytes() == write(tmp_path / "b", tensors()).read_bytes()


# ---- Bad input ---------------------------------------------------------------------------------------------------------


def edit(path, change, seal=True):
    """Change header and data of a compact file; `seal`: with a right checksum again, as a hostile writer would."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header, data = json.loads(raw[8 : 8 + length]), bytearray(raw[8 + length :])
    about = json.loads(header["__metadata__"]["sms_hf.compact"])
    change(header, about, data)
    if seal and isinstance(about, dict):
        rest = {name: e for name, e in header.items() if name != "__metadata__"}
        known = {"about": {k: v for k, v in about.items() if k != "sha256"}, "tensors": rest}
        canonical = json.dumps(known, sort_keys=True, separators=(",", ":")).encode()
        about["sha256"] = hashlib.sha256(hashlib.sha256(bytes(data)).digest() + canonical).hexdigest()
    if "__metadata__" in header and "sms_hf.compact" in header["__metadata__"]:
        header["__metadata__"]["sms_hf.compact"] = json.dumps(about)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(data))


def set_about(**values):
    return lambda header, about, data: about.update(values)


def flip(name, at, bit=1):
    def change(header, about, data):
        data[header[name]["data_offsets"][0] + at] ^= bit

    return change


def rename(old, new):
    def change(header, about, data):
        header[new] = header.pop(old)

    return change


def no_description(header, about, data):
    del header["__metadata__"]["sms_hf.compact"]


def no_version(header, about, data):
    del about["version"]


def ints_as_values(header, about, data):
    header["w"]["dtype"] = "I32"


def two_dimensional_values(header, about, data):
    header["w"]["shape"] = [1, *header["w"]["shape"]]


def other_float(header, about, data):
    header["w"]["dtype"], header["w"]["shape"] = "BF16", [2 * header["w"]["shape"][0]]


def truncate(header, about, data):
    del data[-9:]


def longer(header, about, data):
    data.extend(b"\0" * 8)


@pytest.mark.parametrize(
    ("change", "seal", "says"),
    [
        (set_about(version=3), True, "version 3 of the format, this sms_hf reads 1 and 2"),
        (set_about(version=1), True, "checksum"),
        (set_about(version="1"), True, "must hold version"),
        (set_about(model_type=None), True, "must hold version"),
        (set_about(sha256=7), False, "must hold version"),
        (set_about(sha256="0" * 64), False, "checksum"),
        (set_about(model_type="bert"), False, "checksum"),
        (no_version, True, "must hold version"),
        (no_description, False, "must be a compact file"),
        (flip("w", 3), False, "checksum"),
        (flip("w_mask", 80), False, "checksum"),
        (flip("w_mask", 80), True, "keep"),
        (flip("w_mask", 0, 64), True, "below 3"),
        (flip("w_mask", 8), True, "keeps"),
        (flip("w_mask", 31, 128), True, "cannot keep"),
        (flip("w_mask", 24, 2), True, "needs"),
        (flip("w_mask", 45), True, "checksum"),
        (rename("w", "v"), False, "checksum"),
        (ints_as_values, True, "must be floating"),
        (two_dimensional_values, True, "values have shape"),
        (other_float, True, "values have shape"),
        (truncate, True, "cannot be read"),
        (longer, True, "cannot be read"),
    ],
)
def test_a_damaged_or_hostile_file_is_named(tmp_path, change, seal, says):
    path = write(tmp_path, {"w": sparse((32, 48))})
    edit(path, change, seal)
    with pytest.raises(CompactError, match=says) as error:
        read_all(path)
    assert str(path) in str(error.value)


def values_of_another_dtype(header, about, data):
    header["w"]["dtype"], header["w"]["shape"] = "I16", [header["w"]["shape"][0] // 2]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (flip("w_exponents", 0), "those of F32, BF16, F16, got 'G32'"),
        (flip("w_exponents", 4, 16), "1 to 8 dimensions"),
        (flip("w_exponents", 5), "1 to 8 dimensions"),
        (flip("w_exponents", 8), "cannot have"),
        (flip("w_exponents", 15, 128), "cannot have"),
        (flip("w_exponents", 16, 64), "Exponents say that they have"),
        (flip("w_exponents", 24), "cannot have"),
        (flip("w_exponents", 33), "cannot be decoded"),
        (flip("w_exponents", 60, 255), "decoded|code has more"),
        (values_of_another_dtype, "need"),
    ],
)
def test_damaged_or_hostile_exponents_are_named(tmp_path, change, says):
    path = write(tmp_path, {"w": sparse((64, 96), 0.5)}, entropy_coded=True)
    edit(path, change)
    with pytest.raises(CompactError, match=says) as error:
        read_all(path)
    assert str(path) in str(error.value)


def test_exponents_that_go_on_beyond_their_count_are_refused():
    """A bomb of zlib: a megabyte from a kilobyte, of which no more than was announced is unpacked."""
    parts = pack_tensor("w", torch.randn(32, 33), None, True)
    blob = zlib.compress(bytes(1 << 20))
    head = bytes(parts[EXPONENTS][:40].numpy())
    row = head[:16] + struct.pack("<Q", len(blob)) + head[24:] + blob
    parts[EXPONENTS] = torch.frombuffer(bytearray(row.ljust(-(-len(row) // 8) * 8, b"\0")), dtype=torch.uint8)
    with pytest.raises(CompactError, match="must have 1056 exponents"):
        unpack_tensor(parts)


@pytest.mark.parametrize("size", [0, 4, 8, 100, 900])
def test_a_truncated_file_is_named(tmp_path, size):
    path = write(tmp_path, {"w": sparse((32, 48))})
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CompactError, match=r"compact\.safetensors"):
        read_all(path)


def test_missing_and_foreign_files_are_named(tmp_path):
    with pytest.raises(CompactError, match="cannot be read"):
        CompactFile(tmp_path / "none.safetensors")
    save_file({"w": torch.ones(2)}, tmp_path / "dense.safetensors")
    with pytest.raises(CompactError, match="Is it a dense one"):
        CompactFile(tmp_path / "dense.safetensors")


def test_a_small_file_cannot_ask_for_all_memory(tmp_path):
    """All of a tensor of 2^40 weights removed: a Rice code of no bytes would do."""

    def bomb(header, about, data):
        begin, end = header["w_mask"]["data_offsets"]
        head = struct.pack("<BBBBBxxxQQ", 1, 0, 0, 0, 2, 0, 0) + struct.pack("<QQ", 2**20, 2**20)
        data[begin:end] = (head + bytes(32)).ljust(end - begin, b"\0")[: end - begin]
        data[begin + 16 : begin + 24] = struct.pack("<Q", (end - begin) - 72)
        first = header["w"]["data_offsets"]
        assert first[0] == 0
        del data[first[0] : first[1]]
        header["w"] = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
        header["w_mask"]["data_offsets"] = [begin - first[1], end - first[1]]

    path = write(tmp_path, {"w": sparse((32, 48))})
    edit(path, bomb)
    with pytest.raises(CompactError, match="expands a tensor at most"):
        CompactFile(path)


def test_the_writer_keeps_to_the_same_bound():
    weight = torch.zeros(512, 512)
    parts = pack_tensor("w", weight, None, entropy_coded=True)
    assert parts[""].numel() == 0
    assert weight.nbytes <= MAX_EXPANSION * parts[MASK].nbytes
    assert torch.equal(unpack_tensor(parts), weight)


@pytest.mark.parametrize("name", ["w_mask", "w_exponents"])
def test_names_that_would_clash_are_refused(tmp_path, name):
    with pytest.raises(CheckpointError, match=f"{name!r} is the name of a tensor"):
        write(tmp_path, {"w": sparse((8, 8)), name: torch.ones(3)})


def test_packing_twice_is_refused(tmp_path):
    path = write(tmp_path, {"w": sparse((32, 48))})
    with pytest.raises(CheckpointError, match="compact file already"):
        write_compact(path, tmp_path / "twice.safetensors", "t5")
