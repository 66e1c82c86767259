"""
Claim: layers chosen by the loss cost less than those chosen by how little they change their input, or the last ones.

Measured: a classifier with fewer layers, not retrained; accuracy on the validation file, layers chosen on the first 256 rows of
the training file. Peers: `criterion="influence"` (ShortGPT), and the first n layers. No target.

    OMP_NUM_THREADS=1 python benchmarks/depth.py --model MINILM_SST2 --train train.csv.gz --validation val.csv.gz
"""

import argparse
import statistics

import torch
from _common import describe_machine, print_table
from datasets import load_dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from sms_hf import drop_layers
from sms_hf.inference import choose_layers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a fine-tuned classifier with one stack of layers")
    parser.add_argument("--train", required=True, help="CSV with sentence and label")
    parser.add_argument("--validation", required=True)
    options = parser.parse_args()
    print(describe_machine("transformers"))
    model = AutoModelForSequenceClassification.from_pretrained(options.model).eval()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    files = {"train": options.train, "validation": options.validation}
    data = load_dataset("csv", data_files=files)

    def batches(split: str, count: int):
        for start in range(0, count, 32):
            rows = data[split][start : start + 32]
            yield tokenizer(rows["sentence"], return_tensors="pt", padding=True), torch.tensor(rows["label"])

    def calibration(model):
        return (model(**inputs, labels=labels).loss for inputs, labels in batches("train", 256))

    @torch.inference_mode()
    def accuracy(model) -> str:
        right = [
            float(hit)
            for inputs, labels in batches("validation", len(data["validation"]))
            for hit in model(**inputs).logits.argmax(-1) == labels
        ]
        return f"{statistics.fmean(right) * 100:.1f}"

    depth = model.config.num_hidden_layers
    table = [[depth, accuracy(model), "", "", "", ""]]
    for number in range(depth - 1, 0, -1):
        row: list[object] = [number]
        for criterion in ("loss", "influence"):
            layers = choose_layers(model, number, calibration, criterion)
            row += [accuracy(drop_layers(model, layers)), ", ".join(str(i) for i in layers["layers"])]
        table.append([*row, accuracy(drop_layers(model, {"layers": list(range(number))}))])
    print_table(table, ["layers", "by loss, %", "which", "by influence, %", "which", "the first, %"])


if __name__ == "__main__":
    main()
