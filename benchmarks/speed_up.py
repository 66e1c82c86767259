"""
Claim: `speed_up` makes pruned models faster on a CPU, and no model slower; and which engine is how fast.

Measured: `generate` (10 tokens from 25, greedy or with 4 beams) of a T5 and a Marian, forward passes of 128 tokens of a BERT, a
GPT-2 and a Llama, of an image of a ViT, with random weights of which a share is pruned, in float32. Peers, in the same process,
in turn: torch eager in float32 and in bfloat16, torch's dynamic int8 quantization, CTranslate2 in float32 and int8, and its int8
of the model with half of its neurons and a third of its layers removed. Ratios to eager are paired. Targets: `speed_up` at least
1.0x everywhere, at 90 % 2x (T5) and 4x (BERT); exported int8 of the smaller model 1.5x over int8 of the dense one.

    OMP_NUM_THREADS=1 python benchmarks/speed_up.py
"""

import argparse
import copy
import json
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import ctranslate2
import sentencepiece
import torch
import transformers as hf
from _common import describe_machine, paired_ratio, paired_times, print_table
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import nn

from sms_hf import drop_layers, prune, shrink, speed_up
from sms_hf.inference.depth import find_stacks

WORDS, LENGTH, TOKENS = 32000, 25, 10
BASE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 3, "num_attention_heads": 12}
T5 = {"d_model": 512, "d_ff": 2048, "num_layers": 3, "num_heads": 8, "vocab_size": WORDS, "decoder_start_token_id": 0}
PAD = WORDS - 1  # The last token of a Marian, as CTranslate2's loader wants it.
MARIAN = {"d_model": 512, "vocab_size": WORDS, "pad_token_id": PAD, "eos_token_id": 0, "decoder_start_token_id": PAD}
MARIAN |= {
    f"{side}_{what}": value for side in ("encoder", "decoder") for what, value in (("layers", 3), ("ffn_dim", 2048))
}
MARIAN |= {
    "encoder_attention_heads": 8,
    "decoder_attention_heads": 8,
    "forced_eos_token_id": 0,
    "activation_function": "relu",
}
GPT2 = {"n_embd": 768, "n_layer": 3, "n_head": 12, "vocab_size": 8000, "bos_token_id": 0, "eos_token_id": 1}
LLAMA = {**BASE, "vocab_size": 8000, "num_key_value_heads": 4, "bos_token_id": 0, "eos_token_id": 1}
SHAPES: dict[str, Callable[[], hf.PreTrainedModel]] = {
    "T5-small, 3+3 layers": lambda: hf.T5ForConditionalGeneration(hf.T5Config(**T5)),
    "Marian, 3+3 layers": lambda: hf.MarianMTModel(hf.MarianConfig(**MARIAN)),
    "BERT-base, 3 layers": lambda: hf.BertForSequenceClassification(hf.BertConfig(**BASE)),
    "GPT-2, 3 layers": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT2)),
    "Llama, 3 layers": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA)),
    "ViT-base, 3 layers": lambda: hf.ViTForImageClassification(hf.ViTConfig(**BASE)),
}
EXPORTED = ("t5", "marian", "gpt2", "llama")
Work = Callable[[], object]


def job(model: hf.PreTrainedModel, batch: int, beams: int) -> Work:
    """One unit of work of a model."""
    generator = torch.Generator().manual_seed(0)
    if model.main_input_name == "pixel_values":
        pixels = torch.randn(batch, 3, 224, 224, generator=generator).to(model.dtype)
        return lambda: model(pixel_values=pixels)
    generates = model.config.is_encoder_decoder
    tokens = torch.randint(3, 8000, (batch, LENGTH if generates else 128), generator=generator)
    if generates:
        options = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False, "num_beams": beams}
        return lambda: model.generate(tokens, **options)
    return lambda: model(input_ids=tokens)


def word_tokenizer(folder: Path, vocab_size: int) -> hf.PreTrainedTokenizerBase:
    """A token a word."""
    words = {"<pad>": 0, "</s>": 1, "<unk>": 2} | {f"w{i}": i for i in range(3, vocab_size)}
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="<unk>")),
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
    )
    tokenizer.bos_token = "<pad>"
    return tokenizer


def marian_tokenizer(folder: Path, vocab_size: int) -> hf.PreTrainedTokenizerBase:
    """A Marian's own, whose loader takes no other: the vocabulary counts, the sentencepiece models are never asked."""
    folder.mkdir(parents=True, exist_ok=True)
    sentences = [f"{letter} {letter}{letter}" for letter in "abcdefgh"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_prefix=str(folder / "any"), vocab_size=14, minloglevel=2
    )
    words = ["</s>", "<unk>", *(f"w{i}" for i in range(2, vocab_size - 1)), "<pad>"]
    (folder / "any.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    spm = str(folder / "any.model")
    return hf.MarianTokenizer(spm, spm, str(folder / "any.json"))


def exported(model: hf.PreTrainedModel, folder: Path, quantization: str | None) -> Callable[[int, int], Work]:
    """A model in CTranslate2: batch, beams -> the same unit of work."""
    model.save_pretrained(folder / "torch")
    make = marian_tokenizer if model.config.model_type == "marian" else word_tokenizer
    make(folder / "tokenizer", model.config.vocab_size).save_pretrained(folder / "torch")
    name = str(folder / (quantization or "float32"))
    ctranslate2.converters.TransformersConverter(str(folder / "torch")).convert(name, quantization=quantization)
    generator = torch.Generator().manual_seed(0)
    if not model.config.is_encoder_decoder:
        engine = ctranslate2.Generator(name, inter_threads=1, intra_threads=1)

        def forward(batch: int, beams: int) -> Work:
            rows = torch.randint(3, 8000, (batch, 128), generator=generator).tolist()
            return lambda: engine.forward_batch(rows)

        return forward
    translator = ctranslate2.Translator(name, inter_threads=1, intra_threads=1)

    def translate(batch: int, beams: int) -> Work:
        rows = [[f"w{i}" for i in row] for row in torch.randint(3, 8000, (batch, LENGTH), generator=generator).tolist()]
        options = {"beam_size": beams, "max_decoding_length": TOKENS, "min_decoding_length": TOKENS}
        return lambda: translator.translate_batch(rows, **options)

    return translate


def smaller(model: hf.PreTrainedModel) -> hf.PreTrainedModel:
    """Without a third of the layers and half of the neurons."""
    keep = {name: list(range(len(stack.layers) * 2 // 3)) for name, stack in find_stacks(model).items()}
    less = drop_layers(model, keep)
    prune(less, 0.5, pattern="neurons", scope="uniform")
    return shrink(less).eval()


def quantized(model: hf.PreTrainedModel) -> nn.Module | None:
    """By torch, as long as it can."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)
        except (AttributeError, RuntimeError):
            return None


def engines_of(
    dense: hf.PreTrainedModel, sparsities: list[float], folder: Path
) -> dict[str, Callable[[int, int], Work] | None]:
    """Name -> (batch, beams -> unit of work); `None` where an engine does not take the model."""

    def of(model):
        return lambda batch, beams: job(model, batch, beams)

    def pruned(sparsity):
        model = copy.deepcopy(dense)
        if sparsity:
            prune(model, sparsity, scope="uniform")
        return model

    int8 = quantized(dense)
    found = {
        "fp32 eager": of(dense),
        "bf16": of(copy.deepcopy(dense).to(torch.bfloat16)),
        "torch int8": int8 and of(int8),
    }
    if dense.config.model_type in EXPORTED:
        found["CT2"] = exported(dense, folder / "dense", None)
        found["CT2 int8"] = exported(dense, folder / "dense", "int8")
        found["CT2 int8, smaller"] = exported(smaller(dense), folder / "smaller", "int8")
    found |= {f"{s:.0%}": of(speed_up(pruned(s))) for s in sparsities}
    if dense.get_output_embeddings() is not None:
        found["90%, int8 head"] = of(speed_up(pruned(0.9), int8_head=True))
    return found


@torch.inference_mode()
def measure(engines: dict, batch: int, beams: int, repetitions: int) -> dict[str, str]:
    peers = {name: start(batch, beams) for name, start in engines.items() if start is not None}
    for call in peers.values():  # What each layer does is measured when a number of rows is first seen.
        call()
    times = paired_times(peers, repetitions)
    eager = times["fp32 eager"]
    row = {name: f"{paired_ratio(eager, seconds):.2f}x" for name, seconds in times.items()}
    row["fp32 eager"] = f"{sorted(eager)[len(eager) // 2] * 1e3:.0f} ms"
    if "CT2 int8" in times:
        row["smaller over CT2 int8"] = f"{paired_ratio(times['CT2 int8'], times['CT2 int8, smaller']):.2f}x"
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.0, 0.5, 0.7, 0.8, 0.9, 0.95])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--repetitions", type=int, default=3)
    options = parser.parse_args()
    hf.utils.logging.disable_progress_bar()
    hf.utils.logging.set_verbosity_error()
    print(describe_machine("transformers", "ctranslate2"))
    rows, columns = (
        [],
        ["fp32 eager", "bf16", "torch int8", "CT2", "CT2 int8", "CT2 int8, smaller", "smaller over CT2 int8"],
    )
    columns += [f"{s:.0%}" for s in options.sparsities] + ["90%, int8 head"]
    for name in options.shapes:
        torch.manual_seed(0)
        dense = SHAPES[name]().eval()
        with tempfile.TemporaryDirectory() as folder:
            engines = engines_of(dense, options.sparsities, Path(folder))
            for beams in (1, 4) if dense.config.is_encoder_decoder else (1,):
                for batch in options.batches:
                    row = measure(engines, batch, beams, options.repetitions)
                    how = (
                        f"{name}, {'greedy' if beams == 1 else f'{beams} beams'}"
                        if dense.config.is_encoder_decoder
                        else name
                    )
                    rows.append([how, batch, *(row.get(column, "-") for column in columns)])
                    print(*rows[-1], sep=" | ", flush=True)
    print_table(rows, ["model", "batch", *columns])


if __name__ == "__main__":
    main()
