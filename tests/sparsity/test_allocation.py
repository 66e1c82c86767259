"""How many weights each tensor loses: literal counts and scores, sums that are exact, phases that nest."""

from fractions import Fraction

import pytest
import torch
from torch import nn
from toys import A, B, assert_unchanged, bits, kept, model_of, num_zeros, shapes_model, snapshot
from transformers import ResNetConfig, ResNetForImageClassification

from sms_hf.sparsity import Masks, phase_sparsities, prune
from sms_hf.sparsity.allocation import apportion, erk_survivors, lamp_scores, uniform_plus_survivors

torch.set_num_threads(1)

SCOPES = ["erk", "global", "lamp", "uniform", "uniform+"]
THREE = {"x": (4, 8), "y": (16, 16), "z": (32, 16)}


# --- LAMP ---


def test_lamp_scores_of_eight_weights():
    assert lamp_scores(torch.tensor(A)).tolist() == pytest.approx([0.07143, 0.01754, 1, 0.30769], abs=1e-5)
    assert lamp_scores(torch.tensor(B)).tolist() == pytest.approx([0.02614, 0.44138, 1, 0.02685], abs=1e-5)


def test_lamp_removes_the_smallest_scores_of_all_tensors():
    assert bits(prune(model_of(a=A, b=B), 0.5, scope="lamp")) == {"a": [0, 0, 1, 1], "b": [0, 1, 1, 0]}
    assert bits(prune(model_of(a=A, b=B), 0.25, scope="lamp")) == {"a": [1, 0, 1, 1], "b": [0, 1, 1, 1]}


def test_lamp_scores_count_living_weights_alone():
    scores = lamp_scores(torch.tensor([float("nan"), 3.0, 4.0, 100.0]), torch.tensor([False, True, True, False]))
    assert scores.tolist() == pytest.approx([0, 9 / 25, 1, 0])


def test_lamp_scores_of_equal_weights_fall_by_index():
    assert torch.equal(lamp_scores(torch.full((2, 2), -0.5)), torch.tensor([[1 / 4, 1 / 3], [1 / 2, 1]]))


def test_lamp_scores_of_zeros_are_zero():
    assert lamp_scores(torch.zeros(3)).tolist() == [0, 0, 0]
    assert lamp_scores(torch.tensor([0.0, 1.0])).tolist() == [0, 1]


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_lamp_scores_do_not_depend_on_the_scale(scale):
    expected = [0.07143, 0.01754, 1, 0.30769]
    assert lamp_scores(torch.tensor(A) * scale).tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lamp_scores_keep_the_order_of_the_magnitudes(dtype):
    weights = torch.randn(20_000, generator=torch.Generator().manual_seed(0)).to(dtype)
    ranked = lamp_scores(weights)[weights.float().abs().argsort(stable=True)]
    assert ranked.dtype == torch.float32
    assert (ranked.diff() >= 0).all()
    assert ranked[-1] == 1


def test_lamp_keeps_the_largest_weight_of_a_tensor_that_a_global_ranking_empties():
    rows = {"a": [0.01, 0.02, 0.03, 0.04], "b": [1.0, 2.0, 3.0, 4.0]}
    assert bits(prune(model_of(**rows), 0.5)) == {"a": [0] * 4, "b": [1] * 4}
    assert bits(prune(model_of(**rows), 0.75, scope="lamp")) == {"a": [0, 0, 0, 1], "b": [0, 0, 0, 1]}


def test_lamp_hands_on_what_a_full_tensor_may_not_lose():
    # Scores of a: 1/84, 1/83, 1/82, 1; of b: 1/4, 1/3, 1/2, 1.
    rows = {"a": [1.0, 1.0, 1.0, 9.0], "b": [2.0, 2.0, 2.0, 2.0]}
    assert bits(prune(model_of(**rows), 3 / 8, scope="lamp")) == {"a": [0, 0, 0, 1], "b": [1] * 4}
    masks = prune(model_of(**rows), 3 / 8, scope="lamp", max_sparsity_per_layer=0.5)
    assert bits(masks) == {"a": [0, 0, 1, 1], "b": [0, 1, 1, 1]}


# --- ERK ---


@pytest.mark.parametrize(("num_kept", "expected"), [(80, [10, 28, 42]), (400, [32, 147, 221])])
def test_erk_counts(num_kept, expected):
    shares = erk_survivors(THREE, num_kept)
    assert sum(shares.values()) == num_kept
    assert list(apportion(shares, {"x": 32, "y": 256, "z": 512}).values()) == expected
    masks = prune(shapes_model(THREE.values()), 1 - num_kept / 800, scope="erk")
    assert kept(masks) == expected


def test_erk_shares_before_rounding():
    assert erk_survivors(THREE, 92) == {"x": 12, "y": 32, "z": 48}
    assert erk_survivors(THREE, 400) == {"x": 32, "y": Fraction(736, 5), "z": Fraction(1104, 5)}


def test_erk_solves_again_until_no_tensor_keeps_more_than_it_has():
    # First x (density 12/32) and then y (32/256) is full.
    assert erk_survivors(THREE, 700) == {"x": 32, "y": 256, "z": 412}
    assert erk_survivors(THREE, 800) == {"x": 32, "y": 256, "z": 512}
    assert erk_survivors(THREE, 0) == {"x": 0, "y": 0, "z": 0}


def test_erk_counts_the_kernel_of_a_convolution():
    assert erk_survivors({"linear": (6, 4), "conv": (4, 4, 3, 3)}, 24) == {"linear": 10, "conv": 14}


def test_erk_removes_the_smallest_of_every_tensor():
    model = shapes_model(THREE.values())
    before = snapshot(model)
    masks = prune(model, 0.9, scope="erk")
    for name, weight in before.items():
        assert weight.abs()[masks[name]].min() > weight.abs()[~masks[name]].max()


# --- Uniform+ ---


@pytest.mark.parametrize(
    ("sparsity", "middle", "last"), [(0.7, 0.777778, 0.777778), (0.8, 0.9, 0.8), (0.85, 0.9625, 0.8)]
)
def test_uniform_plus_fractions(sparsity, middle, last):
    sizes = {"first": 100, "middle": 800, "last": 100}
    shares = uniform_plus_survivors(sizes, sparsity)
    assert shares["first"] == 100
    assert 1 - float(shares["middle"]) / 800 == pytest.approx(middle, abs=1e-6)
    assert 1 - float(shares["last"]) / 100 == pytest.approx(last, abs=1e-6)
    assert 1000 - sum(shares.values()) == round(1000 * sparsity)


def test_uniform_plus_prunes_the_exact_count():
    shapes = [(10, 10), (20, 40), (10, 10)]
    assert kept(prune(shapes_model(shapes), 0.7, scope="uniform+")) == [100, 178, 22]
    assert kept(prune(shapes_model(shapes), 0.85, scope="uniform+")) == [100, 30, 20]


@pytest.mark.parametrize(
    ("shapes", "sparsity"),
    [([(10, 10), (20, 40), (10, 10)], 0.89), ([(10, 10), (10, 10)], 0.45), ([(10, 10)], 0.1)],
)
def test_uniform_plus_beyond_what_is_left_is_an_error(shapes, sparsity):
    model = shapes_model(shapes)
    before = snapshot(model)
    with pytest.raises(ValueError, match=rf"'uniform\+' cannot reach sparsity={sparsity}: '0.weight' stays dense"):
        prune(model, sparsity, scope="uniform+")
    assert_unchanged(model, before)


def test_uniform_plus_of_one_or_two_tensors():
    assert kept(prune(shapes_model([(4, 4)]), 0.0, scope="uniform+")) == [16]
    assert kept(prune(shapes_model([(4, 5), (4, 5)]), 0.4, scope="uniform+")) == [20, 4]


# --- whole numbers ---


def test_largest_remainders_get_what_is_left():
    thirds = {name: Fraction(n, 3) for name, n in {"a": 4, "b": 5, "c": 6}.items()}
    assert apportion(thirds, {"a": 9, "b": 9, "c": 9}) == {"a": 1, "b": 2, "c": 2}


def test_among_equal_remainders_the_later_tensor_keeps_the_weight():
    halves = dict.fromkeys("abcd", Fraction(3, 2))
    assert apportion(halves, dict.fromkeys("abcd", 9)) == {"a": 1, "b": 1, "c": 2, "d": 2}


def test_a_tensor_without_room_hands_its_weight_on():
    halves = dict.fromkeys("abcd", Fraction(3, 2))
    assert apportion(halves, {"a": 9, "b": 1, "c": 9, "d": 1}) == {"a": 2, "b": 1, "c": 2, "d": 1}
    assert apportion(halves, {"a": 3, "b": 1, "c": 1, "d": 1}) == {"a": 3, "b": 1, "c": 1, "d": 1}


# --- all scopes ---


@pytest.mark.parametrize("scope", ["erk", "global", "lamp", "uniform+"])
@pytest.mark.parametrize("sparsity", [0.0, 0.123, 0.5, 0.8])
def test_total_is_exact(scope, sparsity):
    masks = prune(shapes_model([(3, 7), (5, 30), (7, 21), (2, 9)]), sparsity, scope=scope)
    assert num_zeros(masks) == round(sparsity * 336)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("criterion", ["magnitude", "random"])
def test_phases_shrink_to_the_exact_count(scope, criterion):
    if (scope, criterion) == ("lamp", "random"):
        return
    model, masks = shapes_model([(4, 8), (16, 16), (32, 16), (4, 8)]), None
    generator = torch.Generator().manual_seed(1)
    for sparsity in phase_sparsities(0.9, 4):
        earlier = masks
        masks = prune(model, sparsity, scope=scope, criterion=criterion, within=earlier)
        assert num_zeros(masks) == (round(sparsity * 832) if scope != "uniform" else num_zeros(masks))
        assert earlier is None or masks.is_within(earlier)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += torch.randn(parameter.shape, generator=generator)  # retraining


def test_phases_nest_where_largest_remainders_alone_would_not():
    """The Alabama paradox: with one weight fewer in all, the smallest tensor would keep one more."""
    shapes = [(6, 6), (6, 6), (2, 2)]
    assert kept(prune(shapes_model(shapes), 65 / 76, scope="erk")) == [5, 5, 1]
    assert kept(prune(shapes_model(shapes), 66 / 76, scope="erk")) == [4, 4, 2]
    model = shapes_model(shapes)
    first = prune(model, 65 / 76, scope="erk")
    second = prune(model, 66 / 76, scope="erk", within=first)
    assert kept(second) == [4, 5, 1]
    assert second.is_within(first)


@pytest.mark.parametrize("scope", ["erk", "uniform+"])
def test_phases_of_a_single_weight_nest(scope):
    model, masks = shapes_model([(2, 3), (3, 5), (5, 7), (4, 4)]), None
    for removed in range(50):
        masks = prune(model, removed / 72, scope=scope, within=masks)
        assert num_zeros(masks) == removed


@pytest.mark.parametrize("scope", SCOPES)
def test_pruning_again_at_the_same_sparsity_changes_nothing(scope):
    model = shapes_model([(4, 8), (16, 16), (32, 16)])
    first = prune(model, 0.7, scope=scope)
    assert prune(model, 0.7, scope=scope, within=first).fingerprint() == first.fingerprint()
    assert prune(model, 0.7, scope=scope).fingerprint() == first.fingerprint()


@pytest.mark.parametrize(
    ("scope", "message"),
    [
        ("erk", r"pruning_scope='erk': '0.weight' already is 50.0000% sparse \(16 of 32 .* than the 0 that were asked"),
        ("uniform+", r"pruning_scope='uniform\+': '0.weight' already is 50.0000% sparse \(16 of 32 .* than the 0 that"),
        ("global", r"The model already is 2.0000% sparse \(16 of 800 .* than the 8 that were"),
        ("lamp", r"The model already is 2.0000% sparse \(16 of 800 .* than the 8 that were"),
    ],
)
def test_a_tensor_that_is_sparser_than_its_share_is_an_error(scope, message):
    model = shapes_model(THREE.values())
    masks = Masks({name: torch.ones(p.shape, dtype=torch.bool) for name, p in model.named_parameters()})
    masks["0.weight"][:2] = False
    before = snapshot(model)
    with pytest.raises(ValueError, match=message):
        prune(model, 0.5 if scope in ("erk", "uniform+") else 0.01, scope=scope, within=masks)
    assert_unchanged(model, before)


@pytest.mark.parametrize(("scope", "sparsity", "name"), [("erk", 0.9, "2"), ("uniform+", 0.6, "1")])
def test_a_share_beyond_the_limit_is_an_error(scope, sparsity, name):
    model = shapes_model(THREE.values())
    before = snapshot(model)
    limit = 0.91 if scope == "erk" else 0.6
    message = rf"keeps [\d,]+ of the \d+ weights of '{name}.weight', fewer than max_sparsity_per_layer={limit} allows"
    with pytest.raises(ValueError, match=message):
        prune(model, sparsity, scope=scope, max_sparsity_per_layer=limit)
    assert_unchanged(model, before)
    assert kept(prune(model, sparsity, scope=scope, max_sparsity_per_layer=0.95))


@pytest.mark.parametrize("scope", SCOPES)
def test_broken_weights_are_an_error(scope):
    model = shapes_model(THREE.values())
    with torch.no_grad():
        model[1].weight[3, 3] = float("inf")
    with pytest.raises(ValueError, match=r"'1\.weight' holds NaN or infinite weights"):
        prune(model, 0.5, scope=scope)


@pytest.mark.parametrize("scope", SCOPES)
def test_a_convolutional_network_on_request(scope):
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_labels=3)
    model = ResNetForImageClassification(config)
    masks = prune(model, 0.5, scope=scope, target_modules=r".*\.convolution|classifier\.1")
    convolutions = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    assert list(masks) == [*(f"{name}.weight" for name in convolutions), "classifier.1.weight"]
    if scope != "uniform":
        assert num_zeros(masks) == round(0.5 * masks.num_weights)
    if scope == "uniform+":
        assert masks.sparsity_per_tensor()["resnet.embedder.embedder.convolution.weight"] == 0
