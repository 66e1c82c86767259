"""Trackers, the real packages: every candidate is a run of its own, one more is the soups'; a failure costs a line."""

import glob
import os
import sys
from types import SimpleNamespace

import pytest
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback


def scalars(folder):
    """Scalars in the files of one run of TensorBoard: name -> values by step."""
    loading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard")
    events = loading.EventAccumulator(str(folder))
    events.Reload()
    return {name: {e.step: e.value for e in events.Scalars(name)} for name in events.Tags()["scalars"]}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("everywhere", [False, True])
def test_every_candidate_is_a_run_of_its_own_in_tensorboard(make_trainer, tmp_path, monkeypatch, everywhere):
    pytest.importorskip("tensorboard", reason="needs tensorboard")
    if everywhere:
        monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "boards"))
    trainer = make_trainer({"report_to": "tensorboard", "run_name": "soup", "logging_steps": 2, "num_phases": 2})
    trainer.train()
    if everywhere:
        names = [f"soup-phase-{phase}-candidate-{i}" for phase in (1, 2) for i in (1, 2)]
        folders = [tmp_path / "boards" / name for name in names]
        soups = tmp_path / "boards/soup-soup"
    else:
        runs = sorted(tmp_path.glob("run/_run/phase-?/candidate-?/runs/*"))
        folders, (soups,) = runs, tmp_path.glob("run/_run/soups/runs/*")
    assert len(folders) == 4
    logged = [c["log"] for phase in trainer.report["phases"] for c in phase["candidates"]]
    for folder, log in zip(folders, logged, strict=True):
        losses = {entry["step"]: entry["loss"] for entry in log if "loss" in entry}
        assert scalars(folder)["train/loss"] == pytest.approx(losses, abs=1e-3)
    found = scalars(soups)
    assert found["eval/soup_loss"] == pytest.approx({p["number"]: p["soup"]["score"] for p in trainer.report["phases"]})
    name, sparsity = next(iter(trainer.report["phases"][1]["parent"]["sparsity_per_tensor"].items()))
    assert found[f"train/sparsity/{name}"][2] == pytest.approx(sparsity)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("event", ["on_train_begin", "on_log"])
def test_a_tracker_that_fails_costs_a_line(make_trainer, monkeypatch, capsys, event):
    pytest.importorskip("tensorboard", reason="needs tensorboard")

    def fail(*args, **kwargs):
        raise OSError("no space left for boards")

    monkeypatch.setattr(TensorBoardCallback, event, fail)
    trainer = make_trainer({"report_to": "tensorboard", "logging_steps": 2})
    trainer.train()
    assert all(c["failure"] is None for phase in trainer.report["phases"] for c in phase["candidates"])
    line = "TensorBoard failed, the run goes on without it: OSError: no space left for boards"
    assert capsys.readouterr().out.count(line) == 4 + 1, "once a candidate, and once of the soups"


def test_a_tracker_that_cannot_be_closed_costs_a_line(make_trainer, monkeypatch, capsys):
    def finish():
        raise OSError("no connection")

    class Open(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(run="open", finish=finish))

    trainer = make_trainer({"num_phases": 1, "num_candidates": 1}, callbacks=[Open()])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    trainer.train()
    assert trainer.report["phases"][0]["candidates"][0]["failure"] is None
    assert "wandb failed, the run goes on without it: OSError: no connection" in capsys.readouterr().out
    assert "WANDB_RUN_GROUP" not in os.environ


def test_the_run_of_a_candidate_that_fails_is_closed(make_trainer, monkeypatch):
    pytest.importorskip("tensorboard", reason="needs tensorboard")
    ended = []
    monkeypatch.setattr(TensorBoardCallback, "on_train_end", lambda self, args, *_, **__: ended.append(args.run_name))

    class Break(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if args.seed == 43:
                raise ZeroDivisionError("of this candidate alone")

    trainer = make_trainer({"report_to": "tensorboard", "run_name": "soup", "num_phases": 1}, callbacks=[Break()])
    trainer.train()
    failures = [c["failure"] for c in trainer.report["phases"][0]["candidates"]]
    assert failures[0] is None
    assert "ZeroDivisionError" in failures[1]
    assert ended == ["soup-phase-1-candidate-1", "soup-phase-1-candidate-2", "soup-soup"]


def test_every_candidate_is_a_run_of_its_own_in_wandb(make_trainer, monkeypatch, tmp_path):
    import wandb

    for name, value in {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("WANDB_RUN_GROUP", raising=False)

    class Look(TrainerCallback):
        seen: list = []  # noqa: RUF012

        def on_train_begin(self, args, state, control, **kwargs):
            Look.seen.append((wandb.run.id, wandb.run.name, wandb.run.group, wandb.run.step))

    make_trainer(
        {"report_to": "wandb", "run_name": "soup", "logging_steps": 2, "num_phases": 2}, callbacks=[Look()]
    ).train()
    ids, names, groups, steps = zip(*Look.seen, strict=True)
    assert len(set(ids)) == 4
    assert names == tuple(f"soup-phase-{phase}-candidate-{i}" for phase in (1, 2) for i in (1, 2))
    assert set(groups) == {"soup"}
    assert set(steps) == {0}, "each begins with its own steps"
    assert wandb.run is None, "nothing is left open"
    assert len(glob.glob(f"{tmp_path}/wandb/offline-run-*")) == 5, "one more is the soups'"
