"""Literal values: sparsity per phase and per pruning event, learning rates of retraining."""

import doctest
import math
from itertools import pairwise

import pytest

from sms_hf.sparsity import phase_sparsities, schedules
from sms_hf.sparsity.schedules import (
    RETRAIN_SCHEDULES,
    allr_scale,
    gradual_sparsities,
    num_pruning_events,
    retrain_learning_rate,
)


@pytest.mark.parametrize(
    ("target", "phases", "expected"),
    [
        (0.75, 2, [0.5, 0.75]),
        (0.90, 3, [0.5358411166387221, 0.7845565309968, 0.9]),
        (0.98, 3, [0.7285582383405093, 0.9263193700269, 0.98]),
        (0.80, 2, [0.5527864045000421, 0.8]),
        (0.90, 5, [0.36904265551980675, 0.6018928294465, 0.7488113568490, 0.8415106807538, 0.9]),
        (0.9, 1, [0.9]),
        (0.0, 3, [0.0, 0.0, 0.0]),
    ],
)
def test_literal_values(target, phases, expected):
    assert phase_sparsities(target, phases) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("phases", "target"), [(1, 0.3), (3, 0.9), (7, 0.98), (50, 0.995), (3, 0.1)])
def test_the_last_phase_ends_at_the_target_itself_and_the_others_rise_to_it(phases, target):
    values = phase_sparsities(target, phases)
    assert len(values) == phases
    assert values[-1] == target
    assert all(a < b for a, b in pairwise([0.0, *values]))


def test_every_phase_removes_the_same_fraction_of_what_is_left():
    values = [0.0, *phase_sparsities(0.9, 3)]
    fractions = [1 - (1 - after) / (1 - before) for before, after in pairwise(values)]
    assert fractions == pytest.approx([0.5358411166387221] * 3)


def test_powers_of_two_are_exact():
    assert phase_sparsities(0.75, 2) == [0.5, 0.75]
    assert phase_sparsities(0.9375, 4) == [0.5, 0.75, 0.875, 0.9375]


@pytest.mark.parametrize("target", [1.0, -0.1, 90, float("nan")])
def test_target_outside_of_zero_to_one_is_an_error(target):
    with pytest.raises(ValueError, match=r"target_sparsity must lie in \[0, 1\), got .*Pass 0.9 to remove 90 %"):
        phase_sparsities(target, 3)


@pytest.mark.parametrize("phases", [0, -2])
def test_less_than_one_phase_is_an_error(phases):
    with pytest.raises(ValueError, match=rf"num_phases must be at least 1, got {phases}\."):
        phase_sparsities(0.9, phases)


def test_the_example_in_the_documentation():
    assert doctest.testmod(schedules) == (0, 1)


# ---- Gradual pruning ---------------------------------------------------------------------------------------------------

LONG = [0.267901, 0.476543, 0.633333, 0.745679, 0.820988, 0.866667, 0.890123, 0.898765, 0.9]


@pytest.mark.parametrize(("total", "expected"), [(10, [0.5203125, 0.7875, 0.8859375, 0.9]), (20, LONG)])
def test_the_cubic_schedule_prunes_most_at_the_beginning(total, expected):
    values = gradual_sparsities(0.9, num_pruning_events(total, 2))
    assert values == pytest.approx(expected, abs=1e-6)
    assert values[-1] == 0.9


def test_relative_steps_of_the_cubic_schedule():
    values = [0.0, *gradual_sparsities(0.9, 4)]
    fractions = [1 - (1 - after) / (1 - before) for before, after in pairwise(values)]
    assert fractions == pytest.approx([0.520312, 0.557003, 0.463235, 0.123288], abs=1e-6)


@pytest.mark.parametrize(("target", "events"), [(0.9, 1), (0.3, 2), (0.98, 9), (0.995, 100)])
def test_gradual_sparsities_rise_to_the_target_itself(target, events):
    values = gradual_sparsities(target, events)
    assert len(values) == events
    assert values[-1] == target
    assert all(a < b for a, b in pairwise([0.0, *values]))


def test_gradual_sparsities_without_a_target_or_an_event_are_errors():
    with pytest.raises(ValueError, match=r"target_sparsity must lie in \[0, 1\), got 1\.0"):
        gradual_sparsities(1.0, 4)
    with pytest.raises(ValueError, match=r"num_events must be at least 1, got 0\."):
        gradual_sparsities(0.9, 0)


@pytest.mark.parametrize(
    ("total", "interval", "expected"),
    # The last two: 0.3 / 0.1 and 0.6 / 0.2 are 2.9999999999999996.
    [(10, 2, 4), (20, 2, 9), (11, 2, 4), (4, 2, 1), (1, 0.1, 9), (0.3, 0.1, 2), (0.6, 0.2, 2)],
)
def test_number_of_pruning_events(total, interval, expected):
    assert num_pruning_events(total, interval) == expected


@pytest.mark.parametrize("interval", [5.1, 11, 0, -1, float("nan")])
def test_an_interval_that_leaves_no_event_is_an_error(interval):
    with pytest.raises(
        ValueError, match="pruning_interval must be above 0 and at most half of the training, 5 epochs, got"
    ):
        num_pruning_events(10, interval)


@pytest.mark.parametrize("parts", range(2, 60))
def test_rounding_costs_no_event(parts):
    for total in (0.1, 0.7, 3.3, 1e6 / 3):
        assert num_pruning_events(total, total / parts) == parts - 1


# ---- Learning rates of retraining --------------------------------------------------------------------------------------

STEPS = [0, 1, 5, 9, 10, 11, 32, 55, 77, 99]
LLR = [0, 0.00244717, 0.05, 0.09755283, 0.1, 0.09888889, 0.07555556, 0.05, 0.02555556, 0.00111111]
CLR = [0, 0.00244717, 0.05, 0.09755283, 0.1, 0.09996985, 0.08610732, 0.0505, 0.01611441, 0.00103015]
DENSE = [0.0, 0.05, 0.1, 0.08, 0.06, 0.04, 0.02, 0.01]
"""Rates of a dense training: two steps of warm-up, then down."""


def rate(name, step, num_steps=100, **options):
    return retrain_learning_rate(name, step, num_steps, **{"max_lr": 0.1, "min_lr": 0.001, **options})


@pytest.mark.parametrize(("name", "expected"), [("llr", LLR), ("clr", CLR), ("ft", [0.001] * 10)])
def test_literal_rates(name, expected):
    assert [rate(name, step) for step in STEPS] == pytest.approx(expected, abs=5e-9)


def test_allr_is_llr_with_a_lower_peak():
    d = 0.3325851094
    found = [rate("allr", step, scale=d) for step in (10, 55, 99)]
    assert found == pytest.approx([0.03325851, 0.01662926, 0.00036954], abs=5e-9)
    assert [rate("allr", step, scale=d) for step in STEPS] == pytest.approx([d * value for value in LLR], abs=5e-9)
    assert [rate("allr", step) for step in STEPS] == [rate("llr", step) for step in STEPS]


def test_scale_is_for_allr_alone():
    for name in set(RETRAIN_SCHEDULES) - {"allr"}:
        assert rate(name, 3, 5, original=DENSE, scale=0.5) == rate(name, 3, 5, original=DENSE)


@pytest.mark.parametrize(
    ("name", "end"), [("ft", 0.001), ("llr", 0), ("allr", 0), ("clr", 0.001), ("lrw", 0.01), ("slr", 0.01)]
)
@pytest.mark.parametrize("num_steps", [1, 7, 8])
def test_end_values(name, end, num_steps):
    assert rate(name, num_steps, num_steps, original=DENSE) == pytest.approx(end, abs=1e-15)


def test_rewinding_replays_the_last_rates():
    assert [rate("lrw", step, 3, original=DENSE) for step in range(3)] == [0.04, 0.02, 0.01]
    assert [rate("lrw", step, 8, original=tuple(DENSE)) for step in range(8)] == DENSE


def test_slr_squeezes_the_whole_schedule_with_its_peak_in_place_of_the_warm_up():
    # Four steps for eight rates: every other one, of 0.1, 0.1, 0.1, 0.08, 0.06, 0.04, 0.02, 0.01.
    assert [rate("slr", step, 4, original=DENSE) for step in range(4)] == [0.1, 0.1, 0.06, 0.02]
    # 20 steps, two of them a warm-up to the peak of the schedule (not of max_lr): index int(u * 8 / 18).
    found = [rate("slr", step, 20, max_lr=7.0, original=DENSE) for step in range(20)]
    assert found == pytest.approx(
        [0, 0.05, *[0.1] * 7, *[0.08] * 2, *[0.06] * 3, *[0.04] * 2, *[0.02] * 2, *[0.01] * 2]
    )


def test_slr_finds_its_index_without_rounding():
    """Of a list as long as the rest every rate is used once, though `int(115 / 900 * 900)` is 114."""
    original = [1.0 - t / 1000 for t in range(900)]
    assert [rate("slr", step, 1000, original=original) for step in range(100, 1000)] == original


@pytest.mark.parametrize("name", ["slr", "clr", "llr", "allr"])
def test_warm_up_rises_to_the_peak_over_a_tenth_of_the_steps(name):
    rates = [rate(name, step, 50, original=[0.1] * 50) for step in range(6)]
    assert rates[0] == 0
    assert rates == sorted(rates)
    assert rates[5] == pytest.approx(0.1)
    assert rate(name, 0, 9, original=[0.1]) == pytest.approx(0.1), "nine steps have none"


@pytest.mark.parametrize("name", RETRAIN_SCHEDULES)
def test_rates_never_rise_after_the_warm_up(name):
    values = [rate(name, step, 100, original=[1e-3 * (200 - t) for t in range(200)]) for step in range(10, 101)]
    assert all(a >= b for a, b in pairwise(values))


@pytest.mark.parametrize(
    ("name", "step", "num_steps", "options", "message"),
    [
        ("warp", 0, 9, {}, r"retrain_schedule must be one of \['allr', 'clr', 'ft', 'llr', 'lrw', 'slr'\], got 'warp'"),
        (
            "lrw",
            0,
            9,
            {},
            "retrain_schedule='lrw' needs the learning rates of the dense training.*Set original_schedule",
        ),
        ("slr", 0, 9, {"original": []}, "retrain_schedule='slr' needs the learning rates of the dense training"),
        (
            "lrw",
            0,
            9,
            {"original": DENSE},
            "replays the dense training's last 9 steps, but that had 8. Retrain shorter",
        ),
        ("llr", 10, 9, {}, "got step 10 of 9"),
        ("llr", -1, 9, {}, "got step -1 of 9"),
        ("llr", 0, 0, {}, "num_steps of at least 1, got step 0 of 0"),
        ("allr", 0, 9, {"scale": 0.0}, r"scale must lie in \(0, 1\], got 0.0"),
        ("allr", 0, 9, {"scale": 1.5}, r"scale must lie in \(0, 1\], got 1.5"),
    ],
)
def test_what_cannot_be_computed_is_an_error(name, step, num_steps, options, message):
    with pytest.raises(ValueError, match=message):
        rate(name, step, num_steps, **options)


# Squares of eight weights: A = [0.1, -0.05, 0.3, 0.2], B = [-0.2, 0.8, 0.9, 0.2].
SQUARES = sorted([0.01, 0.0025, 0.09, 0.04, 0.04, 0.64, 0.81, 0.04])


def scale_of_eight(removed, epochs=1e-9):
    before, after = math.sqrt(sum(SQUARES)), math.sqrt(sum(SQUARES[removed:]))
    return allr_scale(before, after, removed / 8, epochs, 1.0)


def test_allr_measures_what_pruning_did_to_the_norm():
    expected = [0.109353, 0.172903, 0.289322, 0.332585, 0.356029, 0.421164, 0.767702]
    assert [scale_of_eight(removed) for removed in range(1, 8)] == pytest.approx(expected, abs=1e-6)
    assert scale_of_eight(4) == pytest.approx(0.3325851094, abs=1e-10)


def test_allr_is_at_least_the_share_of_epochs_and_at_most_1():
    assert scale_of_eight(4, epochs=0.2) == pytest.approx(0.3325851094, abs=1e-10)
    assert scale_of_eight(4, epochs=0.4) == 0.4
    assert scale_of_eight(4, epochs=3) == 1.0
    assert scale_of_eight(0, epochs=0.25) == 0.25, "nothing was pruned"
    assert allr_scale(1.0, 0.1, 0.5, 1, 90) == 1.0, "more than magnitude pruning could remove"


def test_equal_weights_have_the_full_peak():
    assert allr_scale(2.0, math.sqrt(2), 0.5, 1e-9, 1.0) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((0.0, 0.0, 0.5, 1, 9), "norm_before"),
        ((1.0, 0.5, 0.5, 0, 9), "epochs"),
        ((1.0, 0.5, 0.5, 1, 0), "original_epochs"),
    ],
)
def test_allr_needs_norms_and_lengths(arguments, name):
    with pytest.raises(ValueError, match=f"^{name} must be above 0, got 0"):
        allr_scale(*arguments)
