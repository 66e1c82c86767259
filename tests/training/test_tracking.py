"""Trackers, the real packages: every candidate is a run of its own, one more is the soups'; a failure costs a line."""

import gc
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback

from sms_hf.training.spawning import candidate_args

CANDIDATES = [f"soup-phase-{phase}-candidate-{i}" for phase in (1, 2) for i in (1, 2)]
SETTINGS = {"run_name": "soup", "logging_steps": 2, "num_phases": 2}


def logged(trainer):
    """What every candidate logged of its loss, by its run's name: step -> loss."""
    logs = [c["log"] for phase in trainer.report["phases"] for c in phase["candidates"]]
    losses = [{entry["step"]: entry["loss"] for entry in log if "loss" in entry} for log in logs]
    return dict(zip(CANDIDATES, losses, strict=True))


def soups(trainer):
    """Of every phase: score and trials of the soup, and the sparsity of one layer."""
    name = next(iter(trainer.report["phases"][0]["parent"]["sparsity_per_tensor"]))
    return name, {
        p["number"]: (p["soup"]["score"], len(p["soup"]["trials"]), p["soup"]["sparsity_per_tensor"][name])
        for p in trainer.report["phases"]
    }


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
        folders, ours = [tmp_path / "boards" / name for name in CANDIDATES], tmp_path / "boards/soup-soup"
    else:
        folders = sorted(tmp_path.glob("run/_run/phase-?/candidate-?/runs/*"))
        (ours,) = tmp_path.glob("run/_run/soups/runs/*")
    assert len(folders) == 4
    for folder, losses in zip(folders, logged(trainer).values(), strict=True):
        assert scalars(folder)["train/loss"] == pytest.approx(losses, abs=1e-3)
    found, (layer, expected) = scalars(ours), soups(trainer)
    names = ("eval/soup_loss", "train/soup_trials", f"train/sparsity/{layer}")
    assert {step: tuple(found[name][step] for name in names) for step in (1, 2)} == {
        step: pytest.approx(values) for step, values in expected.items()
    }


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_crash_leaves_the_soups_of_the_phases_before(make_trainer, tmp_path):
    pytest.importorskip("tensorboard", reason="needs tensorboard")

    class Break(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            if "phase-2" in args.run_name:
                raise OSError("the machine is gone")

    settings = {"report_to": "tensorboard", **SETTINGS}
    with pytest.raises(RuntimeError, match="the machine is gone"):
        make_trainer(settings, callbacks=[Break()]).train()
    folder = tmp_path / "run/_run/soups/runs/soup-soup"
    before = scalars(folder)["eval/soup_loss"]
    assert list(before) == [1]
    trainer = make_trainer(settings)
    trainer.train(resume_from_checkpoint=True)
    after = scalars(folder)["eval/soup_loss"]
    assert after == before | {2: pytest.approx(trainer.report["phases"][1]["soup"]["score"])}


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
    assert capsys.readouterr().out.count(line) == 4 + 2, "once a candidate, and once a soup"


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
    wandb = pytest.importorskip("wandb", reason="needs wandb")

    for name, value in {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("WANDB_RUN_GROUP", raising=False)

    class Look(TrainerCallback):
        seen: list = []  # noqa: RUF012

        def on_train_begin(self, args, state, control, **kwargs):
            Look.seen.append((wandb.run.id, wandb.run.name, wandb.run.group, wandb.run.step))

    make_trainer({"report_to": "wandb", **SETTINGS}, callbacks=[Look()]).train()
    ids, names, groups, steps = zip(*Look.seen, strict=True)
    assert len(set(ids)) == 4
    assert list(names) == CANDIDATES
    assert set(groups) == {"soup"}
    assert set(steps) == {0}, "each begins with its own steps"
    assert wandb.run is None, "nothing is left open"
    written = [path.name.rpartition("-")[2] for path in sorted(Path(tmp_path, "wandb").glob("offline-run-*"))]
    assert set(ids) < set(written)
    assert len(written) == 6, "one a candidate, and one a phase"
    assert len(set(written)) == 5, "where the phases are of one run"
    assert wandb.setup().settings.run_id is None, "what the user begins next is another run"
    Look.seen.clear()
    other = {"run_name": "other", "output_dir": str(tmp_path / "other"), "num_phases": 1, "num_candidates": 1}
    make_trainer({"report_to": "wandb", **other}, callbacks=[Look()]).train()
    assert [seen[1:3] for seen in Look.seen] == [("other-phase-1-candidate-1", "other")], "a group of its own"


@pytest.fixture
def trackio(tmp_path, monkeypatch):
    trackio = pytest.importorskip("trackio", reason="needs trackio")
    # It asks the environment once, when it is imported.
    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path / "trackio")
    return trackio


def test_every_candidate_is_a_run_of_its_own_in_trackio(make_trainer, trackio):
    from trackio.sqlite_storage import SQLiteStorage

    trainer = make_trainer({"report_to": "trackio", "project": "tests", **SETTINGS})
    trainer.train()
    runs = {run.name: run for run in trackio.Api().runs("tests")}
    assert len(trackio.Api().runs("tests")) == 5
    assert set(runs) == {*CANDIDATES, "soup-soup"}
    assert {run.config["_Group"] for run in runs.values()} == {"soup"}
    rows = {name: SQLiteStorage.get_logs("tests", name, run_id=run.id) for name, run in runs.items()}
    for name, losses in logged(trainer).items():
        found = {row["train/global_step"]: row["train/loss"] for row in rows[name] if "train/loss" in row}
        assert found == pytest.approx(losses)
    layer, expected = soups(trainer)
    names = ("eval/soup_loss", "train/soup_trials", f"train/sparsity/{layer}")
    found = {row["train/global_step"]: tuple(row[name] for name in names) for row in rows["soup-soup"]}
    assert found == {step: pytest.approx(values) for step, values in expected.items()}
    assert trackio.context_vars.current_run.get() is None, "nothing is left open"


@pytest.fixture
def mlflow(tmp_path, monkeypatch):
    pytest.importorskip("sqlalchemy", reason="needs a store of MLflow")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    mlflow = pytest.importorskip("mlflow", reason="needs MLflow")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    yield mlflow
    mlflow.set_tracking_uri(before)


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # SQLAlchemy 2.1 says so of MLflow 3.17.
@pytest.mark.parametrize("theirs", [False, True])
def test_every_candidate_is_a_run_of_its_own_in_mlflow(make_trainer, mlflow, theirs):
    if theirs:
        run = mlflow.start_run(run_name="of the user")
    trainer = make_trainer({"report_to": "mlflow", **SETTINGS})
    trainer.train()
    gc.collect()  # The callback of transformers ends what is open when it goes.
    if theirs:
        assert mlflow.active_run() is run, "it stays open"
        mlflow.end_run()
    assert mlflow.active_run() is None, "nothing is left open"
    found = mlflow.search_runs(output_format="list", search_all_experiments=True)
    runs = {r.info.run_name: r for r in found if r.info.run_name != "of the user"}
    assert len(found) == 5 + theirs
    assert set(runs) == {*CANDIDATES, "soup-soup"}
    assert {r.data.tags["group"] for r in runs.values()} == {"soup"}
    assert {r.info.status for r in runs.values()} == {"FINISHED"}
    assert {r.data.tags.get("mlflow.parentRunId") for r in runs.values()} == {run.info.run_id if theirs else None}

    def history(name, metric):
        points = mlflow.MlflowClient().get_metric_history(runs[name].info.run_id, metric)
        return {point.step: point.value for point in points}

    for name, losses in logged(trainer).items():
        assert history(name, "loss") == pytest.approx(losses)
    layer, expected = soups(trainer)
    columns = [history("soup-soup", name) for name in ("eval_soup_loss", "soup_trials", f"sparsity/{layer}")]
    assert {step: tuple(c[step] for c in columns) for step in columns[0]} == {
        step: pytest.approx(values) for step, values in expected.items()
    }
    assert "MLFLOW_RUN_ID" not in os.environ


def test_runs_in_two_folders_have_other_names(make_args, tmp_path):
    """Trackio goes on with a run of the same name."""
    names = set()
    for folder in ("one", "two"):
        args = make_args(output_dir=str(tmp_path / folder))
        phase = args.make_plan()[0]
        names.add(candidate_args(args, phase, phase.candidates[0], tmp_path, 1).run_name)
    assert names == {"one-phase-1-candidate-1", "two-phase-1-candidate-1"}
