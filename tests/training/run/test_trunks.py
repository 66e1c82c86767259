"""Candidates that go on where one model stopped: its weights, its optimizer, its learning rate."""

from pathlib import Path

import pytest
import torch
from conftest import tiny_t5
from safetensors.torch import load_file
from transformers import TrainerCallback

from sms_hf.files.records import read_record
from sms_hf.training.masked import candidate
from sms_hf.training.processes.stopping import Stopped
from sms_hf.training.run import soup_run

# Rows in one order, no dropout: nothing depends on a seed. Three events, after steps 2, 4 and 6 of 12.
ALIKE = {
    "train_sampling_strategy": "sequential",
    "pruning_interval": 1 / 3,
    "pruning_end": 0.5,
    "warmup_steps": 3,
    "logging_steps": 1,
}


def weights(trainer):
    return load_file(Path(trainer.args.output_dir) / "model.safetensors")


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def rates(trainer):
    """Learning rate of every step, over all phases."""
    logs = [candidate["log"] for phase in trainer.report["phases"] for candidate in phase["candidates"]]
    return [entry["learning_rate"] for log in logs for entry in log if "learning_rate" in entry]


def trained(make_trainer, name, tmp_path, **settings):
    trainer = make_trainer({"output_dir": str(tmp_path / name), **settings}, model=tiny_t5(dropout=0.0))
    trainer.train()
    return trainer


@pytest.mark.parametrize("optim", ["adamw_torch", "adafactor", "sgd"])
def test_a_trunk_with_one_branch_is_one_training_bit_for_bit(make_trainer, tmp_path, optim):
    """Two epochs of GMP, cut where the first ends."""
    settings = {**ALIKE, "optim": optim, "num_candidates": 1}
    whole = trained(make_trainer, "whole", tmp_path, pruning_method="gmp", **settings)
    cut = trained(make_trainer, "cut", tmp_path, pruning_method="gmp-soup", **settings)
    assert same(weights(whole), weights(cut))
    rates = [
        [
            e["learning_rate"]
            for c in t.report["phases"]
            for x in c["candidates"]
            for e in x["log"]
            if "learning_rate" in e
        ]
        for t in (whole, cut)
    ]
    assert rates[0][-1] == rates[1][-1]


def test_a_trunk_of_two_batches_a_step_is_a_training_with_batches_twice_as_large(make_trainer, tmp_path):
    """By one process, which accumulates them."""
    settings = {**ALIKE, "pruning_method": "gmp-soup", "num_candidates": 1, "keep_candidates": True, "warmup_steps": 0}
    small = {"per_device_train_batch_size": 2}
    alone = trained(make_trainer, "alone", tmp_path, **settings, **small)
    trunk = trained(make_trainer, "trunk", tmp_path, **settings, **small, trunk_processes=2)
    large = trained(make_trainer, "large", tmp_path, **settings, **small, gradient_accumulation_steps=2)
    first = [trainer.report["phases"][0]["candidates"][0] for trainer in (alone, trunk, large)]
    assert [(c["steps"], c["epochs"]) for c in first] == [(12, 1.0), (12, 2.0), (6, 1.0)]
    assert rates(trunk) == rates(alone), "one schedule over all steps"
    # The first step is the same; then twice as many follow before the next pruning.
    norms = [[entry["grad_norm"] for entry in c["log"] if "grad_norm" in entry] for c in first]
    assert norms[1][0] == norms[2][0]
    assert norms[1][0] != pytest.approx(norms[0][0], rel=1e-2)


def test_a_shared_part_with_one_candidate_is_imp_bit_for_bit(make_trainer, tmp_path):
    settings = {"train_sampling_strategy": "sequential", "num_candidates": 1, "num_train_epochs": 2, "num_phases": 1}
    imp = trained(make_trainer, "imp", tmp_path, pruning_method="imp", **settings)
    shared = trained(make_trainer, "shared", tmp_path, shared_fraction=0.5, **settings)
    assert same(weights(imp), weights(shared))


def test_rounds_of_one_candidate_are_imp_bit_for_bit(make_trainer, tmp_path):
    """Of its own optimizer and one schedule nothing is lost where a candidate is averaged with nothing."""
    settings = {"train_sampling_strategy": "sequential", "num_candidates": 1, "num_train_epochs": 3, "warmup_steps": 4}
    imp = trained(make_trainer, "imp", tmp_path, pruning_method="imp", **settings)
    rounds = trained(make_trainer, "rounds", tmp_path, averaging_rounds=3, **settings)
    assert len(rounds.report["phases"]) == 6
    assert same(weights(imp), weights(rounds))


def test_copies_go_on_from_their_average_each_with_its_own_optimizer(make_trainer, tmp_path):
    settings = {"averaging_rounds": 2, "num_phases": 1, "keep_candidates": True, "soup_method": "uniform"}
    trainer = trained(make_trainer, "run", tmp_path, **settings)
    first, second = (Path(trainer.args.output_dir) / "_run" / f"phase-{n}" for n in (1, 2))
    assert same(load_file(second / "parent/model.safetensors"), load_file(first / "soup/model.safetensors"))
    given = {}

    def note(optimizer, path):
        given[path.name] = path.parent.name

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(candidate, "go_on_with_", note)
        trained(make_trainer, "again", tmp_path, **settings)
    assert given == {f"candidate-{i}.optimizer.safetensors": "phase-1" for i in (1, 2)}
    assert not list(first.glob("*optimizer*")), "they are of no use once the next round is merged"


def test_an_outer_step_takes_the_place_of_the_average(make_trainer, tmp_path):
    settings = {"averaging_rounds": 2, "num_phases": 1, "keep_candidates": True, "soup_method": "uniform"}
    trainer = trained(make_trainer, "run", tmp_path, **settings, outer_step=[0.5, 0.5])
    first, second = (Path(trainer.args.output_dir) / "_run" / f"phase-{n}" for n in (1, 2))

    def at(folder, name="encoder.block.0.layer.0.SelfAttention.q.weight"):
        return load_file(folder / "model.safetensors")[name].double()

    mean, start = (at(first / "candidate-1") + at(first / "candidate-2")) / 2, at(first / "parent")
    # The first step: rate 0.5 times 1 + momentum.
    torch.testing.assert_close(at(first / "soup"), start + 0.75 * (mean - start), rtol=0, atol=1e-7)
    velocity = start - mean
    mean, start = (at(second / "candidate-1") + at(second / "candidate-2")) / 2, at(second / "parent")
    velocity = 0.5 * velocity + (start - mean)
    torch.testing.assert_close(at(second / "soup"), start - 0.5 * (start - mean + 0.5 * velocity), rtol=0, atol=1e-6)
    assert torch.equal(at(second / "parent"), at(first / "soup"))
    assert not list(Path(trainer.args.output_dir).rglob("velocity")), "it is of no use once the last round is merged"
    score = trainer.report["phases"][1]["soup"]["score"]
    assert score == pytest.approx(trainer.evaluate()[f"eval_{trainer.report['metric']}"]), (
        "of the step, not of the average"
    )
    whole = trained(make_trainer, "average", tmp_path, **settings)
    same_step = trained(make_trainer, "step", tmp_path, **settings, outer_step=[1.0, 0.0])
    assert same(weights(whole), weights(same_step))


def test_a_candidate_that_failed_in_one_round_is_left_out_of_the_next(make_trainer):
    class Fail(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if args.output_dir.endswith("phase-1/candidate-1"):
                raise RuntimeError("the cat sat on the keyboard")

    trainer = make_trainer({"averaging_rounds": 2, "num_phases": 1}, callbacks=[Fail()])
    trainer.train()
    first, second = trainer.report["phases"]
    assert [bool(c["failure"]) for c in first["candidates"]] == [True, False]
    assert [c["failure"] for c in second["candidates"]] == ["it failed in the phase before", None]
    assert second["soup"]["ingredients"] == ["candidate-2"]


def test_branches_start_from_one_model_and_differ(make_trainer):
    trainer = make_trainer({"shared_fraction": 0.5, "num_phases": 1})
    trainer.train()
    trunk, branches = trainer.report["phases"]
    assert [c["overrides"]["seed"] for c in branches["candidates"]] == [1042, 1043]
    assert trunk["parent"]["mask_fingerprint"] == branches["parent"]["mask_fingerprint"]
    assert branches["diagnostics"]["geometry"]["distance"]["min"] > 0
    folder = Path(trainer.args.output_dir) / "_run"
    assert not (folder / "phase-1/candidate-1.optimizer.safetensors").exists(), (
        "it is of no use once its branches are merged"
    )
    kept = make_trainer(
        {
            "shared_fraction": 0.5,
            "num_phases": 1,
            "keep_candidates": True,
            "output_dir": f"{trainer.args.output_dir}-kept",
        }
    )
    kept.train()
    folder = Path(kept.args.output_dir) / "_run"
    parent = load_file(folder / "phase-2/parent/model.safetensors")
    assert same(parent, load_file(folder / "phase-1/soup/model.safetensors"))
    assert same(weights(trainer), weights(kept))


@pytest.mark.parametrize(
    "method",
    [
        {"pruning_method": "gmp-soup"},
        {"pruning_method": "gmp-soup", "trunk_processes": 2},
        {"shared_fraction": 0.5},
        {"averaging_rounds": 2},
        {"averaging_rounds": 2, "outer_step": [0.7, 0.9]},
    ],
)
@pytest.mark.parametrize("lost", [None, "candidate-1.optimizer.safetensors", "soup/model.safetensors"])
def test_a_run_that_stopped_between_trunk_and_branches_goes_on(make_trainer, tmp_path, monkeypatch, method, lost):
    """A trunk whose optimizer is damaged is trained again."""
    settings = {**method, "num_phases": 1}
    make_trainer({**settings, "output_dir": str(tmp_path / "undisturbed")}).train()
    retrain = soup_run.Retrainer.retrain

    def stop(self, phase, who, folder, name):
        if phase.goes_on and who.name == "candidate-2":
            raise Stopped(15)
        retrain(self, phase, who, folder, name)

    with monkeypatch.context() as patch:
        patch.setattr(soup_run.Retrainer, "retrain", stop)
        with pytest.raises(Stopped):
            make_trainer(settings).train()
    phase = tmp_path / "run/_run/phase-1"
    assert read_record(phase / "phase.json")["soup"]["ingredients"]
    if lost is not None:
        data = bytearray((phase / lost).read_bytes())
        data[-9] ^= 1
        (phase / lost).write_bytes(bytes(data))
    again = make_trainer(settings)
    again.train(resume_from_checkpoint=True)
    assert (tmp_path / "run/model.safetensors").read_bytes() == (
        tmp_path / "undisturbed/model.safetensors"
    ).read_bytes()


def test_candidates_that_must_succeed_are_those_of_the_soup(make_args):
    assert make_args(pruning_method="gmp-soup", min_candidates=2).min_candidates == 2
    with pytest.raises(ValueError, match="min_candidates must lie between 1 and 2"):
        make_args(pruning_method="gmp-soup", min_candidates=3)
