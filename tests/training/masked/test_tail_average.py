"""The mean of the last weights of a training."""

from pathlib import Path

import pytest
import torch
from conftest import tiny_t5
from safetensors.torch import load_file
from torch import nn
from transformers import TrainerCallback

from sms_hf.sparsity.masks import Masks
from sms_hf.training.masked.tail_average import TailAverage
from sms_hf.training.plan.tail import TAIL_AVERAGES, ema_share, lawa_share
from sms_hf.training.processes.stopping import Stopped
from sms_hf.training.run import retraining


def test_shares_by_hand():
    assert [ema_share(step, 50) for step in (1, 2, 4, 5, 6, 50)] == [1, 1 / 2, 1 / 4, 1 / 5, 1 / 5, 1 / 5]
    assert [lawa_share(step, 40) for step in (31, 32, 33, 34, 36, 38, 40)] == [0, 1, 0, 1 / 2, 1 / 3, 1 / 4, 1 / 5]
    assert [lawa_share(step, 3) for step in (1, 2, 3)] == [0, 1, 1 / 2], "snapshots that fall together count once"
    assert ema_share(1, 1) == lawa_share(1, 1) == 1


@pytest.mark.parametrize(("kind", "expected"), [("lawa", 36.0), ("ema", 37.0)])
def test_the_mean_of_a_straight_path(kind, expected):
    """Weights 1, 2, ..., 40: LAWA is the mean of 32, 34, 36, 38, 40; EMA over four steps lags three behind."""
    layer, tail = nn.Linear(1, 1, bias=False), TailAverage(kind)
    for step in range(1, 41):
        layer.weight.data.fill_(step)
        tail.update(layer, step, 40)
    tail.put_(layer)
    assert layer.weight.item() == pytest.approx(expected, abs=1e-3)


def test_the_mean_of_bfloat16_weights_is_kept_in_float32(tmp_path):
    layer, tail = nn.Linear(1, 1, bias=False).bfloat16(), TailAverage("lawa")
    for step, value in enumerate([1.0, 1.0078125, 1.0, 1.0078125, 1.0], start=16):
        layer.weight.data.fill_(value)
        tail.update(layer, step, 20)
    tail.save(tmp_path)
    (mean,) = load_file(tmp_path / "tail_average.safetensors").values()
    assert mean.dtype == torch.float32
    assert mean.item() == pytest.approx(1.003125, abs=1e-6)


class Note(TrainerCallback):
    """Weights after every step."""

    def __init__(self):
        self.seen = []

    def __deepcopy__(self, memo):
        return self  # A candidate's trainer gets a copy.

    def on_step_end(self, args, state, control, model, **kwargs):
        self.seen.append({name: p.detach().clone() for name, p in model.named_parameters()})


def test_a_candidate_ends_with_the_mean_of_its_snapshots(make_trainer):
    note = Note()
    settings = {"tail_average": "lawa", "pruning_method": "imp", "num_phases": 1, "target_sparsity": 0.75}
    trainer = make_trainer({**settings, "max_steps": 20}, callbacks=[note])
    trainer.train()
    assert len(note.seen) == 20
    model, masks = trainer.model, Masks.of(Path(trainer.args.output_dir))
    for name, parameter in model.named_parameters():
        expected = torch.stack([weights[name] for weights in note.seen[15:]]).double().mean(0)
        torch.testing.assert_close(parameter.detach().double(), expected, rtol=1e-5, atol=1e-8)
    assert all(bool((model.get_parameter(name)[~mask] == 0).all()) for name, mask in masks.items())
    assert any(not torch.equal(p, note.seen[-1][name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("kind", TAIL_AVERAGES)
@pytest.mark.parametrize("method", ["imp", "gmp"])
def test_a_resumed_candidate_goes_on_with_its_mean(make_trainer, tmp_path, monkeypatch, kind, method):
    settings = {"tail_average": kind, "pruning_method": method, "num_phases": 1, "max_steps": 20}
    settings |= {"save_strategy": "steps", "save_steps": 9}
    whole = make_trainer({**settings, "output_dir": str(tmp_path / "whole")}, model=tiny_t5())
    whole.train()

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 19:
                raise Stopped(15)

    with pytest.raises(Stopped):
        make_trainer(settings, model=tiny_t5(), callbacks=[Stop()]).train()
    checkpoint = tmp_path / "run/_run/phase-1/candidate-1/checkpoint-18"
    assert (checkpoint / "tail_average.safetensors").is_file()
    again = make_trainer(settings, model=tiny_t5())
    again.train(resume_from_checkpoint=True)
    files = [tmp_path / name / "model.safetensors" for name in ("whole", "run")]
    assert files[0].read_bytes() == files[1].read_bytes()
    plain = make_trainer({**settings, "tail_average": None, "output_dir": str(tmp_path / "plain")}, model=tiny_t5())
    plain.train()
    assert (tmp_path / "plain/model.safetensors").read_bytes() != files[0].read_bytes()
    assert Masks.of(tmp_path / "plain").fingerprint() == Masks.of(tmp_path / "run").fingerprint()


def test_a_trunk_goes_on_from_its_last_step(make_trainer, monkeypatch):
    averaged = []
    monkeypatch.setattr(retraining, "TailAverage", lambda kind: averaged.append(kind) or TailAverage(kind))
    make_trainer({"tail_average": "ema", "shared_fraction": 0.5, "num_phases": 1}).train()
    assert averaged == ["ema", "ema"], "of the two branches alone"


@pytest.mark.parametrize(
    "others",
    [{"pruning_method": "dpf"}, {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "epoch"}],
)
def test_what_does_not_go_together(make_args, others):
    with pytest.raises(ValueError, match="Expected no tail_average with load_best_model_at_end"):
        make_args(tail_average="ema", **others)


def test_unknown_kinds(make_args):
    with pytest.raises(ValueError, match="tail_average must be one of"):
        make_args(tail_average="swa")
    with pytest.raises(ValueError, match="candidate_data must be one of"):
        make_args(candidate_data="shard")
