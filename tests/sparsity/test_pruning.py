"""Criterion x scope -> masks, with literal weights and exact counts."""

import pytest
import torch
from torch import nn
from toys import A, B, assert_unchanged, bits, model_of, num_zeros, snapshot
from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

from sms_hf.sparsity import Masks, find_prunable, phase_sparsities, prune
from sms_hf.sparsity import selection as selection_module

torch.set_num_threads(1)


def random_model(sizes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return model_of(**{f"l{i}": torch.randn(n, generator=generator).tolist() for i, n in enumerate(sizes)})


# --- literal masks ---


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ("global", {"a": [0, 0, 1, 0], "b": [0, 1, 1, 1]}),
        ("uniform", {"a": [0, 0, 1, 1], "b": [0, 1, 1, 0]}),
    ],
)
def test_eight_weights_with_ties(scope, expected):
    model = model_of(a=A, b=B)
    masks = prune(model, 0.5, scope=scope)
    assert bits(masks) == expected
    for name, row in (("a", A), ("b", B)):
        kept = [w if keep else 0.0 for w, keep in zip(row, expected[name], strict=True)]
        assert model[name].weight.tolist() == torch.tensor([kept]).tolist()


def test_global_magnitude_is_the_default():
    assert bits(prune(model_of(a=A, b=B), 0.5)) == {"a": [0, 0, 1, 0], "b": [0, 1, 1, 1]}


def test_sparsity_zero_keeps_everything():
    model = model_of(a=A, b=B)
    before = snapshot(model)
    assert bits(prune(model, 0.0)) == {"a": [1] * 4, "b": [1] * 4}
    assert_unchanged(model, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights(dtype):
    model = model_of(dtype, a=A, b=B)
    assert bits(prune(model, 0.5)) == {"a": [0, 0, 1, 0], "b": [0, 1, 1, 1]}
    assert model["a"].weight.dtype == dtype


@pytest.mark.parametrize(
    ("sparsity", "removed", "removed_per_tensor"),
    [
        (0.1, 3, [1, 1, 1]),
        (0.3, 9, [2, 3, 4]),
        (0.5, 16, [4, 6, 6]),  # 15.5 and 3.5, 5.5, 6.5: halves go to the even number.
        (0.6, 19, [4, 7, 8]),
        (0.9, 28, [6, 10, 12]),
    ],
)
def test_number_removed_is_rounded_once_over_all_or_once_a_tensor(sparsity, removed, removed_per_tensor):
    assert num_zeros(prune(random_model((7, 11, 13)), sparsity)) == removed
    masks = prune(random_model((7, 11, 13)), sparsity, scope="uniform")
    assert [m.numel() - int(m.sum()) for m in masks.values()] == removed_per_tensor


@pytest.mark.parametrize("scope", ["global", "uniform"])
@pytest.mark.parametrize("criterion", ["magnitude", "random"])
def test_kept_weights_stay_bit_equal_and_pruned_ones_are_zero(scope, criterion):
    model = random_model((40, 33))
    before = snapshot(model)
    masks = prune(model, 0.7, scope=scope, criterion=criterion)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter[masks[name]], before[name][masks[name]])
        pruned = parameter[~masks[name]]
        assert not pruned.any()
        assert not torch.signbit(pruned).any()
    masks.check(model)


def test_biases_and_whatever_is_not_prunable_stay_as_they_are():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.LayerNorm(4))
    before = snapshot(model)
    masks = prune(model, 0.75)
    assert list(masks) == ["1.weight"]
    for name in ("0.weight", "1.bias", "2.weight", "2.bias"):
        assert torch.equal(dict(model.named_parameters())[name], before[name])


def test_target_and_exclude_modules_reach_the_selection():
    rows = {"a": [1.0, 2.0], "b": [3.0, 4.0], "c": [5.0, 6.0]}
    assert bits(prune(model_of(**rows), 0.5, exclude_modules=["a"])) == {"b": [0, 0], "c": [1, 1]}
    assert bits(prune(model_of(**rows), 0.5, target_modules="a|c")) == {"a": [0, 0], "c": [1, 1]}


# --- max_sparsity_per_layer ---


def test_what_a_full_tensor_may_not_lose_is_taken_from_the_others():
    rows = {"a": [0.8, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7], "b": [10.0, 17.0, 11.0, 12.0, 13.0, 14.0, 15.0, 16.0]}
    assert bits(prune(model_of(**rows), 0.5)) == {"a": [0] * 8, "b": [1] * 8}
    masks = prune(model_of(**rows), 0.5, max_sparsity_per_layer=0.75)
    assert bits(masks) == {"a": [1, 0, 0, 0, 0, 0, 0, 1], "b": [0, 1, 0, 1, 1, 1, 1, 1]}
    assert masks.sparsity() == 0.5


def test_a_tensor_that_fills_up_only_by_redistribution_is_limited_too():
    # Ten of sixteen: without a limit all of `a` and two of `b`; with 0.75 six of `a`, three of `b`, one of `c`.
    rows = {"a": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], "b": [10.0, 11.0, 12.0, 13.0], "c": [23.0, 20.0, 21.0, 22.0]}
    assert bits(prune(model_of(**rows), 0.625)) == {"a": [0] * 8, "b": [0, 0, 1, 1], "c": [1] * 4}
    masks = prune(model_of(**rows), 0.625, max_sparsity_per_layer=0.75)
    assert bits(masks) == {"a": [0, 0, 0, 0, 0, 0, 1, 1], "b": [0, 0, 0, 1], "c": [1, 0, 1, 1]}
    assert num_zeros(masks) == 10


def test_weights_removed_earlier_count_towards_the_limit():
    rows = {"a": [0.0, 0.0, 1.0, 2.0], "b": [10.0, 11.0, 12.0, 13.0]}
    masks = prune(model_of(**rows), 0.5, max_sparsity_per_layer=0.75)
    assert bits(masks) == {"a": [0, 0, 0, 1], "b": [0, 1, 1, 1]}


def test_masks_keep_the_order_of_the_model_when_tensors_fill_up():
    rows = {"z": [10.0, 11.0, 12.0, 13.0], "a": [1.0, 2.0, 3.0, 4.0], "m": [20.0, 21.0, 22.0, 23.0]}
    masks = prune(model_of(**rows), 1 / 3, max_sparsity_per_layer=0.5)
    assert list(masks) == ["z.weight", "a.weight", "m.weight"]
    assert bits(masks) == {"z": [0, 0, 1, 1], "a": [0, 0, 1, 1], "m": [1, 1, 1, 1]}


@pytest.mark.parametrize("criterion", ["magnitude", "random"])
@pytest.mark.parametrize("seed", range(3))
def test_total_is_exact_and_no_tensor_loses_more_than_its_limit(seed, criterion):
    model = random_model((100, 37, 64, 5), seed)
    with torch.no_grad():
        model["l0"].weight *= 0.01
    masks = prune(model, 0.6, criterion=criterion, seed=seed, max_sparsity_per_layer=0.8)
    assert num_zeros(masks) == round(0.6 * 206)
    assert max(masks.sparsity_per_tensor().values()) <= 0.8


def test_a_limit_that_nothing_reaches_changes_nothing():
    assert bits(prune(model_of(a=A, b=B), 0.5, max_sparsity_per_layer=0.75)) == bits(prune(model_of(a=A, b=B), 0.5))


def test_limit_below_the_sparsity_is_an_error():
    model = model_of(a=A, b=B)
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"sparsity=0\.8 cannot be reached while no tensor may lose more than"):
        prune(model, 0.8, max_sparsity_per_layer=0.5)
    with pytest.raises(ValueError, match=r"pruning_scope='uniform' removes 0\.8 of every tensor, more than"):
        prune(model, 0.8, scope="uniform", max_sparsity_per_layer=0.5)
    assert_unchanged(model, before)


@pytest.mark.parametrize("scope", ["global", "uniform"])
def test_limit_equal_to_the_sparsity_can_be_reached(scope):
    masks = prune(random_model((100,)), 0.29, scope=scope, max_sparsity_per_layer=0.29)
    assert num_zeros(masks) == 29


@pytest.mark.parametrize("limit", [0.0, -0.5, 1.5])
def test_limit_outside_of_zero_to_one_is_an_error(limit):
    model = model_of(a=A, b=B)
    before = snapshot(model)
    with pytest.raises(ValueError, match=rf"max_sparsity_per_layer must lie in \(0, 1\], got {limit}"):
        prune(model, 0.5, max_sparsity_per_layer=limit)
    assert_unchanged(model, before)


# --- phases ---


@pytest.mark.parametrize(("size", "kept"), [(1024, [475, 221, 102]), (1000, [464, 215, 100])])
@pytest.mark.parametrize("scope", ["global", "uniform"])
@pytest.mark.parametrize("criterion", ["magnitude", "random"])
def test_phases_keep_exact_counts_and_masks_only_shrink(size, kept, scope, criterion):
    model = random_model((size,))
    generator = torch.Generator().manual_seed(1)
    masks = None
    for sparsity, expected in zip(phase_sparsities(0.9, 3), kept, strict=True):
        earlier = masks
        masks = prune(model, sparsity, scope=scope, criterion=criterion, within=earlier, seed=7)
        assert masks.num_kept == expected
        assert earlier is None or masks.is_within(earlier)
        with torch.no_grad():
            model["l0"].weight += torch.randn(size, generator=generator)  # retraining
        masks.apply_(model)


def test_weights_that_come_back_alive_stay_removed_within_an_earlier_mask():
    model = model_of(a=[9.0, 0.1, 0.2, 0.3])
    earlier = Masks({"a.weight": torch.tensor([[False, True, True, True]])})
    masks = prune(model, 0.5, within=earlier)
    assert bits(masks) == {"a": [0, 0, 1, 1]}
    assert model["a"].weight.tolist() == torch.tensor([[0.0, 0.0, 0.2, 0.3]]).tolist()


def test_kept_weights_that_became_zero_count_as_alive_within_an_earlier_mask():
    model = model_of(a=[0.0, 0.0, 0.2, 0.3])
    earlier = Masks({"a.weight": torch.tensor([[False, True, True, True]])})
    assert bits(prune(model, 0.25, within=earlier)) == {"a": [0, 1, 1, 1]}


def test_exact_zeros_count_as_removed_without_an_earlier_mask():
    assert bits(prune(model_of(a=[0.0, 3.0, -0.0, 1.0], b=[2.0, 5.0, 6.0, 7.0]), 0.5)) == {
        "a": [0, 1, 0, 0],
        "b": [0, 1, 1, 1],
    }


@pytest.mark.parametrize("scope", ["global", "uniform"])
@pytest.mark.parametrize("criterion", ["magnitude", "random"])
@pytest.mark.parametrize("named", [True, False])
def test_pruning_again_at_the_same_sparsity_changes_nothing(scope, criterion, named):
    model = random_model((50, 21))
    first = prune(model, 0.7, scope=scope, criterion=criterion, seed=1)
    before = snapshot(model)
    again = prune(model, 0.7, scope=scope, criterion=criterion, seed=2, within=first if named else None)
    assert again.fingerprint() == first.fingerprint()
    assert_unchanged(model, before)


def test_lower_target_than_the_model_is_an_error():
    model = model_of(a=[0.0, 0.0, 0.0, 1.0], b=[2.0, 3.0, 4.0, 5.0])
    before = snapshot(model)
    with pytest.raises(ValueError, match="The model already is") as error:
        prune(model, 0.25)
    assert str(error.value) == (
        "The model already is 37.5000% sparse (3 of 8 prunable weights are zero), more than the 2 that were asked for. "
        "Ask for a higher sparsity: pruning never brings weights back."
    )
    with pytest.raises(ValueError, match=r"'a.weight' already is 75.0000% sparse \(3 of 4 .* more than the 2 that"):
        prune(model, 0.5, scope="uniform")
    assert_unchanged(model, before)


@pytest.mark.parametrize("scope", ["global", "uniform"])
def test_masks_of_another_shape_are_an_error(scope):
    model = model_of(a=A, b=B)
    before = snapshot(model)
    wrong = Masks({"a.weight": torch.ones(1, 4, dtype=torch.bool), "b.weight": torch.ones(1, 1, dtype=torch.bool)})
    with pytest.raises(ValueError, match=r"b\.weight.*shape"):
        prune(model, 0.25, scope=scope, within=wrong)
    assert_unchanged(model, before)


def test_masks_of_other_tensors_are_an_error():
    model = model_of(a=A, b=B)
    before = snapshot(model)
    one = Masks({"a.weight": torch.ones(1, 4, dtype=torch.bool)})
    with pytest.raises(ValueError, match=r"`within` must hold the masks of the 2 prunable tensors .* got 1 others"):
        prune(model, 0.5, within=one)
    assert_unchanged(model, before)


# --- random ---


def test_random_is_the_same_for_a_seed_and_another_for_another():
    prints = [prune(random_model((300, 99)), 0.5, criterion="random", seed=s).fingerprint() for s in (0, 0, 1, 2)]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


def test_random_does_not_depend_on_the_weights_or_on_the_global_generator():
    one, other = random_model((200,), seed=1), random_model((200,), seed=2)
    torch.manual_seed(1)
    first = prune(one, 0.5, criterion="random", seed=3)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = prune(other, 0.5, criterion="random", seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.fingerprint() == second.fingerprint()


def test_random_differs_between_tensors_and_pieces(monkeypatch):
    monkeypatch.setattr(selection_module, "CHUNK", 64)
    masks = prune(random_model((128, 128)), 0.5, criterion="random", scope="uniform")
    a, b = (m.reshape(-1) for m in masks.values())
    pieces = {tuple(piece.tolist()) for piece in (a[:64], a[64:], b[:64], b[64:])}
    assert len(pieces) == 4


@pytest.mark.parametrize("sparsity", [0.0, 0.123, 0.5, 0.9, 0.998])
def test_random_removes_the_exact_count(sparsity):
    assert num_zeros(prune(random_model((300, 199)), sparsity, criterion="random")) == round(sparsity * 499)


def test_random_spreads_over_the_tensors_whatever_their_magnitudes():
    model = random_model((2000, 2000))
    with torch.no_grad():
        model["l0"].weight *= 1000
    shares = prune(model, 0.5, criterion="random", seed=0).sparsity_per_tensor().values()
    assert all(0.45 < share < 0.55 for share in shares)


# --- errors ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sparsity": 1.0}, r"sparsity must lie in \[0, 1\), got 1.0. Pass 0.9 to remove 90 %"),
        ({"sparsity": -0.1}, r"sparsity must lie in \[0, 1\), got -0.1"),
        ({"sparsity": float("nan")}, r"sparsity must lie in \[0, 1\), got nan"),
        (
            {"sparsity": 0.5, "scope": "layer"},
            r"pruning_scope must be one of \['erk', 'global', 'lamp', 'uniform', 'uniform\+'\], got 'layer'",
        ),
        (
            {"sparsity": 0.5, "criterion": "snip"},
            r"pruning_criterion must be one of \['magnitude', 'random', 'taylor', 'wanda'\], got 'snip'",
        ),
        ({"sparsity": 0.5, "target_modules": ["nowhere"]}, "Expected at least one prunable weight in ModuleDict"),
    ],
)
def test_wrong_arguments_are_errors_and_change_nothing(arguments, message):
    model = model_of(a=A, b=B)
    before = snapshot(model)
    with pytest.raises(ValueError, match=message):
        prune(model, **arguments)
    assert_unchanged(model, before)


@pytest.mark.parametrize("scope", ["global", "uniform"])
@pytest.mark.parametrize("criterion", ["magnitude", "random"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_weights_are_an_error_and_change_nothing(scope, criterion, value):
    model = model_of(a=A, b=[-0.2, value, 0.9, 0.2])
    kept = model["a"].weight.detach().clone()
    with pytest.raises(ValueError, match=r"'b\.weight' holds NaN or infinite weights"):
        prune(model, 0.5, scope=scope, criterion=criterion)
    assert torch.equal(model["a"].weight, kept)


# --- transformers ---


def tiny_t5():
    torch.manual_seed(0)
    config = T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_decoder_layers=2, num_heads=2)
    return T5ForConditionalGeneration(config)


def tiny_gpt2():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=32, n_positions=8, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=1)
    return GPT2LMHeadModel(config)


@pytest.mark.parametrize("build", [tiny_t5, tiny_gpt2])
@pytest.mark.parametrize("scope", ["global", "uniform"])
def test_transformers_models_lose_the_exact_count_and_nothing_else(build, scope):
    model = build()
    prunable = find_prunable(model)
    before = snapshot(model)
    masks = prune(model, 0.9, scope=scope)
    assert list(masks) == list(prunable.parameters)
    sizes = [p.numel() for p in prunable.parameters.values()]
    expected = round(0.9 * sum(sizes)) if scope == "global" else sum(round(0.9 * n) for n in sizes)
    assert num_zeros(masks) == expected
    assert sum(int((p == 0).sum()) for p in prunable.parameters.values()) == expected
    for name, parameter in model.named_parameters():
        kept = masks.get(name, torch.ones_like(parameter, dtype=torch.bool))
        assert torch.equal(parameter, before[name] * kept)


def test_masks_of_a_t5_are_applied_again_after_reload(tmp_path):
    model = tiny_t5()
    masks = prune(model, 0.8)
    model.save_pretrained(tmp_path)
    masks.save(tmp_path / "masks.safetensors")
    loaded = T5ForConditionalGeneration.from_pretrained(tmp_path)
    Masks.load(tmp_path / "masks.safetensors").check(loaded)
    assert prune(loaded, 0.8).fingerprint() == masks.fingerprint()


def test_another_criterion_is_one_more_function():
    """Wanda (Sun et al. 2024) on the design's row: |W| times the norm of the input feature."""
    norms = torch.tensor([4.0, 1.0, 2.0, 1.0])

    def wanda(name, start, piece):
        return piece.abs() * norms[(torch.arange(len(piece)) + start) % 4]

    model = nn.Sequential(nn.Linear(4, 1, bias=False))
    model[0].weight.data = torch.tensor([[0.15, 0.4, 0.3, 0.2]])
    masks = prune(model, 0.5, criterion=wanda, scope="uniform")
    assert masks["0.weight"].tolist() == [[True, False, True, False]]
    model[0].weight.data = torch.tensor([[0.15, 0.4, 0.3, 0.2]])
    assert prune(model, 0.5)["0.weight"].tolist() == [[False, True, True, False]]
