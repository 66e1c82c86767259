"""
Claim: the compact file is as small as its masks allow, and costs about as much time as writing the dense file.

Measured, with 60 M weights in matrices like those of T5-small, pruned by magnitude:
1. size of the compact file, plain and entropy coded (masks and exponents), against the dense file, against Zstandard (level 3
   and 19) and LZ4 of the dense file, and against the bound (1 - s) (bits - 8 + H(exponents)) / bits + H(s) / bits: 0 to 99 %,
   fp32 and bf16;
2. time to pack and to unpack a file (both flushed to the disk) against reading the dense file and writing it, at 90 %, with
   a warm and with a cold file cache (the kernel is asked to forget the source before each measurement);
3. `from_pretrained` of the compact against the dense form of a T5 of that size: time, and extra memory in a fresh process each.
Targets: entropy-coded within 5 % of the bound at 80 to 99 %; packing and unpacking at most 2x reading and writing the dense file;
`from_pretrained` of the compact form at most 1.5x that of the dense one.

    python benchmarks/packing.py [--quick]
"""

import argparse
import json
import math
import os
import tempfile
import time
from pathlib import Path

import lz4.frame
import torch
import zstandard
from _common import MB, ExtraMemory, describe_machine, in_fresh_process, paired_ratio, paired_times, print_table, spread
from safetensors.torch import load_file, save_file

from sms_hf import pack, prune
from sms_hf.compact.compact_file import write_compact, write_dense

TARGET_BOUND, TARGET_PACK, TARGET_LOAD = 1.05, 2.0, 1.5
SPARSITIES = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
BITS = {torch.float32: 32, torch.bfloat16: 16}


def weights(matrices: int, sparsity: float, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Matrices of 2048 x 512 normal numbers, the smallest of all set to zero."""
    generator = torch.Generator().manual_seed(0)
    tensors = {f"layer.{i}.weight": torch.randn(2048, 512, generator=generator) for i in range(matrices)}
    limit = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(0.5 + sparsity / 2))
    return {name: (w * (w.abs() >= limit)).to(dtype) for name, w in tensors.items()}


def entropy(counts: torch.Tensor) -> float:
    """In bits."""
    share = counts[counts > 0].double() / counts.sum()
    return -float((share * share.log2()).sum())


def flush(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def forget(path: Path) -> None:
    """Ask the kernel to drop a file from its cache."""
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def sizes(folder: Path, matrices: int) -> None:
    rows = []
    for dtype, bits in BITS.items():
        for s in SPARSITIES:
            tensors = weights(matrices, s, dtype)
            dense = folder / "dense.safetensors"
            save_file(tensors, dense)
            size, raw = dense.stat().st_size, dense.read_bytes()
            found = {}
            for name, entropy_coded in (("plain", False), ("entropy", True)):
                write_compact(dense, folder / "c.safetensors", "t5", entropy_coded=entropy_coded)
                found[name] = (folder / "c.safetensors").stat().st_size / size
            found["zstd -3"] = len(zstandard.compress(raw, 3)) / size
            # Level 19 is slow: on a tenth of the bytes.
            found["zstd -19"] = len(zstandard.compress(raw[: len(raw) // 10], 19)) / (len(raw) // 10)
            found["lz4"] = len(lz4.frame.compress(raw)) / size
            kept = torch.cat([w[w != 0] for w in tensors.values()]).float()
            exponents = entropy(torch.frexp(kept).exponent.unique(return_counts=True)[1])
            zeros = sum(int((w == 0).sum()) for w in tensors.values()) / sum(w.numel() for w in tensors.values())
            masks = entropy(torch.tensor([zeros, 1 - zeros]))
            bound = ((1 - zeros) * (bits - 8 + exponents) + masks) / bits
            numbers = [*found.values(), bound, found["entropy"] / bound]
            rows.append([str(dtype).removeprefix("torch."), f"{s:.0%}", *(f"{n:.3f}" for n in numbers)])
    names = ["plain", "entropy coded", "zstd -3", "zstd -19", "LZ4", "bound", "coded / bound"]
    print("\nSize, as a fraction of the dense file")
    print_table(rows, ["dtype", "sparsity", *names])
    worst = max(float(row[-1]) for row in rows if float(row[1].rstrip("%")) >= 80)
    print(f"entropy coded / bound at 80 to 99 %: at most {worst:.3f} (target {TARGET_BOUND})")


def times(folder: Path, matrices: int, repetitions: int) -> None:
    dense, packed, coded = (folder / f"{name}.safetensors" for name in ("dense", "packed", "coded"))
    for dtype in BITS:
        save_file(weights(matrices, 0.9, dtype), dense)
        write_compact(dense, packed, "t5")
        write_compact(dense, coded, "t5", entropy_coded=True)
        for cold in (False, True):

            def from_(path, cold=cold):
                if cold:
                    forget(path)
                return path

            def copy():
                save_file(load_file(from_(dense)), folder / "copy.safetensors")
                flush(folder / "copy.safetensors")

            peers = {
                "read and write dense": copy,
                "pack": lambda: write_compact(from_(dense), folder / "out.safetensors", "t5"),
                "pack, entropy coded": lambda: write_compact(from_(dense), folder / "o.safetensors", "t5", None, True),
                "unpack": lambda: write_dense(from_(packed), folder / "back.safetensors"),
                "unpack, entropy coded": lambda: write_dense(from_(coded), folder / "back.safetensors"),
            }
            measured = paired_times(peers, repetitions)
            reference = measured["read and write dense"]
            print(f"\nTime at 90 %, {str(dtype).removeprefix('torch.')}, {'cold' if cold else 'warm'} file cache")
            print_table(
                [
                    [name, spread(seconds), f"{paired_ratio(seconds, reference):.2f}"]
                    for name, seconds in measured.items()
                ],
                ["", "seconds: median (range)", "ratio to reading and writing dense"],
            )
            worst = max(paired_ratio(measured[name], reference) for name in ("pack", "unpack"))
            print(f"packing and unpacking: at most {worst:.2f} (target {TARGET_PACK})")


def make_model(folder: Path) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    config = T5Config(d_model=512, d_ff=2048, num_layers=6, num_heads=8, d_kv=64, decoder_start_token_id=0)
    model = T5ForConditionalGeneration(config)
    masks = prune(model, 0.9)
    model.save_pretrained(folder)
    masks.save(folder / "masks.safetensors")
    pack(folder)
    pack(folder, folder.with_name("coded"), keep_dense=False, entropy_coded=True)


def load_once(folder: str, variant: str) -> None:
    """In a fresh process: seconds and extra memory of one load, as JSON."""
    from transformers import T5ForConditionalGeneration
    from transformers.utils import logging

    import sms_hf  # noqa: F401

    logging.disable_progress_bar()
    torch.set_num_threads(1)
    with ExtraMemory() as memory:
        start = time.perf_counter()
        model = T5ForConditionalGeneration.from_pretrained(folder, variant=variant or None)
        total = sum(float(p.detach().sum()) for p in model.parameters())  # Touch every page of a mapped file.
        seconds = time.perf_counter() - start
    assert math.isfinite(total)
    print(json.dumps({"seconds": seconds, "memory": memory.peak, "anonymous": memory.anonymous}))


def loads(folder: Path, repetitions: int) -> None:
    make_model(folder)
    coded = folder.with_name("coded")
    files = {
        "dense": folder / "model.safetensors",
        "compact": folder / "model.sparse.safetensors",
        "compact, entropy coded": coded / "model.sparse.safetensors",
    }
    found: dict[str, list[dict]] = {form: [] for form in files}
    for _ in range(repetitions):
        for form, path in files.items():
            variant = "sparse" if "sparse" in path.name else ""
            found[form].append(in_fresh_process(__file__, "--load", path.parent, f"--variant={variant}"))
    reference = [f["seconds"] for f in found["dense"]]
    rows = []
    for form, records in found.items():
        seconds = [record["seconds"] for record in records]
        rows.append(
            [
                form,
                f"{files[form].stat().st_size / MB:.1f}",
                spread(seconds),
                f"{paired_ratio(seconds, reference):.2f}",
                spread([record["memory"] for record in records], 1 / MB, 0),
            ]
        )
    print("\nfrom_pretrained of a T5 with 60 M parameters at 90 %, and one pass over its weights, warm file cache")
    print_table(rows, ["form", "file (MB)", "seconds: median (range)", "ratio", "peak of extra resident memory (MB)"])
    print(f"compact: {rows[1][3]} (target {TARGET_LOAD})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="A tenth of the weights, fewer repetitions.")
    parser.add_argument("--load", help=argparse.SUPPRESS)
    parser.add_argument("--variant", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.load:
        return load_once(args.load, args.variant)
    torch.set_num_threads(1)
    matrices, repetitions = (6, 3) if args.quick else (57, 7)
    print(describe_machine("safetensors", "transformers", "zstandard", "lz4"))
    print(f"{matrices * 2048 * 512:,} weights in {matrices} matrices")
    with tempfile.TemporaryDirectory() as folder:
        sizes(Path(folder), min(matrices, 12))
        times(Path(folder), matrices, repetitions)
        loads(Path(folder) / "model", repetitions)
    return None


if __name__ == "__main__":
    main()
