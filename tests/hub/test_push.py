"""Push and pull with the real clients against a server that speaks the Hub's language."""

import hashlib
import json
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import tiny_t5

from sms_hf import pack, prune, push_to_hub
from sms_hf.files.folder import CheckpointError
from sms_hf.hub.lineage import make_lineage

from .conftest import CLIENT_TRIES, run_python
from .test_model_card import report

PUSH = "from sms_hf import push_to_hub\nprint('commit', push_to_hub({folder!r}, 'soup', {options}).oid)\n"
PULL = """
import sys, sms_hf
from transformers.utils import logging
logging.set_verbosity_error()
try:
    model = sms_hf.load("tester/{name}", {options})
    print("sum", float(sum(p.detach().double().abs().sum() for p in model.parameters())), type(model).__name__)
except Exception as error:
    print(type(error).__name__, str(error).splitlines()[0][:200])
"""


@pytest.fixture
def folder(tmp_path):
    """A finished run with both forms of its weights, and files that stay at home."""
    model = tiny_t5()
    masks = prune(model, 0.9)
    model.save_pretrained(tmp_path / "run")
    masks.save(tmp_path / "run" / "masks.safetensors")
    lineage = make_lineage(report(), masks, "user/base", "c0ffee")
    (tmp_path / "run" / "sparse_soup.json").write_text(json.dumps(lineage))
    for name in (
        "training_args.bin",
        "report.json",
        "_run/phase-1/x.json",
        "checkpoint-5/model.safetensors",
        "runs/log",
    ):
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).write_text("{}")
    pack(tmp_path / "run")
    return tmp_path / "run"


def weight_sum(model):
    return float(sum(p.detach().double().abs().sum() for p in model.parameters()))


def push(hub, folder, home, options="", tries=1):
    code = "".join(PUSH.format(folder=str(folder), options=options) for _ in range(tries))
    return run_python(code, hub.environment(home), hasty=True)


def downloads(hub, repo_id):
    """Names of the files of a repository whose bytes were asked for."""
    paths = [path for method, path in hub.log if method == "GET" and path.startswith(f"/{repo_id}/resolve/")]
    return {path.rsplit("/", 1)[1] for path in paths}


EVERYTHING = {
    ".gitattributes",
    "README.md",
    "config.json",
    "generation_config.json",
    "masks.safetensors",
    "model.safetensors",
    "model.sparse.safetensors",
    "sparse_soup.json",
}


def test_push_edit_push_again_and_pull_either_form(hub, folder, tmp_path):
    done = push(hub, folder, tmp_path / "home")
    assert done.returncode == 0, done.stderr
    files = hub.files("tester/soup")
    assert set(files) == EVERYTHING
    assert files["model.sparse.safetensors"] == (folder / "model.sparse.safetensors").read_bytes()
    history = hub.repos["tester/soup"].history("main")
    assert len(history) == 2, "the creation, and one commit"
    # The owner writes into the card on the Hub; the folder loses its compact form.
    card = files["README.md"].decode().replace("---\n<!--", "---\nMy own words.\n<!--")
    hub.seed("tester/soup", {"README.md": card.encode()})
    (folder / "model.sparse.safetensors").unlink()
    done = push(hub, folder, tmp_path / "home2")
    assert done.returncode == 0, done.stderr
    files = hub.files("tester/soup")
    assert set(files) == EVERYTHING - {"model.sparse.safetensors"}, "what is no longer part of the model goes"
    assert "My own words." in files["README.md"].decode()
    assert hub.unknown == []


def test_pull_downloads_only_the_form_that_is_loaded(hub, folder, tmp_path):
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    hub.seed("tester/compact", files)
    hub.seed("tester/dense", files)
    code = "".join(PULL.format(name=prefer, options=f"{prefer!r}") for prefer in ("compact", "dense"))
    done = run_python(code, hub.environment(tmp_path / "home"))
    expected = f"sum {weight_sum(tiny_pruned())} T5ForConditionalGeneration"
    assert done.stdout.splitlines() == [expected, expected], done.stderr
    assert downloads(hub, "tester/compact") == {"config.json", "model.sparse.safetensors", "generation_config.json"}
    assert downloads(hub, "tester/dense") == {"config.json", "model.safetensors", "generation_config.json"}


def tiny_pruned():
    model = tiny_t5()
    prune(model, 0.9)
    return model


def test_a_push_that_breaks_is_repeated(hub, folder, tmp_path):
    """One after the other: the creation fails, the upload breaks off, the server is not well, its answer is lost."""
    hub.break_next("POST", "/api/repos/create", status=500)
    masks = hashlib.sha256((folder / "masks.safetensors").read_bytes()).hexdigest()
    hub.break_next("PUT", f"/lfs/{masks}", times=CLIENT_TRIES, cut_upload=1000)  # Until the client gives up.
    hub.break_next("POST", "/api/models/tester/second/commit/", times=2, status=503)
    hub.break_next("POST", "/api/models/tester/third/commit/", cut_answer=0)
    code = "".join(f"push_to_hub({str(folder)!r}, {name!r})\n" for name in ("first", "second", "third"))
    done = run_python("from sms_hf import push_to_hub\n" + code, hub.environment(tmp_path / "home"), hasty=True)
    assert done.returncode == 0, done.stderr
    for name in ("first", "second", "third"):
        assert set(hub.files(f"tester/{name}")) == EVERYTHING
        assert len(hub.repos[f"tester/{name}"].history("main")) == 2, "the creation, and one commit"
    assert [fault.times for fault in hub.faults] == [0, 0, 0, 0], "all of it happened"


def test_a_push_that_fails_leaves_the_repository_as_it_was(hub, folder, tmp_path):
    hub.seed("tester/soup", {"model.safetensors": b"old", "config.json": b"{}"})
    hub.break_next("POST", "/commit/", status=503, times=100)
    done = push(hub, folder, tmp_path / "home")
    assert done.returncode == 1
    assert "503" in done.stderr
    assert hub.files("tester/soup")["model.safetensors"] == b"old"
    hub.faults.clear()
    done = push(hub, folder, tmp_path / "home", tries=2)
    assert done.returncode == 0, done.stderr
    assert set(hub.files("tester/soup")) == EVERYTHING
    first, second = done.stdout.split("commit ")[1:]
    assert first == second, "pushing again without need makes no commit"


def test_branches_and_private_repositories(hub, folder, tmp_path):
    done = push(hub, folder, tmp_path / "home", "private=True, revision='v2'")
    assert done.returncode == 0, done.stderr
    assert set(hub.files("tester/soup", "v2")) == EVERYTHING
    assert set(hub.files("tester/soup")) <= {".gitattributes"}
    pulled = run_python(PULL.format(name="soup", options="revision='v2'"), hub.environment(tmp_path / "mine"))
    assert pulled.stdout.startswith("sum "), pulled.stderr
    stranger = run_python(
        PULL.format(name="soup", options="revision='v2'"), hub.environment(tmp_path / "none", token=None)
    )
    assert stranger.stdout.startswith("OSError"), stranger.stdout
    assert "tester/soup" in stranger.stdout


def test_a_truncated_download_never_becomes_a_model(hub, folder, tmp_path):
    hub.seed("tester/soup", {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()})
    hub.break_next("GET", "/resolve/.*/model.sparse.safetensors", cut_answer=100, times=100)
    code = PULL.format(name="soup", options="")
    done = run_python(code, hub.environment(tmp_path / "home"), hasty=True)
    assert not done.stdout.startswith("sum")
    hub.faults.clear()
    assert run_python(code, hub.environment(tmp_path / "home")).stdout.startswith("sum ")


def test_what_would_load_wrong_is_not_pushed(folder):
    """Nothing is sent: these fail before the first request, which would fail offline."""
    other = tiny_t5(seed=1)
    prune(other, 0.9)
    other.save_pretrained(folder.parent / "other")
    dense = (folder / "model.safetensors").read_bytes()
    (folder / "masks.safetensors").unlink()
    (folder / "model.safetensors").write_bytes((folder.parent / "other" / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="must be the same model"):
        push_to_hub(folder, "soup")
    (folder / "model.safetensors").write_bytes(dense[:-5])
    with pytest.raises(CheckpointError, match="cannot be read"):
        push_to_hub(folder, "soup")
    (folder / "model.safetensors").unlink()
    (folder / "model.sparse.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"found none\. Push a folder with a model"):
        push_to_hub(folder, "soup")


TRAINER = """
import sys
import huggingface_hub.constants  # Before conftest turns the Hub off, as it does for all other tests.
sys.path.insert(0, {tests!r})
from conftest import *
quick = QUICK | dict(save_strategy="steps", save_steps=1, max_steps=2, num_candidates=2, num_phases=1, keep_candidates=True)
hub = dict(push_to_hub=True, hub_model_id="tester/soup", hub_strategy="every_save")
args = SparseSoupTrainingArguments({out!r}, sparse_format="both", **hub, **quick)
data = reversal(8)
model = T5ForConditionalGeneration.from_pretrained("tester/base")
trainer = SparseSoupTrainer(model, args, collate, data, data)
trainer.train()
trainer.evaluate_run(data)
trainer.push_to_hub(candidates=True, language="de", dataset_tags="user/data")
"""


def test_the_trainer_pushes_the_final_model_once_and_candidates_on_request(hub, tmp_path):
    tiny_t5().save_pretrained(tmp_path / "base")
    base = hub.seed("tester/base", {path.name: path.read_bytes() for path in (tmp_path / "base").iterdir()})
    code = TRAINER.format(tests=str(Path(__file__).parents[1]), out=str(tmp_path / "run"))
    done = run_python(code, hub.environment(tmp_path / "home") | {"TESTS_DRAW": "1"})
    assert done.returncode == 0, done.stderr
    assert set(hub.repos["tester/soup"].branches) == {"main", "phase-1-candidate-1", "phase-1-candidate-2"}
    files = hub.files("tester/soup")
    assert set(files) == EVERYTHING | ({"phases.png"} if find_spec("matplotlib") else set())
    card = files["README.md"].decode()
    assert "language: de" in card
    assert "base_model: tester/base" in card
    assert json.loads(files["sparse_soup.json"])["parent"] == {"name": "tester/base", "revision": base}
    assert "user/data" in card
    assert "split: test" in card, "with the test scores"
    assert files["model.safetensors"] == (tmp_path / "run" / "model.safetensors").read_bytes()
    assert "model.safetensors" in hub.files("tester/soup", "phase-1-candidate-1")
    commits = hub.repos["tester/soup"].history("main")
    assert len(commits) == 3, "creation, the model at the end of training, the card with test scores"


KILLED = """
import sys
import huggingface_hub.constants  # Before conftest turns the Hub off, as it does for all other tests.
sys.path.insert(0, {tests!r})
from conftest import *
quick = QUICK | dict(max_steps=2, num_candidates=2, num_phases=1, push_to_hub=True, hub_model_id="tester/soup")
data = reversal(8)
trainer = SparseSoupTrainer(tiny_t5(), SparseSoupTrainingArguments({out!r}, **quick), collate, data, data)
trainer.train(resume_from_checkpoint=True)
"""


@pytest.mark.parametrize(
    ("moment", "fault"),
    [(("PUT", "/lfs/"), {"cut_upload": 1000}), (("POST", "/commit/"), {"cut_answer": 0})],
    ids=["in the upload", "when the commit is made, before its answer"],
)
def test_a_run_that_is_killed_in_its_push_pushes_again(hub, tmp_path, moment, fault):
    """The client waits a second before it tries again: that is when it is killed."""
    code = KILLED.format(tests=str(Path(__file__).parents[1]), out=str(tmp_path / "run"))
    hub.break_next(*moment, **fault)
    run = subprocess.Popen([sys.executable, "-c", code], env=hub.environment(tmp_path / "home"), stdout=subprocess.PIPE)
    while not any(method == moment[0] and moment[1] in path for method, path in hub.log):
        assert run.poll() is None
        time.sleep(0.01)
    run.kill()
    assert b"candidate-2" in run.communicate()[0]
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    done = run_python(code, hub.environment(tmp_path / "home"))
    assert done.returncode == 0, done.stderr
    assert "candidate-2" not in done.stdout, "nothing is trained again"
    assert hub.files("tester/soup")["model.safetensors"] == before
    assert "sparse_soup.json" in hub.files("tester/soup")
    assert len(hub.repos["tester/soup"].history("main")) == 2, "the creation, and one commit"
