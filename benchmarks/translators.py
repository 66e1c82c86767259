"""
Claim: what makes a translator smaller makes it faster, more or less, depending on the engine.

Measured: translators of Multi30k, each after `shrink` where there is something to remove: bytes of their weights (compact file
where that is smaller), BLEU on the test sentences (greedy), and milliseconds for a sentence, one at a time: torch eager,
`speed_up`, CTranslate2 in float32 and int8. Peer: the first model, in the same process, in turn. Medians. No target.

    OMP_NUM_THREADS=1 python benchmarks/translators.py dense=DIR soup=DIR ...
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import ctranslate2
import sacrebleu
import torch
from _common import describe_machine, paired_times, print_table
from transformers import AutoTokenizer
from transformers.utils.logging import disable_progress_bar
from vocabulary import DATA, lines, translate, translate_all

from sms_hf import export, load, pack, shrink
from sms_hf.inference import plan_shrinking


def size_of(folder: Path) -> int:
    """Bytes of the weights, in the smaller of the two forms."""
    pack(folder)
    return min(path.stat().st_size for path in folder.glob("model*.safetensors"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="NAME=FOLDER")
    parser.add_argument("--timed", type=int, default=50, help="sentences that are timed one at a time")
    options = parser.parse_args()
    if not DATA.is_dir():
        parser.exit(message=f"skipped: {DATA} is missing\n")
    torch.set_num_threads(1)
    disable_progress_bar()
    print(describe_machine("transformers", "ctranslate2"))
    sources, references = lines("test_2016_flickr.en"), lines("test_2016_flickr.de")
    calls, facts = {}, {}
    with tempfile.TemporaryDirectory() as work:
        for name, source in (model.split("=", 1) for model in options.models):
            model, tokenizer = load(source).eval(), AutoTokenizer.from_pretrained(source)
            model = shrink(model).eval() if plan_shrinking(model).kept else model
            folder = Path(work) / name
            model.save_pretrained(folder / "torch")
            tokenizer.save_pretrained(folder / "torch")
            bleu = sacrebleu.corpus_bleu(translate_all(model, tokenizer, sources), [references]).score
            facts[name] = [f"{model.num_parameters():,}", f"{size_of(folder / 'torch'):,}", f"{bleu:.2f}"]
            fast = load(folder / "torch", fast=True)
            calls[name, "torch eager"] = lambda text, m=model, t=tokenizer: translate(m, t, [text])
            calls[name, "speed_up"] = lambda text, m=fast, t=tokenizer: translate(m, t, [text])
            for how, quantization in (("CTranslate2", None), ("CTranslate2 int8", "int8")):
                export(folder / "torch", folder / how, quantization=quantization)
                engine = ctranslate2.Translator(str(folder / how), inter_threads=1, intra_threads=1)

                def write(text: str, engine=engine, t=tokenizer) -> object:
                    tokens = t.convert_ids_to_tokens(t(text)["input_ids"])
                    return engine.translate_batch([tokens], beam_size=1, max_decoding_length=60)

                calls[name, how] = write
        times = {key: [] for key in calls}
        for text in sources[: options.timed]:
            peers = {key: (lambda call=call, text=text: call(text)) for key, call in calls.items()}
            for key, seconds in paired_times(peers, 3).items():
                times[key] += seconds
    ways = list(dict.fromkeys(way for _, way in calls))
    median = {key: f"{1e3 * statistics.median(values):.1f}" for key, values in times.items()}
    rows = [[name, *facts[name], *(median[name, way] for way in ways)] for name in facts]
    print_table(rows, ["model", "parameters", "bytes", "BLEU", *(f"{way}, ms" for way in ways)])


if __name__ == "__main__":
    main()
