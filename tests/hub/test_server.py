"""The server of this folder is to real clients what the Hub is; and what these clients do when it fails."""

import hashlib
import http.client
import json
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from conftest import tiny_t5
from safetensors.torch import load_file

from .conftest import CLIENT_TRIES, run_python

PRELUDE = """
import json, tempfile
from pathlib import Path
from huggingface_hub import HfApi, hf_hub_download, snapshot_download

def attempt(function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except Exception as error:
        return type(error).__name__
    return "ok"

api = HfApi()
"""


@pytest.fixture
def talk(hub, tmp_path):
    """Run a snippet against the hub, in `tmp_path`; what its last line prints as JSON."""

    def run(code: str, prelude: str = PRELUDE, home: str = "home") -> Any:
        result = run_python(prelude + dedent(code), hub.environment(tmp_path / home), cwd=tmp_path, hasty=True)
        assert result.returncode == 0, result.stderr
        assert hub.unknown == []
        return json.loads(result.stdout.splitlines()[-1])

    return run


def write(folder: Path, files: dict[str, bytes]) -> None:
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)


def read(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


FOLDER = {
    "README.md": b"---\nlicense: mit\n---\nA model.\n",
    "config.json": b"{}",
    "empty.txt": b"",
    "model.safetensors": b"weights" * 1000,
    "picture.png": b"\x89PNG\0\0",
    "sub/deep/odd name ü#%.txt": b"text",
}


def test_a_folder_comes_back_as_it_was(hub, talk, tmp_path):
    write(tmp_path / "folder", FOLDER)
    said = talk("""
    name = api.create_repo("model").repo_id
    assert api.create_repo(name, exist_ok=True).repo_id == name
    first = api.upload_folder(repo_id=name, folder_path="folder").oid
    again = api.upload_folder(repo_id=name, folder_path="folder").oid
    where = snapshot_download(name)
    lfs = [file.path for file in api.list_repo_tree(name, recursive=True) if getattr(file, "lfs", None)]
    top = [entry.path for entry in api.list_repo_tree(name)]
    api.upload_file(path_or_fileobj=b"---\\nlicense: apache-2.0\\n---\\n", path_in_repo="README.md", repo_id=name)
    changed = api.repo_info(name).sha
    print(json.dumps([name, first, again, where, sorted(lfs), sorted(top), changed]))
    """)
    name, first, again, where, lfs, top, changed = said
    assert name == "tester/model"
    assert read(Path(where)) == hub.files(name, first) == FOLDER | {".gitattributes": hub.files(name)[".gitattributes"]}
    assert first == again  # What is there already makes no commit.
    assert lfs == ["model.safetensors", "picture.png"]
    assert top == [".gitattributes", "README.md", "config.json", "empty.txt", "model.safetensors", "picture.png", "sub"]
    assert changed != first
    assert hub.files(name)["README.md"] == b"---\nlicense: apache-2.0\n---\n"


def test_branches_and_history(hub, talk):
    first = hub.seed("tester/model", {"a.txt": b"1", "sub/b.txt": b"2"})
    said = talk("""
    name = "tester/model"
    api.create_branch(name, branch="side/way")
    again = attempt(api.create_branch, name, branch="side/way")
    api.create_branch(name, branch="side/way", exist_ok=True)
    api.delete_file("a.txt", name, revision="side/way", commit_message="Delete a")
    api.delete_folder("sub", name, revision="side/way", commit_message="Delete sub")
    titles = [commit.title for commit in api.list_repo_commits(name, revision="side/way")]
    stale = attempt(api.delete_file, "a.txt", name, parent_commit="0" * 40)
    gone = attempt(api.delete_file, "c.txt", name)
    branches = sorted(ref.name for ref in api.list_repo_refs(name).branches)
    infos = [info.path for info in api.get_paths_info(name, ["a.txt", "c.txt"])]
    print(json.dumps([again, titles, stale, gone, branches, infos]))
    """)
    assert said == [
        "HfHubHTTPError",
        ["Delete sub", "Delete a", "Seed", "initial commit"],
        "HfHubHTTPError",
        "BadRequestError",
        ["main", "side/way"],
        ["a.txt"],
    ]
    assert set(hub.files("tester/model", "side/way")) == {".gitattributes"}
    assert hub.files("tester/model") == hub.files("tester/model", first)


def test_refusals_are_the_exceptions_of_the_client(hub, talk):
    hub.seed("tester/open", {"a.txt": b"1"})
    hub.seed("tester/private", {"a.txt": b"1"}, private=True)
    said = talk("""
    def download(name, file="a.txt", **kwargs):
        return attempt(hf_hub_download, name, file, cache_dir=tempfile.mkdtemp(dir="."), **kwargs)

    def upload(name="tester/open", content=b"2", path="a.txt", **kwargs):
        return attempt(api.upload_file, path_or_fileobj=content, path_in_repo=path, repo_id=name, **kwargs)

    print(json.dumps({
        "private, owner": download("tester/private"),
        "private, stranger": download("tester/private", token="hf_other"),
        "private, anonymous": download("tester/private", token=False),
        "private, anonymous snapshot": attempt(snapshot_download, "tester/private", token=False),
        "open, wrong token": download("tester/open", token="hf_wrong"),
        "unknown repository": download("tester/nothing"),
        "unknown repository, anonymous": download("tester/nothing", token=False),
        "unknown repository without owner": download("nothing"),
        "unknown revision": download("tester/open", revision="nothing"),
        "unknown file": download("tester/open", "nothing.txt"),
        "upload, anonymous": upload(token=False),
        "upload, stranger": upload(token="hf_other"),
        "upload to unknown branch": upload(revision="nothing"),
        "upload of a broken card": upload(content=b"---\\na: [\\n---", path="README.md"),
        "creation for somebody else": attempt(api.create_repo, "other/model"),
        "creation again": attempt(api.create_repo, "open"),
    }))
    """)
    assert said == {
        "private, owner": "ok",
        "private, stranger": "RepositoryNotFoundError",
        "private, anonymous": "RepositoryNotFoundError",
        "private, anonymous snapshot": "RepositoryNotFoundError",
        "open, wrong token": "HfHubHTTPError",
        "unknown repository": "RepositoryNotFoundError",
        "unknown repository, anonymous": "RepositoryNotFoundError",
        "unknown repository without owner": "RepositoryNotFoundError",
        "unknown revision": "RevisionNotFoundError",
        "unknown file": "RemoteEntryNotFoundError",
        "upload, anonymous": "RepositoryNotFoundError",
        "upload, stranger": "HfHubHTTPError",
        "upload to unknown branch": "RevisionNotFoundError",
        "upload of a broken card": "ValueError",
        "creation for somebody else": "HfHubHTTPError",
        "creation again": "HfHubHTTPError",
    }
    assert hub.files("tester/open")["a.txt"] == b"1"


REPEATS = CLIENT_TRIES > 1
CUT = "ok" if REPEATS else "RemoteProtocolError"
DOWNLOADS = {
    "head-500": ("HEAD", {"status": 500}, "ok"),
    "head-503": ("HEAD", {"status": 503}, "ok"),
    "get-500": ("GET", {"status": 500}, "HfHubHTTPError"),
    "get-503": ("GET", {"status": 503}, "HfHubHTTPError"),
    "get-429": ("GET", {"status": 429}, "ok"),
    "cut": ("GET", {"cut_answer": 1_000}, CUT),
    "cut-late": ("GET", {"cut_answer": 11_000_000, "times": min(2, CLIENT_TRIES)}, CUT),
    "cut-always": ("GET", {"cut_answer": 1_000, "times": CLIENT_TRIES}, "RemoteProtocolError"),
}
"""File -> what breaks, and how the first try of `hf_hub_download` ends. The second one finds everything in order."""


def test_downloads_from_a_broken_server(hub, talk, tmp_path):
    files = {name: name.encode() * 1_500_000 for name in DOWNLOADS}
    hub.seed("tester/model", files)
    for name, (method, fault, _) in DOWNLOADS.items():
        hub.break_next(method, f"/resolve/main/{name}$", **fault)
    said = talk(f"""
    names = {list(DOWNLOADS)}
    tries = [{{name: attempt(hf_hub_download, "tester/model", name) for name in names}}]
    blobs = [path.name for path in Path("home").rglob("blobs/*") if path.suffix != ".incomplete"]
    tries += [{{name: attempt(hf_hub_download, "tester/model", name) for name in names}}]
    print(json.dumps([*tries, blobs]))
    """)
    first, second, blobs = said
    assert first == {name: outcome for name, (_, _, outcome) in DOWNLOADS.items()}
    assert second == dict.fromkeys(DOWNLOADS, "ok")
    done = {name for name, outcome in first.items() if outcome == "ok"}
    stored = hub.repos["tester/model"].at("main").files
    assert set(blobs) == {stored[name].etag for name in done}  # Nothing else passes for a file.
    for name, content in files.items():
        [path] = (tmp_path / "home").rglob(f"snapshots/*/{name}")
        assert path.read_bytes() == content
    gets = {name: hub.log.count(("GET", f"/tester/model/resolve/main/{name}")) for name in DOWNLOADS}
    assert gets["cut"] == 2
    assert gets["cut-late"] == 2  # The second asks for the rest only, and so is not cut again.
    assert gets["cut-always"] == CLIENT_TRIES + 1


def test_snapshots_from_a_broken_server(hub, talk):
    for name in ("info", "tree"):
        hub.seed(f"tester/{name}", {"a.txt": b"1"})
    hub.break_next("GET", "tester/info/revision/main", status=503)
    hub.break_next("GET", "tester/tree/tree/", status=503)
    tries = talk("""
    print(json.dumps([[attempt(snapshot_download, f"tester/{name}") for name in ("info", "tree")] for _ in range(2)]))
    """)
    assert tries == [["LocalEntryNotFoundError", "ok"], ["ok", "ok"]]


NO_ANSWER = {"RemoteProtocolError", "ReadError", "WriteError"}  # Which one depends on who is faster.

UPLOADS = {
    "create-503": ("POST", "/repos/create", {"status": 503}, {"HfHubHTTPError"}, False),
    "card-503": ("POST", "/validate-yaml", {"status": 503}, {"HfHubHTTPError"}, False),
    "preupload-500": ("POST", "{name}/preupload/main", {"status": 500}, {"ok"}, True),
    "batch-503": ("POST", "{name}.git/info/lfs/objects/batch", {"status": 503}, {"ok"}, True),
    "put-500": ("PUT", "{oid}", {"status": 500}, {"ok"}, True),
    "put-503": ("PUT", "{oid}", {"status": 503}, {"ok"}, True),
    "put-cut": ("PUT", "{oid}", {"cut_upload": 1_000}, {"ok" if REPEATS else "RuntimeError"}, REPEATS),
    "put-cut-always": ("PUT", "{oid}", {"cut_upload": 1_000, "times": CLIENT_TRIES}, {"RuntimeError"}, False),
    "verify-503": ("POST", "{oid}/verify", {"status": 503}, {"ok"}, True),
    "commit-500": ("POST", "{name}/commit/main", {"status": 500}, {"HfHubHTTPError"}, False),
    "commit-503": ("POST", "{name}/commit/main", {"status": 503}, {"HfHubHTTPError"}, False),
    "commit-cut": ("POST", "{name}/commit/main", {"cut_upload": 10}, NO_ANSWER, False),
    "commit-answer-cut": ("POST", "{name}/commit/main", {"cut_answer": 0}, NO_ANSWER, True),
}
"""Repository -> what breaks, how the first push ends, and whether it arrived. The second one finds everything in order."""


def test_uploads_to_a_broken_server(hub, talk, tmp_path):
    folders = {}
    for name, (method, pattern, fault, _, _) in UPLOADS.items():
        card = "README.md" if name == "card-503" else "notes.md"
        weights = name.encode() * 100_000
        folders[name] = {card: b"---\nlicense: mit\n---\n", "model.safetensors": weights}
        write(tmp_path / name, folders[name])
        hub.seed(f"tester/{name}", {"model.safetensors": b"old"})
        oid = hashlib.sha256(weights).hexdigest()
        hub.break_next(method, pattern.format(name=name, oid=oid) + "$", **fault)
    said = talk(f"""
    def push(name):
        api.create_repo(name, exist_ok=True)
        api.upload_folder(repo_id=f"tester/{{name}}", folder_path=name)

    def push_twice(name):
        first = attempt(push, name)
        there = Path(hf_hub_download(f"tester/{{name}}", "model.safetensors")).read_bytes()
        return [first, there != b"old", attempt(push, name)]

    print(json.dumps({{name: push_twice(name) for name in {list(UPLOADS)}}}))
    """)
    for name, (_, _, _, outcomes, arrives) in UPLOADS.items():
        first, arrived, second = said[name]
        assert first in outcomes, name
        assert (arrived, second) == (arrives, "ok"), name
        commits = hub.repos[f"tester/{name}"].history("main")
        assert [commit.title for commit in commits] == ["Upload folder using huggingface_hub", "Seed", "initial commit"]
        assert folders[name].items() <= hub.files(f"tester/{name}").items()


@pytest.fixture(scope="module")
def two_models(tmp_path_factory):
    """Folders of two versions of a model."""
    folders = [tmp_path_factory.mktemp(f"model{seed}") for seed in range(2)]
    for seed, folder in enumerate(folders):
        tiny_t5(seed).save_pretrained(folder)
    return folders


TRANSFORMERS = """
import json
from transformers import T5ForConditionalGeneration
"""


def test_models_of_transformers(hub, talk, two_models, tmp_path):
    shas = talk(
        f"""
        models = [T5ForConditionalGeneration.from_pretrained(folder) for folder in {[str(f) for f in two_models]}]
        shas = [model.push_to_hub("model").oid for model in models]
        models[1].push_to_hub("sharded", max_shard_size="40KB", private=True)
        models[0].push_to_hub("model", revision="side")
        print(json.dumps(shas))
        """,
        TRANSFORMERS,
    )
    assert [commit.sha for commit in hub.repos["tester/model"].history("main")][:2] == shas[::-1]

    if REPEATS:  # Older clients leave it to the user to try again.
        hub.break_next("GET", "tester/model/resolve/.*/model.safetensors", cut_answer=1_000)
        hub.break_next("GET", "tester/sharded/revision/main", status=503)
    hub.seed("tester/broken", hub.files("tester/model"))
    hub.break_next("GET", "tester/broken/resolve/.*/model.safetensors", status=503)
    errors = talk(
        f"""
        def pull(name, revision="main"):
            T5ForConditionalGeneration.from_pretrained(name, revision=revision).save_pretrained(f"{{name}}-{{revision}}")

        def error_of(*args):
            try:
                pull(*args)
            except OSError as error:
                return str(error)

        for name, revision in (("model", "main"), ("model", {shas[0]!r}), ("model", "side"), ("sharded", "main")):
            pull(f"tester/{{name}}", revision)
        print(json.dumps([error_of("tester/broken"), error_of("tester/nothing"), error_of("tester/model", "nothing")]))
        """,
        TRANSFORMERS,
        home="another",
    )
    for folder, source in ((f"model-{shas[0]}", 0), ("model-main", 1), ("model-side", 0), ("sharded-main", 1)):
        pulled = load_file(tmp_path / "tester" / folder / "model.safetensors")
        original = load_file(two_models[source] / "model.safetensors")
        assert pulled.keys() == original.keys()
        assert all(pulled[name].equal(original[name]) for name in original)
    broken, unknown, revision = errors
    assert "503 Service Unavailable" in broken
    assert "not a valid model identifier" in unknown
    assert "not a valid git identifier" in revision


def test_plain_requests(hub):
    """What no client of these tests asks for: a part in the middle, a part beyond the end, an unknown path."""
    hub.seed("tester/model", {"a.txt": b"0123456789"})
    connection = http.client.HTTPConnection(hub.endpoint.removeprefix("http://"))

    def get(path: str, **headers: str) -> tuple[int, str | None, bytes]:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.headers["Content-Range"], answer.read()

    file = "/tester/model/resolve/main/a.txt"
    assert get(file) == (200, None, b"0123456789")
    assert get(file, Range="bytes=2-4") == (206, "bytes 2-4/10", b"234")
    assert get(file, Range="bytes=8-") == (206, "bytes 8-9/10", b"89")
    assert get(file, Range="bytes=10-")[:2] == (416, "bytes */10")
    assert get("/unheard/of?a=b")[0] == 404
    assert hub.log[-1] == ("GET", "/unheard/of")
    assert hub.unknown == [("GET", "/unheard/of")]
    connection.close()
