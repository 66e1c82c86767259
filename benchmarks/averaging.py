"""
Claim: averaging checkpoints runs at the speed of reading them, with memory of a tensor, not of the models.

Measured: `sms_hf.soup.average_checkpoints` of 5 pruned checkpoints of 60 M fp32 parameters (the shapes of T5-small), with their
masks, and without (zeros are compared instead). It also verifies masks and zeros and writes the result to the disk. Peers:
1. reading the same files once, one after another (`load_file` only maps a file, so every tensor is summed, too): from the
   page cache this is the bare bandwidth of the memory;
2. the same, and one model of that size written and flushed to the disk: what no way of averaging can do without;
3. the usual way: load all, `torch.stack(...).mean(0)`, `save_file`; its file is flushed, too.
Extra memory is measured in a fresh process each, as the highest `RssAnon`: mapped files do not count.
Targets: at most 3x the time of reading and writing, not slower than stacking; extra memory at most 3x the largest tensor +
100 MB.

    python benchmarks/averaging.py
"""

import argparse
import json
import os
import shutil
import tempfile
from pathlib import Path

import torch
from _common import MB, ExtraMemory, describe_machine, in_fresh_process, paired_ratio, paired_times, print_table, spread
from safetensors.torch import load_file, save_file
from torch import Tensor

from sms_hf import Masks
from sms_hf.soup import average_checkpoints

TARGET_COPYING, TARGET_STACKING = 3.0, 1.0
TARGET_LARGEST, TARGET_CONSTANT = 3, 100 * MB
WEIGHTS, MASKS = "model.safetensors", "masks.safetensors"


def t5_shapes(width: int, layers: int = 6) -> dict[str, tuple[int, ...]]:
    """Names and shapes like those of T5 (T5-small: width 512)."""
    shapes: dict[str, tuple[int, ...]] = {"shared.weight": (32128, width)}
    for side, attentions in (("encoder", ("SelfAttention",)), ("decoder", ("SelfAttention", "EncDecAttention"))):
        for block in range(layers):
            for i, attention in enumerate(attentions):
                prefix = f"{side}.block.{block}.layer.{i}"
                shapes |= {f"{prefix}.{attention}.{part}.weight": (width, width) for part in "qkvo"}
                shapes[f"{prefix}.layer_norm.weight"] = (width,)
            prefix = f"{side}.block.{block}.layer.{len(attentions)}"
            shapes[f"{prefix}.DenseReluDense.wi.weight"] = (4 * width, width)
            shapes[f"{prefix}.DenseReluDense.wo.weight"] = (width, 4 * width)
            shapes[f"{prefix}.layer_norm.weight"] = (width,)
    return shapes


def write_checkpoints(root: Path, options: argparse.Namespace) -> list[Path]:
    """Folders that share one mask over all matrices but the embedding; twins without the mask under `bare`."""
    generator = torch.Generator().manual_seed(0)
    shapes = t5_shapes(options.width)
    pruned = [name for name, shape in shapes.items() if "block" in name and len(shape) == 2]
    masks = {name: torch.rand(shapes[name], generator=generator) >= options.sparsity for name in pruned}
    folders = []
    for number in range(1, options.checkpoints + 1):
        folder, bare = root / f"candidate-{number}", root / "bare" / f"candidate-{number}"
        folder.mkdir(parents=True)
        bare.mkdir(parents=True)
        tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        for name, mask in masks.items():
            # A random number may be 0.0 by chance: without masks that would look like a weight pruned in one folder only.
            tensors[name] = torch.where(mask, tensors[name].masked_fill(tensors[name] == 0, 1.0), 0.0)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        os.link(folder / WEIGHTS, bare / WEIGHTS)
        Masks(masks).save(folder / MASKS)
        folders.append(folder)
    return folders


def read(folders: list[Path], output: Path) -> None:
    for folder in folders:
        for tensor in load_file(folder / WEIGHTS).values():
            tensor.sum()


def read_and_write(folders: list[Path], output: Path) -> None:
    read(folders, output)
    output.mkdir(exist_ok=True)
    with open(output / WEIGHTS, "wb") as file:
        for tensor in load_file(folders[0] / WEIGHTS).values():
            file.write(memoryview(tensor.numpy()))
        file.flush()
        os.fsync(file.fileno())


def average(folders: list[Path], output: Path) -> None:
    average_checkpoints(folders, output)


def average_without_masks(folders: list[Path], output: Path) -> None:
    average_checkpoints([folder.parent / "bare" / folder.name for folder in folders], output)


def stack(folders: list[Path], output: Path) -> None:
    states = [load_file(folder / WEIGHTS) for folder in folders]
    mean = {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}
    output.mkdir(exist_ok=True)
    save_file(mean, output / WEIGHTS, metadata={"format": "pt"})
    with open(output / WEIGHTS, "rb") as file:
        os.fsync(file.fileno())


METHODS = {
    "read": read,
    "read and write": read_and_write,
    "average": average,
    "average, no masks": average_without_masks,
    "stack": stack,
}


def measure_memory(method: str, root: Path) -> dict[str, int]:
    folders = sorted(root.glob("candidate-*"))
    with ExtraMemory() as memory:
        METHODS[method](folders, root / "output")
    shutil.rmtree(root / "output", ignore_errors=True)
    return memory.values()


def largest_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", type=int, default=5)
    parser.add_argument("--width", type=int, default=512, help="d_model of the T5 shapes; 512 gives 60 M parameters")
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory_of", choices=sorted(METHODS), help=argparse.SUPPRESS)
    parser.add_argument("--memory_in", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        print(json.dumps(measure_memory(options.memory_of, options.memory_in)))
        return

    print(describe_machine("safetensors"))
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        folders = write_checkpoints(root, options)
        shared = ["--threads", options.threads, "--memory_in", root]
        memory = {name: in_fresh_process(__file__, *shared, "--memory_of", name) for name in METHODS}
        peers = {
            name: lambda method=method, name=name: method(folders, root / f"output {name}")
            for name, method in METHODS.items()
        }
        seconds = paired_times(peers, options.repetitions)
        results = [load_file(root / f"output {name}" / WEIGHTS) for name in ("average", "stack")]
        difference = largest_difference(*results)

    sizes = [torch.Size(shape).numel() for shape in t5_shapes(options.width).values()]
    limit = TARGET_LARGEST * 4 * max(sizes) + TARGET_CONSTANT
    print(
        f"{options.checkpoints} checkpoints of {sum(sizes) / 1e6:.1f} M fp32 parameters ({4 * sum(sizes) / MB:.0f} MB each, "
        f"largest tensor {4 * max(sizes) / MB:.0f} MB), sparsity {options.sparsity:.0%} of the matrices"
    )
    ratios = {
        name: [paired_ratio(times, seconds[peer]) for peer in ("read", "read and write", "stack")]
        for name, times in seconds.items()
    }
    print_table(
        [
            [
                name,
                spread(times),
                *(f"{ratio:.2f}" for ratio in ratios[name]),
                *(f"{memory[name][key] / MB:.0f}" for key in ("anonymous", "peak", "maxrss")),
            ]
            for name, times in seconds.items()
        ],
        ["method", "seconds", "x read", "x read, write", "x stack", "RssAnon, MB", "RSS, MB", "ru_maxrss, MB"],
    )
    print(f"largest difference between average and stack: {difference:.1e}")
    print(f"extra memory: {memory['average']['anonymous'] / MB:.0f} MB of RssAnon (target at most {limit / MB:.0f} MB)")
    _, copying, stacking = ratios["average"]
    print(
        f"ratio: {copying:.2f} of reading and writing (target at most {TARGET_COPYING:g}), "
        f"{stacking:.2f} of stacking (target at most {TARGET_STACKING:g})"
    )


if __name__ == "__main__":
    main()
