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
import statistics
import time

import torch
from _common import (
    MB,
    ExtraMemory,
    describe_machine,
    device_name,
    in_fresh_process,
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


def measure_on_gpu(options: argparse.Namespace, own: int) -> None:
    """Times, and memory by the device's own count; the first repetition warms up."""
    print(device_name(options.device))
    rows, extra = [], {}
    for name in METHODS:
        model = make_model(options.matrices, options.size, options.device)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        METHODS[name](model, options.sparsity)
        extra[name] = torch.cuda.max_memory_allocated() - before
        del model
        torch.cuda.empty_cache()
    seconds, masks = measure_times(options)
    for name, times in seconds.items():
        rows.append([name, spread(times[1:], digits=4), f"{extra[name] / MB:.0f} MB ({extra[name] / own:.0%})"])
    print_table(rows, ["method", "seconds", "extra memory on the device"])
    print(
        compare(masks["sms_hf prune"], masks["torch"], make_model(options.matrices, options.size, options.device).cpu())
    )
    ratio = statistics.median(t / s for t, s in zip(seconds["torch"][1:], seconds["sms_hf prune"][1:], strict=True))
    print(f"ratio: {ratio:.2f}x faster than torch")


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--matrices", type=int, default=48)
    parser.add_argument("--size", type=int, default=1024, help="rows and columns of each matrix")
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--memory_of", choices=sorted(METHODS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        print(json.dumps(measure_memory(options.memory_of, options)))
        return

    print(describe_machine())
    own = 4 * options.matrices * options.size**2
    print(f"{own // 4 / 1e6:.1f} M fp32 weights ({own / MB:.0f} MB), sparsity {options.sparsity:.0%}")
    shared = ["--matrices", options.matrices, "--size", options.size, "--sparsity", options.sparsity]
    shared += ["--threads", options.threads]
    if options.device == "cuda":
        measure_on_gpu(options, own)
        return
    memory = {name: in_fresh_process(__file__, *shared, "--memory_of", name) for name in METHODS}
    seconds, masks = measure_times(options)

    rows = []
    for name, values in memory.items():
        peak, without = values["peak"], values["peak"] - values["masks"]
        share = f"{peak / MB:.0f} MB ({peak / own:.0%})", f"{without / MB:.0f} MB ({without / own:.0%})"
        rows.append([name, spread(seconds[name]), *share, f"{values['maxrss'] / MB:.0f} MB"])
    print_table(rows, ["method", "seconds", "extra memory", "without returned masks", "growth of ru_maxrss"])
    print(compare(masks["sms_hf prune"], masks["torch"], make_model(options.matrices, options.size)))
    ratio = statistics.median(t / s for t, s in zip(seconds["torch"], seconds["sms_hf prune"], strict=True))
    extra = (memory["sms_hf prune"]["peak"] - memory["sms_hf prune"]["masks"]) / own
    print(
        f"ratio: {ratio:.1f}x faster (target at least {TARGET_RATIO:.0f}x), "
        f"extra memory {extra:.2f} of the weights (target at most {TARGET_MEMORY})"
    )


if __name__ == "__main__":
    main()
