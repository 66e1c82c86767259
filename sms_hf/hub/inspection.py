"""What lies in a model folder: per tensor its shape, sparsity, pattern and bytes."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from ..compact.compact_file import CompactFile
from ..compact.folders import read_config
from ..compact.mask_codings import find_nm
from ..files.checkpoint import DTYPES, Checkpoint
from ..files.folder import LINEAGE, MASKS, find_file, read_json
from ..files.forms import compact_files, has_compact, has_dense, weight_paths
from ..report.schema import read_lineage
from ..sparsity.masks import Masks


@dataclass(frozen=True)
class Row:
    """
    A tensor.

    Attributes:
        name, dtype (`str`): As in the file.
        shape (`tuple[int, ...]`): Of the tensor.
        sparsity (`float`, *optional*): Fraction of zeros, in `[0, 1]`; None for vectors and whole numbers.
        pattern (`str`): `"2:4"` where it has one; in a compact file how its mask is coded.
        num_bytes (`int`): In the file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    sparsity: float | None
    pattern: str
    num_bytes: int


def inspect(folder: str | Path) -> list[Row]:
    """
    The tensors of a model folder, of its compact form where it has one.

    Raises:
        CheckpointError, CompactError: If the folder holds no weights, or they are damaged.
    """
    folder = Path(folder)
    read_config(folder)
    return list(_compact_rows(folder) if has_compact(folder) else _dense_rows(folder))


def _compact_rows(folder: Path) -> Iterator[Row]:
    for path in compact_files(folder):
        with CompactFile(path) as file:
            for name, stored in file.tensors.items():
                sparsity = stored.sparsity if stored.mask else None
                yield Row(name, stored.dtype, stored.shape, sparsity, stored.coding, stored.num_bytes)


def _dense_rows(folder: Path) -> Iterator[Row]:
    with Checkpoint(folder) as checkpoint:
        for name, shape in checkpoint.shapes.items():
            dtype = DTYPES[checkpoint.dtypes[name]]
            weight = checkpoint.tensor(name)
            sparsity, pattern = None, ""
            if dtype.is_floating_point and len(shape) > 1:
                mask = (weight != 0).numpy()
                sparsity = 1.0 - float(mask.mean())
                nm = find_nm(mask)
                pattern = f"{nm[0]}:{nm[1]}" if nm else ""
            yield Row(name, checkpoint.dtypes[name], shape, sparsity, pattern, weight.nbytes)


def describe_folder(folder: str | Path) -> str:
    """What `sms-hf inspect` prints."""
    folder = Path(folder)
    rows = inspect(folder)
    cells = [
        [r.name, r.dtype, "x".join(map(str, r.shape)), _percent(r.sparsity), r.pattern, f"{r.num_bytes:,}"]
        for r in rows
    ]
    names = ["tensor", "dtype", "shape", "sparsity %", "pattern", "bytes"]
    table = tabulate(cells, names, colalign=["left", "left", "left", "right", "left", "right"], disable_numparse=True)
    return "\n".join([table, "", *_summary(folder, rows), *_lineage(folder)])


def folder_facts(folder: str | Path) -> dict[str, Any]:
    """What `sms-hf inspect --json` prints: every tensor, and the masks, or None where the folder has none."""
    folder, masks = Path(folder), None
    tensors = [asdict(row) for row in inspect(folder)]
    if find_file(folder, MASKS):
        found = Masks.of(folder)
        masks = {"sparsity": found.sparsity(), "num_weights": found.num_weights, "fingerprint": found.fingerprint()}
    return {"tensors": tensors, "num_bytes": sum(tensor["num_bytes"] for tensor in tensors), "masks": masks}


def _percent(sparsity: float | None) -> str:
    return "" if sparsity is None else f"{100 * sparsity:.2f}"


def _summary(folder: Path, rows: list[Row]) -> Iterator[str]:
    forms = {"compact": has_compact(folder), "dense": has_dense(folder)}
    yield f"weights: {' and '.join(form for form, there in forms.items() if there)}, {sum(r.num_bytes for r in rows):,} bytes"
    if forms["compact"] and forms["dense"]:
        yield f"dense form: {sum(path.stat().st_size for path in weight_paths(folder) if path.is_file()):,} bytes"
    if find_file(folder, MASKS):
        masks = Masks.of(folder)
        yield f"masks: {masks.sparsity():.4%} of {masks.num_weights:,} weights removed, fingerprint {masks.fingerprint()[:16]}"


def _lineage(folder: Path) -> Iterator[str]:
    if find_file(folder, LINEAGE) is None:
        return
    read_json(folder / LINEAGE)  # One that is cut is an error.
    try:
        yield from _lineage_lines(read_lineage(folder))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        # The weights were shown; this is from another version, or by another hand.
        yield f"lineage: {LINEAGE} is not as sms_hf writes it ({type(error).__name__}: {error})"


def _lineage_lines(lineage: Mapping[str, Any]) -> list[str]:
    lines = [f"made by sms_hf {lineage['versions']['sms_hf']} from {lineage['parent']['name'] or 'a local model'}"]
    for phase in lineage["phases"]:
        soup = phase["soup"]
        what = (
            f"soup of {', '.join(soup['ingredients'])} with {lineage['metric']} {soup['score']:.4g}"
            if soup
            else "no soup"
        )
        lines.append(
            f"phase {phase['number']}: {phase['parent']['sparsity']:.2%} removed, {len(phase['candidates'])} candidates, {what}"
        )
    return lines
