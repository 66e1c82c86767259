"""
Question (open in Sparse Model Soups, section 5): does the gain of a soup survive the quantization of its weights?

Measured: test accuracy of pruned digit classifiers whose pruned layers are rounded to 8, 4 and 3 bits, symmetric, a scale for
every output (zeros stay zeros): the soup, the mean of its candidates, and rows that average nothing. The weights are those
that a comparison has left:

    python recipes/compare.py recipes/compare_copies.yaml --models ViT ResNet --methods SMS IMP_m× --keep_weights --output_dir DIR
    python benchmarks/quantization.py DIR
"""

import argparse
import statistics
from pathlib import Path

import torch
from _common import describe_machine, print_table
from transformers import AutoModelForImageClassification
from transformers.utils.logging import disable_progress_bar

from sms_hf import Masks
from sms_hf.demo import DIGIT_SCALES, demo_digits

BITS = (32, 8, 4, 3)


def round_(model: torch.nn.Module, masks: Masks, bits: int) -> None:
    """Round the pruned layers to `2^bits - 1` levels from -max to max of every row; 32 bits change nothing."""
    levels = 2 ** (bits - 1) - 1
    for name in masks if bits < 32 else ():
        weight = model.get_parameter(name).data
        rows = weight.flatten(1)
        scale = rows.abs().amax(1, keepdim=True).clamp_min(1e-12) / levels
        weight.copy_((rows / scale).round().mul(scale).view_as(weight))


@torch.no_grad()
def accuracy(folder: Path, bits: int) -> float:
    """On the test images, in percent."""
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    round_(model, Masks.of(folder), bits)
    test = demo_digits(DIGIT_SCALES[model.config.model_type])["test"][:]
    return 100 * float((model(pixel_values=test["pixel_values"]).logits.argmax(-1) == test["labels"]).float().mean())


def models_of(cell: Path, row: str) -> dict[str, list[Path]]:
    """Label -> models: a soup has its candidates beside it."""
    phases = sorted((cell / "_run").glob("phase-*"), key=lambda phase: int(phase.name.split("-")[1]))
    candidates = [
        folder for folder in sorted(phases[-1].glob("candidate-*")) if (folder / "model.safetensors").is_file()
    ]
    return {row: [cell], **({f"{row}, mean candidate": candidates} if len(candidates) > 1 else {})}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="Of a comparison on the digits, run with --keep_weights.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    disable_progress_bar()
    print(describe_machine())
    found: dict[tuple[str, str], dict[int, list[float]]] = {}
    for result in sorted(options.folder.glob("**/result.json")):
        cell = result.parent
        model, row = cell.relative_to(options.folder).parts[:2]
        for label, folders in models_of(cell, row).items():
            scores = found.setdefault((model, label), {bits: [] for bits in BITS})
            for bits in BITS:
                scores[bits].append(statistics.fmean(accuracy(folder, bits) for folder in folders))
    if not found:
        raise SystemExit(
            f"Expected finished cells in {options.folder}, found none. Run a comparison with --keep_weights."
        )
    lines = [
        [model, row, *(f"{statistics.fmean(scores[bits]):.2f}" for bits in BITS), len(scores[32])]
        for (model, row), scores in found.items()
    ]
    print_table(lines, ["model", "row", "fp32", *(f"{bits} bits" for bits in BITS[1:]), "seeds"])


if __name__ == "__main__":
    main()
