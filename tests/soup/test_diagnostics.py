"""Distances, barriers and costs, from numbers that can be computed by hand."""

import itertools
import math

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from sms_hf.files.folder import CheckpointError
from sms_hf.soup import (
    Rift,
    advice,
    averaging,
    barrier,
    find_rifts,
    mask_overlap,
    pairwise_geometry,
    subsets,
    theoretical_speedup,
)
from sms_hf.sparsity import MaskError, Masks

torch.set_num_threads(1)


def folders_of(tmp_path, *states):
    folders = [tmp_path / f"c{i}" for i in range(len(states))]
    for folder, state in zip(folders, states, strict=True):
        folder.mkdir()
        save_file({name: torch.as_tensor(value) for name, value in state.items()}, folder / "model.safetensors")
    return folders


def masks_of(**masks):
    return Masks({name: torch.tensor(mask, dtype=torch.bool) for name, mask in masks.items()})


def random_states(count, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = {"w": (5, 3), "bias": (7,), "scale": (), "cube": (2, 3, 2)}
    return [
        {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()} | {"steps": i}
        for i in range(count)
    ]


# ---- Distances ---------------------------------------------------------------------------------------------------------


def test_geometry_by_hand(tmp_path):
    # The weight vectors (3, 0, 0), (0, 4, 0) and (3, 4, 0); their mean is (2, 8/3, 0).
    states = [{"a": [[3.0, 0.0]], "b": 0.0}, {"a": [[0.0, 4.0]], "b": 0.0}, {"a": [[3.0, 4.0]], "b": 0.0}]
    found = pairwise_geometry(folders_of(tmp_path, *states))
    assert found["distances"] == [[0, 5, 4], [5, 0, 3], [4, 3, 0]]
    steep = math.degrees(math.atan2(4, 3))
    expected = [[0, 90, steep], [90, 0, 90 - steep], [steep, 90 - steep, 0]]
    assert found["angles"] == [pytest.approx(row) for row in expected]
    assert found["to_barycentre"] == pytest.approx([math.sqrt(73) / 3, math.sqrt(52) / 3, 5 / 3])
    assert found["distance"] == pytest.approx({"min": 3, "mean": 4, "max": 5})
    assert found["angle"] == pytest.approx({"min": 90 - steep, "mean": 60, "max": 90})


@pytest.mark.parametrize("chunk", [1, 4, 1 << 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_distances_to_the_mean_follow_from_those_of_the_pairs(tmp_path, monkeypatch, chunk, dtype):
    """sum_i |t_i - mean|^2 = (1 / m) sum_{i < j} |t_i - t_j|^2, whatever the pieces are in which folders are read."""
    monkeypatch.setattr(averaging, "CHUNK", chunk)
    states = random_states(4, dtype)
    found = pairwise_geometry(folders_of(tmp_path, *states))
    vectors = [torch.cat([t.double().flatten() for t in list(state.values())[:4]]) for state in states]
    assert found["distances"][0][1] == pytest.approx(float((vectors[0] - vectors[1]).norm()))
    pairs = sum(found["distances"][i][j] ** 2 for i, j in itertools.combinations(range(4), 2))
    assert sum(d**2 for d in found["to_barycentre"]) == pytest.approx(pairs / 4)


def test_copies_lie_at_distance_and_angle_zero(tmp_path):
    state = random_states(1)[0]
    found = pairwise_geometry(folders_of(tmp_path, state, state))
    assert found["distances"] == found["angles"] == [[0, 0], [0, 0]]
    assert found["to_barycentre"] == [0, 0]


def test_opposite_and_parallel_vectors_have_angles_and_no_nan(tmp_path):
    # Cosines that rounding pushes past 1.
    vector = torch.full((7,), 0.1)
    folders = folders_of(tmp_path, {"w": vector}, {"w": 3 * vector}, {"w": -vector})
    (_, parallel, opposite), *_ = pairwise_geometry(folders)["angles"]
    assert parallel == pytest.approx(0, abs=1e-5)
    assert opposite == pytest.approx(180, abs=1e-5)


def test_only_the_names_given_and_floating_tensors_count(tmp_path):
    folders = folders_of(tmp_path, {"w": [3.0], "mean": [9.0], "steps": [1]}, {"w": [5.0], "mean": [1.0], "steps": [7]})
    assert pairwise_geometry(folders, ["w", "tied.w"])["distances"][0][1] == 2
    assert pairwise_geometry(folders)["distances"][0][1] == pytest.approx(math.sqrt(68))


def test_folders_that_cannot_be_compared(tmp_path):
    folders = folders_of(tmp_path, {"w": [1.0, 2.0]}, {"w": [1.0, 2.0]}, {"w": [1.0]}, {"v": [1.0, 2.0]})
    with pytest.raises(ValueError, match="needs at least two folders, got 1"):
        pairwise_geometry(folders[:1])
    with pytest.raises(ValueError, match=r"names must hold floating tensors of .*, got \['x'\]"):
        pairwise_geometry(folders[:2], ["x"])
    with pytest.raises(CheckpointError, match=r"'w' has shape \(2,\) in .*c0 and \(1,\) in .*c2\. Pass candidates"):
        pairwise_geometry([folders[0], folders[2]])
    with pytest.raises(CheckpointError, match=r"'w' has shape \(2,\) in .*c0 and None in .*c3"):
        pairwise_geometry([folders[0], folders[3]])


def test_overlap_of_masks():
    first = masks_of(a=[1, 1, 0, 0], b=[[1, 0]])
    assert mask_overlap(first, masks_of(a=[1, 0, 1, 0], b=[[1, 0]])) == 2 / 4
    assert mask_overlap(first, masks_of(b=[[1, 0]], a=[1, 1, 0, 0])) == 1
    assert mask_overlap(first, masks_of(a=[0, 0, 1, 1], b=[[0, 1]])) == 0
    assert mask_overlap(masks_of(a=[0]), masks_of(a=[0])) == 1


@pytest.mark.parametrize("other", [{"b": [1, 0]}, {"a": [1, 0], "b": [1]}, {"a": [[1, 0], [1, 1]]}])
def test_masks_of_other_tensors_have_no_overlap(other):
    with pytest.raises(MaskError, match="must cover the same tensors, but"):
        mask_overlap(masks_of(a=[1, 0]), masks_of(**other))


def test_subsets_come_by_size_and_in_order():
    assert subsets(["a", "b", "c"], [2, 3]) == [("a", "b"), ("a", "c"), ("b", "c"), ("a", "b", "c")]
    assert subsets(["b", "a"], [1]) == [("b",), ("a",)]
    assert subsets(["a"], [2]) == []


# ---- Loss between two models -------------------------------------------------------------------------------------------


def test_barrier_by_hand():
    assert barrier(1.0, 4.0, 2.0) == 2.5
    assert barrier(1.0, 1.5, 2.0) == 0


@pytest.mark.parametrize(
    ("ends", "middle", "is_rift"),
    [
        ((1.0, 2.0), 2.5, True),
        ((1.0, 2.0), 1.9, False),  # Above their mean, but not above both.
        ((1.0, 1.0), 1.0, False),
        ((1.0, 1.0), 1.005, False),  # A margin of 1 %.
        ((1.0, 2.0), float("nan"), True),
        ((1.0, 2.0), float("inf"), True),
        ((-2.0, -2.0), -2.0, False),
        ((-2.0, -2.0), -1.9, True),
    ],
)
def test_rifts(ends, middle, is_rift):
    found = find_rifts({"a": ends[0], "b": ends[1]}, {("a", "b"): middle})
    assert len(found) == is_rift
    for rift in found:
        assert (rift.first, rift.second, rift.losses) == ("a", "b", ends)
        assert rift.midpoint is middle


def test_each_pair_is_judged_by_its_own_ends():
    losses = {"a": 1.0, "b": 1.0, "c": 5.0}
    middles = {("a", "b"): 3.0, ("a", "c"): 3.0, ("b", "c"): 6.0}
    assert [(rift.first, rift.second) for rift in find_rifts(losses, middles)] == [("a", "b"), ("b", "c")]


def test_advice_names_the_pair_the_losses_and_what_to_narrow():
    rift = Rift("candidate-1", "candidate-2", (1.25, 1.5), 7.125)
    overrides = {
        "candidate-1": {"seed": 1, "learning_rate": 0.01, "weight_decay": 0.0},
        "candidate-2": {"seed": 2, "learning_rate": 0.3, "weight_decay": 0.0},
    }
    assert advice(rift, overrides) == (
        "candidate-1 and candidate-2 share no basin: on one batch the loss between them is 7.125, at the ends 1.25 and 1.5; "
        "narrow learning_rate (0.01 and 0.3)."
    )
    overrides["candidate-2"]["weight_decay"] = 0.1
    assert advice(rift, overrides).endswith("narrow learning_rate (0.01 and 0.3), weight_decay (0.0 and 0.1).")


def test_advice_where_only_the_seed_differs():
    text = advice(Rift("a", "b", (1.0, 1.0), float("nan")), {"a": {"seed": 1}, "b": {"seed": 2}})
    assert "is nan, at the ends 1 and 1; " in text
    assert text.endswith("; lower learning_rate or retrain shorter, so that candidates stay near their parent.")


# ---- Cost --------------------------------------------------------------------------------------------------------------


class Toy(nn.Module):
    """Convolution 1 -> 2 of 3 x 3 (18 weights), then a linear map 2 -> 4 (8 weights) of the mean over pixels."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(1, 2, 3, padding=1)
        self.norm = nn.BatchNorm2d(2)
        self.linear = nn.Linear(2, 4)

    def forward(self, pixels):
        return self.linear(self.norm(self.convolution(pixels)).mean((2, 3)))


PIXELS = {"pixels": torch.zeros(3, 1, 5, 4)}
"""The convolution has 3 * 20 positions, the linear map 3: 2 * 18 * 60 = 2,160 and 2 * 8 * 3 = 48 operations, dense."""

HALF = torch.arange(18).reshape(2, 1, 3, 3) % 2 == 0
QUARTER = torch.arange(8).reshape(4, 2) % 4 == 0


@pytest.mark.parametrize(
    ("masks", "expected"),
    [
        ({}, 1.0),
        ({"convolution.weight": HALF}, 2208 / (1080 + 48)),
        ({"linear.weight": QUARTER}, 2208 / (2160 + 12)),
        ({"convolution.weight": HALF, "linear.weight": QUARTER}, 2208 / (1080 + 12)),
        ({"convolution.weight": HALF & False, "linear.weight": QUARTER & False}, math.inf),
    ],
)
def test_speedup_weighs_maps_by_their_positions(masks, expected):
    assert theoretical_speedup(Toy(), Masks(masks), PIXELS) == pytest.approx(expected)


def test_speedup_leaves_the_model_as_it_was():
    model = Toy().train()
    model.norm.eval()
    theoretical_speedup(model, {}, PIXELS)
    assert [module.training for module in model.modules()] == [True, True, False, True]
    assert not any(module._forward_hooks for module in model.modules())
    assert model.norm.num_batches_tracked == 0
    with pytest.raises(TypeError):
        theoretical_speedup(model, {}, {"words": 1})
    assert [module.training for module in model.modules()] == [True, True, False, True]
    assert not any(module._forward_hooks for module in model.modules())


def test_speedup_of_a_matrix_that_is_stored_the_other_way_round():
    model = nn.Sequential(Conv1D(nf=6, nx=2))
    masks = {"0.weight": torch.arange(12).reshape(2, 6) % 4 == 0}
    assert theoretical_speedup(model, masks, {"input": torch.zeros(2, 5, 2)}) == 4


def test_speedup_of_grouped_convolutions_and_of_maps_that_run_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.grouped = nn.Conv1d(4, 4, 1, groups=2, bias=False)  # 8 weights.
            self.other = nn.Conv1d(4, 4, 1, bias=False)  # 16 weights.

        def forward(self, x):
            return self.other(self.grouped(self.grouped(x)))

    masks = {"grouped.weight": torch.arange(8).reshape(4, 2, 1) % 2 == 0}
    # Twice 8 and once 16 weights, at equally many positions.
    assert theoretical_speedup(Twice(), masks, {"x": torch.zeros(1, 4, 7)}) == pytest.approx(32 / 24)


def test_speedup_of_a_single_map_and_of_none():
    assert theoretical_speedup(nn.Linear(2, 4), {"weight": QUARTER}, {"input": torch.zeros(1, 2)}) == 4
    assert theoretical_speedup(nn.Embedding(2, 4), {}, {"input": torch.zeros(1, dtype=torch.long)}) == 1
