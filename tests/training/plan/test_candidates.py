"""What varies between the candidates of a phase."""

import pytest

from sms_hf.training.plan.candidates import vary_candidates


def test_default_varies_the_seed():
    assert vary_candidates(seed=7) == [{"seed": 7}, {"seed": 8}, {"seed": 9}]
    assert vary_candidates(5, seed=0) == [{"seed": seed} for seed in range(5)]


def test_several_keys_give_all_combinations_the_last_fastest():
    assert vary_candidates(vary={"weight_decay": [0, 0.01], "learning_rate": [1e-4, 3e-4]}, seed=1) == [
        {"weight_decay": 0, "learning_rate": 1e-4, "seed": 1},
        {"weight_decay": 0, "learning_rate": 3e-4, "seed": 1},
        {"weight_decay": 0.01, "learning_rate": 1e-4, "seed": 1},
        {"weight_decay": 0.01, "learning_rate": 3e-4, "seed": 1},
    ]


def test_every_knob_of_the_paper_alone_and_together():
    knobs = {
        "num_train_epochs": [1, 2],
        "learning_rate": [0.1],
        "retrain_schedule": ["llr", "clr"],
        "weight_decay": [0.1],
    }
    for key, values in knobs.items():
        assert vary_candidates(vary={key: values}, seed=3) == [{key: value, "seed": 3} for value in values]
    assert len(vary_candidates(vary=knobs)) == 4


def test_given_seeds_are_taken():
    assert vary_candidates(vary={"seed": [3, 1]}) == [{"seed": 3}, {"seed": 1}]
    assert vary_candidates(1, seed=5) == [{"seed": 5}]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_candidates": 0}, "num_candidates must be at least 1, got 0"),
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
def test_candidates_that_make_no_sense_are_refused(arguments, words):
    with pytest.raises(ValueError, match=r".") as error:
        vary_candidates(**arguments)
    assert words in str(error.value)
