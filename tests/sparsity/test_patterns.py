"""N:M, whole units, and which criterion, scope and pattern go together."""

import itertools
import re

import pytest
import torch
from torch import nn
from toys import A, Attention, B, FeedForward, assert_unchanged, bits, filters, model_of, snapshot
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from sms_hf.sparsity import CRITERIA, Criterion, Masks, find_prunable, nm_skipped, pattern_sparsity, prune
from sms_hf.sparsity.pruning import COMBINATIONS, SCOPES, check_options

torch.set_num_threads(1)

STRUCTURED = ["filters", "heads", "neurons"]


def middle(name, start, piece):
    """Keeps what is close to 0.2."""
    return 1 / (1 + (piece.float().abs() - 0.2).abs())


def linear(rows, dtype=torch.float32):
    layer = nn.Linear(len(rows[0]), len(rows), bias=False)
    layer.weight = nn.Parameter(torch.tensor(rows).to(dtype))
    return nn.ModuleDict({"a": layer})


def along_inputs(mask, m):
    """Number kept in every group."""
    return mask.unflatten(-1, (-1, m)).sum(-1)


# --- what goes together ---


THREE = {"a": A, "b": B, "c": [0.5, -0.4, 0.05, 0.6]}


@pytest.mark.parametrize(
    ("scope", "criterion", "pattern", "a", "b", "c"),
    [
        ("global", "magnitude", "unstructured", [0, 0, 1, 0], [0, 1, 1, 0], [1, 1, 0, 1]),
        ("uniform", "magnitude", "unstructured", [0, 0, 1, 1], [0, 1, 1, 0], [1, 0, 0, 1]),
        ("erk", "magnitude", "unstructured", [0, 0, 1, 1], [0, 1, 1, 0], [1, 0, 0, 1]),
        ("lamp", "magnitude", "unstructured", [0, 0, 1, 1], [0, 1, 1, 0], [1, 0, 0, 1]),
        ("uniform+", "magnitude", "unstructured", [1, 1, 1, 1], [0, 0, 1, 0], [0, 0, 0, 1]),
        ("uniform", "magnitude", "2:4", [0, 0, 1, 1], [0, 1, 1, 0], [1, 0, 0, 1]),
        ("global", middle, "unstructured", [1, 0, 1, 1], [1, 0, 0, 1], [0, 0, 1, 0]),
        ("uniform", middle, "unstructured", [0, 0, 1, 1], [1, 0, 0, 1], [0, 1, 1, 0]),
        ("erk", middle, "unstructured", [0, 0, 1, 1], [1, 0, 0, 1], [0, 1, 1, 0]),
        ("uniform+", middle, "unstructured", [1, 1, 1, 1], [0, 0, 0, 1], [0, 0, 1, 0]),
        ("uniform", middle, "2:4", [0, 0, 1, 1], [1, 0, 0, 1], [0, 1, 1, 0]),
        ("global", "random", "unstructured", [0, 0, 0, 0], [0, 1, 1, 1], [1, 0, 1, 1]),
        ("uniform", "random", "unstructured", [0, 0, 1, 1], [0, 1, 0, 1], [0, 0, 1, 1]),
        ("erk", "random", "unstructured", [0, 0, 1, 1], [0, 1, 0, 1], [0, 0, 1, 1]),
        ("uniform+", "random", "unstructured", [1, 1, 1, 1], [0, 1, 0, 0], [0, 0, 0, 1]),
        ("uniform", "random", "2:4", [0, 0, 1, 1], [0, 1, 0, 1], [0, 0, 1, 1]),
    ],
)
def test_literal_masks(scope, criterion, pattern, a, b, c):
    masks = prune(model_of(**THREE), 0.5, scope=scope, criterion=criterion, pattern=pattern)
    assert bits(masks) == {"a": a, "b": b, "c": c}


@pytest.mark.parametrize(("criterion", "gone"), [("magnitude", 1), ("random", 0)])
def test_literal_masks_of_neurons(criterion, gone):
    model = FeedForward()
    masks = prune(model, 1 / 3, scope="uniform", criterion=criterion, pattern="neurons")
    expected = [int(j != gone) for j in range(3)]
    assert {name: mask.int().flatten().tolist() for name, mask in masks.items()} == dict.fromkeys(
        ["wi.weight", "wi.bias", "wo.weight"], expected
    )
    assert model.wo.bias.item() == 7


@pytest.mark.parametrize(("criterion", "gone"), [("magnitude", 0), ("random", 0)])
def test_literal_masks_of_heads(criterion, gone):
    masks = prune(Attention(), 0.5, scope="uniform", criterion=criterion, pattern="heads")
    rows = [[int(h != gone)] * 2 for h in range(2)]
    columns = [[int(h != gone) for h in range(2)]] * 2
    expected = {"q.weight": rows, "k.weight": rows, "v.weight": rows, "o.weight": columns}
    assert {name: mask.int().tolist() for name, mask in masks.items()} == expected


@pytest.mark.parametrize(("criterion", "gone"), [("magnitude", 0), ("random", 1)])
def test_literal_masks_of_filters(criterion, gone):
    masks = prune(filters(), 1 / 3, scope="uniform", criterion=criterion, pattern="filters")
    expected = [int(j != gone) for j in range(3)]
    assert {name: mask.int().flatten().tolist() for name, mask in masks.items()} == dict.fromkeys(
        ["0.weight", "0.bias"], expected
    )


def exists(scope, criterion, pattern):
    if pattern == "unstructured":
        return scope != "lamp" or criterion == "magnitude"
    if pattern == "2:4":
        return scope == "uniform"
    return scope == "uniform" and criterion in ("magnitude", "random")


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", *STRUCTURED])
def test_every_other_combination_is_refused_and_the_error_names_those_that_exist(pattern):
    model = model_of(a=A, b=B)
    before = snapshot(model)
    for scope, criterion in itertools.product(SCOPES, ["magnitude", "random", middle]):
        if exists(scope, criterion, pattern):
            check_options(scope, criterion, None, pattern)
            continue
        message = f"pruning_scope={scope!r}, pruning_criterion={criterion!r} and pruning_pattern={pattern!r} do not go"
        with pytest.raises(ValueError, match=re.escape(message)) as error:
            prune(model, 0.5, scope=scope, criterion=criterion, pattern=pattern)
        assert COMBINATIONS in str(error.value)
    assert_unchanged(model, before)
    assert all(repr(name) in COMBINATIONS for name in [*SCOPES, *CRITERIA, "unstructured", "N:M", *STRUCTURED])


@pytest.mark.parametrize("pattern", ["4:2", "2:2", "0:4", "-1:4", "2:4 ", "2/4", "block", "", "nm_2,4"])
def test_a_pattern_that_does_not_exist_is_an_error(pattern):
    message = (
        r"pruning_pattern must be one of \['filters', 'heads', 'neurons', 'unstructured'\] or 'N:M' with 1 <= N < M"
    )
    for check in (lambda: pattern_sparsity(pattern), lambda: check_options("uniform", "magnitude", None, pattern)):
        with pytest.raises(ValueError, match=message):
            check()


def test_sparsity_of_a_pattern():
    assert pattern_sparsity("2:4") == 0.5
    assert pattern_sparsity("1:4") == 0.75
    assert [pattern_sparsity(p) for p in ("unstructured", *STRUCTURED)] == [None] * 4


@pytest.mark.parametrize("pattern", ["2:4", "neurons"])
def test_a_limit_below_the_sparsity_is_an_error(pattern):
    model = FeedForward()
    with pytest.raises(
        ValueError, match=f"pruning_pattern='{pattern}' removes 0.5 of every layer, more than max_sparsity"
    ):
        prune(model, 0.5, scope="uniform", pattern=pattern, max_sparsity_per_layer=0.4)


# --- criteria of one's own ---


def test_a_row_of_the_table_is_a_criterion(monkeypatch):
    monkeypatch.setitem(CRITERIA, "middle", Criterion(lambda seen: middle))
    by_name = prune(model_of(a=A, b=B), 0.5, criterion="middle")
    assert bits(by_name) == {"a": [0, 0, 1, 1], "b": [1, 0, 0, 1]}
    assert by_name.fingerprint() == prune(model_of(a=A, b=B), 0.5, criterion=middle).fingerprint()
    with pytest.raises(ValueError, match="do not go together"):
        check_options("uniform", "middle", None, "heads")


@pytest.mark.parametrize(
    "wrong",
    [
        lambda name, start, piece: -piece.float().abs(),
        lambda name, start, piece: piece.double().abs(),
        lambda name, start, piece: piece.abs()[1:],
    ],
)
@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_scores_that_the_selection_cannot_compare_are_an_error(wrong, pattern):
    with pytest.raises(
        ValueError, match=r"must give non-negative float32 scores of shape \(4,\), got .* for 'a.weight'"
    ):
        prune(model_of(a=A), 0.5, scope="uniform", criterion=wrong, pattern=pattern)


def test_negative_zero_is_a_score():
    masks = prune(model_of(a=A), 0.5, criterion=lambda name, start, piece: torch.zeros_like(piece) * -1.0)
    assert bits(masks) == {"a": [0, 0, 1, 1]}


# --- N:M ---


@pytest.mark.parametrize("pattern", ["1:2", "2:4", "1:4", "4:8", "3:5"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("criterion", ["magnitude", "random"])
def test_exactly_n_of_every_m(pattern, dtype, criterion):
    torch.manual_seed(0)
    n, m = map(int, pattern.split(":"))
    model = nn.ModuleDict(
        {
            "linear": nn.Linear(4 * m, 7),
            "conv1d": Conv1D(7, 4 * m),
            "conv2d": nn.Conv2d(2 * m, 3, (2, 3)),
        }
    ).to(dtype)
    before = snapshot(model)
    targets = ["linear", "conv1d", "conv2d"]
    sparsity = pattern_sparsity(pattern)
    masks = prune(model, sparsity, scope="uniform", criterion=criterion, pattern=pattern, target_modules=targets)
    for name, dim in (("linear", 1), ("conv1d", 0), ("conv2d", 1)):
        mask, weight = masks[f"{name}.weight"], before[f"{name}.weight"]
        assert (along_inputs(mask.movedim(dim, -1), m) == n).all()
        if criterion == "magnitude":
            groups = weight.abs().movedim(dim, -1).unflatten(-1, (-1, m))
            living = mask.movedim(dim, -1).unflatten(-1, (-1, m))
            smallest_kept = groups.masked_fill(~living, torch.inf).amin(-1)
            assert (smallest_kept >= groups.masked_fill(living, 0).amax(-1)).all()
    masks.check(model)


def test_ties_lose_the_lower_index():
    rows = [[0.5, -0.5, 0.5, 0.5], [0.0, 0.5, 0.0, 0.5]]
    assert bits(prune(linear(rows), 0.5, scope="uniform", pattern="2:4")) == {"a": [0, 0, 1, 1, 0, 1, 0, 1]}
    assert bits(prune(linear([[0.5] * 8]), 0.5, scope="uniform", pattern="4:8")) == {"a": [0] * 4 + [1] * 4}


def test_groups_of_a_conv1d_run_down_its_columns():
    model = nn.ModuleDict({"a": Conv1D(2, 4)})
    with torch.no_grad():
        model["a"].weight.copy_(torch.tensor([[1.0, 9.0], [2.0, 8.0], [3.0, 7.0], [4.0, 6.0]]))
    masks = prune(model, 0.5, scope="uniform", pattern="2:4")
    assert masks["a.weight"].int().tolist() == [[0, 1], [0, 1], [1, 0], [1, 0]]


def test_groups_of_a_convolution_are_input_channels_at_one_position():
    model = nn.ModuleDict({"a": nn.Conv1d(2, 1, 3, bias=False)})
    with torch.no_grad():
        model["a"].weight.copy_(torch.tensor([[[1.0, 5.0, 3.0], [2.0, 4.0, 6.0]]]))
    masks = prune(model, 0.5, scope="uniform", pattern="1:2", target_modules=["a"])
    assert masks["a.weight"].int().tolist() == [[[0, 1, 0], [1, 0, 1]]]


@pytest.mark.parametrize(
    ("pattern", "sparsity", "n"),
    [
        ("1:4", 0.0, 4),
        ("1:4", 0.2, 4),
        ("1:4", 0.25, 3),
        ("1:4", 0.5, 2),
        ("1:4", 0.6, 2),
        ("1:4", 0.75, 1),
        ("3:5", 0.4, 3),
    ],
)
def test_below_its_own_sparsity_a_pattern_keeps_more(pattern, sparsity, n):
    m = int(pattern[-1])
    masks = prune(linear(torch.rand(3, 4 * m).add(0.1).tolist()), sparsity, scope="uniform", pattern=pattern)
    assert (along_inputs(masks["a.weight"], m) == n).all()


@pytest.mark.parametrize("second", ["1:4", "2:4"])
@pytest.mark.parametrize("named", [True, False])
def test_phases_nest(second, named):
    torch.manual_seed(0)
    model = nn.ModuleDict({"a": nn.Linear(16, 5)})
    first = prune(model, 0.5, scope="uniform", pattern="2:4")
    if named:
        with torch.no_grad():
            model["a"].weight.copy_(torch.randn(5, 16))  # retraining
    sparsity = pattern_sparsity(second)
    masks = prune(model, sparsity, scope="uniform", pattern=second, within=first if named else None)
    assert masks.is_within(first)
    assert (along_inputs(masks["a.weight"], 4) == int(second[0])).all()
    assert (masks.fingerprint() == first.fingerprint()) == (second == "2:4")


def test_dead_weights_go_first_whatever_they_hold():
    within = Masks({"a.weight": torch.tensor([[False, True, True, True]])})
    masks = prune(linear([[float("nan"), 1.0, 2.0, 3.0]]), 0.5, scope="uniform", pattern="2:4", within=within)
    assert bits(masks) == {"a": [0, 0, 1, 1]}


def test_more_sparsity_than_the_pattern_gives_is_an_error():
    model = linear([A])
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"pruning_pattern='2:4' gives a sparsity of 0.5, got sparsity=0.6"):
        prune(model, 0.6, scope="uniform", pattern="2:4")
    assert_unchanged(model, before)


def test_a_group_with_too_few_left_is_an_error():
    model = linear([[0.0, 0.0, 0.0, 1.0], A])
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"'a.weight' has groups of 4 weights with fewer than 2 left"):
        prune(model, 0.5, scope="uniform", pattern="2:4")
    assert_unchanged(model, before)


def test_broken_weights_are_an_error():
    model = linear([[1.0, 2.0, 3.0, float("nan")]])
    with pytest.raises(ValueError, match=r"'a\.weight' holds NaN or infinite weights"):
        prune(model, 0.5, scope="uniform", pattern="2:4")


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate = nn.Parameter(torch.ones(2, 4, 4))


def test_tensors_that_do_not_divide_stay_whole_and_are_named():
    model = nn.ModuleDict({"even": nn.Linear(8, 6), "odd": nn.Linear(6, 2), "experts": Experts()})
    reasons = {"odd.weight": "6 inputs are no multiple of 4", "experts.gate": "stacked experts"}
    assert nm_skipped(model, "2:4") == reasons
    assert nm_skipped(model, "2:4", exclude_modules=["odd"]) == {"experts.gate": "stacked experts"}
    assert nm_skipped(model, "unstructured") == nm_skipped(model, "heads") == {}
    before = snapshot(model)
    message = r"'2:4' leaves tensors dense: 'odd.weight' \(6 inputs are no multiple of 4\); 'experts.gate' \(stacked"
    with pytest.warns(UserWarning, match=message):
        masks = prune(model, 0.5, scope="uniform", pattern="2:4")
    assert masks.sparsity_per_tensor() == {"even.weight": 0.5, "odd.weight": 0, "experts.gate": 0}
    assert torch.equal(model["odd"].weight, before["odd.weight"])
    with pytest.warns(UserWarning, match="leaves tensors dense"):
        again = prune(model, 0.5, scope="uniform", pattern="2:4", within=masks)
    assert again.fingerprint() == masks.fingerprint()


def test_a_pattern_that_leaves_most_weights_dense_is_an_error():
    """A mixture of experts: 16 of its 48 weights are matrices, and 2:4 would have removed a sixth of all."""
    model = nn.ModuleDict({"even": nn.Linear(8, 2), "experts": Experts()})
    before = snapshot(model)
    words = (
        r"'2:4' would leave 66.7% of the prunable weights dense: 'experts.gate' \(stacked experts\). .*exclude_modules"
    )
    with pytest.raises(ValueError, match=words):
        prune(model, 0.5, scope="uniform", pattern="2:4")
    assert_unchanged(model, before)
    assert prune(model, 0.5, scope="uniform", pattern="2:4", exclude_modules=["experts"]).sparsity() == 0.5


def test_a_pattern_that_fits_nothing_is_an_error():
    model = nn.ModuleDict({"odd": nn.Linear(6, 2)})
    with pytest.raises(ValueError, match=r"pruning_pattern='2:4' fits no tensor: 'odd.weight' \(6 inputs are no"):
        prune(model, 0.5, scope="uniform", pattern="2:4")


def test_every_matrix_of_a_gpt2():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=32, n_positions=8, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=1)
    model = GPT2LMHeadModel(config)
    masks = prune(model, 0.5, scope="uniform", pattern="2:4")
    assert list(masks) == list(find_prunable(model).parameters)
    for mask in masks.values():
        assert (along_inputs(mask.t(), 4) == 2).all()


def test_layers_are_no_pattern_and_the_error_says_where_they_go():
    with pytest.raises(ValueError, match=r"got 'layers': .* sms_hf\.drop_layers, or smaller_first"):
        check_options("uniform", "magnitude", None, "layers")
