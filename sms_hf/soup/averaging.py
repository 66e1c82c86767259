"""Weighted average of checkpoints, streamed; masks verified before and zeros after."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..files.ahead import ahead
from ..files.checkpoint import DTYPES, Checkpoint, write_streamed
from ..files.folder import LINEAGE, MASKS, REPORT, WEIGHTS, CheckpointError
from ..sparsity.masks import MaskError, Masks, check_zeros, nonzero, stored_fingerprint

Weight = float | Mapping[str, float]
"""Of a folder in an average: one for all tensors, or tensor name -> its own."""

SUFFIXES = (".json", ".model", ".spm", ".txt", ".jinja")
"""Of configuration and tokenizer."""

HISTORY = (LINEAGE, REPORT)
"""What tells how the first folder came about, and would be wrong of an average."""

CHUNK = 1 << 20
"""Weights that are averaged in one piece: memory does not grow with the model or with the number of checkpoints."""

BLOCK = 1 << 17
"""Weights that are summed at a time: their sum in float64 stays in the cache, and no page of memory is new."""

SPARSE = 0.01
"""A tensor with more exact zeros than this fraction counts as pruned where folders carry no masks."""

CHANCE = 1e-4
"""Weights that are kept may be exactly zero by chance; in a larger fraction of a tensor that is another mask."""


def average_checkpoints(
    folders: Sequence[str | Path],
    output: str | Path,
    weights: Sequence[Weight] | None = None,
    *,
    union_of_masks: bool = False,
) -> Path:
    """
    Average model folders that share one mask into a new model folder.

    Every floating tensor is averaged (weights, biases, norms, running statistics), `theta = sum_i weights_i theta_i`,
    summed in float64 and rounded at the end to the dtype of the files; integer tensors are copied from the first folder.
    The average of equal folders is that folder, bit for bit. Tokenizer, config and masks come from the first folder.

    Args:
        folders (`Sequence[str | Path]`): Folders with the same tensor names, shapes and dtypes.
        output (`str` or `Path`): The folder to write; its weights become one file.
        weights (`Sequence`, *optional*): Soup weights, one a folder, each a number or a mapping from the name of every tensor to
            one; they are divided by their sum. Default: equal.
        union_of_masks (`bool`, *optional*, defaults to `False`): Allow masks that differ. The average is then as dense as
            their union, whose mask is written (IMP-AVG of Zimmer et al., ICLR 2024).

    Returns:
        `Path`: `output`.

    Raises:
        CheckpointError: If the folders differ in names, shapes or dtypes.
        MaskError: If their masks differ, or a pruned weight of one of them is not zero.
    """
    folders, output = [Path(folder) for folder in folders], Path(output)
    if output.resolve() in [folder.resolve() for folder in folders]:
        raise ValueError(f"output must be a folder of its own, got {output}, which is one of the folders to average.")
    with Average(folders, weights, union_of_masks=union_of_masks) as average:
        output.mkdir(parents=True, exist_ok=True)
        write_streamed(output / WEIGHTS, average.shapes, average.dtypes, average.pieces(*average.shapes))
    for path in folders[0].iterdir():
        if path.is_file() and path.suffix in SUFFIXES and "index" not in path.name and path.name not in HISTORY:
            shutil.copyfile(path, output / path.name)
    if average.masks is not None:
        average.masks.save(output / MASKS)
    else:
        (output / MASKS).unlink(missing_ok=True)
    return output


class Average:
    """
    The average of model folders, computed where it is read, with the names and shapes of a [`Checkpoint`].

    Use it as a context manager. Arguments and errors: those of [`average_checkpoints`].

    Attributes:
        shapes (`dict[str, tuple[int, ...]]`), dtypes (`dict[str, str]`): As in [`Checkpoint`].
        masks ([`Masks`], *optional*): Of the average; `None` where the folders have none.
    """

    def __init__(
        self, folders: Sequence[str | Path], weights: Sequence[Weight] | None = None, *, union_of_masks: bool = False
    ):
        folders = [Path(folder) for folder in folders]
        self._shares = _shares(len(folders), weights)
        with ExitStack() as stack:
            self._checkpoints = [stack.enter_context(Checkpoint(folder)) for folder in folders]
            _check_alike(self._checkpoints)
            self.masks = union_masks(folders) if union_of_masks else common_masks(folders)
            self._stack = stack.pop_all()
        self.folder = folders[0]
        self.shapes, self.dtypes = self._checkpoints[0].shapes, self._checkpoints[0].dtypes

    def tensor(self, name: str) -> Tensor:
        """A whole averaged tensor."""
        pieces = [torch.empty(0, dtype=DTYPES[self.dtypes[name]]), *(piece.reshape(-1) for piece in self.pieces(name))]
        return torch.cat(pieces).reshape(self.shapes[name])

    def pieces(self, *names: str) -> Iterator[Tensor]:
        """Averaged tensors in pieces of some rows, in order; pruned weights are checked on the way."""
        places = [(name, rows) for name in names for rows in row_pieces(self.shapes[name])]
        zeros, mismatched = [0] * len(self._checkpoints), 0
        for (name, (_, stop)), found in zip(places, ahead(lambda place: self._piece(*place), places), strict=True):
            piece, its_zeros, its_mismatched = found
            zeros = [count + more for count, more in zip(zeros, its_zeros, strict=True)]
            mismatched += its_mismatched
            yield piece
            shape = self.shapes[name]
            if stop < (shape[0] if shape else 1):
                continue
            count = torch.Size(shape).numel()
            if mismatched > CHANCE * count and max(zeros) > SPARSE * count:
                raise MaskError(
                    f"{name!r} is sparse, but its zeros differ between the folders at {mismatched} places. Their average would "
                    f"be denser than each of them: average candidates of one phase, or put their {MASKS} beside the weights."
                )
            zeros, mismatched = [0] * len(self._checkpoints), 0

    def _piece(self, name: str, rows: tuple[int, int]) -> tuple[Tensor, list[int], int]:
        """The average of some rows; where no mask tells, zeros of each checkpoint and how many differ from the first's."""
        start, stop = rows
        dtype, mask = DTYPES[self.dtypes[name]], None if self.masks is None else self.masks.get(name)
        shares = [_share(weight, name) for weight in self._shares]
        parts = [checkpoint.rows(name, start, stop) for checkpoint in self._checkpoints]
        zeros, mismatched = [0] * len(parts), 0
        if mask is not None:
            check_zeros(name, _any_bits(parts), mask[start:stop], start)
        elif dtype.is_floating_point and len(self.shapes[name]) > 1:
            patterns = [nonzero(part).numpy() for part in parts]
            zeros = [pattern.size - int(np.count_nonzero(pattern)) for pattern in patterns]
            mismatched = sum(int(np.count_nonzero(pattern != patterns[0])) for pattern in patterns[1:])
        return _mean(parts, shares, dtype), zeros, mismatched

    def __enter__(self) -> "Average":
        return self

    def __exit__(self, *exception) -> None:
        self._stack.close()


def common_masks(folders: Sequence[Path]) -> Masks | None:
    """
    The masks that all folders share, or `None` where no folder has any.

    Raises:
        MaskError: If they differ, or only some folders have masks.
    """
    paths = [folder / MASKS for folder in folders]
    without = [path for path in paths if not path.is_file()]
    if len(without) == len(paths):
        return None
    if without:
        raise MaskError(
            f"Expected {MASKS} in every folder or in none, missing: {without[0]}. Average candidates of one phase."
        )
    fingerprints = list(ahead(stored_fingerprint, paths))
    first = Masks.load(paths[0])
    for path, fingerprint in zip(paths, fingerprints, strict=True):
        if fingerprint != first.fingerprint():
            other = Masks.load(path)
            name = next((n for n in first if n not in other or not torch.equal(first[n], other[n])), "another tensor")
            raise MaskError(
                f"All candidates of a soup must share one mask, but {paths[0].parent} and {path.parent} differ at {name!r}. "
                "Their average would be denser than each of them: average candidates of one phase."
            )
    return first


def union_masks(folders: Sequence[Path]) -> Masks:
    """
    The weights that any of the folders keeps.

    Raises:
        MaskError: If a folder has no masks, or they cover other tensors.
    """
    masks = [Masks.of(folder) for folder in folders]
    for folder, other in zip(folders, masks, strict=True):
        if list(other) != list(masks[0]):
            raise MaskError(
                f"{folders[0]} and {folder} must have masks of the same tensors. Average runs of one model."
            )
    return Masks({name: torch.stack([m[name] for m in masks]).any(0) for name in masks[0]})


def row_pieces(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """(start, stop) of the rows of a tensor of this shape, in pieces of about `CHUNK` weights."""
    rows, width = (shape[0], max(torch.Size(shape[1:]).numel(), 1)) if shape else (1, 1)
    step = max(CHUNK // width, 1)
    for start in range(0, rows, step):
        yield start, start + step


def _shares(count: int, weights: Sequence[Weight] | None) -> list[Weight]:
    if count == 0:
        raise ValueError("A soup needs at least one folder, got none.")
    found: list[Weight] = [1.0] * count if weights is None else list(weights)
    numbers = [weight for weight in found if not isinstance(weight, Mapping)]
    if len(found) != count or (len(numbers) == count and sum(numbers) == 0):
        raise ValueError(f"weights must hold {count} numbers with a sum other than 0, one a folder, got {found}.")
    return found


def _share(weight: Weight, name: str) -> float:
    if not isinstance(weight, Mapping):
        return weight
    if name not in weight:
        raise ValueError(f"weights by tensor must name every tensor, got none for {name!r}.")
    return weight[name]


def _check_alike(checkpoints: Sequence[Checkpoint]) -> None:
    first = checkpoints[0]
    for other in checkpoints[1:]:
        for what, mine, theirs in (("shape", first.shapes, other.shapes), ("dtype", first.dtypes, other.dtypes)):
            for name in {**mine, **theirs}:
                if mine.get(name) != theirs.get(name):
                    raise CheckpointError(
                        f"All checkpoints of a soup must hold the same tensors, but {name!r} has {what} "
                        f"{mine.get(name)} in {first.folder} and {theirs.get(name)} in {other.folder}."
                    )
    unknown = {dtype for dtype in first.dtypes.values() if dtype not in DTYPES}
    if unknown:
        raise CheckpointError(
            f"Cannot average tensors of dtype {sorted(unknown)} in {first.folder}; known: {sorted(DTYPES)}."
        )


def _any_bits(parts: Sequence[Tensor]) -> Tensor:
    """Zero where all parts are: they are compared with the mask once, not each."""
    kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[parts[0].element_size()]
    bits = parts[0].view(kind).clone()
    for part in parts[1:]:
        bits |= part.view(kind)
    return bits.view(parts[0].dtype)


def _mean(parts: Sequence[Tensor], shares: Sequence[float], dtype: torch.dtype) -> Tensor:
    if not dtype.is_floating_point:
        return parts[0]
    mean, flat = torch.empty_like(parts[0]), [part.reshape(-1) for part in parts]
    total = torch.empty(min(BLOCK, mean.numel()), dtype=torch.float64)
    for block, *others in zip(*(part.split(BLOCK) for part in (mean.view(-1), *flat)), strict=True):
        summed = total[: block.numel()].copy_(others[0]).mul_(shares[0])
        for part, share in zip(others[1:], shares[1:], strict=True):
            summed.add_(part, alpha=share)
        block.copy_(summed.div_(sum(shares)))
    return mean
