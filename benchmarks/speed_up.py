"""
Claim: `speed_up` makes pruned models faster on a CPU, and no model slower.

Measured: `generate` (greedy, 25 tokens from 25) of a T5, forward passes of a BERT, a GPT-2, a Llama and a ViT, with random
weights of which a share is pruned, in float32. Peers: the same model in torch eager, and in bfloat16, in the same process, in
turn; ratios are paired. Target: at least 1.0x everywhere, at 90 % 2x (T5) and 4x (BERT) over eager.

    OMP_NUM_THREADS=1 python benchmarks/speed_up.py
"""

import argparse
import copy
from collections.abc import Callable

import torch
import transformers as hf
from _common import describe_machine, paired_ratio, paired_times, print_table
from torch import nn

from sms_hf import prune, speed_up
from sms_hf.speed import speed_table

BASE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 2, "num_attention_heads": 12}
T5 = {"d_model": 512, "d_ff": 2048, "num_layers": 6, "num_heads": 8, "vocab_size": 32128, "decoder_start_token_id": 0}
GPT2 = {"n_embd": 768, "n_layer": 2, "n_head": 12, "vocab_size": 8192, "bos_token_id": 0, "eos_token_id": 1}
LLAMA = {**BASE, "vocab_size": 8192, "num_key_value_heads": 4}
SHAPES: dict[str, Callable[[], hf.PreTrainedModel]] = {
    "T5-small, generate": lambda: hf.T5ForConditionalGeneration(hf.T5Config(**T5)),
    "BERT-base, 2 layers": lambda: hf.BertForSequenceClassification(hf.BertConfig(**BASE)),
    "GPT-2, 2 layers": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT2)),
    "Llama, 2 layers": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA)),
    "ViT-base, 2 layers": lambda: hf.ViTForImageClassification(hf.ViTConfig(**BASE)),
}


def job(model: hf.PreTrainedModel, batch: int) -> Callable[[], object]:
    """One unit of work of a model."""
    generator = torch.Generator().manual_seed(0)
    if model.main_input_name == "pixel_values":
        pixels = torch.randn(batch, 3, 224, 224, generator=generator).to(model.dtype)
        return lambda: model(pixel_values=pixels)
    generates = model.config.is_encoder_decoder
    tokens = torch.randint(2, 8000, (batch, 25 if generates else 128), generator=generator)
    if generates:
        return lambda: model.generate(tokens, max_new_tokens=25, min_new_tokens=25, do_sample=False)
    return lambda: model(input_ids=tokens)


@torch.inference_mode()
def measure(name: str, sparsity: float, batches: list[int], repetitions: int) -> tuple[list[list[object]], nn.Module]:
    torch.manual_seed(0)
    dense = SHAPES[name]().eval()
    if sparsity:
        prune(dense, sparsity, scope="uniform")
    fast, half = speed_up(copy.deepcopy(dense)), copy.deepcopy(dense).to(torch.bfloat16)
    rows = []
    for batch in batches:
        times = paired_times(
            {k: job(m, batch) for k, m in (("eager", dense), ("bf16", half), ("fast", fast))}, repetitions
        )
        ratios = [f"{paired_ratio(times['eager'], times[peer]):.2f}x" for peer in ("bf16", "fast")]
        milliseconds = sorted(times["eager"])[len(times["eager"]) // 2] * 1e3
        rows.append([name, f"{sparsity:.0%}", batch, f"{milliseconds:.0f}", *ratios])
    return rows, fast


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.0, 0.5, 0.8, 0.9, 0.95])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--ways", action="store_true", help="Print what the layers of each model do.")
    options = parser.parse_args()
    print(describe_machine("transformers"))
    rows = []
    for name in options.shapes:
        for sparsity in options.sparsities:
            more, fast = measure(name, sparsity, options.batches, options.repetitions)
            rows += more
            if options.ways:
                print(f"{name}, {sparsity:.0%}\n{speed_table(fast)}", flush=True)
    print_table(rows, ["model", "zeros", "batch", "fp32 eager, ms", "bf16", "speed_up"])


if __name__ == "__main__":
    main()
