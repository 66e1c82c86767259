"""Orphaned sparse checkpoints: literal bytes, files that the old releases wrote, and everything that must be refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from sms_hf.compact.rescue import RescueError, rescue

FIXTURES = Path(__file__).parent / "fixtures"
RELEASES = ("bitmask-0.8.0", "bitmask-0.9.4", "24-bitmask-0.9.4")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

DENSE = [
    [1.5, 0, 0, 0, 0, 0, 0, 0, 0, -2],
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    [0, 0, 0, 3, 4, 0, 0, 0, 0.5, 0],
    [0, 0, 0, 0, 0, 0, 0, -1, 0, 0],
]
DENSE_24 = [  # A group of four goes on in the next row, and a kept weight may be zero.
    [1, 0, 0, -2, 0, 3],
    [4, 0, 0.5, 0, 0, 0],
    [0, 0, 0, 0, 0, 0],
    [0, 0, 7, -8, 0, 0],
]


def bitmask_group(dtype=torch.float32):
    return {
        "shape": torch.tensor([4, 10]),
        "compressed": torch.tensor([1.5, -2, 3, 4, 0.5, -1], dtype=dtype),
        "bitmask": torch.tensor([[1, 2], [0, 0], [0b00011000, 1], [128, 0]], dtype=torch.uint8),
        "row_offsets": torch.tensor([0, 2, 2, 5]),
    }


def bitmask_24_group(dtype=torch.float32):
    return {
        "shape": torch.tensor([[4], [6]]),
        "compressed": torch.tensor([[1, -2, 3], [4, 0.5, 0], [0, 0, 0], [0, 7, -8]], dtype=dtype),
        "bitmask": torch.tensor([[0b101001], [0b100101], [0b110011], [0b001100]], dtype=torch.uint8),
    }


def config_of(form="sparse-bitmask", **more):
    sparsity = {"format": form, "global_sparsity": 0.8, "sparsity_structure": "unstructured", "targets": ["Linear"]}
    entry = {"quant_method": "compressed-tensors", "version": "0.9.4", "sparsity_config": sparsity}
    return {"model_type": "llama", "quantization_config": entry | more}


def folder_of(path, group, config=None, prefix="layers.0.up", name="model.safetensors", **others):
    """A folder with one packed tensor."""
    path.mkdir(exist_ok=True)
    save_file({f"{prefix}.{part}": tensor for part, tensor in group.items()} | others, path / name, {"format": "pt"})
    (path / "config.json").write_text(json.dumps(config or config_of()))
    return path


def sharded_folder_of(path, *shards):
    path.mkdir()
    for number, tensors in enumerate(shards):
        save_file(tensors, path / f"part-{number}.safetensors", {"format": "pt"})
    weight_map = {name: f"part-{number}.safetensors" for number, tensors in enumerate(shards) for name in tensors}
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"x": 1}, "weight_map": weight_map}))
    (path / "config.json").write_text(json.dumps(config_of()))
    return path


def weights_of(folder):
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def same_bits(a, b):
    as_bytes = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (a, b)]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*as_bytes)


# ---- Literal bytes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_sparse_bitmask(tmp_path, dtype):
    norm = torch.tensor([1.0, 2.0, 3.0], dtype=dtype)
    folder = folder_of(tmp_path / "old", bitmask_group(dtype), norm=norm)
    report = rescue(folder, tmp_path / "new")
    weights = weights_of(tmp_path / "new")
    assert set(weights) == {"layers.0.up.weight", "norm"}
    assert same_bits(weights["layers.0.up.weight"], torch.tensor(DENSE, dtype=dtype))
    assert same_bits(weights["norm"], norm)
    assert (report.output, report.format) == (tmp_path / "new", "sparse-bitmask")
    assert (report.num_expanded, report.num_copied, report.sparsity) == (1, 1, 0.85)
    assert str(report) == (
        f"1 sparse-bitmask tensors expanded (85.0% removed), 1 copied: {tmp_path / 'new'} loads with from_pretrained."
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_sparse_24_bitmask(tmp_path, dtype):
    folder = folder_of(tmp_path / "old", bitmask_24_group(dtype), config_of("sparse-24-bitmask"))
    report = rescue(folder, tmp_path / "new")
    weights = weights_of(tmp_path / "new")
    assert list(weights) == ["layers.0.up.weight"]
    assert same_bits(weights["layers.0.up.weight"], torch.tensor(DENSE_24, dtype=dtype))
    assert report.sparsity == 0.5


def test_every_bit_of_a_value_is_kept(tmp_path):
    values = torch.tensor([0x7FC12345, -(2**31), 1, 0x7F800000, 0x3F800000, 0x12345678], dtype=torch.int32)
    rescue(folder_of(tmp_path / "old", bitmask_group() | {"compressed": values.view(torch.float32)}), tmp_path / "new")
    (weight,) = weights_of(tmp_path / "new").values()
    kept = torch.tensor(DENSE) != 0
    assert torch.equal(weight.view(torch.int32)[kept], values)
    assert not weight.view(torch.int32)[~kept].any()


def test_releases_up_to_0_8_name_groups_after_tensors(tmp_path):
    bias = {
        "layers.0.up.bias.shape": torch.tensor([3]),
        "layers.0.up.bias.compressed": torch.tensor([5.0, -6.0]),
        "layers.0.up.bias.bitmask": torch.tensor([0b101], dtype=torch.uint8),
        "layers.0.up.bias.row_offsets": torch.tensor(0),
    }
    rescue(folder_of(tmp_path / "old", bitmask_group(), prefix="layers.0.up.weight", **bias), tmp_path / "new")
    weights = weights_of(tmp_path / "new")
    assert set(weights) == {"layers.0.up.weight", "layers.0.up.bias"}
    assert torch.equal(weights["layers.0.up.weight"], torch.tensor(DENSE))
    assert torch.equal(weights["layers.0.up.bias"], torch.tensor([5.0, 0.0, -6.0]))


def test_more_than_two_dimensions_and_empty_tensors(tmp_path):
    cube = {  # Offsets run along the first dimension, as the releases wrote them.
        "shape": torch.tensor([2, 2, 3]),
        "compressed": torch.tensor([1.0, 2.0, 3.0, 4.0]),
        "bitmask": torch.tensor([[[0b011], [0b000]], [[0b100], [0b001]]], dtype=torch.uint8),
        "row_offsets": torch.tensor([[0, 0], [2, 0]]),
    }
    rescue(folder_of(tmp_path / "old", cube, empty=torch.zeros(0, 3), scalar=torch.tensor(7)), tmp_path / "new")
    weights = weights_of(tmp_path / "new")
    assert torch.equal(weights["layers.0.up.weight"], torch.tensor([[[1.0, 2, 0], [0, 0, 0]], [[0, 0, 3], [4, 0, 0]]]))
    assert weights["empty"].shape == (0, 3)
    assert weights["scalar"] == 7


def test_a_tensor_of_zeros_alone(tmp_path):
    group = {
        "shape": torch.tensor([2, 9]),
        "compressed": torch.zeros(0, dtype=torch.bfloat16),
        "bitmask": torch.zeros(2, 2, dtype=torch.uint8),
        "row_offsets": torch.zeros(2, dtype=torch.int64),
    }
    rescue(folder_of(tmp_path / "old", group), tmp_path / "new")
    (weight,) = weights_of(tmp_path / "new").values()
    assert same_bits(weight, torch.zeros(2, 9, dtype=torch.bfloat16))


def test_numbers_begin_at_multiples_of_their_size(tmp_path):
    rescue(folder_of(tmp_path / "old", bitmask_group(), a=torch.ones(3, dtype=torch.bfloat16)), tmp_path / "new")
    data = (tmp_path / "new" / "model.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert (header["layers.0.up.weight"]["data_offsets"], header["a"]["data_offsets"]) == ([0, 160], [160, 166])


# ---- Files that old releases wrote -------------------------------------------------------------------------------------


@pytest.mark.parametrize("release", RELEASES)
def test_files_of_old_releases(tmp_path, release):
    report = rescue(FIXTURES / release, tmp_path / "new")
    weights, expected = weights_of(tmp_path / "new"), load_file(FIXTURES / f"{release}.expected.safetensors")
    assert weights.keys() == expected.keys()
    assert all(same_bits(weights[name], expected[name]) for name in expected)
    assert (report.num_expanded, report.num_copied) == ((12, 0) if release == "bitmask-0.8.0" else (7, 5))


@pytest.mark.parametrize("release", RELEASES)
def test_stock_transformers_loads_the_result(tmp_path, release):
    rescue(FIXTURES / release, tmp_path / "new")
    model, problems = AutoModelForCausalLM.from_pretrained(tmp_path / "new", output_loading_info=True)
    assert not any(problems.values())
    expected = load_file(FIXTURES / f"{release}.expected.safetensors")
    assert all(same_bits(tensor, expected[name]) for name, tensor in model.state_dict().items())
    original = AutoModelForCausalLM.from_config(model.config, dtype=model.dtype)
    original.load_state_dict(expected)
    tokens = torch.tensor([[3, 1, 4, 1, 5, 9]])
    with torch.no_grad():
        assert torch.equal(model.eval()(tokens).logits, original.eval()(tokens).logits)


def test_files_stay_files_and_the_index_names_what_is_in_them(tmp_path):
    rescue(FIXTURES / "bitmask-0.9.4", tmp_path / "new")
    index = json.loads((tmp_path / "new" / "model.safetensors.index.json").read_text())
    files = {path.name: load_file(path) for path in (tmp_path / "new").glob("*.safetensors")}
    assert index["weight_map"] == {name: file for file, tensors in files.items() for name in tensors}
    assert index["metadata"] == {"total_size": sum(t.nbytes for tensors in files.values() for t in tensors.values())}
    assert len(files) == 3


# ---- The rest of the folder --------------------------------------------------------------------------------------------


def test_configuration_without_the_entry_and_the_other_files_of_the_model(tmp_path):
    folder = folder_of(tmp_path / "old", bitmask_group())
    (folder / "tokenizer.json").write_text("tokens")
    (folder / "notes.txt").write_text("mine")
    (folder / "extra").mkdir()
    (folder / "extra" / "config.json").write_text("inner")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "lock").write_text("")
    rescue(folder, tmp_path / "new")
    files = {str(p.relative_to(tmp_path / "new")) for p in (tmp_path / "new").rglob("*") if p.is_file()}
    assert files == {"config.json", "model.safetensors", "tokenizer.json"}
    assert json.loads((tmp_path / "new" / "config.json").read_text()) == {"model_type": "llama"}


SPARSITY = {"format": "sparse-bitmask"}


@pytest.mark.parametrize(
    "entry",
    [
        {"compression_config": {"sparsity_config": SPARSITY}},
        {"sparsity_config": {"format": "sparse_bitmask"}},
        {"quantization_config": {"sparsity_config": SPARSITY, "config_groups": {}, "format": "dense"}},
        {"quantization_config": {"sparsity_config": SPARSITY, "transform_config": {}, "kv_cache_scheme": None}},
    ],
)
def test_entries_as_the_releases_wrote_them(tmp_path, entry):
    rescue(folder_of(tmp_path / "old", bitmask_group(), {"model_type": "t5", **entry}), tmp_path / "new")
    assert json.loads((tmp_path / "new" / "config.json").read_text()) == {"model_type": "t5"}


def test_output_beside_the_folder_by_default(tmp_path, monkeypatch):
    folder_of(tmp_path / "old", bitmask_group())
    monkeypatch.chdir(tmp_path / "old")
    assert rescue(".").output == tmp_path / "old-dense"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old", "old-dense"]


def test_what_a_killed_rescue_left_is_replaced(tmp_path):
    (tmp_path / "new.partial").mkdir()
    (tmp_path / "new.partial" / "half").write_text("")
    (tmp_path / "new").mkdir()
    rescue(folder_of(tmp_path / "old", bitmask_group()), tmp_path / "new")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["config.json", "model.safetensors"]
    assert not (tmp_path / "new.partial").exists()


# ---- What must be refused ----------------------------------------------------------------------------------------------


def refused(folder, match):
    """Refused by name; neither the folder nor anything beside it has changed."""
    before = {path: path.read_bytes() if path.is_file() else None for path in folder.parent.rglob("*")}
    with pytest.raises(RescueError, match=match):
        rescue(folder, folder.parent / "new")
    assert before == {path: path.read_bytes() if path.is_file() else None for path in folder.parent.rglob("*")}


def u8(*rows):
    return torch.tensor(rows, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            {"compressed": None},
            r"'layers.0.up' must have the parts .*'compressed'.* of sparse-bitmask, got \['bitmask'",
        ),
        ({"bitmask": None}, "must have the parts"),
        ({"shape": None}, "must have the parts"),
        ({"row_offsets": None}, "must have the parts"),
        ({"compressed": torch.ones(5)}, "a value for every bit of its bitmask, got 5 for 6"),
        ({"compressed": torch.ones(7)}, "a value for every bit of its bitmask, got 7 for 6"),
        ({"bitmask": u8([1, 2], [0, 0], [24, 1], [0, 0])}, "a value for every bit of its bitmask, got 6 for 5"),
        ({"bitmask": u8([1, 2], [0, 0], [24, 1], [128, 4])}, "no bits in its bitmask after column 10, got 1"),
        ({"bitmask": u8([1], [0], [24], [128])}, r"a bitmask of \('U8', \(4, 2\)\) for its shape \(4, 10\), got"),
        ({"bitmask": u8([1, 2], [0, 0], [24, 1], [128, 0]).to(torch.int8)}, r"got \('I8', \(4, 2\)\)"),
        ({"row_offsets": torch.tensor([0, 2, 3, 5])}, "row_offsets that count the bits of the rows before, got others"),
        ({"row_offsets": torch.tensor([0, 2, 2])}, r"a row_offsets of \('I64', \(4,\)\)"),
        ({"row_offsets": torch.tensor([0, 2, 2, 5], dtype=torch.int32)}, r"a row_offsets of \('I64', \(4,\)\)"),
        ({"shape": torch.tensor([4, 17])}, r"a bitmask of \('U8', \(4, 3\)\)"),
        ({"shape": torch.tensor([10, 4])}, r"must have a .* for its shape \(10, 4\)"),
        ({"shape": torch.tensor([2**40, 2**40])}, "must have a .* for its shape"),
        ({"shape": torch.tensor([2**62, 2**62, 2**62])}, "must have a .* for its shape"),
        ({"shape": torch.tensor([4, -10])}, "dimensions of at least 1"),
        ({"shape": torch.tensor([2**60, 0])}, "dimensions of at least 1"),
        ({"shape": torch.zeros(0, dtype=torch.int64)}, "1 to 8 numbers in I64 as its shape"),
        ({"shape": torch.ones(1000, dtype=torch.int64)}, "1 to 8 numbers in I64 as its shape"),
        ({"shape": torch.tensor([4.0, 10.0])}, "1 to 8 numbers in I64 as its shape"),
    ],
)
def test_damaged_sparse_bitmask(tmp_path, change, match):
    group = {part: tensor for part, tensor in (bitmask_group() | change).items() if tensor is not None}
    refused(folder_of(tmp_path / "old", group), match)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"row_offsets": torch.tensor([0, 2, 2, 5])}, "must have the parts .* of sparse-24-bitmask"),
        ({"bitmask": None}, "must have the parts .* of sparse-24-bitmask"),
        ({"compressed": torch.ones(4, 4)}, "a value for every bit of its bitmask, got 16 for 12"),
        ({"bitmask": u8([41], [37], [51], [3])}, r"two bits in every group of four, got \[0, 2, 4\]"),
        ({"bitmask": u8([41], [37], [51], [64])}, "a value for every bit of its bitmask, got 12 for 10"),
        ({"shape": torch.tensor([[4], [9]])}, r"a bitmask of \('U8', \(4, 2\)\)"),
        ({"shape": torch.tensor([[4], [2**50]])}, r"a bitmask of \('U8'"),
        ({"shape": torch.tensor([3, 3]), "bitmask": u8([3], [3], [3])}, r"groups of four, got \(3, 3\)"),
    ],
)
def test_damaged_sparse_24_bitmask(tmp_path, change, match):
    group = {part: tensor for part, tensor in (bitmask_24_group() | change).items() if tensor is not None}
    refused(folder_of(tmp_path / "old", group, config_of("sparse-24-bitmask")), match)


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"model_type": "t5"}, "found none. Only folders in a sparse format .* load this one with from_pretrained"),
        ({"quantization_config": {"quant_method": "gptq"}}, "found none. Only folders in a sparse format"),
        ({"quantization_config": "sparse-bitmask"}, "found none. Only folders in a sparse format"),
        ({"quantization_config": {"sparsity_config": "sparse-bitmask"}}, "found none. Only folders in a sparse format"),
        ({"quantization_config": {"sparsity_config": {}}}, "must be one of .*says 'None'"),
        (config_of("dense"), "must be one of .*says 'dense'. A dense one needs no rescue"),
        (config_of("marlin-24"), "must be one of .*'sparse-24-bitmask'.*says 'marlin-24'"),
        (config_of(["sparse-bitmask"]), "must be one of"),
        (config_of(config_groups={"group_0": {"weights": {"num_bits": 8}}}), "sparse and nothing else.*'group_0'"),
        (config_of(format="float-quantized"), "sparse and nothing else.*'float-quantized'"),
        (config_of(quant_method="gptq"), "sparse and nothing else.*'gptq'"),
        (config_of(kv_cache_scheme={"num_bits": 8}), "sparse and nothing else.*'kv_cache_scheme'"),
        (config_of(transform_config={"config_groups": {"R1": {}}}), "sparse and nothing else.*'R1'"),
        (
            {"compression_config": {"sparsity_config": SPARSITY, "quantization_config": {"format": "int-quantized"}}},
            "int-q",
        ),
        (
            config_of() | {"compression_config": {"format": "pack-quantized"}},
            "sparse and nothing else.*'pack-quantized'",
        ),
    ],
)
def test_configurations_of_other_folders(tmp_path, config, match):
    refused(folder_of(tmp_path / "old", bitmask_group(), config), match)


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "[" * 100_000, "\ufeff{}", "1" * 5000])
@pytest.mark.parametrize("file", ["config.json", "model.safetensors.index.json"])
def test_damaged_json(tmp_path, file, text):
    folder = sharded_folder_of(tmp_path / "old", {"a.compressed": torch.ones(1)})
    (folder / file).write_text(text)
    refused(folder, f"{file}.*")


@pytest.mark.parametrize(
    ("index", "match"),
    [
        ({}, "must hold a weight_map"),
        ({"weight_map": ["part-0.safetensors"]}, "must hold a weight_map"),
        ({"weight_map": {"a": 1}}, "must hold a weight_map"),
        ({"weight_map": {}}, "found none: its weights are dense already"),
        (
            {"weight_map": {"a": "gone.safetensors"}},
            r"names files that are not there: \['gone.safetensors'\]",
        ),
        ({"weight_map": {"a": "../beside.safetensors"}}, r"must name safetensors files beside it, got '../beside.saf"),
        ({"weight_map": {"a": ".."}}, "must name safetensors files beside it"),
        ({"weight_map": {"a": "config.json"}}, "must name safetensors files beside it"),
        (
            {"weight_map": {"lost": "part-0.safetensors"}},
            r"must name the tensors that its files hold, but not so .*'lost'",
        ),
    ],
)
def test_damaged_index(tmp_path, index, match):
    save_file({"a": torch.ones(1)}, tmp_path / "beside.safetensors")
    folder = sharded_folder_of(tmp_path / "old", {"a.compressed": torch.ones(1)})
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, match)


@pytest.mark.parametrize("length", [0, 4, 8, 100, -1])
def test_truncated_files(tmp_path, length):
    folder = folder_of(tmp_path / "old", bitmask_group())
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:length])
    refused(folder, "cannot be read.*download it again")


def test_files_that_are_no_safetensors(tmp_path):
    folder = folder_of(tmp_path / "old", bitmask_group())
    (folder / "model.safetensors").write_bytes(b"\xff" * 1000)
    refused(folder, "cannot be read")


def test_folders_without_weights(tmp_path):
    folder = folder_of(tmp_path / "old", bitmask_group(), name="pytorch_model.bin")
    refused(folder, "Expected model.safetensors or model.safetensors.index.json .*found .*'pytorch_model.bin'")
    shutil.rmtree(folder)
    folder.mkdir()
    refused(folder, "Expected a model folder with config.json, found none")
    refused(tmp_path / "never", "Expected a model folder with config.json, found none")


def test_weights_that_are_dense_already(tmp_path):
    refused(folder_of(tmp_path / "old", {"weight": torch.ones(2, 2)}), "found none: its weights are dense already")


def test_a_tensor_both_dense_and_packed(tmp_path):
    folder = folder_of(tmp_path / "old", bitmask_group(), **{"layers.0.up.weight": torch.ones(4, 10)})
    refused(folder, "must have no dense 'layers.0.up.weight' beside it")


def test_dtypes_that_no_sparse_format_has(tmp_path):
    folder = folder_of(tmp_path / "old", bitmask_group(), scale=torch.ones(2).to(torch.float8_e4m3fn))
    refused(folder, r"must have a dtype of .*, got \{'scale': 'F8_E4M3'\}")


def test_outputs_in_use(tmp_path):
    folder = folder_of(tmp_path / "old.partial", bitmask_group())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    (tmp_path / "file").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    for output, match in [
        (tmp_path / "full", "must be a new or empty folder"),
        (tmp_path / "file", "must be a new or empty folder"),
        (folder, "must be a new or empty folder"),
        (folder / "inside", "must lie outside"),
        (tmp_path / "old", "must lie outside"),  # The source is where this output would grow.
    ]:
        with pytest.raises(RescueError, match=match):
            rescue(folder, output)
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "full" / "file").read_text() == "mine"
