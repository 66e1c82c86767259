"""Masks as values, on models, and on disk."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from sms_hf.sparsity import MaskError, Masks
from sms_hf.sparsity.masks import nonzero, stored_fingerprint

torch.set_num_threads(1)


def mask(*rows):
    return torch.tensor(rows, dtype=torch.bool)


def two_layers():
    model = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 4))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -2.0, 3.0], [4.0, 5.0, -6.0]]))
    return model


@pytest.fixture
def masks():
    return Masks({"0.weight": mask([1, 0, 1], [1, 0, 0])})


def random_masks(shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Masks({name: torch.rand(shape, generator=generator) < 0.5 for name, shape in shapes.items()})


def assert_equal(masks, other):
    assert list(masks) == list(other)
    for name in masks:
        assert masks[name].dtype == torch.bool
        assert masks[name].shape == other[name].shape
        assert torch.equal(masks[name], other[name])


# --- values ---


def test_counts_and_sparsity():
    masks = Masks({"a": mask([1, 0, 0, 0]), "b": mask([1, 1], [1, 0], [0, 0])})
    assert masks.num_weights == 10
    assert masks.num_kept == 4
    assert masks.sparsity() == 0.6
    assert masks.sparsity_per_tensor() == {"a": 0.75, "b": 0.5}
    assert len(masks) == 2
    assert list(masks) == ["a", "b"]
    assert repr(masks) == "Masks(2 tensors, 4 of 10 weights kept)"


def test_sparsity_of_no_weights_is_zero():
    assert Masks({}).sparsity() == 0.0
    assert Masks({"empty": torch.ones(0, 3, dtype=torch.bool)}).sparsity() == 0.0


def test_sparsity_per_tensor_of_an_empty_tensor_is_zero():
    assert Masks({"empty": torch.ones(0, 3, dtype=torch.bool)}).sparsity_per_tensor() == {"empty": 0.0}


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.int64])
def test_masks_of_another_dtype_are_an_error(dtype):
    with pytest.raises(MaskError, match=r"Mask of 'a' must be a bool tensor, got torch\..*True means kept"):
        Masks({"a": torch.ones(3, dtype=dtype)})


def test_mask_error_is_a_value_error():
    assert issubclass(MaskError, ValueError)


@pytest.mark.parametrize(
    ("smaller", "larger", "expected"),
    [
        ([1, 0, 0], [1, 0, 0], True),
        ([1, 0, 0], [1, 1, 0], True),
        ([0, 0, 0], [1, 1, 1], True),
        ([1, 1, 0], [1, 0, 0], False),
        ([0, 0, 1], [1, 1, 0], False),
    ],
)
def test_within_means_that_nothing_comes_back(smaller, larger, expected):
    same = mask([1, 0])
    assert Masks({"a": mask(smaller), "b": same}).is_within(Masks({"a": mask(larger), "b": same})) is expected


def test_masks_of_other_tensors_are_not_within():
    masks = Masks({"a": mask([1, 0])})
    assert not masks.is_within(Masks({"b": mask([1, 1])}))
    assert not masks.is_within(Masks({"a": mask([1, 1]), "b": mask([1, 1])}))
    assert not Masks({"a": mask([1, 0]), "b": mask([0, 0])}).is_within(masks)


def test_fingerprint_is_equal_exactly_where_the_masks_are():
    a, b = mask([1, 0, 1], [0, 0, 1]), mask([1, 0])
    first = Masks({"a": a, "b": b}).fingerprint()
    assert len(first) == 64
    assert Masks({"b": b.clone(), "a": a.clone()}).fingerprint() == first
    others = [
        Masks({"a": a}),
        Masks({"a": a, "c": b}),
        Masks({"a": a.reshape(3, 2), "b": b}),
        Masks({"a": a.reshape(6), "b": b}),
        Masks({"a": ~a, "b": b}),
        Masks({"a": a, "b": mask([1, 1])}),
        Masks({"a": a, "b": mask([1, 0, 0])}),
        Masks({}),
    ]
    assert len({first, *(other.fingerprint() for other in others)}) == 9


def test_fingerprint_sees_a_change_of_any_single_bit():
    base = torch.zeros(19, dtype=torch.bool)
    prints = {Masks({"a": base}).fingerprint()}
    for index in range(19):
        changed = base.clone()
        changed[index] = True
        prints.add(Masks({"a": changed}).fingerprint())
    assert len(prints) == 20


# --- on models ---


def test_apply_sets_pruned_weights_to_zero_and_leaves_the_others(masks):
    model = two_layers()
    other = model[1].weight.clone()
    masks.apply_(model)
    assert model[0].weight.tolist() == [[1.0, 0.0, 3.0], [4.0, 0.0, 0.0]]
    assert torch.equal(model[1].weight, other)
    assert model[0].weight.requires_grad
    masks.check(model)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), -0.0])
def test_apply_clears_whatever_a_pruned_weight_holds(masks, value):
    model = two_layers()
    with torch.no_grad():
        model[0].weight[0, 1] = model[0].weight[1, 2] = value
    masks.apply_(model)
    assert model[0].weight.tolist() == [[1.0, 0.0, 3.0], [4.0, 0.0, 0.0]]
    assert not torch.signbit(model[0].weight).any()


def test_apply_leaves_a_kept_nan_for_others_to_find(masks):
    model = two_layers()
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")
    masks.apply_(model)
    assert torch.isnan(model[0].weight).tolist() == [[True, False, False], [False, False, False]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_apply_keeps_the_dtype(masks, dtype):
    model = two_layers().to(dtype)
    masks.apply_(model)
    assert model[0].weight.dtype == dtype
    assert model[0].weight.tolist() == [[1.0, 0.0, 3.0], [4.0, 0.0, 0.0]]


def test_check_names_tensor_count_and_first_indices(masks):
    model = two_layers()
    with pytest.raises(MaskError) as error:
        masks.check(model)
    assert str(error.value) == (
        "Pruned weights of '0.weight' must be exactly 0.0, but 3 are not, first at [(0, 1), (1, 1), (1, 2)]. "
        "Something changed the weights after the mask was applied: call Masks.apply_(model)."
    )


@pytest.mark.parametrize("value", [1e-45, -1e-30, float("nan"), float("inf")])
def test_check_finds_the_smallest_and_the_strangest_leak(masks, value):
    model = two_layers()
    masks.apply_(model)
    with torch.no_grad():
        model[0].weight[1, 2] = value
    with pytest.raises(MaskError, match=r"'0.weight' must be exactly 0.0, but 1 are not, first at \[\(1, 2\)\]"):
        masks.check(model)


def test_check_accepts_zeros_among_kept_weights(masks):
    model = two_layers()
    with torch.no_grad():
        model[0].weight.zero_()
    assert masks.check(model) is None


def test_check_and_apply_reach_tied_names():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight
    masks = Masks({"1.weight": mask([1, 0], [0, 1])})
    masks.apply_(model)
    assert model[0].weight.count_nonzero() == 2
    masks.check(model)


@pytest.mark.parametrize("method", ["apply_", "check"])
def test_masks_of_another_model_are_an_error(method):
    masks = Masks({"0.weight": torch.zeros(2, 3, dtype=torch.bool), "gone.weight": mask([1])})
    model = two_layers()
    before = model[0].weight.clone()
    with pytest.raises(MaskError, match=r"Masks for \['gone.weight'\] have no parameter in Sequential"):
        getattr(masks, method)(model)
    assert torch.equal(model[0].weight, before)


@pytest.mark.parametrize("shape", [(3, 2), (6,), (2, 1)])
@pytest.mark.parametrize("method", ["apply_", "check"])
def test_masks_of_another_shape_are_an_error_and_change_nothing(method, shape):
    masks = Masks({"1.bias": torch.zeros(4, dtype=torch.bool), "0.weight": torch.zeros(shape, dtype=torch.bool)})
    model = two_layers()
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(MaskError) as error:
        getattr(masks, method)(model)
    assert f"Mask of '0.weight' must have the parameter's shape (2, 3), got {shape}" in str(error.value)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))


# --- on disk ---

SHAPES = {"scalar": (), "one": (1,), "seven": (7,), "eight": (8,), "nine": (3, 3), "cube": (3, 5, 7), "empty": (0, 4)}


@pytest.mark.parametrize("seed", range(3))
def test_round_trip_of_any_shape(tmp_path, seed):
    masks = random_masks(SHAPES, seed)
    masks.save(tmp_path / "masks.safetensors")
    loaded = Masks.load(tmp_path / "masks.safetensors")
    assert_equal(loaded, masks)
    assert loaded.fingerprint() == masks.fingerprint()


def test_round_trip_keeps_the_order_of_the_model(tmp_path):
    masks = random_masks({"z": (3,), "a": (9,), "m": (2,)})
    masks.save(str(tmp_path / "masks.safetensors"))
    assert list(Masks.load(str(tmp_path / "masks.safetensors"))) == ["z", "a", "m"]


def test_round_trip_of_no_masks(tmp_path):
    Masks({}).save(tmp_path / "masks.safetensors")
    assert len(Masks.load(tmp_path / "masks.safetensors")) == 0


def test_one_bit_a_weight_lowest_bit_first(tmp_path):
    path = tmp_path / "masks.safetensors"
    masks = Masks({"a": mask([1, 0, 1], [1, 0, 0]), "b": torch.ones(9, dtype=torch.bool)})
    masks.save(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        assert file.get_tensor("a").tolist() == [0b001101]
        assert file.get_tensor("b").tolist() == [0b11111111, 0b1]
        assert file.get_tensor("a").dtype == torch.uint8
    assert list(metadata) == ["sms_hf.masks.v1"]
    header = json.loads(metadata["sms_hf.masks.v1"])
    assert header == {"shapes": {"a": [2, 3], "b": [9]}, "fingerprint": masks.fingerprint()}
    assert path.read_bytes().endswith(b"\x0d\xff\x01")


def test_saving_leaves_one_file_and_replaces_an_older_one(tmp_path, masks):
    path = tmp_path / "masks.safetensors"
    random_masks(SHAPES).save(path)
    masks.save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["masks.safetensors"]
    assert_equal(Masks.load(path), masks)


def test_saving_that_is_interrupted_leaves_the_older_file_whole(tmp_path, masks, monkeypatch):
    path = tmp_path / "masks.safetensors"
    masks.save(path)

    def full(file):
        raise OSError("disk full")

    monkeypatch.setattr("sms_hf.files.writing.os.fsync", full)  # The bytes are written, but not on the disk.
    with pytest.raises(OSError, match="disk full"):
        random_masks(SHAPES).save(path)
    assert_equal(Masks.load(path), masks)
    with pytest.raises(OSError, match="disk full"):
        random_masks(SHAPES).save(tmp_path / "new.safetensors")
    assert not (tmp_path / "new.safetensors").exists()


def test_weights_are_no_file_of_masks(tmp_path):
    path = tmp_path / "model.safetensors"
    expected = r"model\.safetensors must be a file of masks \(sms_hf\.masks\.v1\), got metadata "
    save_file({"a": torch.ones(3)}, path)
    with pytest.raises(MaskError, match=expected + r"\[\]"):
        Masks.load(path)
    save_file({"a": torch.ones(3)}, path, metadata={"format": "pt"})
    with pytest.raises(MaskError, match=expected + r"\['format'\]"):
        Masks.load(path)


@pytest.mark.parametrize("content", [b"", b"\x00", b"not a file of tensors at all", b"\xff" * 64])
def test_a_file_of_something_else_is_damaged(tmp_path, content):
    path = tmp_path / "masks.safetensors"
    path.write_bytes(content)
    with pytest.raises(MaskError, match=r"masks.safetensors is damaged"):
        Masks.load(path)


def test_a_file_cut_anywhere_is_damaged(tmp_path):
    path = tmp_path / "masks.safetensors"
    random_masks({"a": (5, 7), "b": (3,)}).save(path)
    content = path.read_bytes()
    for length in range(0, len(content), 5):
        path.write_bytes(content[:length])
        with pytest.raises(MaskError, match="damaged"):
            Masks.load(path)


def test_a_file_with_any_one_byte_changed_gives_the_same_masks_or_an_error(tmp_path):
    path = tmp_path / "masks.safetensors"
    masks = random_masks({"a": (5, 7)})
    masks.save(path)
    content = path.read_bytes()
    for index in range(len(content)):
        for flip in (0x01, 0x80):
            path.write_bytes(content[:index] + bytes([content[index] ^ flip]) + content[index + 1 :])
            try:
                loaded = Masks.load(path)
            except MaskError:
                continue
            assert loaded.fingerprint() == masks.fingerprint(), f"byte {index}"


def test_a_changed_bit_is_found_by_the_checksum(tmp_path):
    path = tmp_path / "masks.safetensors"
    Masks({"a": torch.ones(8, dtype=torch.bool)}).save(path)
    path.write_bytes(path.read_bytes()[:-1] + b"\xfe")
    with pytest.raises(MaskError, match="its masks do not match their checksum"):
        Masks.load(path)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"a": [3, 4]}, "A mask of shape .3, 4. needs 2 bytes, got 1"),
        ({"a": [2, 4], "b": [8]}, "damaged"),
        ({"a": [4, 2]}, "do not match their checksum"),
        ({}, "do not match their checksum"),
    ],
)
def test_shapes_that_do_not_fit_the_bits_are_damage(tmp_path, shapes, message):
    path = tmp_path / "masks.safetensors"
    fingerprint = Masks({"a": torch.ones(2, 4, dtype=torch.bool)}).fingerprint()
    header = json.dumps({"shapes": shapes, "fingerprint": fingerprint})
    save_file({"a": torch.tensor([255], dtype=torch.uint8)}, path, metadata={"sms_hf.masks.v1": header})
    with pytest.raises(MaskError, match=message):
        Masks.load(path)


@pytest.mark.parametrize("header", ["", "{", "[]", "{}", '{"shapes": {"a": [8]}}', '{"fingerprint": "0"}'])
def test_a_header_that_lacks_something_is_damage(tmp_path, header):
    path = tmp_path / "masks.safetensors"
    save_file({"a": torch.tensor([255], dtype=torch.uint8)}, path, metadata={"sms_hf.masks.v1": header})
    with pytest.raises(MaskError, match="damaged"):
        Masks.load(path)


def test_equal_masks_are_equal_files(tmp_path):
    for name in ("a", "b"):
        random_masks(SHAPES).save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        Masks.load(tmp_path / "masks.safetensors")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64])
def test_nonzero_is_what_differs_from_zero(dtype):
    special = torch.tensor([0.0, -0.0, 1e-45, -1e-7, 3.0, float("inf"), float("nan")])
    for values in (special, special[2], torch.zeros(0, 3), torch.arange(24.0).reshape(4, 6).T[::2]):
        values = values.nan_to_num().to(dtype) if dtype == torch.int64 else values.to(dtype)
        assert torch.equal(nonzero(values), values != 0)


def test_a_file_of_masks_tells_its_fingerprint_and_whether_it_is_whole(tmp_path):
    masks = Masks({"a": torch.tensor([[True, False, True]]), "b": torch.ones(2, 2, dtype=torch.bool)})
    path = tmp_path / "masks.safetensors"
    masks.save(path)
    assert stored_fingerprint(path) == masks.fingerprint() == Masks.load(path).fingerprint()
    raw = path.read_bytes()
    path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 0x80]))  # A bit beyond the last weight.
    with pytest.raises(MaskError, match="do not match their checksum"):
        stored_fingerprint(path)
