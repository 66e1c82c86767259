"""Learning rates of retraining, as the optimizer really sees them."""

import json

import pytest
import torch
from conftest import reversal
from transformers import TrainerCallback

from sms_hf.training.plan.learning_rate import original_epochs, original_rates


class Rates(TrainerCallback):
    """The learning rate of every step of every candidate."""

    seen: dict = {}  # noqa: RUF012

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        name = args.run_name
        self.seen.setdefault(name, []).append(optimizer.param_groups[0]["lr"])


def rates(make_trainer, changes):
    Rates.seen.clear()
    settings = {
        "num_phases": 1,
        "num_candidates": 1,
        "learning_rate": 0.1,
        "num_train_epochs": 20,
        "pruning_scope": "uniform",
    }
    # 20 rows in batches of 4: 5 steps an epoch, 100 steps in all, as in the oracle.
    trainer = make_trainer({**settings, "optim": "sgd", **changes}, train_dataset=reversal(20), callbacks=[Rates()])
    trainer.train()
    return dict(Rates.seen), trainer


STEPS = [0, 1, 5, 9, 10, 11, 32, 55, 77, 99]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"retrain_schedule": "llr"},
            [0, 0.00244717, 0.05, 0.09755283, 0.1, 0.09888889, 0.07555556, 0.05, 0.02555556, 0.00111111],
        ),
        (
            {"retrain_schedule": "clr", "min_learning_rate": 0.001},
            [0, 0.00244717, 0.05, 0.09755283, 0.1, 0.09996985, 0.08610732, 0.0505, 0.01611441, 0.00103015],
        ),
        ({"retrain_schedule": "ft", "min_learning_rate": 0.001}, [0.001] * 10),
    ],
)
def test_the_table_of_the_design_step_by_step(make_trainer, changes, expected):
    (seen,) = rates(make_trainer, changes)[0].values()
    assert len(seen) == 100
    assert [seen[step] for step in STEPS] == [pytest.approx(value, abs=1e-8) for value in expected]


def test_rewinding_replays_the_last_rates_of_the_dense_training(make_trainer):
    changes = {"retrain_schedule": "lrw", "original_schedule": "linear", "original_num_epochs": 100}
    (seen,) = rates(make_trainer, changes)[0].values()
    # Linear from 0.1 to 0 over 500 steps: the last 100.
    assert seen == [pytest.approx(0.1 * (100 - t) / 500) for t in range(100)]


def test_the_peak_of_allr_is_what_pruning_did_to_the_norm_and_is_new_in_every_phase(make_trainer):
    changes = {"retrain_schedule": "allr", "original_num_epochs": 1000, "num_phases": 2, "num_train_epochs": 4}
    seen, trainer = rates(make_trainer, changes)
    for phase, values in zip(trainer.report["phases"], seen.values(), strict=True):
        norms = phase["parent"]["norms"]
        assert norms["fraction"] == pytest.approx(0.5)
        drop = (norms["before"] ** 2 - norms["after"] ** 2) ** 0.5 / (norms["before"] * 0.5**0.5)
        assert 4 / 1000 < drop < 1
        assert max(values) == pytest.approx(0.1 * drop, rel=1e-6)
    first, second = (phase["parent"]["norms"]["before"] for phase in trainer.report["phases"])
    assert second < first, "the reference is the soup before this pruning, not the dense model"


def test_a_long_retraining_has_the_full_peak(make_trainer):
    changes = {"retrain_schedule": "allr", "original_num_epochs": 4, "num_train_epochs": 4}
    (seen,) = rates(make_trainer, changes)[0].values()
    assert max(seen) == pytest.approx(0.1)


def test_soups_while_pruning_go_through_one_schedule(make_trainer):
    seen, _ = rates(make_trainer, {"pruning_method": "gmp-sms", "num_phases": 2, "num_train_epochs": 6})
    # Three segments of 4 epochs, 20 steps each, one linear schedule over 60 steps.
    joined = [value for segment in seen.values() for value in segment]
    assert joined == [pytest.approx(0.1 * (60 - t) / 60) for t in range(60)]


def test_the_schedule_is_stretched_with_imp_mx(make_trainer):
    (seen,) = rates(make_trainer, {"pruning_method": "imp-mx", "num_candidates": 3, "num_train_epochs": 2})[0].values()
    assert seen == [pytest.approx(0.1 * (30 - t) / 30) for t in range(30)]


def test_the_log_of_the_dense_training_is_read(tmp_path, make_args):
    history = [{"step": step, "learning_rate": 0.1 * (10 - step) / 10, "loss": 1.0} for step in (2, 4, 10)]
    state = {"log_history": [*history, {"step": 10, "eval_loss": 1.0}], "max_steps": 10, "num_train_epochs": 5}
    (tmp_path / "trainer_state.json").write_text(json.dumps(state))
    args = make_args(retrain_schedule="lrw", original_schedule=str(tmp_path))
    found = original_rates(args, steps_per_epoch=2)
    assert found == [pytest.approx(0.1 * (10 - max(t, 2)) / 10) for t in range(10)]
    assert original_epochs(args) == 5
    assert original_epochs(make_args(original_num_epochs=7.0)) == 7


def test_a_retraining_longer_than_the_dense_training_cannot_be_rewound(make_trainer):
    changes = {"retrain_schedule": "lrw", "original_schedule": "linear", "original_num_epochs": 1}
    with pytest.raises(RuntimeError, match="replays the dense training's last 100 steps, but that had 5"):
        rates(make_trainer, changes)


def test_optimizers_follow(make_trainer):
    """The factor is of each group's own rate, so that groups with rates of their own keep their proportions."""
    optimizer = (torch.optim.SGD, {"lr": 0.2})
    Rates.seen.clear()
    settings = {
        "num_phases": 1,
        "num_candidates": 1,
        "learning_rate": 0.1,
        "retrain_schedule": "llr",
        "num_train_epochs": 2,
    }
    make_trainer(settings, optimizer_cls_and_kwargs=optimizer, callbacks=[Rates()]).train()
    (seen,) = Rates.seen.values()
    assert max(seen) == pytest.approx(0.2)
