"""The exact "smallest k of all": literal masks, and a sort as the oracle."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sms_hf.sparsity import selection
from sms_hf.sparsity.selection import keep_largest

torch.set_num_threads(1)

A, B = [0.1, -0.05, 0.3, 0.2], [-0.2, 0.8, 0.9, 0.2]


def bits(mask):
    return mask.int().reshape(-1).tolist()


def sorted_oracle(tensors, num_removed, alive=None):
    """Stable argsort of all |w|: equal ones keep their order, so the lower (tensor, flat index) goes first."""
    alive = alive or {}
    scores = torch.cat([t.float().abs().reshape(-1) for t in tensors.values()])
    kept = torch.cat([alive.get(n, torch.ones(t.shape, dtype=torch.bool)).reshape(-1) for n, t in tensors.items()])
    candidates = kept.nonzero().squeeze(1)
    kept = kept.clone()
    kept[candidates[scores[candidates].argsort(stable=True)[:num_removed]]] = False
    parts = kept.split([t.numel() for t in tensors.values()])
    return {name: part.reshape(t.shape) for (name, t), part in zip(tensors.items(), parts, strict=True)}


def assert_same_masks(masks, expected):
    assert list(masks) == list(expected)
    for name, mask in masks.items():
        assert mask.dtype == torch.bool
        assert mask.shape == expected[name].shape
        assert torch.equal(mask, expected[name]), name


@pytest.fixture(autouse=True, params=["as on a CPU", "as on a GPU"])
def way(request, monkeypatch):
    if request.param == "as on a GPU":
        monkeypatch.setattr(selection, "_runs_ahead", lambda tensor: True)
        monkeypatch.setattr(selection, "CUDA_CHUNK", 11)
    return request.param


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(selection, "CHUNK", 8)


@pytest.mark.parametrize(
    ("num_removed", "mask_a", "mask_b"),
    [
        (0, [1, 1, 1, 1], [1, 1, 1, 1]),
        (1, [1, 0, 1, 1], [1, 1, 1, 1]),
        (2, [0, 0, 1, 1], [1, 1, 1, 1]),
        (3, [0, 0, 1, 0], [1, 1, 1, 1]),
        (4, [0, 0, 1, 0], [0, 1, 1, 1]),
        (5, [0, 0, 1, 0], [0, 1, 1, 0]),
        (6, [0, 0, 0, 0], [0, 1, 1, 0]),
        (7, [0, 0, 0, 0], [0, 0, 1, 0]),
        (8, [0, 0, 0, 0], [0, 0, 0, 0]),
    ],
)
def test_eight_weights_with_ties(num_removed, mask_a, mask_b):
    masks = keep_largest({"a": torch.tensor(A), "b": torch.tensor(B).reshape(2, 2)}, num_removed)
    assert bits(masks["a"]) == mask_a
    assert bits(masks["b"]) == mask_b
    assert masks["b"].shape == (2, 2)


def test_order_of_the_tensors_decides_ties():
    masks = keep_largest({"b": torch.tensor(B), "a": torch.tensor(A)}, 4)
    assert bits(masks["b"]) == [0, 1, 1, 0]
    assert bits(masks["a"]) == [0, 0, 1, 1]


@pytest.mark.parametrize("num_removed", range(0, 24, 3))
def test_equal_weights_go_in_order_until_the_count_is_exact(num_removed, small_chunks):
    masks = keep_largest({"a": torch.full((3, 3), 0.5), "b": torch.full((14,), -0.5)}, num_removed)
    expected = [0] * num_removed + [1] * (23 - num_removed)
    assert bits(masks["a"]) + bits(masks["b"]) == expected


@pytest.mark.parametrize("num_removed", [0, 1, 400, 500, 999, 1000])
def test_weights_rounded_to_tenths_lose_the_exact_count(num_removed):
    weights = (torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 10).round() / 10
    masks = keep_largest({"w": weights}, num_removed)
    assert int((~masks["w"]).sum()) == num_removed
    assert_same_masks(masks, sorted_oracle({"w": weights}, num_removed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("rounded", [False, True])
def test_agrees_with_a_stable_sort(dtype, seed, rounded, small_chunks):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"one": (1,), "under": (7,), "chunk": (2, 4), "over": (9,), "two": (4, 4), "odd": (17,), "none": (0, 3)}
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    if rounded:
        tensors = {name: (tensor * 4).round() / 4 for name, tensor in tensors.items()}
    tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    alive = {name: torch.rand(shapes[name], generator=generator) < 0.7 for name in ("under", "chunk", "odd")}
    total = sum(t.numel() for t in tensors.values())
    available = total - sum(int((~mask).sum()) for mask in alive.values())
    for num_removed in (0, 1, 13, total // 2, total):
        assert_same_masks(keep_largest(tensors, num_removed), sorted_oracle(tensors, num_removed))
    for num_removed in (0, 11, available // 2, available):
        assert_same_masks(keep_largest(tensors, num_removed, alive), sorted_oracle(tensors, num_removed, alive))


@pytest.mark.parametrize("chunk", [1, 7, 50, 64, 1 << 18])
def test_result_does_not_depend_on_the_size_of_the_pieces(chunk, monkeypatch):
    generator = torch.Generator().manual_seed(5)
    tensors = {"a": torch.randn(50, generator=generator).bfloat16(), "b": torch.randn(7, 2, generator=generator)}
    monkeypatch.setattr(selection, "CHUNK", chunk)
    assert_same_masks(keep_largest(tensors, 31), sorted_oracle(tensors, 31))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_differences_in_the_last_bit_of_a_weight_count(dtype):
    one = torch.tensor(1.0, dtype=dtype)
    ulp = torch.finfo(dtype).eps
    weights = torch.stack([one + 2 * ulp, -(one + ulp), one, one + 3 * ulp])
    assert bits(keep_largest({"w": weights}, 2)["w"]) == [1, 0, 0, 1]


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e20, 1e-20])
def test_scale_of_the_weights_does_not_matter(scale):
    assert bits(keep_largest({"a": torch.tensor(A) * scale}, 2)["a"]) == [0, 0, 1, 1]


def test_denormals_rank_above_zero_and_below_normals():
    tiny = torch.finfo(torch.float32).tiny
    weights = torch.tensor([tiny, 1e-45, 0.0, -3e-45])
    assert bits(keep_largest({"w": weights}, 1)["w"]) == [1, 1, 0, 1]
    assert bits(keep_largest({"w": weights}, 2)["w"]) == [1, 0, 0, 1]
    assert bits(keep_largest({"w": weights}, 3)["w"]) == [1, 0, 0, 0]


def test_half_precision_denormals_are_ranked():
    weights = torch.tensor([6e-8, 1.2e-7, 0.0, -6e-8], dtype=torch.float16)
    assert bits(keep_largest({"w": weights}, 2)["w"]) == [0, 1, 0, 1]


def test_negative_zero_ties_with_zero():
    assert bits(keep_largest({"w": torch.tensor([0.0, -0.0, 1.0, -0.0])}, 2)["w"]) == [0, 0, 1, 1]
    assert bits(keep_largest({"w": torch.tensor([-0.0, 0.0, -1.0, 0.0])}, 1)["w"]) == [0, 1, 1, 1]


def test_removed_weights_stay_removed_and_do_not_count():
    alive = {"a": torch.tensor([True, True, False, True])}
    tensors = {"a": torch.tensor(A), "b": torch.tensor(B)}
    masks = keep_largest(tensors, 2, alive)
    assert bits(masks["a"]) == [0, 0, 0, 1]
    assert bits(masks["b"]) == [1, 1, 1, 1]
    assert bits(keep_largest(tensors, 0, alive)["a"]) == [1, 1, 0, 1]


def test_removed_weights_may_hold_anything():
    weights = torch.tensor([float("nan"), 2.0, float("inf"), 1.0])
    masks = keep_largest({"w": weights}, 1, {"w": torch.tensor([False, True, False, True])})
    assert bits(masks["w"]) == [0, 1, 0, 0]


def test_a_tensor_that_is_removed_as_a_whole_stays_so():
    masks = keep_largest({"a": torch.tensor(A), "b": torch.tensor(B)}, 3, {"a": torch.zeros(4, dtype=torch.bool)})
    assert bits(masks["a"]) == [0, 0, 0, 0]
    assert bits(masks["b"]) == [0, 0, 1, 0]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_not_a_number_or_infinite_weights_are_an_error_with_the_name(value, dtype):
    broken = torch.tensor([1.0, 2.0, value]).to(dtype)
    with pytest.raises(ValueError, match=r"'layer.weight' holds NaN or infinite weights"):
        keep_largest({"fine": torch.ones(3, dtype=dtype), "layer.weight": broken}, 2)


def test_the_largest_finite_number_is_no_infinity():
    largest = torch.finfo(torch.float32).max
    assert bits(keep_largest({"w": torch.tensor([largest, -largest, 1.0])}, 2)["w"]) == [0, 1, 0]


@pytest.mark.parametrize("num_removed", [-1, 4])
def test_count_outside_of_what_is_left_is_an_error(num_removed):
    with pytest.raises(ValueError, match=rf"must lie in \[0, 3\], the number of weights left, got {num_removed}"):
        keep_largest({"a": torch.tensor(A)}, num_removed, {"a": torch.tensor([True, True, False, True])})


def test_nothing_in_nothing_out():
    assert keep_largest({}, 0) == {}


def test_weights_are_not_touched_and_views_are_read_in_their_own_order():
    weights = torch.tensor([[1.0, 4.0], [2.0, 3.0]]).t()
    before = weights.clone()
    assert bits(keep_largest({"w": weights}, 2)["w"]) == [0, 0, 1, 1]
    assert torch.equal(weights, before)


def test_score_decides_instead_of_the_magnitude():
    def nearest_to_one(name, start, piece):
        return (piece - 1.0).abs()

    masks = keep_largest({"a": torch.tensor([0.0, 1.0, 5.0, 0.75])}, 2, score=nearest_to_one)
    assert bits(masks["a"]) == [1, 0, 1, 0]


def test_score_sees_each_piece_with_its_name_and_start(small_chunks):
    seen = set()

    def score(name, start, piece):
        seen.add((name, start, len(piece)))
        return piece.abs()

    keep_largest({"a": torch.ones(17), "b": torch.ones(2, 4)}, 5, score=score)
    assert seen == {("a", 0, 8), ("a", 8, 8), ("a", 16, 1), ("b", 0, 8)}


class Waiting(TorchDispatchMode):
    """Counts what would make the processor wait for a GPU: values that are asked for, sizes that depend on values."""

    WAITING = ("_local_scalar_dense", "is_nonzero", "nonzero", "bincount", "masked_select", "index.Tensor")

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += any(f"aten.{name}" in str(func) for name in self.WAITING)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("way", ["as on a GPU"], indirect=True)
@pytest.mark.parametrize("rounded", [False, True])
def test_on_a_gpu_the_waits_do_not_grow_with_the_weights(way, rounded):
    waits = []
    for count in (1, 20):
        tensors = {str(i): torch.randn(3, 50, generator=torch.Generator().manual_seed(i)) for i in range(count)}
        tensors = {name: t.round() if rounded else t for name, t in tensors.items()}
        with Waiting() as waiting:
            keep_largest(tensors, 77 * count)
        waits.append(waiting.count)
    assert 0 < waits[0] == waits[1] < 12
