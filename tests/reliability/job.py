"""
The run that is killed: a real one, of a few seconds.

    python tests/reliability/job.py OUTPUT [VARIANT]
    accelerate launch --config_file recipes/accelerate/cpu_2.yaml tests/reliability/job.py OUTPUT [VARIANT]
"""

import random
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))  # pytest does it for tests.

import numpy
import torch
from conftest import QUICK, collate, reversal, tiny_t5
from transformers import TrainerCallback

from sms_hf import SparseSoupTrainer, SparseSoupTrainingArguments

SETTINGS: dict[str, Any] = QUICK | {
    "target_sparsity": 0.75,
    "num_phases": 2,
    "num_candidates": 3,
    "num_train_epochs": 2,
    # High and not down to zero, so that both phases average two of three: a soup of one would hide wrong ingredients.
    "learning_rate": 4e-2,
    "lr_scheduler_type": "cosine_with_min_lr",
    "lr_scheduler_kwargs": {"min_lr_rate": 0.5},
    "optim": "adamw_torch",
    "weight_decay": 0.01,
    "metric_for_best_model": "loss",
    # Eight steps a candidate, three checkpoints, the oldest of which is removed: there is always one being written or removed.
    "save_strategy": "steps",
    "save_steps": 2,
    "save_total_limit": 2,
    "logging_steps": 1,
    "seed": 1,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "best": {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True, "save_total_limit": 1},
    "dpf": {"pruning_method": "dpf-sms"},
    "gmp": {"pruning_method": "gmp-sms"},
    "soup": {"pruning_method": "gmp-soup"},
    "shared": {"shared_fraction": 0.5},
    "together": {"pruning_method": "gmp-soup", "trunk_processes": 2},
    "rounds": {"averaging_rounds": 2, "outer_step": [0.7, 0.9], "candidate_data": "shards", "tail_average": "ema"},
    "reprune": {"pruning_method": "imp-reprune"},
    "both": {"sparse_format": "both", "keep_candidates": True},
    # Ends in the middle of an epoch, with a checkpoint of its last step.
    "steps": {"max_steps": 6},
    "unsaved": {"save_strategy": "no"},
    "nan": {"num_candidates": None, "vary": {"learning_rate": [4e-2, 1e30, 3e-2]}},
    "raise": {},
}
"""Name -> what differs from `SETTINGS`. The second candidate of `nan` gets weights that are no numbers, of `raise` an error."""
HEALTHY = ("plain", "best", "dpf", "gmp", "soup", "shared", "together", "rounds", "reprune", "both", "steps", "unsaved")
FAILING = ("nan", "raise")
GROUPED = ("together",)
"""Two processes train a part of it by DDP: other sums of gradients, and other dropout, than one process has."""


class Fail(TrainerCallback):
    """An error in the training of one candidate, every time that it is trained."""

    def on_step_end(self, args, state, control, **kwargs):
        if args.output_dir.endswith("candidate-2") and state.global_step == 5:
            raise RuntimeError("the cat sat on the keyboard")


def run(output: str | Path, variant: str = "plain") -> SparseSoupTrainer:
    """Start the run in a folder, or go on with the one that is there."""
    if variant not in VARIANTS:
        raise ValueError(f"variant must be one of {sorted(VARIANTS)}, got {variant!r}.")
    args = SparseSoupTrainingArguments(**{"output_dir": str(output)} | SETTINGS | VARIANTS[variant])
    trainer = SparseSoupTrainer(
        model=tiny_t5(),
        args=args,
        train_dataset=reversal(16),
        eval_dataset=reversal(10, seed=1),
        data_collator=collate,
        callbacks=[Fail()] if variant == "raise" else None,
    )
    trainer.train(resume_from_checkpoint=True)
    return trainer


def shake_generators() -> None:
    """Another state for every global generator, as another machine would have: a run may depend on its own seeds only."""
    random.seed()
    numpy.random.seed()
    torch.seed()


if __name__ == "__main__":
    run(*sys.argv[1:])
