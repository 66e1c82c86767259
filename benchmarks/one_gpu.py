"""
Claim: candidates that do not fill a GPU train faster side by side on it, for the same bytes.

Measured: one phase of four equal candidates by two and by four processes that share one GPU (`torchrun`). Peer: the same
program by one process, one candidate after the other. The time is that of the phase in the report. With `full_determinism`,
so that bytes can be compared; bf16 autocast. And bare masked training loops, each in a thread and on a CUDA stream of its
own, in one process; peer: the same loops in turn. Target: of two that share the GPU, each takes at most 0.6 of the time that
the two take in turn; the table says from which size on that no longer holds.

    python benchmarks/one_gpu.py --models tiny t5-small t5-base
"""

import argparse
import contextlib
import hashlib
import json
import os
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from _common import describe_machine, device_name, paired_ratio, paired_times, print_table, run_group
from masked_step import MODELS

LENGTH = 32
CANDIDATES = 4
TARGET = 0.6


def work(folder: Path, model: str, batch: int, steps: int, device: str) -> None:
    """The program that all peers run: make a soup of four candidates."""
    from transformers import default_data_collator

    from sms_hf import SparseSoupTrainer, SparseSoupTrainingArguments

    args = SparseSoupTrainingArguments(
        output_dir=str(folder),
        target_sparsity=0.8,
        pruning_scope="uniform",
        num_phases=1,
        num_candidates=CANDIDATES,
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
    trainer = SparseSoupTrainer(
        model=make_model(model),
        args=args,
        train_dataset=make_data(8 * batch, seed=1),
        eval_dataset=make_data(batch, seed=2),
        data_collator=default_data_collator,
    )
    trainer.train()


def make_model(model: str):
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    return T5ForConditionalGeneration(T5Config(**{"vocab_size": 8192, "decoder_start_token_id": 0} | MODELS[model]))


def make_data(count: int, seed: int) -> list[dict]:
    import torch

    tokens = torch.randint(2, 8192, (count, 2, LENGTH), generator=torch.Generator().manual_seed(seed))
    attention = torch.ones(LENGTH, dtype=torch.long)
    return [{"input_ids": source, "attention_mask": attention, "labels": target} for source, target in tokens]


def run(processes: int, model: str, batch: int, steps: int, device: str) -> dict[str, Any]:
    """Seconds of the phase, and the digest of the soup."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable]
        if processes > 1:
            command += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        command += [__file__, "--work", folder, model, str(batch), str(steps), device]
        on_cpu = {"ACCELERATE_USE_CPU": "true"} if device == "cpu" else {}
        env = os.environ | {"OMP_NUM_THREADS": "1", "CUBLAS_WORKSPACE_CONFIG": ":16:8"} | on_cpu
        if run_group(command, env, log := Path(folder) / "log.txt"):
            raise RuntimeError(log.read_text(encoding="utf-8")[-3000:])
        report = json.loads((Path(folder) / "report.json").read_text())
        digest = hashlib.sha256((Path(folder) / "model.safetensors").read_bytes()).hexdigest()
        return {"seconds": report["phases"][0]["seconds"], "digest": digest}


def run_streams(streams: int, model: str, batch: int, steps: int, device: str) -> dict[str, Any]:
    """How many times faster training loops are side by side on streams than in turn."""
    import torch

    from sms_hf import prune
    from sms_hf.training.masked.masking import MaskEnforcer

    batches = [
        {key: torch.stack([row[key] for row in rows]).to(device) for key in rows[0]}
        for rows in (make_data(batch, seed) for seed in range(4))
    ]

    def make_loop():
        network = make_model(model).to(device).train()
        enforcer = MaskEnforcer(prune(network, 0.8, scope="uniform"))
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True)
        stream = torch.cuda.Stream() if device == "cuda" else None

        def loop() -> None:
            on = contextlib.nullcontext() if stream is None else torch.cuda.stream(stream)
            with on:
                for step in range(steps):
                    with torch.autocast(device, torch.bfloat16):
                        loss = network(**batches[step % len(batches)]).loss
                    loss.backward()
                    enforcer.mask_gradients_(network)
                    optimizer.step()
                    optimizer.zero_grad()
                    enforcer.mask_weights_(network)
            if stream is not None:
                stream.synchronize()

        return loop

    loops = [make_loop() for _ in range(streams)]
    if device == "cuda":
        torch.cuda.synchronize()  # What was made on the default stream is there for the others.
    with ThreadPoolExecutor(streams) as pool:
        peers = {
            "in turn": lambda: [loop() for loop in loops],
            "side by side": lambda: [done.result() for done in [pool.submit(loop) for loop in loops]],
        }
        times = paired_times(peers, 2)
    return {"speed": paired_ratio(times["in turn"], times["side by side"])}


def tabulated(found: dict[tuple[str, int], dict[str, dict[str, Any]]]) -> tuple[list[list[str]], list[str]]:
    """
    Rows and headers of a table.

    `found`: (model, batch) -> way (`"1 process"`, `"2 processes"`, `"2 streams"`, ...) -> what was measured.
    """
    ways = list(dict.fromkeys(way for values in found.values() for way in values if way != "1 process"))
    rows = []
    for (model, batch), values in found.items():
        alone = values.get("1 process")
        row = [model, str(batch), f"{alone['seconds']:.1f}" if alone else ""]
        for way in ways:
            speed = speed_of(values, way)
            same = alone and values.get(way, {}).get("digest") in (None, alone["digest"])
            row.append("" if speed is None else f"{speed:.2f}x{'' if same or 'streams' in way else ', OTHER BYTES'}")
        rows.append(row)
    return rows, ["model", "batch", "one process, s", *ways]


def speed_of(values: dict[str, dict[str, Any]], way: str) -> float | None:
    """How many times faster than in turn, where it is known."""
    if way not in values or "speed" in values[way]:
        return values.get(way, {}).get("speed")
    return values["1 process"]["seconds"] / values[way]["seconds"] if "1 process" in values else None


def rule(found: dict[tuple[str, int], dict[str, dict[str, Any]]]) -> str:
    """Where two that share the GPU reach the target, in a sentence."""
    pays: dict[bool, list[str]] = {True: [], False: []}
    for (model, batch), values in found.items():
        for way in ("2 processes", "2 streams"):
            speed = speed_of(values, way)
            if speed is not None:
                pays[1 / speed <= TARGET].append(f"{model} at batch {batch} by {way} ({1 / speed:.2f})")
    parts = [
        f"{name}: {', '.join(items)}"
        for name, items in (("Reached", pays[True]), ("Not reached", pays[False]))
        if items
    ]
    head = f"Time of a candidate where two share the GPU, as a part of its time alone; the target is at most {TARGET}."
    return f"{head} {'. '.join(parts)}."


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
    parser.add_argument("--streams", nargs="+", type=int, default=[2, 4])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    options = parser.parse_args()
    print(describe_machine("transformers", threads=1), device_name(options.device))
    found = {}
    for model in options.models:
        for batch in options.batches:
            asked = model, batch, options.steps, options.device
            values = {"1 process": run(1, *asked)} | {f"{n} processes": run(n, *asked) for n in options.processes}
            found[model, batch] = values | {f"{n} streams": run_streams(n, *asked) for n in options.streams}
    print(f"{CANDIDATES} candidates of {options.steps} steps, {LENGTH}+{LENGTH} tokens a row")
    print_table(*tabulated(found))
    print(rule(found))


if __name__ == "__main__":
    main()
