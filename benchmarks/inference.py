"""
Claim: what is removed for real makes a model faster on a GPU; zeros alone do not.

Measured: forward passes in bf16 of a BERT-shaped encoder with half (three quarters) of its neurons removed by
`sms_hf.shrink`, and of the same with 2:4 weights in torch's semi-structured form. Peer: the dense model, in the same
process, in turn. Ratios are paired. No target: the table says what pays at which batch.

    python benchmarks/inference.py --device cuda
"""

import argparse
import copy

import torch
from _common import describe_machine, device_name, paired_ratio, paired_times, print_table
from torch import nn
from torch.sparse import to_sparse_semi_structured
from transformers import BertConfig, BertForSequenceClassification

from sms_hf import prune, shrink

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


@torch.inference_mode()
def measure(models: dict[str, nn.Module], batch: int, length: int, repetitions: int, device: str) -> list[object]:
    tokens = torch.randint(0, 1024, (batch, length), device=device)
    peers = {name: (lambda model=model: model(input_ids=tokens)) for name, model in models.items()}
    times = paired_times(peers, repetitions)
    milliseconds = sorted(times["dense"])[len(times["dense"]) // 2] * 1e3
    others = [name for name in models if name != "dense"]
    return [batch, f"{milliseconds:.2f}", *(f"{paired_ratio(times['dense'], times[name]):.2f}x" for name in others)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--shape", choices=list(SHAPES), default="base")
    parser.add_argument("--length", type=int, default=128, help="tokens of a row")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32, 128, 512])
    parser.add_argument("--repetitions", type=int, default=15)
    options = parser.parse_args()
    print(describe_machine("transformers"), device_name(options.device))
    dense = make_model(options.shape, options.device)
    models = {
        "dense": dense,
        "90 % zeros in place": zeros_in_place(dense),
        "50 % of neurons removed": without_neurons(dense, 0.5),
        "75 % of neurons removed": without_neurons(dense, 0.75),
    }
    if options.device == "cuda":  # torch has no semi-structured kernels for CPUs.
        models["2:4 semi-structured"] = semi_structured(dense)
    rows = [measure(models, batch, options.length, options.repetitions, options.device) for batch in options.batches]
    print(f"BERT-{options.shape}, bf16, {options.length} tokens a row, speed over dense")
    print_table(rows, ["batch", "dense, ms", *(name for name in models if name != "dense")])


if __name__ == "__main__":
    main()
