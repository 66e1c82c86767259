"""
The Hub's HTTP API: a function for each path that clients ask for, and the table of them.

There are no repositories but those of models, no Xet, no pull requests, and large files come from the same host.
"""

import hashlib
import json
import re
from base64 import b64decode
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote

import yaml

from .repositories import LFS_SUFFIXES, Commit, File, Repo

if TYPE_CHECKING:
    from .server import Hub

TOKENS = {"hf_test": "tester", "hf_other": "other"}
"""Token -> user. A user may write below the own name only, and nobody else sees the private repositories there."""

LARGE = 10_000_000
"""Files of so many bytes are LFS files, whatever they are named."""

DATE = "2026-01-01T00:00:00.000Z"


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    query: dict[str, list[str]]
    headers: Any
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def user(self) -> str | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in TOKENS:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return TOKENS.get(token)


@dataclass(frozen=True)
class Answer:
    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


class Refusal(Exception):
    """An answer other than success: the client chooses its exception by status and code, and shows the message."""

    def __init__(self, status: int, message: str, code: str | None = None, **headers: str):
        super().__init__(status, message)
        named = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {}) | headers
        self.answer = Answer(json.dumps({"error": message}).encode(), status, named)


def answer(hub: "Hub", request: Request) -> Answer:
    method = "GET" if request.method == "HEAD" else request.method
    for known, pattern, function in ROUTES:
        match = re.fullmatch(pattern, request.path)
        if match and known == method:
            parts = {name: unquote(part) for name, part in match.groupdict().items() if part is not None}
            try:
                return function(hub, request, **parts)
            except Refusal as refusal:
                return refusal.answer
    hub.unknown.append((request.method, request.path))
    return Refusal(404, "Sorry, we can't find the page you are looking for.").answer


def _json(value: Any, status: int = 200) -> Answer:
    return Answer(json.dumps(value).encode(), status, {"Content-Type": "application/json"})


def _open(hub: "Hub", request: Request, repo_id: str, write: bool = False) -> Repo:
    """Whoever may not see a repository is not told whether it exists."""
    repo, user = hub.repos.get(repo_id), request.user
    if user is None and (repo is None or repo.private or write):
        raise Refusal(401, "Invalid username or password.", "RepoNotFound")
    if repo is None or (repo.private and repo.owner != user):
        raise Refusal(404, "Repository not found", "RepoNotFound")
    if write and repo.owner != user:
        raise Refusal(403, f"You don't have the rights to write to {repo_id}")
    return repo


def _at(repo: Repo, revision: str) -> Commit:
    try:
        return repo.at(revision)
    except KeyError:
        raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound") from None


def _no_entry(path: str, commit: Commit) -> Refusal:
    return Refusal(404, f"{path} does not exist", "EntryNotFound", **{"X-Repo-Commit": commit.sha})


def _describe(path: str, file: File) -> dict[str, Any]:
    size = len(file.content)
    lfs = {"lfs": {"oid": file.sha256, "size": size, "pointerSize": len(file.pointer)}} if file.is_lfs else {}
    return {"type": "file", "path": path, "size": size, "oid": file.oid} | lfs


def who_am_i(hub: "Hub", request: Request) -> Answer:
    if request.user is None:
        raise Refusal(401, "Invalid username or password.")
    access = {"type": "access_token", "accessToken": {"displayName": "test", "role": "write"}}
    return _json({"type": "user", "name": request.user, "orgs": [], "auth": access})


def validate_card(hub: "Hub", request: Request) -> Answer:
    metadata = re.match(r"---\n(.*?)\n---", request.json["content"], re.DOTALL)
    try:
        values = yaml.safe_load(metadata[1]) if metadata else None
    except yaml.YAMLError as error:
        return _json({"errors": [{"message": str(error)}], "warnings": []}, status=400)
    warnings = [] if values else [{"message": "empty or missing yaml metadata in repo card"}]
    return _json({"errors": [], "warnings": warnings})


def create_repo(hub: "Hub", request: Request) -> Answer:
    wanted = request.json
    if request.user is None:
        raise Refusal(401, "Invalid username or password.")
    namespace = wanted["organization"] or request.user
    if namespace != request.user:
        raise Refusal(403, f'You don\'t have the rights to create a model under the namespace "{namespace}"')
    repo_id = f"{namespace}/{wanted['name']}"
    made = {"name": repo_id, "url": f"{hub.endpoint}/{repo_id}"}
    if repo_id in hub.repos:
        return _json(made | {"error": "You already created this model repo"}, status=409)
    # Older clients ask with another word.
    is_private = wanted.get("visibility") == "private" or wanted.get("private") is True
    hub.repos[repo_id] = Repo(repo_id, is_private)
    return _json(made)


def model_info(hub: "Hub", request: Request, repo_id: str, revision: str = "main") -> Answer:
    repo = _open(hub, request, repo_id)
    commit = _at(repo, revision)
    siblings = [{"rfilename": path} for path in commit.files]
    rest = {"private": repo.private, "gated": False, "disabled": False, "tags": [], "lastModified": DATE}
    return _json({"id": repo_id, "sha": commit.sha, "siblings": siblings} | rest)


def list_tree(hub: "Hub", request: Request, repo_id: str, revision: str, path: str = "") -> Answer:
    commit = _at(_open(hub, request, repo_id), revision)
    folder = PurePosixPath(path)
    inside = {name: file for name, file in commit.files.items() if folder in PurePosixPath(name).parents}
    if path and not inside:
        raise _no_entry(path, commit)
    folders = {str(above) for name in inside for above in PurePosixPath(name).parents if folder in above.parents}
    entries = [{"type": "directory", "path": name, "oid": commit.sha} for name in sorted(folders)]
    entries += [_describe(name, file) for name, file in inside.items()]
    if request.query.get("recursive") != ["true"]:
        entries = [entry for entry in entries if PurePosixPath(entry["path"]).parent == folder]
    return _json(entries)


def list_paths(hub: "Hub", request: Request, repo_id: str, revision: str) -> Answer:
    files = _at(_open(hub, request, repo_id), revision).files
    paths = parse_qs(request.body.decode()).get("paths", [])
    return _json([_describe(path, files[path]) for path in paths if path in files])


def list_refs(hub: "Hub", request: Request, repo_id: str) -> Answer:
    branches = _open(hub, request, repo_id).branches
    rows = [{"name": name, "ref": f"refs/heads/{name}", "targetCommit": sha} for name, sha in branches.items()]
    return _json({"branches": rows, "converts": [], "tags": []})


def list_commits(hub: "Hub", request: Request, repo_id: str, revision: str) -> Answer:
    repo = _open(hub, request, repo_id)
    history = repo.history(_at(repo, revision).sha)
    rest = {"message": "", "authors": [{"user": repo.owner}], "date": DATE}
    return _json([{"id": commit.sha, "title": commit.title} | rest for commit in history])


def create_branch(hub: "Hub", request: Request, repo_id: str, branch: str) -> Answer:
    repo = _open(hub, request, repo_id, write=True)
    if branch in repo.branches:
        raise Refusal(409, f"Reference refs/heads/{branch} already exists")
    repo.branches[branch] = _at(repo, request.json.get("startingPoint", "main")).sha
    return _json({})


def preupload(hub: "Hub", request: Request, repo_id: str, revision: str) -> Answer:
    there = _at(_open(hub, request, repo_id, write=True), revision).files
    rows = []
    for wanted in request.json["files"]:
        path = wanted["path"]
        is_binary = b"\0" in b64decode(wanted["sample"])
        is_lfs = path.endswith(LFS_SUFFIXES) or wanted["size"] >= LARGE or is_binary
        oid = there[path].etag if path in there else None
        rows.append({"path": path, "uploadMode": "lfs" if is_lfs else "regular", "shouldIgnore": False, "oid": oid})
    return _json({"files": rows})


def lfs_batch(hub: "Hub", request: Request, repo_id: str) -> Answer:
    """Where to put each object; nowhere, where it is there already."""
    _open(hub, request, repo_id, write=True)
    rows = []
    for wanted in request.json["objects"]:
        url = f"{hub.endpoint}/lfs/{wanted['oid']}"
        actions = {"upload": {"href": url}, "verify": {"href": f"{url}/verify"}}
        rows.append(wanted if wanted["oid"] in hub.lfs else wanted | {"actions": actions})
    return _json({"transfer": "basic", "objects": rows})


def lfs_put(hub: "Hub", request: Request, oid: str) -> Answer:
    if hashlib.sha256(request.body).hexdigest() != oid:
        raise Refusal(400, f"These are not the bytes of {oid}")
    hub.lfs[oid] = request.body
    return Answer()


def lfs_verify(hub: "Hub", request: Request, oid: str) -> Answer:
    if oid not in hub.lfs:
        raise Refusal(404, "Object does not exist")
    return _json({})


def commit(hub: "Hub", request: Request, repo_id: str, revision: str) -> Answer:
    repo = _open(hub, request, repo_id, write=True)
    head, *operations = (json.loads(line) for line in request.body.splitlines())
    parent = _at(repo, revision)
    if "create_pr" in request.query or revision not in repo.branches:
        raise Refusal(400, f"This server commits to branches only, and not to a pull request or {revision}")
    if not parent.sha.startswith(head["value"].get("parentCommit", "")):
        raise Refusal(412, "A commit has happened since. Please refresh and try again.")
    files = dict(parent.files)
    for operation in operations:
        _apply(hub, files, operation["key"], operation["value"])
    made = repo.add(revision, head["value"]["summary"], files)
    url = f"{hub.endpoint}/{repo_id}/commit/{made.sha}"
    return _json({"success": True, "commitOid": made.sha, "commitUrl": url})


def _apply(hub: "Hub", files: dict[str, File], key: str, value: dict[str, str]) -> None:
    path = value["path"]
    if key == "file":
        files[path] = File(b64decode(value["content"]), is_lfs=False)
    elif key == "lfsFile":
        if value["oid"] not in hub.lfs:
            raise Refusal(400, f"The LFS object of {path} was not uploaded")
        files[path] = File(hub.lfs[value["oid"]], is_lfs=True)
    else:  # deletedFile, deletedFolder
        gone = [name for name in files if name == path or name.startswith(f"{path.rstrip('/')}/")]
        if not gone:
            raise Refusal(400, f"{path} cannot be deleted: it does not exist")
        for name in gone:
            del files[name]


def resolve(hub: "Hub", request: Request, repo_id: str, revision: str, path: str) -> Answer:
    commit = _at(_open(hub, request, repo_id), revision)
    if path not in commit.files:
        raise _no_entry(path, commit)
    file = commit.files[path]
    headers = {"X-Repo-Commit": commit.sha, "ETag": f'"{file.etag}"', "Content-Type": "application/octet-stream"}
    if file.is_lfs:
        headers |= {"X-Linked-ETag": f'"{file.etag}"', "X-Linked-Size": str(len(file.content))}
    wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
    if not wanted:
        return Answer(file.content, 200, headers)
    size = len(file.content)
    first, last = int(wanted[1]), min(int(wanted[2] or size), size - 1)
    if first > last:
        raise Refusal(416, "Range Not Satisfiable", **{"Content-Range": f"bytes */{size}"})
    return Answer(file.content[first : last + 1], 206, headers | {"Content-Range": f"bytes {first}-{last}/{size}"})


_REPO = r"(?P<repo_id>[^/]+/[^/]+)"
_REPO_OR_NAME = (
    r"(?P<repo_id>[^/]+(/[^/]+)?)"  # The oldest models have no owner. None is here, but clients ask for them.
)
_REVISION = r"(?P<revision>[^/]+)"

ROUTES: tuple[tuple[str, str, Callable[..., Answer]], ...] = (
    ("GET", "/api/whoami-v2", who_am_i),
    ("POST", "/api/validate-yaml", validate_card),
    ("POST", "/api/repos/create", create_repo),
    ("GET", f"/api/models/{_REPO}/tree/{_REVISION}(/(?P<path>.+))?", list_tree),
    ("POST", f"/api/models/{_REPO}/paths-info/{_REVISION}", list_paths),
    ("GET", f"/api/models/{_REPO}/refs", list_refs),
    ("GET", f"/api/models/{_REPO}/commits/{_REVISION}", list_commits),
    ("POST", f"/api/models/{_REPO}/branch/(?P<branch>[^/]+)", create_branch),
    ("POST", f"/api/models/{_REPO}/preupload/{_REVISION}", preupload),
    ("POST", f"/api/models/{_REPO}/commit/{_REVISION}", commit),
    ("GET", f"/api/models/{_REPO_OR_NAME}(/revision/{_REVISION})?", model_info),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", lfs_batch),
    ("PUT", "/lfs/(?P<oid>[0-9a-f]{64})", lfs_put),
    ("POST", "/lfs/(?P<oid>[0-9a-f]{64})/verify", lfs_verify),
    ("GET", f"/{_REPO_OR_NAME}/resolve/{_REVISION}/(?P<path>.+)", resolve),
)
"""HEAD is answered as GET."""
