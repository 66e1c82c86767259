"""A run of two phases, started by a launcher: `job.py FOLDER [NAME=JSON ...]`, arguments over those of a small run."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from conftest import QUICK, collate, reversal, tiny_t5

from sms_hf import SparseSoupTrainer, SparseSoupTrainingArguments

SMALL_RUN = {"target_sparsity": 0.75, "num_phases": 2, "num_candidates": 3, "num_train_epochs": 1}


def main(folder: str, *changes: str) -> None:
    settings = QUICK | SMALL_RUN | {name: json.loads(value) for name, value in (text.split("=") for text in changes)}
    args = SparseSoupTrainingArguments(output_dir=folder, **settings)
    data = {"train_dataset": reversal(24), "eval_dataset": reversal(10, seed=1), "data_collator": collate}
    SparseSoupTrainer(model=tiny_t5(), args=args, **data).train()


if __name__ == "__main__":
    main(*sys.argv[1:])
