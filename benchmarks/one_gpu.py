"""
Claim: candidates that do not fill a GPU train faster side by side on it, for the same bytes.

Measured: one phase of four equal candidates by two and by four processes that share one GPU (`torchrun`). Peer: the same
program by one process, one candidate after the other. The time is that of the phase in the report. With `full_determinism`,
so that bytes can be compared; bf16 autocast. No target: the table says from which size on it no longer pays.

    python benchmarks/one_gpu.py --models tiny t5-small t5-base
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from _common import describe_machine, device_name, print_table
from masked_step import MODELS

LENGTH = 32


def work(folder: Path, model: str, batch: int, steps: int, device: str) -> None:
    """The program that all peers run: make a soup of four candidates."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration, default_data_collator

    from sms_hf import SparseSoupTrainer, SparseSoupTrainingArguments

    args = SparseSoupTrainingArguments(
        output_dir=str(folder),
        target_sparsity=0.8,
        pruning_scope="uniform",
        num_phases=1,
        num_candidates=4,
        max_steps=steps,
        per_device_train_batch_size=batch,
        per_device_eval_batch_size=batch,
        learning_rate=1e-3,
        use_cpu=device == "cpu",
        bf16=device == "cuda",
        full_determinism=True,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    torch.manual_seed(0)
    config = T5Config(**{"vocab_size": 8192, "decoder_start_token_id": 0} | MODELS[model])
    trainer = SparseSoupTrainer(
        model=T5ForConditionalGeneration(config),
        args=args,
        train_dataset=make_data(8 * batch, seed=1),
        eval_dataset=make_data(batch, seed=2),
        data_collator=default_data_collator,
    )
    trainer.train()


def make_data(count: int, seed: int) -> list[dict]:
    import torch

    tokens = torch.randint(2, 8192, (count, 2, LENGTH), generator=torch.Generator().manual_seed(seed))
    attention = torch.ones(LENGTH, dtype=torch.long)
    return [{"input_ids": source, "attention_mask": attention, "labels": target} for source, target in tokens]


def run(processes: int, model: str, batch: int, options: argparse.Namespace) -> tuple[float, str]:
    """Seconds of the phase, and the digest of the soup."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable]
        if processes > 1:
            command += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        command += [__file__, "--work", folder, model, str(batch), str(options.steps), options.device]
        device = {"ACCELERATE_USE_CPU": "true"} if options.device == "cpu" else {}
        env = os.environ | {"OMP_NUM_THREADS": "1", "CUBLAS_WORKSPACE_CONFIG": ":16:8"} | device
        result = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        if result.returncode:
            raise RuntimeError(result.stderr[-3000:])
        report = json.loads((Path(folder) / "report.json").read_text())
        digest = hashlib.sha256((Path(folder) / "model.safetensors").read_bytes()).hexdigest()
        return report["phases"][0]["seconds"], digest


def main() -> None:
    if sys.argv[1:2] == ["--work"]:
        folder, model, batch, steps, device = sys.argv[2:]
        work(Path(folder), model, int(batch), int(steps), device)
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=["tiny", "t5-small"])
    parser.add_argument("--batches", nargs="+", type=int, default=[16, 128])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--processes", nargs="+", type=int, default=[2, 4])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    options = parser.parse_args()
    print(describe_machine("transformers", threads=1), device_name(options.device))
    rows = []
    for model in options.models:
        for batch in options.batches:
            alone, digest = run(1, model, batch, options)
            row = [model, batch, f"{alone:.1f}"]
            for processes in options.processes:
                seconds, other = run(processes, model, batch, options)
                row += [f"{alone / seconds:.2f}x", "same" if other == digest else "DIFFERENT"]
            rows.append(row)
    headers = [item for n in options.processes for item in (f"{n} processes", "bytes")]
    print(f"four candidates of {options.steps} steps, {LENGTH}+{LENGTH} tokens a row")
    print_table(rows, ["model", "batch", "one process, s", *headers])


if __name__ == "__main__":
    main()
