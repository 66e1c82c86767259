"""
Claim: what is removed for real makes a model faster on a GPU; zeros alone do not.

Measured: forward passes in bf16 of a BERT-shaped encoder with half (three quarters) of its neurons removed by
`sms_hf.shrink`, and of the same with 2:4 weights in torch's semi-structured form. Peer: the dense model, in the same
process, in turn. Ratios are paired. No target: the table says what pays at which batch.

    python benchmarks/inference.py --device cuda
"""

import argparse
import copy
import statistics
from typing import Any

import torch
from _common import describe_machine, device_name, paired_ratio, paired_times, print_table
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.sparse import SparseSemiStructuredTensor, to_sparse_semi_structured
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertForSequenceClassification

from sms_hf import prune, shrink

DENSE, SEMI_STRUCTURED = "dense", "2:4 semi-structured"
SHAPES = {
    "tiny": {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2},
    "base": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    "large": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
}


def make_model(shape: str, device: str) -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=1024, attn_implementation="sdpa", **SHAPES[shape])
    return BertForSequenceClassification(config).eval().to(device, torch.bfloat16)


def without_neurons(model: BertForSequenceClassification, share: float) -> nn.Module:
    pruned = copy.deepcopy(model)
    prune(pruned, share, pattern="neurons", scope="uniform")
    return shrink(pruned).eval()


def semi_structured(model: BertForSequenceClassification) -> nn.Module:
    pruned = copy.deepcopy(model)
    masks = prune(pruned, 0.5, pattern="2:4", scope="uniform")
    for name, module in pruned.named_modules():
        if f"{name}.weight" in masks:  # Not the head, which is too narrow for the kernels.
            module.weight = nn.Parameter(to_sparse_semi_structured(module.weight), requires_grad=False)
    return pruned


def zeros_in_place(model: BertForSequenceClassification) -> nn.Module:
    pruned = copy.deepcopy(model)
    prune(pruned, 0.9, scope="uniform")
    return pruned


def make_models(shape: str, device: str) -> dict[str, nn.Module]:
    dense = make_model(shape, device)
    models = {
        DENSE: dense,
        "90 % zeros in place": zeros_in_place(dense),
        "50 % of neurons removed": without_neurons(dense, 0.5),
        "75 % of neurons removed": without_neurons(dense, 0.75),
    }
    if device == "cuda":  # torch has no semi-structured kernels for CPUs.
        models[SEMI_STRUCTURED] = semi_structured(dense)
    return models


@torch.inference_mode()
def count_operations(models: dict[str, nn.Module], length: int, device: str) -> dict[str, float]:
    """How many times fewer operations a row of tokens takes than in the dense model, where all that is saved is saved."""
    tokens = torch.zeros(1, length, dtype=torch.long, device=device)
    counts = {}
    for name, model in models.items():
        if name == SEMI_STRUCTURED:  # The counter does not know its kernels, which do half of what a dense layer does.
            halved = [
                m.weight for m in model.modules() if isinstance(getattr(m, "weight", None), SparseSemiStructuredTensor)
            ]
            counts[name] = counts[DENSE] - length * sum(weight.numel() for weight in halved)
            continue
        # The fused kernels of attention are not counted on every device.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(input_ids=tokens)
        counts[name] = counter.get_total_flops()
    return {name: counts[DENSE] / count for name, count in counts.items()}


@torch.inference_mode()
def measure(models: dict[str, nn.Module], batch: int, length: int, repetitions: int, device: str) -> dict[str, Any]:
    """Milliseconds of the dense model for a batch, and how many times faster the others are."""
    tokens = torch.randint(0, 1024, (batch, length), device=device)
    peers = {name: (lambda model=model: model(input_ids=tokens)) for name, model in models.items()}
    times = paired_times(peers, repetitions)
    speeds = {name: paired_ratio(times[DENSE], times[name]) for name in models if name != DENSE}
    return {"batch": batch, "dense_ms": statistics.median(times[DENSE]) * 1e3, "speed": speeds}


def cells(row: dict[str, Any]) -> list[object]:
    return [row["batch"], f"{row['dense_ms']:.2f}", *(f"{speed:.2f}x" for speed in row["speed"].values())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--shape", choices=list(SHAPES), default="base")
    parser.add_argument("--length", type=int, default=128, help="tokens of a row")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32, 128, 512])
    parser.add_argument("--repetitions", type=int, default=15)
    options = parser.parse_args()
    print(describe_machine("transformers"), device_name(options.device))
    models = make_models(options.shape, options.device)
    rows = [measure(models, batch, options.length, options.repetitions, options.device) for batch in options.batches]
    fewer = count_operations(models, options.length, options.device)
    print(f"BERT-{options.shape}, bf16, {options.length} tokens a row, speed over dense")
    footer = ["operations", "", *(f"{fewer[name]:.2f}x fewer" for name in rows[0]["speed"])]
    print_table([*map(cells, rows), footer], ["batch", "dense, ms", *rows[0]["speed"]])


if __name__ == "__main__":
    main()
