"""To the Hub: one commit that replaces the model as a whole, or nothing."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import EntryNotFoundError, HTTPError, RepositoryNotFoundError

from ..compact.compact_file import CompactFile
from ..compact.folders import read_config
from ..files.checkpoint import Checkpoint
from ..files.folder import CARD, FIGURE, LINEAGE, MASKS, WEIGHTS, CheckpointError, find_file, other_files
from ..files.forms import (
    COMPACT_INDEX,
    compact_files,
    compact_paths,
    has_compact,
    has_dense,
    weight_paths,
    weight_sizes,
)
from ..report.schema import read_lineage
from ..sparsity.masks import Masks, check_zeros
from .model_card import make_card, merge_cards

T = TypeVar("T")

TRIES = 4
"""How often a push is tried where the server or the network fails. huggingface_hub repeats single requests besides."""


def push_to_hub(
    folder: str | Path,
    repo_id: str,
    *,
    commit_message: str = "Upload a sparse model",
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    **metadata: Any,
) -> CommitInfo:
    """
    Upload a finished run, or any model folder.

    What is uploaded: weights in the form or forms that the folder holds ([`pack`] makes the compact one), masks, configuration,
    tokenizer, lineage and a model card, by a fixed list of names (`OTHER_FILES`); no checkpoints, logs, notes or pickles, and
    nothing that a link brings in from elsewhere. It is one commit, so that nobody ever pulls half
    of a model; weights of an earlier push that are not part of this one go with it. What the owner wrote in the card of the
    repository stays. Pushing again, after a failure or without need, does no harm.

    Args:
        folder (`str` or `Path`): The `output_dir` of a run, or another model folder.
        repo_id (`str`): `"user/name"`, or `"name"` for the token's user. Created where it does not exist.
        commit_message (`str`, *optional*): Of the commit.
        private (`bool`, *optional*): Whether a new repository is private.
        token (`str`, *optional*): Default: that of `hf auth login`.
        revision (`str`, *optional*): Branch; created where it does not exist. Default: `main`.
        metadata: For the card: `language`, `license`, `datasets`, `tags`, ...

    Returns:
        `CommitInfo`: Of the commit.

    Raises:
        CheckpointError, CompactError, MaskError: If the weights are not whole or not as sparse as their masks say. Nothing is
            uploaded then.
        HfHubHTTPError: If the Hub refuses, or fails more often than `TRIES`.
    """
    folder = Path(folder)
    check_folder(folder)
    api = HfApi(token=token)
    repo_id = _retry(lambda: api.create_repo(repo_id, private=private, exist_ok=True).repo_id)
    if revision is not None:
        _retry(lambda: api.create_branch(repo_id, branch=revision, exist_ok=True))

    def commit() -> CommitInfo:
        files = files_to_push(folder)
        card = _card(folder, repo_id, _read_card(api, repo_id, revision), metadata)
        operations: list[Any] = [CommitOperationAdd(path.name, str(path)) for path in files if path.name != CARD]
        if card is not None:
            operations.append(CommitOperationAdd(CARD, card.encode()))
        there = api.list_repo_files(repo_id, revision=revision)
        stale = [name for name in there if _is_weights(name) and name not in {path.name for path in files}]
        operations += [CommitOperationDelete(name) for name in stale]
        return api.create_commit(repo_id, operations, commit_message=commit_message, revision=revision)

    return _retry(commit)


def check_folder(folder: Path) -> None:
    """
    Read every weight that would be pushed, and hold it against the masks.

    Raises:
        CheckpointError, CompactError, MaskError: As [`push_to_hub`].
    """
    read_config(folder)
    if not has_dense(folder) and not has_compact(folder):
        raise CheckpointError(
            f"Expected {WEIGHTS} or a compact file in {folder}, found none. Push a folder with a model."
        )
    masks: Mapping[str, Any] = Masks.of(folder) if find_file(folder, MASKS) else {}
    if has_dense(folder):
        with Checkpoint(folder) as checkpoint:
            for name, shape in checkpoint.shapes.items():
                if name in masks and masks[name].shape == shape:
                    check_zeros(name, checkpoint.tensor(name), masks[name])
            if has_compact(folder):
                _check_alike(folder, checkpoint)
    elif has_compact(folder):
        for path in compact_files(folder):
            with CompactFile(path) as file:
                for name in file.tensors:
                    file.read(name)


def _check_alike(folder: Path, checkpoint: Checkpoint) -> None:
    """Both forms must be the same model: after training on, say, the compact one may be an old one."""
    seen = set()
    for path in compact_files(folder):
        with CompactFile(path) as file:
            for name, stored in file.tensors.items():
                seen.add(name)
                alike = checkpoint.shapes.get(name) == stored.shape
                if alike and bool((file.read(name) == checkpoint.tensor(name)).all()):
                    continue
                raise CheckpointError(
                    f"Both forms of the weights in {folder} must be the same model, but {name!r} differs. Write the compact "
                    "form anew: sms_hf.pack(folder)."
                )
    if missing := sorted(set(checkpoint.shapes) - seen):
        raise CheckpointError(f"The compact form in {folder} has no {missing[:3]}. Write it anew: sms_hf.pack(folder).")


def files_to_push(folder: Path) -> list[Path]:
    """The files of a folder that belong to the model."""
    return sorted({*weight_paths(folder), *compact_paths(folder), *other_files(folder)})


def _card(folder: Path, repo_id: str, there: str | None, metadata: Mapping[str, Any]) -> str | None:
    """The card to push: made from the lineage where there is one, into the repository's or else the folder's."""
    own = find_file(folder, CARD)
    there = there or (own.read_text(encoding="utf-8") if own else None)
    if find_file(folder, LINEAGE) is None:
        return there
    lineage = read_lineage(folder)
    new = make_card(lineage, repo_id, weight_sizes(folder), find_file(folder, FIGURE) is not None, **metadata)
    return merge_cards(new, there, metadata)


def _read_card(api: HfApi, repo_id: str, revision: str | None) -> str | None:
    try:
        path = api.hf_hub_download(repo_id, CARD, revision=revision)
    except EntryNotFoundError:
        return None
    return Path(path).read_text(encoding="utf-8")


def _is_weights(name: str) -> bool:
    """Whether a file of the repository holds weights, or says where they are; only at its top, where a model lies."""
    return "/" not in name and (
        name.endswith((".safetensors", ".safetensors.index.json", ".bin")) or name == COMPACT_INDEX
    )


def _retry(action: Callable[[], T]) -> T:
    """Repeat what failed for reasons that pass."""
    for left in reversed(range(TRIES)):
        try:
            return action()
        except (RepositoryNotFoundError, EntryNotFoundError):
            raise
        except (HTTPError, RuntimeError) as error:
            # Of the HTTP library: refusals by the server and broken connections. Those of an upload come in a RuntimeError.
            cause = error if isinstance(error, HTTPError) else error.__cause__
            status = getattr(getattr(cause, "response", None), "status_code", 500)
            if left == 0 or not isinstance(cause, HTTPError) or status < 500:
                raise
            time.sleep(2 ** (TRIES - 1 - left))
    raise AssertionError
