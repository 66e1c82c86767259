"""
Claim: holding a mask costs a few percent of a training step.

Measured: steps of `MaskedTrainerMixin` + `Seq2SeqTrainer` with masks of 90 % sparsity. Peer: the same steps of the plain
`transformers.Seq2SeqTrainer`, in the same process, in alternating blocks. Both trainers run their own `train()`; a step is
timed from `on_step_begin` to `on_step_end`, so it includes forward, backward, clipping, AdamW, schedule and zero_grad.
The model is a randomly initialised T5 of 21 M parameters. Target: at most 1.05x on the CPU, 1.02x on a GPU.

    python benchmarks/masked_step.py
    python benchmarks/masked_step.py --device cuda --bf16 --model t5-base --batch_size 64 --block 20
"""

import argparse
import statistics
import tempfile
import time
from typing import Any

import torch
from _common import MB, describe_machine, device_name, paired_ratio, print_table, spread, wait_for_device
from transformers import (
    PrinterCallback,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    TrainerCallback,
    default_data_collator,
)

from sms_hf import MaskedTrainerMixin, Masks, prune

TARGETS = {"cpu": 1.05, "cuda": 1.02}
VOCABULARY = 8192
MODELS = {
    "toy": {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4},
    "tiny": {"d_model": 256, "d_kv": 64, "d_ff": 1536, "num_layers": 6, "num_heads": 8},
    "t5-small": {"d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8, "vocab_size": 32128},
    "t5-base": {"d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_heads": 12, "vocab_size": 32128},
}
"""Shapes, of 0.3, 21, 60 and 220 M parameters."""


class MaskedTrainer(MaskedTrainerMixin, Seq2SeqTrainer):
    pass


class StepTimer(TrainerCallback):
    """Seconds of each optimizer step."""

    def __init__(self):
        self.seconds: list[float] = []

    def on_step_begin(self, *args, **kwargs):
        wait_for_device()
        self.start = time.perf_counter()

    def on_step_end(self, *args, **kwargs):
        wait_for_device()
        self.seconds.append(time.perf_counter() - self.start)


def make_model(options: argparse.Namespace) -> tuple[T5ForConditionalGeneration, Masks]:
    torch.manual_seed(0)
    config = T5Config(**{"vocab_size": VOCABULARY, "decoder_start_token_id": 0} | MODELS[options.model])
    model = T5ForConditionalGeneration(config).to(options.device)
    return model, prune(model, options.sparsity)


def make_trainer(cls, model, folder: str, options: argparse.Namespace) -> tuple[Seq2SeqTrainer, StepTimer]:
    args = Seq2SeqTrainingArguments(
        output_dir=folder,
        max_steps=options.block,
        per_device_train_batch_size=options.batch_size,
        learning_rate=1e-4,
        lr_scheduler_type="constant",
        use_cpu=options.device == "cpu",
        bf16=options.bf16,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(2, VOCABULARY, (options.batch_size * options.block, 2, options.length), generator=generator)
    attention = torch.ones(options.length, dtype=torch.long)
    data = [{"input_ids": source, "attention_mask": attention, "labels": target} for source, target in tokens]
    timer = StepTimer()
    trainer = cls(model=model, args=args, train_dataset=data, data_collator=default_data_collator, callbacks=[timer])
    trainer.remove_callback(PrinterCallback)
    return trainer, timer


def measure(trainers: dict[str, tuple[Seq2SeqTrainer, StepTimer]], blocks: int) -> dict[str, list[list[float]]]:
    """Seconds of the steps of each block, after one block each that is not counted."""
    seconds: dict[str, list[list[float]]] = {name: [] for name in trainers}
    for block in range(blocks + 1):
        for name in list(trainers)[:: -1 if block % 2 else 1]:
            trainer, timer = trainers[name]
            timer.seconds.clear()
            trainer.train()
            if block:
                seconds[name].append(list(timer.seconds))
    return seconds


def time_enforcement(trainer: MaskedTrainer, repetitions: int = 20) -> float:
    """Median seconds of masking all gradients and all weights once."""
    enforcer, model = trainer._enforcer, trainer.model
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    seconds = []
    for _ in range(repetitions):
        start = time.perf_counter()
        enforcer.mask_gradients_(model)
        enforcer.mask_weights_(model)
        wait_for_device()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def compare_steps(options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of a masked and of a plain step, their paired ratio, and the memory of masks."""
    with tempfile.TemporaryDirectory() as folder:
        plain = make_trainer(Seq2SeqTrainer, make_model(options)[0], folder, options)
        model, masks = make_model(options)
        masked = make_trainer(MaskedTrainer, model, folder, options)
        masked[0].masks = masks
        seconds = measure({"plain": plain, "masked": masked}, options.blocks)
    masks.check(model)
    medians = {name: [statistics.median(block) for block in blocks] for name, blocks in seconds.items()}
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "prunable": masks.num_weights,
        "sparsity": masks.sparsity(),
        "optimizer": plain[0].args.optim.value,
        "plain": spread(medians["plain"], 1e3, 1),
        "masked": spread(medians["masked"], 1e3, 1),
        "ratio": paired_ratio(medians["masked"], medians["plain"]),
        "masking_ms": time_enforcement(masked[0]) * 1e3,
        "plain_ms": statistics.median(medians["plain"]) * 1e3,
        "weight_bytes": sum(p.numel() * p.element_size() for p in model.parameters()),
        "factor_bytes": sum(f.numel() * f.element_size() for f in masked[0]._enforcer._factors),
        "mask_bytes": sum(mask.numel() * mask.element_size() for mask in masks.values()),
    }


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=20, help="pairs of blocks of steps")
    parser.add_argument("--block", type=int, default=3, help="steps in a block")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--length", type=int, default=24, help="tokens of a source, and of a target")
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=sorted(TARGETS), default="cpu")
    parser.add_argument("--model", choices=list(MODELS), default="tiny")
    parser.add_argument("--bf16", action="store_true", help="autocast")
    return parser


def main() -> None:
    options = make_parser().parse_args()
    torch.set_num_threads(options.threads)
    print(describe_machine("transformers", "accelerate"))
    found = compare_steps(options)
    print(
        f"T5 of {found['parameters'] / 1e6:.1f} M parameters, {found['prunable'] / 1e6:.1f} M prunable, "
        f"sparsity {found['sparsity']:.2%}, {device_name(options.device)}"
        f"{', bf16 autocast' if options.bf16 else ''}, "
        f"batch {options.batch_size} x {options.length}+{options.length} tokens, optim {found['optimizer']}, "
        f"{options.blocks} pairs of blocks of {options.block} steps"
    )
    print_table([[name, found[name]] for name in ("plain", "masked")], ["trainer", "ms per step (blocks)"])
    alone, step = found["masking_ms"], found["plain_ms"]
    print(f"masking all gradients and weights, alone: {alone:.1f} ms, {alone / step:.1%} of a plain step")
    weights, factors, bools = found["weight_bytes"], found["factor_bytes"], found["mask_bytes"]
    print(
        f"memory: weights {weights / MB:.1f} MB, masks as factors {factors / MB:.1f} MB ({factors / weights:.0%}), "
        f"as bools {bools / MB:.1f} MB ({bools / weights:.0%})"
    )
    print(f"ratio: {found['ratio']:.3f} (target at most {TARGETS[options.device]})")


if __name__ == "__main__":
    main()
