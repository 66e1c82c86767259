"""
Folders made to harm: every kind of them through every door that reads or writes folders.

Nothing outside the folder is read, written or removed, and what is refused changes nothing inside either.
"""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import tiny_t5
from safetensors.torch import save_file

from sms_hf import Masks, greedy_soup, load, pack, prune, uniform_soup, unpack
from sms_hf.cli import main
from sms_hf.compact.rescue import rescue
from sms_hf.files.folder import INDEX, MASKS, WEIGHTS, CheckpointError
from sms_hf.files.forms import COMPACT, COMPACT_INDEX
from sms_hf.hub.inspection import describe_folder
from sms_hf.hub.push import check_folder, files_to_push
from sms_hf.soup import average_checkpoints
from sms_hf.training.masked.checkpoints import load_weights_

SECRET = "the secret of another folder"

# ---- Kinds of harm ---------------------------------------------------------------------------------------------------


def index_of(*files: object, repeat: int = 1) -> Callable[[Path, Path], None]:
    """Indexes of both forms that name these files; the whole files go."""

    def harm(folder: Path, victim: Path) -> None:
        names = [str(name).replace("VICTIM", str(victim)) if isinstance(name, str) else name for name in files]
        weight_map = {f"tensor.{i}.{j}": name for i in range(repeat) for j, name in enumerate(names)}
        for whole, index in ((WEIGHTS, INDEX), (COMPACT, COMPACT_INDEX)):
            (folder / whole).unlink(missing_ok=True)
            (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))

    return harm


def link(name: str, target: str) -> Callable[[Path, Path], None]:
    def harm(folder: Path, victim: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target.replace("VICTIM", str(victim)))

    return harm


def all_of(*harms: Callable[[Path, Path], None]) -> Callable[[Path, Path], None]:
    def harm(folder: Path, victim: Path) -> None:
        for one in harms:
            one(folder, victim)

    return harm


def pipes(folder: Path, victim: Path) -> None:
    for name in (WEIGHTS, COMPACT):
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)


def folders_for_files(folder: Path, victim: Path) -> None:
    for name in (WEIGHTS, COMPACT):
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()


def too_large(folder: Path, victim: Path) -> None:
    for whole, index in ((WEIGHTS, INDEX), (COMPACT, COMPACT_INDEX)):
        (folder / whole).unlink(missing_ok=True)
        with open(folder / index, "wb") as file:
            file.truncate(1 << 40)


INDEXES = {
    "parent path": index_of("../victim/model.safetensors"),
    "absolute path": index_of("VICTIM/model.safetensors"),
    "path below": index_of("inner/model.safetensors"),
    "the folder": index_of("."),
    "the parent": index_of(".."),
    "no name": index_of(""),
    "NUL": index_of("model\0.safetensors"),
    "newline": index_of("model\n.safetensors"),
    "half a character": index_of("model\ud800.safetensors"),
    "backslashes": index_of("..\\victim\\model.safetensors"),
    "endless name": index_of("m" * 5000 + ".safetensors"),
    "number": index_of(7),
    "list": index_of(["model.safetensors"]),
    "itself": index_of(INDEX),
    "each other": index_of(COMPACT_INDEX),
    "configuration": index_of("config.json"),
    "masks": index_of(MASKS),
    "good, then bad": index_of("model-1.safetensors", "../victim/model.safetensors"),
    "a million entries": index_of("../victim/model.safetensors", repeat=1_000_000),
    "a terabyte": too_large,
}
LINKS = {
    "weights of another": all_of(link(WEIGHTS, "VICTIM/model.safetensors"), link(COMPACT, "VICTIM/model.safetensors")),
    "weights of the parent": all_of(
        link(WEIGHTS, "../victim/model.safetensors"), link(COMPACT, "../victim/model.safetensors")
    ),
    "a device": all_of(link(WEIGHTS, "/dev/zero"), link(COMPACT, "/dev/zero")),
    "a circle": all_of(link(WEIGHTS, COMPACT), link(COMPACT, WEIGHTS)),
    "a folder": all_of(link(WEIGHTS, "VICTIM"), link(COMPACT, "VICTIM")),
    "configuration": link("config.json", "VICTIM/config.json"),
    "pipes": pipes,
    "folders": folders_for_files,
}
KINDS = {f"index: {name}": harm for name, harm in INDEXES.items()} | {f"link: {k}": harm for k, harm in LINKS.items()}

# ---- Doors -----------------------------------------------------------------------------------------------------------


def plain(folder: Path) -> Path:
    """A good folder, beside the hostile one."""
    return folder.parent / "good"


DOORS: dict[str, Callable[[Path], object]] = {
    "load": load,
    "load dense": lambda folder: load(folder, prefer="dense"),
    "pack": pack,
    "pack --only": lambda folder: pack(folder, keep_dense=False),
    "pack --output": lambda folder: pack(folder, folder.parent / "out"),
    "unpack": unpack,
    "unpack --output": lambda folder: unpack(folder, folder.parent / "out"),
    "inspect": describe_folder,
    "rescue": lambda folder: rescue(folder, folder.parent / "out"),
    "push: the check": check_folder,
    "push: the list": files_to_push,
    "average_checkpoints": lambda folder: average_checkpoints([plain(folder), folder], folder.parent / "out"),
    "uniform_soup": lambda folder: uniform_soup([folder, plain(folder)], folder.parent / "out"),
    "greedy_soup": lambda folder: greedy_soup([folder, plain(folder)], lambda path: 1.0, folder.parent / "out"),
    "resume": lambda folder: load_weights_(tiny_t5(), folder),
}
MAY_PASS = {
    # No door opens a configuration that it does not need.
    ("link: configuration", door)
    for door in ("average_checkpoints", "uniform_soup", "greedy_soup", "resume")
}
"""What is no harm to a door, because it does not touch what is hostile."""


@pytest.fixture
def folders(tmp_path):
    """A folder with both forms, a good one, and a victim that nobody may touch."""
    model = tiny_t5()
    masks = prune(model, 0.8)
    for name in ("hostile", "good", "victim"):
        model.save_pretrained(tmp_path / name)
        masks.save(tmp_path / name / MASKS)
    pack(tmp_path / "hostile")
    (tmp_path / "victim" / "secret.txt").write_text(SECRET)
    config = json.loads((tmp_path / "victim/config.json").read_text())
    (tmp_path / "victim/config.json").write_text(json.dumps(config | {"task_specific_params": {SECRET: {}}}))
    save_file({"x": torch.ones(1)}, tmp_path / "hostile/model-1.safetensors")
    return tmp_path


def digests(folder: Path) -> dict[str, str]:
    """What lies in a folder: links by where they lead, files by content, all else by kind."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            found[str(path)] = f"link to {os.readlink(path)}"
        elif path.is_file() and path.stat().st_size < 1 << 30:
            found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[str(path)] = f"{path.stat().st_mode} {path.stat().st_size if path.is_file() else ''}"
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_every_door_refuses_and_nothing_changes(folders, kind):
    hostile, victim = folders / "hostile", folders / "victim"
    KINDS[kind](hostile, victim)
    before = digests(folders)
    for door, open_it in DOORS.items():
        if (kind, door) in MAY_PASS:
            continue
        with pytest.raises(ValueError, match=r"\w") as refusal:
            open_it(hostile)
        message = str(refusal.value)
        assert "hostile" in message, f"{door}: {message}"
        assert SECRET not in message
        assert len(message) < 1000, f"{door}: {message}"
        assert digests(folders) == before, door


@pytest.mark.parametrize("kind", ["VICTIM/masks.safetensors", "/dev/zero", "VICTIM", "masks.safetensors"])
def test_masks_that_are_links(folders, kind):
    hostile = folders / "hostile"
    link(MASKS, kind)(hostile, folders / "victim")
    before = digests(folders)
    for door in (lambda path: Masks.load(path / MASKS), pack, unpack, describe_folder, check_folder, files_to_push):
        with pytest.raises(ValueError, match=MASKS):
            door(hostile)
        assert digests(folders) == before


def test_a_folder_is_no_file_of_masks(folders):
    with pytest.raises(ValueError, match=r"got the folder .*good. There is one: .*masks.safetensors"):
        Masks.load(folders / "good")


@pytest.mark.parametrize(
    "name", ["vocab.txt", "README.md", "tokenizer.json", "sparse_soup.json", "phases.png", "LICENSE"]
)
def test_links_among_the_other_files(folders, name, capsys):
    """`vocab.txt -> SECRET` was on the Hub after a push, and in the folder that `pack --output` wrote."""
    hostile = folders / "hostile"
    link(name, "VICTIM/secret.txt")(hostile, folders / "victim")
    before = digests(folders)
    for door in (files_to_push, lambda path: pack(path, folders / "out"), lambda path: unpack(path, folders / "out")):
        with pytest.raises(
            CheckpointError, match=rf"{name} in .*hostile must be a file of this folder, but it is a link"
        ):
            door(hostile)
    assert main(["push", str(hostile), "user/name", "--dry-run"]) == 1
    said = capsys.readouterr()
    assert SECRET not in said.out + said.err
    assert digests(folders) == before


def test_only_what_belongs_to_a_model_goes(folders, capsys):
    hostile = folders / "hostile"
    for name in ("notes.json", "secrets.txt", ".env", "id_rsa", "training_args.bin", "passwords.model", "spiece.model"):
        (hostile / name).write_text(SECRET if name != "spiece.model" else "pieces")
    assert main(["push", str(hostile), "user/name", "--dry-run"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    names = {row[-1] for row in rows if len(row) == 2}
    expected = {"config.json", "generation_config.json", MASKS, WEIGHTS, COMPACT, "spiece.model"}
    assert names == expected
    assert {row[-1]: int(row[0].replace(",", "")) for row in rows if len(row) == 2} == {
        name: (hostile / name).stat().st_size for name in expected
    }
    pack(hostile, folders / "out")
    assert {path.name for path in (folders / "out").iterdir()} == expected


def test_links_under_the_names_that_writers_use_aside(folders):
    """A file grows under a name of its own: a link there would lead its bytes elsewhere."""
    hostile, victim = folders / "hostile", folders / "victim"
    for name in (COMPACT, WEIGHTS, "config.json", MASKS):
        (hostile / f"{name}.partial").symlink_to(victim / "secret.txt")
    before = digests(victim)
    pack(hostile)
    Masks.load(hostile / MASKS).save(hostile / MASKS)
    unpack(hostile)
    assert digests(victim) == before
    assert (victim / "secret.txt").read_text() == SECRET


def test_the_cache_of_the_hub_is_no_hostile_folder(tmp_path):
    """There every file is a link to a blob beside the snapshots."""
    model = tiny_t5()
    masks = prune(model, 0.8)
    model.save_pretrained(tmp_path / "plain")
    masks.save(tmp_path / "plain" / MASKS)
    pack(tmp_path / "plain")
    repository = tmp_path / "models--user--name"
    snapshot, blobs = repository / "snapshots" / "c0ffee", repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in (tmp_path / "plain").iterdir():
        blob = blobs / hashlib.sha256(path.read_bytes()).hexdigest()
        path.rename(blob)
        (snapshot / path.name).symlink_to(Path("../../blobs") / blob.name)
    assert torch.equal(load(snapshot).lm_head.weight, model.lm_head.weight)
    assert Masks.load(snapshot / MASKS).fingerprint() == masks.fingerprint()
    pack(snapshot, tmp_path / "out")
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())
