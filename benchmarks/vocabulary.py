"""
Claim: a translator without the tokens that do not occur is smaller and translates as before.

Measured: a T5 for Multi30k before and after `sms_hf.trim_vocabulary` on the first pairs of its training data: tokens,
parameters, bytes, BLEU on the test sentences (greedy), outputs that are the same text, and time for a sentence. Peer: the model
before, in the same process, in turn, one sentence at a time. The ratio is the median of paired ones. No target: its
vocabulary was made for these texts, so there is little to remove.

    python benchmarks/vocabulary.py
"""

import argparse
import gzip
from pathlib import Path

import sacrebleu
import torch
from _common import describe_machine, paired_ratio, paired_times, print_table
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from sms_hf import trim_vocabulary

SHARED = Path(__file__).parents[2] / "shared"
DATA, MODEL = SHARED / "data" / "multi30k", SHARED / "models" / "t5-tiny-multi30k-en-de"


def lines(name: str) -> list[str]:
    with gzip.open(DATA / f"{name}.gz", "rt", encoding="utf-8") as file:
        return file.read().splitlines()


@torch.inference_mode()
def translate(model, tokenizer, sentences: list[str]) -> list[str]:
    inputs = tokenizer(sentences, return_tensors="pt", padding=True)
    return tokenizer.batch_decode(
        model.generate(**inputs, max_new_tokens=60, num_beams=1, do_sample=False), skip_special_tokens=True
    )


def translate_all(model, tokenizer, sentences: list[str], batch: int = 50) -> list[str]:
    starts = range(0, len(sentences), batch)
    return [text for start in starts for text in translate(model, tokenizer, sentences[start : start + batch])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="+", default=[29_000, 5_000, 1_000], help="of the training data")
    parser.add_argument("--timed", type=int, default=60, help="sentences that are timed one at a time")
    options = parser.parse_args()
    if not (DATA.is_dir() and MODEL.is_dir()):
        parser.exit(message=f"skipped: {SHARED} is missing\n")
    torch.set_num_threads(1)
    disable_progress_bar()
    print(describe_machine("transformers", "tokenizers"))
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(MODEL).eval(), AutoTokenizer.from_pretrained(MODEL)
    sources, references = lines("test_2016_flickr.en"), lines("test_2016_flickr.de")
    train = lines("train.en"), lines("train.de")
    before = translate_all(model, tokenizer, sources)

    def row(name: str, model, tokenizer, outputs: list[str], speed: str) -> list[str]:
        tokens, parameters = f"{len(tokenizer):,}", f"{model.num_parameters():,}"
        size = sum(p.numel() * p.element_size() for p in model.parameters())
        same = sum(a == b for a, b in zip(outputs, before, strict=True))
        bleu = sacrebleu.corpus_bleu(outputs, [references]).score
        return [name, tokens, parameters, f"{size:,}", f"{bleu:.2f}", f"{same:,}", speed]

    rows = [row("before", model, tokenizer, before, "1")]
    for count in options.pairs:
        small, smaller = trim_vocabulary(model, tokenizer, train[0][:count], train[1][:count])
        after = translate_all(small, smaller, sources)
        ratios = []
        for text in sources[: options.timed]:
            peers = {
                "old": lambda text=text: translate(model, tokenizer, [text]),
                "new": lambda text=text, small=small, smaller=smaller: translate(small, smaller, [text]),
            }
            times = paired_times(peers, 3)
            ratios.append(paired_ratio(times["old"], times["new"]))
        rows.append(row(f"{count:,} pairs", small, smaller, after, f"{sorted(ratios)[len(ratios) // 2]:.2f}x"))
    print_table(rows, ["trimmed by", "tokens", "parameters", "bytes", "BLEU", "same outputs", "speed"])


if __name__ == "__main__":
    main()
