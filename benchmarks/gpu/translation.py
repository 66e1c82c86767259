"""Translation on a budget: a dense T5 of 20 M parameters, then rows of the comparison, seed by seed."""

import os
import shutil
import sys
from functools import partial
from pathlib import Path

from _common import run_group

from sms_hf.compare.results import write_report
from sms_hf.compare.study import read_study
from sms_hf.demo import demo_corpus

from . import ROOT
from .check import CORPORA, find_corpus
from .dense import train_dense
from .programme import Part, Programme, Values

STUDY = Path(__file__).with_name("translation.yaml")
SEEDS = (42, 142, 242, 342, 442)
LONG = "cells-10-epochs"
"""Folder of the paper's kind of budget: ten epochs a phase, three and five candidates, as far as the time goes."""


def translation(programme: Programme) -> Part:
    folder = programme.output / "translation"
    seeds = programme.choose(SEEDS, SEEDS[:1])
    rows = {"dense": partial(_dense, programme, folder)}
    rows |= {f"seed-{seed}": partial(_cells, programme, folder, "cells", seed) for seed in seeds}
    rows["ten-epochs"] = partial(_cells, programme, folder, LONG, seeds[0])
    return Part("translation", "Translation on a budget", rows, partial(_render, programme, folder))


def _dense(programme: Programme, folder: Path) -> Values:
    data = folder / "data"
    if not data.is_dir():
        _write_corpus(data, programme.tiny)
    return train_dense(data, folder, programme.device, programme.tiny)


def _write_corpus(data: Path, tiny: bool) -> None:
    """The corpus under a name that is the same on every machine, as cells remember it."""
    if not tiny:
        source = find_corpus()
        if source is None:
            raise RuntimeError(f"Expected Multi30k in {' or '.join(map(str, CORPORA))}, found none: make gpu-bundle.")
        shutil.copytree(source, data)
        return
    data.mkdir(parents=True)
    for split, rows in {"train": 64, "validation": 8, "test": 8}.items():
        pairs = demo_corpus()[split].select(range(rows))["translation"]
        for language in ("en", "de"):
            lines = "".join(f"{pair[language]}\n" for pair in pairs)
            (data / f"{split.replace('validation', 'val')}.{language}").write_text(lines, encoding="utf-8")


def _arguments(programme: Programme, folder: Path, cells: str, seeds: list[int]) -> list[str]:
    arguments = [str(STUDY), "--output_dir", str(folder / cells), "--seeds", *map(str, seeds)]
    arguments += (
        ["--num_train_epochs", "10", "--num_candidates", "3", "5"] if cells == LONG and not programme.tiny else []
    )
    arguments += ["--parallel_dir", str(folder / "data"), "--model_name_or_path", str(folder / "parent")]
    arguments += ["--use_cpu", str(programme.device == "cpu").lower()]
    small = ["--sparsities", "0.9", "--num_candidates", "2", "--max_steps", "2", "--save_strategy", "no"]
    small += ["--per_device_train_batch_size", "8"]
    return [*arguments, *programme.choose([], small)]


def _cells(programme: Programme, folder: Path, cells: str, seed: int) -> Values:
    """All cells of a seed, by several processes on the one device; those that are done stay done."""
    if not (folder / "parent").is_dir():
        raise RuntimeError("There is no dense model to prune: the row `dense` comes first.")
    processes = programme.choose(min(9, os.cpu_count() or 1), 2)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    on_cpu = {"ACCELERATE_USE_CPU": "true"} if programme.device == "cpu" else {}
    arguments, log = _arguments(programme, folder, cells, [seed]), folder / "log.txt"
    if run_group([*launch, str(ROOT / "recipes" / "compare.py"), *arguments], os.environ | on_cpu, log):
        lines = [line for line in log.read_text(encoding="utf-8").splitlines() if line.strip()]
        raise RuntimeError(f"the comparison failed, see {log}: {lines[-1]}")
    return {"processes": processes, "cells": len(list((folder / cells).rglob(f"seed-{seed}/result.json")))}


def _render(programme: Programme, folder: Path, rows: dict[str, Values]) -> str:
    dense = rows.get("dense")
    parts = []
    if dense:
        parts.append(
            f"The dense model: {dense['parameters'] / 1e6:.1f} M parameters, {dense['epochs']:g} epochs on Multi30k, BLEU "
            f"{dense['validation_bleu']:.2f} on validation and {dense['test_bleu']:.2f} on test."
        )
    for cells, title in (("cells", "Two epochs a phase:"), (LONG, "Ten epochs a phase:")):
        seeds = [s for s in programme.choose(SEEDS, SEEDS[:1]) if any((folder / cells).rglob(f"seed-{s}/result.json"))]
        if seeds:
            study = read_study(_arguments(programme, folder, cells, seeds))
            write_report(study)
            comparison = (study.output_dir / "comparison.md").read_text(encoding="utf-8")
            parts += [title, comparison.split("\n\n", 1)[1].strip()]
    return "\n\n".join(parts)
