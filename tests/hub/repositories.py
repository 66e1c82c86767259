"""What the Hub keeps of a model: files, commits and branches."""

import hashlib
from dataclasses import dataclass
from functools import cached_property

LFS_SUFFIXES = (".safetensors", ".bin", ".pt")
GIT_ATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES).encode()


@dataclass(frozen=True)
class File:
    content: bytes
    is_lfs: bool

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def pointer(self) -> bytes:
        """What git holds of an LFS file."""
        return (
            f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n".encode()
        )

    @cached_property
    def oid(self) -> str:
        """Name of the blob in git."""
        blob = self.pointer if self.is_lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(blob) + blob).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_lfs else self.oid


@dataclass(frozen=True)
class Commit:
    sha: str
    parent: str | None
    title: str
    files: dict[str, File]


class Repo:
    """Branches, and all commits that there ever were."""

    def __init__(self, repo_id: str, private: bool):
        self.repo_id, self.private = repo_id, private
        self.commits: dict[str, Commit] = {}
        self.branches: dict[str, str] = {}
        self.add("main", "initial commit", {".gitattributes": File(GIT_ATTRIBUTES, is_lfs=False)})

    @property
    def owner(self) -> str:
        return self.repo_id.split("/")[0]

    def add(self, branch: str, title: str, files: dict[str, File]) -> Commit:
        sha = hashlib.sha1(f"{self.repo_id} {len(self.commits)}".encode()).hexdigest()
        self.commits[sha] = Commit(sha, self.branches.get(branch), title, files)
        self.branches[branch] = sha
        return self.commits[sha]

    def at(self, revision: str) -> Commit:
        """By branch or sha; a KeyError where there is none."""
        return self.commits[self.branches.get(revision, revision)]

    def history(self, revision: str) -> list[Commit]:
        """Newest first."""
        commits = [self.at(revision)]
        while parent := commits[-1].parent:
            commits.append(self.commits[parent])
        return commits
