"""What is damaged is noticed and made again; what is whole is not."""

import json
import shutil

import pytest
import torch
from conftest import tiny_t5
from safetensors.torch import load_file, save_file

from sms_hf import pack, unpack
from sms_hf.files.records import DamagedError, read_record, write_record
from sms_hf.training.run.bench import Bench
from sms_hf.training.run_directory import RunDirectory, last_checkpoint, read_or_discard, seal_checkpoint


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/weights").write_bytes(b"abc")
    return tmp_path


def test_a_literal_record(folder):
    written = write_record(folder / "model.json", {"score": 0.1}, [folder / "model/weights"])
    # echo -n abc | sha256sum
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert written == {"score": 0.1}
    assert read_record(folder / "model.json") == written
    assert read_or_discard(folder / "model.json") == written
    stored = json.loads((folder / "model.json").read_text())
    assert stored.pop("files") == {"model/weights": digest}
    assert set(stored) == {"score", "checksum"}


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "record flip", "record truncate", "record other"])
def test_damage_is_noticed(folder, damage, capsys):
    record, file = folder / "model.json", folder / "model/weights"
    write_record(record, {"score": 0.1}, [file])
    path = record if damage.startswith("record") else file
    data = path.read_bytes()
    if damage.endswith("flip"):
        path.write_bytes(data.replace(b"0.1", b"0.2") if path == record else b"abd")
    elif damage.endswith("truncate"):
        path.write_bytes(data[:-2])
    elif damage == "delete":
        path.unlink()
    else:
        path.write_text("[1, 2]")
    assert read_or_discard(record) is None
    assert "damaged, to be made again: " in (out := capsys.readouterr().out)
    assert str(path) in out
    assert not record.exists()


def test_a_record_alone_may_be_asked_for(folder):
    write_record(folder / "model.json", {"score": 0.1}, [folder / "model/weights"])
    (folder / "model/weights").unlink()
    assert read_or_discard(folder / "model.json", files=False)["score"] == 0.1


def test_a_record_without_checksum_is_no_record(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(DamagedError, match="no whole record"):
        read_record(tmp_path / "a.json")


def checkpoint(folder, step, best=None):
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    (path / "optimizer.pt").write_bytes(b"moments")
    state = {"best_model_checkpoint": None if best is None else str(folder / f"checkpoint-{best}")}
    (path / "trainer_state.json").write_text(json.dumps(state))
    seal_checkpoint(path, {})
    return path


def test_the_newest_whole_checkpoint(tmp_path, capsys):
    assert last_checkpoint(tmp_path) is None
    for step in (2, 10):
        checkpoint(tmp_path, step)
    (checkpoint(tmp_path, 12) / "optimizer.pt").write_bytes(b"momentt")
    (checkpoint(tmp_path, 14) / "whole.json").unlink()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-2"]
    out = capsys.readouterr().out
    assert f"{tmp_path}/checkpoint-12/optimizer.pt does not match its checksum" in out
    assert f"{tmp_path}/checkpoint-14 was not written to its end" in out


def test_a_checkpoint_needs_its_best_one(tmp_path):
    """Trainer would end with the last weights instead of the best ones."""
    checkpoint(tmp_path, 2, best=2)
    checkpoint(tmp_path, 4, best=2)
    checkpoint(tmp_path, 6, best=6)
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-6")
    (tmp_path / "checkpoint-2/optimizer.pt").unlink()
    (tmp_path / "checkpoint-6/optimizer.pt").unlink()
    assert last_checkpoint(tmp_path) is None


# ---- In a run --------------------------------------------------------------------------------------------------------

PIECES = [
    "_run/run.json",
    "_run/dense.json",
    "_run/phase-1/phase.json",
    "_run/phase-1/soup/model.safetensors",
    "_run/phase-2/parent.json",
    "_run/phase-2/candidate-2.json",
    "_run/phase-2/candidate-2/model.safetensors",
    "_run/phase-2/phase.json",
    "_run/phase-2/soup/masks.safetensors",
    "_run/final.json",
    "model.safetensors",
    "report.json",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run whose files may not be changed."""
    return tmp_path_factory.mktemp("finished") / "run"


@pytest.mark.parametrize("piece", PIECES)
def test_a_damaged_piece_is_made_again_and_nothing_else_changes(make_trainer, finished, tmp_path, piece, capsys):
    keep = {"keep_candidates": True}
    if not finished.exists():
        make_trainer(keep | {"output_dir": str(finished)}).train()
    cut = tmp_path / "cut"
    shutil.copytree(finished, cut)
    data = bytearray((cut / piece).read_bytes())
    data[len(data) // 2] ^= 1
    (cut / piece).write_bytes(data)
    # Phase 2 has to look at its own pieces only where it is not finished.
    if "candidate" in piece or "parent" in piece:
        (cut / "_run/phase-2/phase.json").unlink()
    capsys.readouterr()
    make_trainer(keep | {"output_dir": str(cut)}).train(resume_from_checkpoint=True)
    out = capsys.readouterr().out
    assert f"{cut}/{piece}" in out.split("damaged, to be made again: ")[1].splitlines()[0]
    again = out.count("steps,")
    assert again == {"_run/phase-2/candidate-2.json": 1, "_run/phase-2/candidate-2/model.safetensors": 1}.get(piece, 0)
    for path in finished.rglob("*.safetensors"):
        mine = load_file(cut / path.relative_to(finished))
        for name, tensor in load_file(path).items():
            assert torch.equal(mine[name], tensor), (path, name)


# ---- A finished run in another form ----------------------------------------------------------------------------------

FORMS = {"both": {}, "compact": {"keep_dense": False}, "coded": {"keep_dense": False, "entropy_coded": True}}


@pytest.fixture
def packed(make_trainer, finished, tmp_path):
    """Copies a finished run and stores its model in another form, in place."""
    keep = {"keep_candidates": True}
    if not finished.exists():
        make_trainer(keep | {"output_dir": str(finished)}).train()

    def resume():
        make_trainer(keep | {"output_dir": str(tmp_path / "packed")}).train(resume_from_checkpoint=True)

    shutil.copytree(finished, tmp_path / "packed")
    return tmp_path / "packed", resume


@pytest.mark.parametrize("form", FORMS)
def test_a_run_that_was_packed_is_still_finished(packed, form, capsys):
    folder, resume = packed
    pack(folder, **FORMS[form])
    assert (folder / "model.safetensors").exists() == (form == "both")
    before = {path.name: path.read_bytes() for path in folder.glob("*.*")}
    for _ in range(2):
        capsys.readouterr()
        resume()
        assert "damaged" not in capsys.readouterr().out
        assert {path.name: path.read_bytes() for path in folder.glob("*.*")} == before
    unpack(folder)
    resume()
    assert "damaged" not in capsys.readouterr().out
    assert not (folder / "model.sparse.safetensors").exists()


def change_a_weight(folder):
    """And pack it again: whole, but not what the run made."""
    unpack(folder)
    weights = load_file(folder / "model.safetensors")
    next(tensor for tensor in weights.values() if tensor.any()).mul_(2)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    pack(folder, keep_dense=False)


@pytest.mark.parametrize(
    ("form", "damage"),
    [
        ("compact", lambda folder: flip(folder / "model.sparse.safetensors")),
        ("both", lambda folder: flip(folder / "model.sparse.safetensors")),
        ("both", lambda folder: flip(folder / "model.safetensors")),
        ("compact", lambda folder: (folder / "model.sparse.safetensors").unlink()),
        ("compact", lambda folder: flip(folder / "masks.safetensors")),
        ("compact", lambda folder: flip(folder / "report.json")),
        ("compact", lambda folder: (folder / "config.json").write_text('{"model_type": "t5"}')),
        ("compact", change_a_weight),
    ],
)
@pytest.mark.parametrize("seen", [False, True])
def test_a_packed_run_that_is_damaged_is_made_again(packed, finished, form, damage, seen, capsys):
    """Whether the damage came before a resume has seen the packed form or after."""
    folder, resume = packed
    pack(folder, **FORMS[form])
    if seen:
        resume()
    damage(folder)
    capsys.readouterr()
    resume()
    out = capsys.readouterr().out
    assert out.count("damaged, to be made again: ") == 1
    assert "steps," not in out
    for name in ("model.safetensors", "masks.safetensors"):
        mine, first = load_file(folder / name), load_file(finished / name)
        assert all(torch.equal(mine[key], tensor) for key, tensor in first.items())
        assert mine.keys() == first.keys()
    assert (folder / "report.json").read_bytes() == (finished / "report.json").read_bytes()
    assert "quantization_config" not in (folder / "config.json").read_text()


def test_trials_that_were_scored_are_read_back(make_trainer, tmp_path, monkeypatch):
    settings = {"num_phases": 1, "num_candidates": 3, "keep_candidates": True}
    first = make_trainer(settings)
    first.train()
    assert len(first.report["phases"][0]["soup"]["trials"]) >= 2
    for lost in ("_run/phase-1/phase.json", "_run/final.json"):
        (tmp_path / "run" / lost).unlink()
    scored = []
    again = make_trainer(settings)
    evaluate = Bench.evaluate
    monkeypatch.setattr(Bench, "evaluate", lambda *args: scored.append(args) or evaluate(*args))
    again.train(resume_from_checkpoint=True)
    assert scored == []
    without_seconds = [
        [{k: v for k, v in phase.items() if k != "seconds"} for phase in trainer.report["phases"]]
        for trainer in (first, again)
    ]
    assert without_seconds[0] == without_seconds[1]


def flip(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("ask", ["evaluate_ensemble", "evaluate_subsoups"])
def test_a_kept_candidate_that_is_damaged_is_noticed_when_it_is_read(make_trainer, ask):
    """The run is finished, and its resume reads no candidate: the weights must be held against their record here."""
    trainer = make_trainer({"keep_candidates": True, "num_phases": 1})
    trainer.train()
    ask_for = {
        "evaluate_ensemble": trainer.evaluate_ensemble,
        "evaluate_subsoups": lambda: trainer.evaluate_subsoups(sizes=(2,)),
    }
    ask_for[ask]()
    flip(RunDirectory(trainer.args.output_dir).phase(1).candidate("candidate-2") / "model.safetensors")
    with pytest.raises(
        DamagedError, match=r"candidates of phase 1 .*candidate-2/model.safetensors does not match.*remove"
    ):
        ask_for[ask]()


@pytest.mark.parametrize("text", ["", '{"format": ', "[]"])
def test_the_lineage_of_a_finished_run_is_made_again(make_trainer, tmp_path, text, capsys):
    make_trainer({"num_phases": 1}).train()
    path = tmp_path / "run" / "sparse_soup.json"
    before = json.loads(path.read_text())
    path.write_text(text)
    capsys.readouterr()
    make_trainer({"num_phases": 1}).train(resume_from_checkpoint=True)
    assert f"damaged, to be made again: {path}" in capsys.readouterr().out
    after = json.loads(path.read_text())
    assert {**after, "measured": None} == {**before, "measured": None}


def test_diagnostics_of_a_finished_run_that_are_cut_are_noticed(make_trainer, tmp_path, capsys):
    make_trainer({"num_phases": 1}).train()
    path = RunDirectory(tmp_path / "run").phase(1).diagnostics
    path.write_text(path.read_text()[:50])
    capsys.readouterr()
    make_trainer({"num_phases": 1}).train(resume_from_checkpoint=True)
    assert f"damaged, removed: {path}" in capsys.readouterr().out
    assert not path.exists()


@pytest.mark.parametrize("other", ["weights", "settings"])
def test_a_phase_of_another_run_is_noticed(make_trainer, tmp_path, other, capsys):
    """All its records are whole, and so are their files."""
    make_trainer({"output_dir": str(tmp_path / "mine")}).train()
    theirs = {"model": tiny_t5(seed=1)} if other == "weights" else {}
    settings = {"learning_rate": 1e-4} if other == "settings" else {}
    make_trainer({"output_dir": str(tmp_path / "theirs"), **settings}, **theirs).train()
    mine, foreign = (RunDirectory(tmp_path / name) for name in ("mine", "theirs"))
    before = (mine.root / "model.safetensors").read_bytes()
    shutil.rmtree(mine.phase(1).root)
    shutil.copytree(foreign.phase(1).root, mine.phase(1).root)
    shutil.rmtree(mine.phase(2).root)
    mine.final_record.unlink()
    capsys.readouterr()
    make_trainer({"output_dir": str(mine.root)}).train(resume_from_checkpoint=True)
    assert f"of another run, to be made again: {mine.phase(1).root}" in capsys.readouterr().out
    assert (mine.root / "model.safetensors").read_bytes() == before
