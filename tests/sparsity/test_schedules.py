"""Sparsity per phase: the literal values of s_j = 1 - (1 - p)^j."""

import doctest
from itertools import pairwise

import pytest

from sms_hf.sparsity import phase_sparsities, schedules


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
