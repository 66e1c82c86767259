"""
Claim: global magnitude pruning runs at the speed of memory, and in little memory.

Measured: `sms_hf.prune` (which also writes the zeros) and its pure part `select` on 48 matrices of 1024 x 1024, 50 M fp32
weights, to 90 %. Peer: `torch.nn.utils.prune.global_unstructured` with `L1Unstructured`. Extra memory is measured in a
fresh process each. Target: at least 10x faster; extra memory, without the masks that are returned, at most a quarter of
the weights' own. Both must keep the same number of weights, and the same ones (up to the order among equal magnitudes).

    python benchmarks/selection.py
    python benchmarks/selection.py --device cuda --matrices 240 --repetitions 5
"""

import argparse
import json
import time
from typing import Any

import torch
from _common import (
    MB,
    ExtraMemory,
    describe_machine,
    device_name,
    in_fresh_process,
    paired_ratio,
    print_table,
    spread,
    wait_for_device,
)
from torch import Tensor, nn
from torch.nn.utils.prune import L1Unstructured, global_unstructured

from sms_hf import prune
from sms_hf.sparsity.pruning import select

TARGET_RATIO, TARGET_MEMORY = 10.0, 0.25


def make_model(matrices: int, size: int, device: str = "cpu") -> nn.Sequential:
    generator = torch.Generator(device).manual_seed(0)
    model = nn.Sequential(*(nn.Linear(size, size, bias=False, device="meta") for _ in range(matrices)))
    model.to_empty(device=device)
    for layer in model:
        nn.init.normal_(layer.weight, generator=generator)
    return model


def prune_by_torch(model: nn.Sequential, sparsity: float) -> dict[str, Tensor]:
    global_unstructured([(layer, "weight") for layer in model], pruning_method=L1Unstructured, amount=sparsity)
    return {f"{i}.weight": layer.weight_mask for i, layer in enumerate(model)}


def prune_by_sms(model: nn.Sequential, sparsity: float) -> dict[str, Tensor]:
    return dict(prune(model, sparsity))


def select_by_sms(model: nn.Sequential, sparsity: float) -> dict[str, Tensor]:
    return select(dict(model.named_parameters()), {}, sparsity)


METHODS = {"torch": prune_by_torch, "sms_hf prune": prune_by_sms, "sms_hf select": select_by_sms}


def measure_memory(method: str, options: argparse.Namespace) -> dict[str, int]:
    model = make_model(options.matrices, options.size)
    # What the first call of an operation sets up once does not belong to the memory of pruning.
    METHODS[method](make_model(1, 64), options.sparsity)
    with ExtraMemory() as memory:
        masks = METHODS[method](model, options.sparsity)
    return memory.values() | {"masks": sum(mask.numel() * mask.element_size() for mask in masks.values())}


def measure_times(options: argparse.Namespace) -> tuple[dict[str, list[float]], dict[str, dict[str, Tensor]]]:
    """Seconds of each method, interleaved, each on a fresh model; and the masks of the last repetition."""
    seconds: dict[str, list[float]] = {name: [] for name in METHODS}
    masks: dict[str, dict[str, Tensor]] = {}
    for repetition in range(options.repetitions):
        for name in list(METHODS)[:: -1 if repetition % 2 else 1]:
            model = make_model(options.matrices, options.size, options.device)
            wait_for_device()
            start = time.perf_counter()
            result = METHODS[name](model, options.sparsity)
            wait_for_device()
            seconds[name].append(time.perf_counter() - start)
            masks[name] = {key: mask.bool().cpu() for key, mask in result.items()}
    return seconds, masks


def memory_on_device(options: argparse.Namespace) -> dict[str, dict[str, int]]:
    """Extra memory of each method at its peak, by the device's own count."""
    extra = {}
    for name in METHODS:
        model = make_model(options.matrices, options.size, options.device)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        METHODS[name](model, options.sparsity)
        extra[name] = {"peak": torch.cuda.max_memory_allocated() - before}
        del model
        torch.cuda.empty_cache()
    return extra


def memory_in_processes(options: argparse.Namespace) -> dict[str, dict[str, int]]:
    """Extra memory of each method, in a fresh process each."""
    shared = ["--matrices", options.matrices, "--size", options.size, "--sparsity", options.sparsity]
    shared += ["--threads", options.threads]
    return {name: in_fresh_process(__file__, *shared, "--memory_of", name) for name in METHODS}


MEMORY = {"cpu": memory_in_processes, "cuda": memory_on_device}


def compare_methods(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds and extra memory of each method, whether they keep the same weights, and how much faster ours is."""
    own, memory = 4 * options.matrices * options.size**2, MEMORY[options.device](options)
    seconds, masks = measure_times(options)
    if options.device == "cuda":  # There the first repetition warms up.
        seconds = {name: times[1:] for name, times in seconds.items()}
    weights = make_model(options.matrices, options.size, options.device).cpu()
    return {
        "weights": own // 4,
        "seconds": {name: spread(times, digits=4) for name, times in seconds.items()},
        "memory": memory,
        "weight_bytes": own,
        "kept": compare(masks["sms_hf prune"], masks["torch"], weights),
        "ratio": paired_ratio(seconds["torch"], seconds["sms_hf prune"]),
    }


def compare(ours: dict[str, Tensor], theirs: dict[str, Tensor], model: nn.Sequential) -> str:
    """Whether both keep the same weights. Among equal magnitudes at the threshold any choice is right."""
    kept = [sum(int(mask.sum()) for mask in masks.values()) for masks in (ours, theirs)]
    weights = dict(model.named_parameters())
    magnitudes = torch.cat([weights[name].detach()[mask != theirs[name]].abs() for name, mask in ours.items()])
    if not len(magnitudes):
        same = "the same weights"
    elif len(magnitudes.unique()) == 1:
        same = f"the same weights up to {len(magnitudes) // 2} of one equal magnitude"
    else:
        same = f"DIFFERENT weights at {len(magnitudes)} places"
    return f"kept: sms_hf {kept[0]:,}, torch {kept[1]:,}; {same}"


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--matrices", type=int, default=48)
    parser.add_argument("--size", type=int, default=1024, help="rows and columns of each matrix")
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--repetitions", type=int, default=3, help="on a GPU the first of them is not counted")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--memory_of", choices=sorted(METHODS), help=argparse.SUPPRESS)
    return parser


def main() -> None:
    options = make_parser().parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        print(json.dumps(measure_memory(options.memory_of, options)))
        return
    print(describe_machine(), device_name(options.device))
    found = compare_methods(options)
    own = found["weight_bytes"]
    print(f"{own // 4 / 1e6:.1f} M fp32 weights ({own / MB:.0f} MB), sparsity {options.sparsity:.0%}")
    rows = []
    for name, values in found["memory"].items():
        peaks = [values["peak"], *([values["peak"] - values["masks"]] if "masks" in values else [])]
        rows.append([name, found["seconds"][name], *(f"{peak / MB:.0f} MB ({peak / own:.0%})" for peak in peaks)])
    print_table(rows, ["method", "seconds", "extra memory", "without returned masks"][: len(rows[0])])
    print(found["kept"])
    if options.device == "cuda":
        print(f"ratio: {found['ratio']:.2f}x faster than torch")
        return
    ours = found["memory"]["sms_hf prune"]
    print(
        f"ratio: {found['ratio']:.1f}x faster (target at least {TARGET_RATIO:.0f}x), "
        f"extra memory {(ours['peak'] - ours['masks']) / own:.2f} of the weights (target at most {TARGET_MEMORY})"
    )


if __name__ == "__main__":
    main()
