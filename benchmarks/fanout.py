"""
Claim: candidates train independently, so two processes need about half the time of one, for the same bytes.

Measured: one phase with four equal candidates on two processes of one thread each, started by `accelerate launch` with
`recipes/accelerate/cpu_2.yaml`. Peer: the same program by plain `python`, one process of one thread. The model is a small
random T5, the data are random tokens. The time is that of the phase in the report (`report["phases"][0]["seconds"]`): from
the pruning of the parent to the scored soup. Target: at least 1.7x; `model.safetensors` the same byte for byte.
Needs two free cores.

    python benchmarks/fanout.py
"""

import argparse
import hashlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _common import describe_machine, print_table

TARGET = 1.7
CONFIG = Path(__file__).resolve().parents[1] / "recipes" / "accelerate" / "cpu_2.yaml"
VOCABULARY, LENGTH, BATCH_SIZE = 2048, 24, 16


def work(folder: Path, steps: int) -> None:
    """The program that both peers run: make a soup of four candidates."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration, default_data_collator

    from sms_hf import SparseSoupTrainer, SparseSoupTrainingArguments

    args = SparseSoupTrainingArguments(
        output_dir=str(folder),
        target_sparsity=0.8,
        num_phases=1,
        num_candidates=4,
        max_steps=steps,
        per_device_train_batch_size=BATCH_SIZE,
        per_device_eval_batch_size=BATCH_SIZE,
        learning_rate=1e-3,
        use_cpu=True,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=VOCABULARY,
        d_model=128,
        d_kv=32,
        d_ff=512,
        num_layers=4,
        num_heads=4,
        decoder_start_token_id=0,
    )
    model = T5ForConditionalGeneration(config)
    trainer = SparseSoupTrainer(
        model=model,
        args=args,
        train_dataset=make_data(64 * BATCH_SIZE, seed=1),
        eval_dataset=make_data(2 * BATCH_SIZE, seed=2),
        data_collator=default_data_collator,
    )
    trainer.train()


def make_data(count: int, seed: int) -> list[dict]:
    import torch

    tokens = torch.randint(2, VOCABULARY, (count, 2, LENGTH), generator=torch.Generator().manual_seed(seed))
    attention = torch.ones(LENGTH, dtype=torch.long)
    return [{"input_ids": source, "attention_mask": attention, "labels": target} for source, target in tokens]


def run(processes: int, steps: int) -> dict:
    """Start the program, wait for it, and read what it left."""
    with tempfile.TemporaryDirectory() as folder:
        program = [__file__, "--work_in", folder, "--steps", str(steps)]
        launch = ["-m", "accelerate.commands.launch", "--config_file", str(CONFIG), "--main_process_port", free_port()]
        command = [sys.executable, *(launch if processes == 2 else []), *program]
        start = time.perf_counter()
        result = subprocess.run(
            command,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        wall = time.perf_counter() - start
        if result.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{result.stdout}")
        phase = json.loads((Path(folder) / "report.json").read_text())["phases"][0]
        digest = hashlib.sha256((Path(folder) / "model.safetensors").read_bytes()).hexdigest()
    candidates = [candidate["seconds"] for candidate in phase["candidates"]]
    return {"phase": phase["seconds"], "candidates": candidates, "wall": wall, "sha256": digest}


def free_port() -> str:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return str(server.getsockname()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60, help="optimizer steps of each candidate")
    parser.add_argument("--repetitions", type=int, default=1)
    parser.add_argument("--work_in", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work_in:
        work(options.work_in, options.steps)
        return

    print(describe_machine("transformers", "accelerate", threads=1))
    runs: dict[int, list[dict]] = {1: [], 2: []}
    for repetition in range(options.repetitions):
        for processes in (2, 1) if repetition % 2 else (1, 2):
            runs[processes].append(run(processes, options.steps))
    rows = []
    for processes, results in runs.items():
        values = {key: statistics.median(result[key] for result in results) for key in ("phase", "wall")}
        candidate = statistics.median(seconds for result in results for seconds in result["candidates"])
        rows.append([processes, f"{values['phase']:.1f}", f"{candidate:.1f}", f"{values['wall']:.1f}"])
    print_table(rows, ["processes", "phase, s", "median candidate, s", "whole program, s"])
    digests = {result["sha256"] for results in runs.values() for result in results}
    same = "the same bytes" if len(digests) == 1 else "DIFFERENT bytes"
    print(f"model.safetensors: {same} ({', '.join(sorted(digest[:16] for digest in digests))})")
    pairs = list(zip(runs[1], runs[2], strict=True))
    whole = statistics.median(one["wall"] / two["wall"] for one, two in pairs)
    ratio = statistics.median(one["phase"] / two["phase"] for one, two in pairs)
    print(f"whole programs, with start-up: {whole:.2f}x")
    print(f"ratio: {ratio:.2f}x faster (target at least {TARGET}x)")


if __name__ == "__main__":
    main()
