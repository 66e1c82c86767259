"""
Question: what does a teacher cost in every step, and what is saved by keeping its logits?

Measured: training of one candidate of the demo's ViT on the digits, without a teacher (the peer), with one that is asked in every
step, and with its logits from the disk, interleaved in one process; a round is `--steps` steps with everything around them.

    python benchmarks/distillation.py
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
from _common import describe_machine, print_table, spread

from sms_hf import SparseSoupTrainer, SparseSoupTrainingArguments
from sms_hf.demo import demo_digits, demo_image_classifier

WAYS = {
    "no teacher": {},
    "teacher in every step": {"distill_weight": 0.5},
    "teacher and features": {"distill_weight": 0.5, "distill_features": 1.0},
    "logits from the disk": {"distill_weight": 0.5, "distill_cache": True},
}


def seconds_of(folder: Path, steps: int, options: dict) -> float:
    """Of the one candidate's training, its scoring left out as far as it goes."""
    data = demo_digits()
    args = SparseSoupTrainingArguments(
        output_dir=str(folder), target_sparsity=0.9, num_phases=1, num_candidates=1, max_steps=steps, save_strategy="no",
        per_device_train_batch_size=64, report_to="none", disable_tqdm=True, use_cpu=True, logging_steps=10_000,
        dataloader_pin_memory=False, **options,
    )  # fmt: skip
    model = demo_image_classifier([str(i) for i in range(10)])
    few = data["validation"].select(range(8))
    trainer = SparseSoupTrainer(model, args, train_dataset=data["train"], eval_dataset=few)
    start = time.perf_counter()
    trainer.train()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(describe_machine("transformers"))
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.rounds):
            for way, chosen in WAYS.items():
                times[way].append(seconds_of(Path(folder) / f"{number}-{way}", options.steps, chosen))
    ratios = {
        way: [own / peer for own, peer in zip(found, times["no teacher"], strict=True)] for way, found in times.items()
    }
    print_table([[way, spread(times[way]), spread(ratios[way])] for way in WAYS], ["", "seconds", "over no teacher"])


if __name__ == "__main__":
    main()
