"""`sms-hf train`, `recipe`, `average` and `compare`; what is imported when, and the recipes of an installed wheel."""

import json
import re
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import tiny_t5
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification

import sms_hf
from sms_hf import Masks, launching, prune
from sms_hf.cli import main

ROOT = Path(__file__).parents[1]


def run(*arguments, **options):
    command = [sys.executable, "-m", "sms_hf", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, **options)


def test_what_nobody_asked_for_is_not_imported():
    heavy = "print(sorted({'torch', 'transformers', 'datasets', 'huggingface_hub'} & set(sys.modules)))"
    for code in ("import sms_hf", "from sms_hf.cli import main; main(['train', '--help'])"):
        done = subprocess.run([sys.executable, "-c", f"import sys; {code}; {heavy}"], capture_output=True, text=True)
        assert done.stdout.splitlines()[-1] == "[]", done.stderr


@pytest.mark.parametrize("order", ["import sms_hf, transformers", "import transformers.modeling_utils, sms_hf"])
def test_the_reader_is_there_whatever_is_imported_first(order, tmp_path):
    model = tiny_t5()
    prune(model, 0.9)
    model.save_pretrained(tmp_path)
    sms_hf.pack(tmp_path, keep_dense=False)
    code = f"""{order}
from transformers import AutoModelForSeq2SeqLM
model = AutoModelForSeq2SeqLM.from_pretrained({str(tmp_path)!r}, variant="sparse")
print("zeros", sum(int((p == 0).sum()) for p in model.parameters()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    zeros = sum(int((p == 0).sum()) for p in model.parameters())
    assert f"zeros {zeros}" in done.stdout, done.stderr


def test_every_public_name_is_there():
    assert all(getattr(sms_hf, name) is not None for name in sms_hf.__all__)
    assert set(sms_hf.__all__) <= set(dir(sms_hf))
    assert sms_hf.speed.slow_down
    with pytest.raises(AttributeError, match="has no attribute 'prun'"):
        sms_hf.prun  # noqa: B018


def test_a_greedy_soup_of_folders(tmp_path):
    """Of a run's candidates: the soup that the run itself chose, bit for bit."""
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    run_folder = tmp_path / "run"
    demo = ["--demo", "--max_train_samples", 64, "--max_eval_samples", 40, "--max_test_samples", 20]
    options = ["--dense_dir", tmp_path / "dense", "--num_train_epochs", 1, "--logging_strategy", "no"]
    done = run("train", "image_classification", *demo, *options, "--output_dir", run_folder, "--num_phases", 1)
    assert done.returncode == 0, done.stderr
    folders = [run_folder / f"_run/phase-1/candidate-{number}" for number in (1, 2, 3)]
    done = run("greedy", "image_classification", *folders, *demo, "--output_dir", tmp_path / "soup")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("left out") + done.stdout.count("taken") == 3
    assert "test accuracy of the soup: " in done.stdout
    assert "dense" not in done.stdout, "nobody needs the demo's dense model here"
    ours, theirs = (
        AutoModelForImageClassification.from_pretrained(f).state_dict() for f in (tmp_path / "soup", run_folder)
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    again = run("greedy", "image_classification", *folders, *demo, "--output_dir", tmp_path / "soup")
    assert again.returncode == 1
    assert str(tmp_path / "soup") in again.stderr.splitlines()[-1]
    assert run("greedy", "wmt16_t5", folders[0]).stderr.startswith("sms-hf: Expected two or more model folders")
    assert run("greedy", "--help").stdout.startswith("Usage: sms-hf greedy")


def test_a_recipe_is_run_with_its_own_options():
    assert run("--version").stdout == f"sms-hf {sms_hf.__version__}\n"
    done = run("train", "text_classification", "--help")
    assert done.returncode == 0
    assert "--smaller_first" in done.stdout
    assert "--target_sparsity" in done.stdout
    done = run("train", "text_classification", "--target_sparsity", "2", "--demo")
    assert done.returncode == 1
    assert "target_sparsity must lie in [0, 1), got 2.0" in done.stderr
    assert "--keep_weights" in run("compare", "--help").stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train", "wmt16_t"], r"Expected a task, one of .*, got 'wmt16_t'\. Did you mean 'wmt16_t5'\?"),
        (["train", "wmt16_t5", "--num_processes", "0"], "num_processes must be at least 1, got 0"),
        (["recipe", "causal", "x"], "Did you mean 'causal_lm'"),
        (["average", "nowhere", "nobody", "--output", "out"], "nowhere"),
        (["average", "one", "--output", "out"], "Expected two or more model folders, got one alone"),
        (["inspect", "nowhere/"], "found no folder nowhere/"),
    ],
)
def test_what_the_user_can_mend_is_one_line(arguments, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert re.search(says, error)
    assert error.startswith("sms-hf: ")
    assert error.count("\n") == 1


def test_two_processes(tmp_path):
    """Each trains candidates of its own; the script tells how many there are."""
    script = tmp_path / "script.py"
    # Each line in one piece: both processes write to one pipe.
    script.write_text(
        "import os, sys\nrank, size = os.environ['RANK'], os.environ['WORLD_SIZE']\n"
        "os.write(1, f'rank {rank} of {size} {sys.argv[1:]}\\n'.encode())\n"
    )
    call = f"print(run_script(Path({str(script)!r}), ['--a'], 2))"
    code = f"from sms_hf.launching import run_script; from pathlib import Path; {call}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    lines = sorted(done.stdout.splitlines())
    assert lines == ["0", "rank 0 of 2 ['--a']", "rank 1 of 2 ['--a']"]
    script.write_text("raise SystemExit(3)\n")
    assert launching.run_script(script, [], 1) == launching.run_script(script, [], 2) == 3


def test_of_processes_that_fail_only_the_script_speaks(tmp_path, capfd):
    done = run("train", "text_classification", "--num_processes", "2", "--target_sparsity", "2", "--demo")
    said = "target_sparsity must lie in [0, 1), got 2.0. Pass 0.9 to remove 90 % of the prunable weights.\n"
    assert (done.returncode, done.stderr) in [(1, said), (1, 2 * said)], "the second where the machine is slow"
    script = tmp_path / "script.py"
    script.write_text(
        "import os, signal, time\nif os.environ['RANK'] == '0': time.sleep(60)\nos.kill(os.getpid(), 9)\n"
    )
    assert launching.run_script(script, [], 2) == 137
    assert capfd.readouterr().err == "sms-hf: process 1 was ended by SIGKILL, and the others with it\n"


@pytest.mark.parametrize("num_processes", [1, 2])
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_is_passed_on_and_its_work_is_awaited(name, num_processes, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os, signal, sys, time\n"
        "def end(number, frame):\n"
        "    time.sleep(1)\n"
        "    os.write(1, b'written down\\n')\n"
        "    sys.exit(128 + number)\n"
        f"signal.signal(signal.{name}, end)\n"
        "os.write(1, b'ready\\n')\n"
        "time.sleep(60)\n"
    )
    call = f"run_script(Path({str(script)!r}), [], {num_processes})"
    code = f"import sys; from sms_hf.launching import *; sys.exit({call})"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], text=True, **pipes) as process:
        assert [process.stdout.readline() for _ in range(num_processes)] == num_processes * ["ready\n"]
        process.send_signal(getattr(signal, name))
        assert process.stdout.read() == num_processes * "written down\n"
        assert process.wait() == 128 + getattr(signal, name)
        assert process.stderr.read() == ""


def test_a_script_that_a_signal_ends_has_the_exit_code_of_shells(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import os, signal; os.kill(os.getpid(), signal.SIGKILL)\n")
    assert launching.run_script(script, [], 1) == 137


def test_a_recipe_is_copied_and_nothing_is_written_over(tmp_path, capsys):
    assert main(["recipe", "wmt16_t5", str(tmp_path / "mine")]) == 0
    names = ["wmt16_t5.py", "wmt16_t5.yaml", "wmt16_t5_demo.yaml"]
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == names
    assert all((tmp_path / "mine" / name).read_text() == (ROOT / "recipes" / name).read_text() for name in names)
    capsys.readouterr()
    assert main(["recipe", "wmt16_t5", str(tmp_path / "other"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"files": [str(tmp_path / "other" / name) for name in names]}
    assert main(["recipe", "wmt16_t5", str(tmp_path / "mine")]) == 1
    assert "would be written over" in capsys.readouterr().err


def test_averages_on_the_command_line(tmp_path, capsys):
    model = tiny_t5()
    masks = prune(model, 0.5)
    for number, factor in enumerate((1.0, 3.0)):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(factor)
        model.save_pretrained(tmp_path / f"{number}")
        masks.save(tmp_path / f"{number}" / "masks.safetensors")
    assert main(["average", str(tmp_path / "0"), str(tmp_path / "1"), "--output", str(tmp_path / "soup")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'soup'}\n"
    folders = [str(tmp_path / "0"), str(tmp_path / "1")]
    assert main(["average", *folders, "--json", "--output", str(tmp_path / "again")]) == 0
    size = (tmp_path / "again" / "model.safetensors").stat().st_size
    facts = {"folder": str(tmp_path / "again"), "ingredients": folders, "num_bytes": size}
    assert json.loads(capsys.readouterr().out) == facts
    name = "encoder.block.0.layer.1.DenseReluDense.wi.weight"
    first, soup = (load_file(tmp_path / folder / "model.safetensors")[name] for folder in ("0", "soup"))
    assert torch.equal(soup, 2 * first)
    assert Masks.of(tmp_path / "soup").fingerprint() == masks.fingerprint()


def test_a_wheel_brings_the_recipes(tmp_path, monkeypatch):
    """As pip unpacks it; no checkout beside it."""
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    done = subprocess.run([*build, str(tmp_path / "dist"), str(ROOT)], capture_output=True, text=True, timeout=200)
    if done.returncode and "setuptools" in done.stderr:
        pytest.skip("setuptools, which builds the wheel, is not installed")
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "sms_hf/speed/kernel.c" in names
    recipes = {Path(name).name for name in names if "/share/sms_hf/recipes/" in name}
    assert recipes == {path.name for path in (ROOT / "recipes").iterdir() if path.suffix in (".py", ".yaml")}
