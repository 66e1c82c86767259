"""How far apart candidates were, out of the report."""

import pytest

from sms_hf.compare.spread import format_spread, make_spread

CANDIDATES = [
    {"name": "candidate-1", "failure": None, "score": 0.9, "metrics": {"loss": 0.5}},
    {"name": "candidate-2", "failure": None, "score": 0.8, "metrics": {"loss": 0.7}},
    {"name": "candidate-3", "failure": "it diverged"},
]
DIAGNOSTICS = {
    "geometry": {"distance": {"mean": 3.0}, "angle": {"mean": 20.0}},
    "midpoints": [{"barrier": 0.25}, {"barrier": -0.05}],
}


def report(candidates=CANDIDATES, diagnostics=DIAGNOSTICS):
    soup = {"score": 0.9, "metrics": {"loss": 0.55}}
    phase = {"candidates": candidates, "diagnostics": diagnostics, "soup": soup, "mean_score": 0.85}
    return {"phases": [{"broken": "not looked at"}, phase]}


def test_of_the_last_phase():
    assert make_spread(report()) == pytest.approx(
        {"distance": 3.0, "angle": 20.0, "barrier": 0.1, "gain": 0.05, "loss_gain": -0.05}
    )


def test_one_candidate_has_none():
    assert make_spread(report(CANDIDATES[:1])) is None
    assert make_spread(report(diagnostics={"warnings": ["diagnostics failed"]})) is None


def test_means_by_model_and_row():
    one, two = make_spread(report()), {**make_spread(report()), "distance": 5.0}
    results = [{"model": "ViT", "method": "SMS", "spread": spread} for spread in (one, two)]
    results += [
        {"model": "ViT", "method": "IMP", "spread": None},
        {"model": "ViT", "method": "GMP", "error": "it failed"},
    ]
    assert format_spread(results, "github").splitlines()[2:] == [
        "| ViT     | SMS      | 4          | 20      | 0.1             | 0.05                    | -0.05     | 2       |"
    ]
    assert format_spread(results[2:]) == ""
