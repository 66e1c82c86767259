"""`sms-hf`: what it prints and writes, on folders and on repositories."""

import json
import subprocess
import sys

import pytest
import torch
from conftest import tiny_t5
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from sms_hf import Masks, prune
from sms_hf.cli import main
from sms_hf.hub.lineage import make_lineage

from .conftest import run_python
from .test_model_card import report


@pytest.fixture
def folder(tmp_path):
    model = tiny_t5()
    masks = prune(model, 0.9)
    model.save_pretrained(tmp_path / "model")
    masks.save(tmp_path / "model" / "masks.safetensors")
    return tmp_path / "model"


def test_pack_inspect_unpack(folder, tmp_path, capsys):
    before = load_file(folder / "model.safetensors")
    assert main(["pack", str(folder), "--output", str(tmp_path / "packed"), "--only", "--entropy"]) == 0
    said = capsys.readouterr().out
    size = (tmp_path / "packed" / "model.sparse.safetensors").stat().st_size
    assert said == f"{tmp_path / 'packed'}: 94,880 bytes of dense weights, {size:,} compact ({size / 94_880:.1%})\n"

    assert main(["inspect", str(tmp_path / "packed")]) == 0
    lines = capsys.readouterr().out.splitlines()
    masks = Masks.load(folder / "masks.safetensors")
    name = "encoder.block.0.layer.1.DenseReluDense.wi.weight"
    row = next(line for line in lines if line.startswith(name)).split()
    assert row[1:5] == ["F32", "64x32", f"{100 * masks.sparsity_per_tensor()[name]:.2f}", "rice+exponents"]
    assert f"masks: 90.0000% of 20,480 weights removed, fingerprint {masks.fingerprint()[:16]}" in lines

    assert main(["unpack", str(tmp_path / "packed")]) == 0
    after = load_file(tmp_path / "packed" / "model.safetensors")
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_inspect_for_programs(folder, capsys):
    assert main(["inspect", str(folder), "--json"]) == 0
    facts, masks = json.loads(capsys.readouterr().out), Masks.load(folder / "masks.safetensors")
    assert facts["masks"] == {"sparsity": 0.9, "num_weights": 20_480, "fingerprint": masks.fingerprint()}
    tensors = {tensor["name"]: tensor for tensor in facts["tensors"]}
    weights = load_file(folder / "model.safetensors")
    assert {name: tensor["shape"] for name, tensor in tensors.items()} == {n: list(w.shape) for n, w in weights.items()}
    assert facts["num_bytes"] == sum(weight.nbytes for weight in weights.values())


def test_what_is_written_for_programs(folder, tmp_path, capsys):
    assert main(["pack", str(folder), "--output", str(tmp_path / "packed"), "--only", "--json"]) == 0
    size = (tmp_path / "packed" / "model.sparse.safetensors").stat().st_size
    facts = {"folder": str(tmp_path / "packed"), "dense_bytes": 94_880, "compact_bytes": size}
    assert json.loads(capsys.readouterr().out) == facts
    assert main(["unpack", str(tmp_path / "packed"), "--output", str(tmp_path / "again"), "--json"]) == 0
    size = (tmp_path / "again" / "model.safetensors").stat().st_size
    assert json.loads(capsys.readouterr().out) == {"folder": str(tmp_path / "again"), "dense_bytes": size}
    assert main(["push", str(folder), "user/name", "--dry-run", "--json"]) == 0
    files = {file["name"]: file["num_bytes"] for file in json.loads(capsys.readouterr().out)["files"]}
    assert files == {path.name: path.stat().st_size for path in folder.iterdir()}


def test_inspect_a_dense_folder_finds_patterns(tmp_path, capsys):
    model = tiny_t5()
    prune(model, 0.5, pattern="2:4", scope="uniform")
    model.save_pretrained(tmp_path)
    assert main(["inspect", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if line.startswith("encoder.block.0.layer.0.SelfAttention.q.weight"))
    assert row.split()[1:] == ["F32", "32x32", "50.00", "2:4", "4,096"]
    assert "weights: dense" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["inspect", "./nowhere"], "found no folder ./nowhere"),
        (["pack", "{folder}", "--output", "{folder}"], "output must be another folder than the source"),
        (["unpack", "{empty}"], "Expected a model folder with config.json"),
        (["rescue", "{folder}"], "{folder}"),
        (["push", "{empty}", "user/name"], "Expected a model folder with config.json"),
    ],
)
def test_errors_are_one_line_and_no_traceback(folder, tmp_path, capsys, arguments, says):
    (tmp_path / "empty").mkdir()
    names = {"folder": folder, "empty": tmp_path / "empty"}
    assert main([argument.format(**names) for argument in arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("sms-hf: ")
    assert says.format(**names) in error


def test_on_repositories(hub, folder, tmp_path):
    """Push a folder, inspect it by name, and fetch it unpacked: the command as a program."""
    code = """
    from sms_hf.cli import main
    assert main(["pack", "model"]) == 0
    assert main(["push", "model", "tester/soup", "--private"]) == 0
    assert main(["push", "model", "tester/soup", "--json"]) == 0
    assert main(["inspect", "tester/soup"]) == 0
    assert main(["unpack", "tester/soup", "--output", "pulled"]) == 0
    assert main(["unpack", "tester/soup"]) == 1
    assert main(["inspect", "tester/none"]) == 1
    """
    done = run_python(code, hub.environment(tmp_path / "home"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"{hub.endpoint}/tester/soup/commit/" in done.stdout
    assert '"repo_id": "tester/soup"' in done.stdout
    assert "weights: compact and dense" in done.stdout
    assert "name a folder for the result with --output" in done.stderr
    assert "tester/none" in done.stderr
    assert hub.repos["tester/soup"].private
    pulled = load_file(tmp_path / "pulled" / "model.safetensors")
    expected = load_file(folder / "model.safetensors")
    assert all(torch.equal(pulled[key], expected[key]) for key in expected)
    assert "quantization_config" not in json.loads((tmp_path / "pulled" / "config.json").read_text())


def test_a_pipe_that_is_closed_early_is_no_error(folder):
    """`sms-hf inspect MODEL | head -1`."""
    code = "import sys; from sms_hf.cli import main; sys.exit(main(sys.argv[1:]))"
    command = f"{sys.executable} -c '{code}' inspect {folder} | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("tensor")


@pytest.mark.parametrize("text", ["{}", '{"versions": {}, "parent": {"name": null}}', '{"versions": 3}'])
def test_a_lineage_of_another_hand_is_said_to_be_one(folder, capsys, text):
    (folder / "sparse_soup.json").write_text(text)
    assert main(["inspect", str(folder)]) == 0
    assert "lineage: sparse_soup.json is not as sms_hf writes it" in capsys.readouterr().out


def test_a_lineage_that_is_cut_is_named(folder, capsys):
    (folder / "sparse_soup.json").write_text('{"versions": {')
    assert main(["inspect", str(folder)]) == 1
    assert f"{folder / 'sparse_soup.json'} is damaged" in capsys.readouterr().err


def test_language_and_licence_reach_the_card(hub, folder, tmp_path):
    lineage = make_lineage(report(), Masks.load(folder / "masks.safetensors"))
    (folder / "sparse_soup.json").write_text(json.dumps(lineage))
    code = """
    from sms_hf.cli import main
    assert main(["push", "model", "tester/soup", "--language", "en,de", "--license", "mit"]) == 0
    """
    done = run_python(code, hub.environment(tmp_path / "home"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    card = ModelCard(hub.files("tester/soup")["README.md"].decode())
    assert (card.data.language, card.data.license) == (["en", "de"], "mit")


def test_a_name_that_is_no_folder_and_not_on_the_hub(tmp_path, monkeypatch, capsys):
    def fail(name, **kwargs):
        raise OSError("no network\nand a long story")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    assert main(["inspect", "soup"]) == 1
    assert (
        capsys.readouterr().err == "sms-hf: Found no folder soup, and got no repository soup from the Hub: no network\n"
    )
