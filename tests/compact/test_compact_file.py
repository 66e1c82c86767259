"""The compact file: exact in every dtype, readable from its description alone, and never wrong in silence."""

import hashlib
import json
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sms_hf import MaskError
from sms_hf.compact import CompactError, CompactFile
from sms_hf.compact.compact_file import MAX_EXPANSION, pack_tensor, unpack_tensor, write_compact, write_dense
from sms_hf.files.folder import CheckpointError

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


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
        "embed.weight": torch.randn(10, 32).to(dtype),
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


def test_special_values_keep_their_bits():
    weight = torch.zeros(8, 64)
    special = torch.tensor([float("inf"), -float("inf"), 1e-45, -0.0])
    weight[0, :4] = special
    weight[1, 0] = torch.tensor([0x7FC12345], dtype=torch.int32).view(torch.float32)[0]
    mask = torch.zeros(8, 64, dtype=torch.bool)
    mask[0, :4] = mask[1, 0] = True
    values, coded = pack_tensor("w", weight, mask, False)
    assert torch.equal(unpack_tensor(values, coded).view(torch.int32), weight.view(torch.int32))


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


def test_another_program_can_read_it_from_its_description(tmp_path):
    """docs/compact-format.md in 15 lines of numpy."""
    weight = sparse((32, 48))
    raw = write(tmp_path, {"w": weight}).read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    data = raw[8 + length :]
    part = {name: data[slice(*e["data_offsets"])] for name, e in header.items() if name != "__metadata__"}
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
    about = json.loads(header["__metadata__"]["sms_hf.compact"])
    tensors = {name: e for name, e in header.items() if name != "__metadata__"}
    known = {"about": {k: v for k, v in about.items() if k != "sha256"}, "tensors": tensors}
    canonical = json.dumps(known, sort_keys=True, separators=(",", ":")).encode()
    assert about["sha256"] == hashlib.sha256(data + canonical).hexdigest()
    assert (about["version"], about["model_type"]) == (1, "t5")


def test_loaders_that_do_not_know_the_format_meet_a_wrong_shape(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(48, 32, bias=False))
    path = write(tmp_path, {"0.weight": sparse((32, 48))})
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
        about["sha256"] = hashlib.sha256(bytes(data) + canonical).hexdigest()
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
        (set_about(version=2), True, "version 2 of the format, this sms_hf reads 1"),
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
    values, coded = pack_tensor("w", weight, None, entropy_coded=True)
    assert values.numel() == 0
    assert weight.nbytes <= MAX_EXPANSION * coded.nbytes
    assert torch.equal(unpack_tensor(values, coded), weight)


def test_names_that_would_clash_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="'w_mask' is the name of a tensor"):
        write(tmp_path, {"w": sparse((8, 8)), "w_mask": torch.ones(3)})


def test_packing_twice_is_refused(tmp_path):
    path = write(tmp_path, {"w": sparse((32, 48))})
    with pytest.raises(CheckpointError, match="compact file already"):
        write_compact(path, tmp_path / "twice.safetensors", "t5")
