"""Small models and data, made here: no network, one thread, the same numbers on every run."""

import gc
import importlib
import os
import sys
from dataclasses import fields
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}

import datasets
import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from sms_hf import SparseSoupTrainer, SparseSoupTrainingArguments

torch.set_num_threads(1)
gc.freeze()  # Every candidate ends with a collection, which need not look at all that was imported.
sys.path.append(str(Path(__file__).parents[1] / "recipes"))  # As for a recipe that is started as a script.
datasets.disable_progress_bars()

DRAWING = "matplotlib.figure"
if "TESTS_DRAW" not in os.environ:
    # Runs end without figures and page, as where matplotlib is not installed: drawing takes longer than the training here.
    sys.modules[DRAWING] = None


QUICK = {
    "learning_rate": 3e-3,
    "per_device_train_batch_size": 4,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
    "use_cpu": True,
}
"""Trainer's arguments for runs of a second."""

OPTIONS = {option.name for option in fields(SparseSoupTrainingArguments)}
CHECKPOINTING = next(name for name in ("activation_checkpointing", "gradient_checkpointing") if name in OPTIONS)
"""The argument's name, in newer and in older releases of transformers."""


def tiny_t5(seed: int = 0, dropout: float = 0.1) -> T5ForConditionalGeneration:
    """A T5 with 20,480 prunable weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = T5Config(
            vocab_size=64,
            d_model=32,
            d_kv=8,
            d_ff=64,
            num_layers=1,
            num_heads=4,
            dropout_rate=dropout,
            decoder_start_token_id=0,
        )
        return T5ForConditionalGeneration(config)


def reversal(rows: int, seed: int = 0, lengths: tuple[int, int] = (3, 8)) -> datasets.Dataset:
    """Sentences of random tokens; the target is the source read backwards."""
    generator = torch.Generator().manual_seed(seed)
    data = []
    for _ in range(rows):
        length = int(torch.randint(*lengths, (1,), generator=generator))
        source = torch.randint(2, 64, (length,), generator=generator).tolist()
        data.append({"input_ids": source, "attention_mask": [1] * length, "labels": [*source[::-1], 1]})
    return datasets.Dataset.from_list(data)


def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
    """Pad sources with 0 and labels with -100."""

    def pad(key: str, value: int) -> torch.Tensor:
        width = max(len(row[key]) for row in rows)
        return torch.tensor([row[key] + [value] * (width - len(row[key])) for row in rows])

    return {"input_ids": pad("input_ids", 0), "attention_mask": pad("attention_mask", 0), "labels": pad("labels", -100)}


@cache
def _drawing() -> ModuleType:
    del sys.modules[DRAWING]
    return importlib.import_module(DRAWING)


@pytest.fixture(autouse=True, scope="module")
def _figures(request):
    """For files of tests with `pytestmark = pytest.mark.figures` matplotlib is there."""
    draws = request.node.get_closest_marker("figures") is not None and find_spec("matplotlib") is not None
    if draws:
        sys.modules[DRAWING] = _drawing()
    yield
    if draws:
        sys.modules[DRAWING] = None


@pytest.fixture
def datasets_cache(tmp_path, monkeypatch):
    """A cache of the test's own for the data sets that it reads from files."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def make_args(tmp_path):
    """SparseSoupTrainingArguments for runs of a second."""

    def make(**changes) -> SparseSoupTrainingArguments:
        settings = {
            "output_dir": str(tmp_path / "run"),
            "target_sparsity": 0.75,
            "num_phases": 2,
            "num_candidates": 2,
            "num_train_epochs": 1,
        }
        return SparseSoupTrainingArguments(**QUICK | settings | changes)

    return make


@pytest.fixture
def make_trainer(make_args):
    """A SparseSoupTrainer on the reversal task; keyword arguments go to it, `args` is a dict of changes."""

    def make(args=None, **changes) -> SparseSoupTrainer:
        settings = {
            "model": tiny_t5(),
            "args": make_args(**(args or {})),
            "train_dataset": reversal(24),
            "eval_dataset": reversal(10, seed=1),
            "data_collator": collate,
        }
        return SparseSoupTrainer(**settings | changes)

    return make
