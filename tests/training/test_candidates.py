"""The plan of a run."""

import pytest

from sms_hf.training.candidates import make_plan


def overrides(phase):
    return [candidate.overrides for candidate in phase.candidates]


def test_default_varies_the_seed_and_moves_on_with_every_phase():
    plan = make_plan(0.75, 2, seed=7)
    assert [(phase.number, phase.sparsity) for phase in plan] == [(1, 0.5), (2, 0.75)]
    assert overrides(plan[0]) == [{"seed": 7}, {"seed": 8}, {"seed": 9}]
    assert overrides(plan[1]) == [{"seed": 1007}, {"seed": 1008}, {"seed": 1009}]
    assert [candidate.name for candidate in plan[0].candidates] == ["candidate-1", "candidate-2", "candidate-3"]


def test_several_keys_give_all_combinations_the_last_fastest():
    plan = make_plan(0.5, 1, vary={"weight_decay": [0, 0.01], "learning_rate": [1e-4, 3e-4]}, seed=1)
    assert overrides(plan[0]) == [
        {"weight_decay": 0, "learning_rate": 1e-4, "seed": 1},
        {"weight_decay": 0, "learning_rate": 3e-4, "seed": 1},
        {"weight_decay": 0.01, "learning_rate": 1e-4, "seed": 1},
        {"weight_decay": 0.01, "learning_rate": 3e-4, "seed": 1},
    ]


def test_given_seeds_are_taken_and_one_candidate_is_plain_magnitude_pruning():
    assert overrides(make_plan(0.5, 1, vary={"seed": [3, 1]})[0]) == [{"seed": 3}, {"seed": 1}]
    assert overrides(make_plan(0.5, 1, num_candidates=1, seed=5)[0]) == [{"seed": 5}]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"target_sparsity": 1.0}, "target_sparsity must lie in [0, 1), got 1.0"),
        ({"target_sparsity": -0.1}, "target_sparsity must lie in [0, 1), got -0.1"),
        ({"num_phases": 0}, "num_phases must be at least 1, got 0"),
        ({"num_phases": 1, "num_candidates": 0}, "num_candidates must be at least 1, got 0"),
        ({"vary": {"colour": [1]}}, "`vary` must name hyperparameters of retraining, got 'colour'"),
        ({"vary": {"output_dir": ["a"]}}, "got 'output_dir'"),
        ({"vary": {"seed": 3}}, "must map 'seed' to a list of values, got 3"),
        ({"vary": {"seed": []}}, "must map 'seed' to a list of values, got []"),
        ({"vary": {"optim": "sgd"}}, "must map 'optim' to a list of values, got 'sgd'"),
        (
            {"vary": {"seed": [1, 2]}, "num_candidates": 3},
            "num_candidates=3 must match the values in `vary`, which give 2",
        ),
    ],
)
def test_plans_that_make_no_sense_are_refused(arguments, words):
    with pytest.raises(ValueError, match=r".") as error:
        make_plan(**{"target_sparsity": 0.5, "num_phases": 2} | arguments)
    assert words in str(error.value)
