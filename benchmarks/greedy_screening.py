"""
Question: can a greedy soup try its averages on a part of the evaluation rows, and choose as if it had looked at all?

A greedy soup of m candidates asks for 2 m - 1 evaluations. Screened, each trial is first scored on a part of the rows; where
that part leaves a gain within one standard error of zero, it is scored on all rows, as long as m + 2 such scores are not used
up (m of them the candidates' own, one for the soup that comes out); the rest is decided by the part. The part is either any
one, whose mean gain stands for that of all rows, or the rows in which the candidates' own scores differ most, beside which
nothing is believed to change. Measured on candidates that a run has left (keep_candidates), over bootstrap samples of the
evaluation rows: how often the choice is that of the greedy soup on all rows of the sample, what the score loses, and how many
evaluations are saved.

    python recipes/image_classification.py --demo --num_candidates 10 --num_phases 1 --keep_candidates true ... --output_dir RUN
    python benchmarks/greedy_screening.py RUN
"""

import argparse
import itertools
import statistics
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from _common import describe_machine, print_table
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification
from transformers.utils.logging import disable_progress_bar

from sms_hf.demo import DIGIT_SCALES, demo_digits
from sms_hf.soup import Pool
from sms_hf.soup.ingredients import greedy_ingredients

PARTS = ("any", "differing")
METRICS = {"accuracy": True, "loss": False}


class Rows:
    """Accuracy and loss of every validation row, of every average that is asked for."""

    def __init__(self, run: Path):
        disable_progress_bar()
        self.model = AutoModelForImageClassification.from_pretrained(run).eval()
        folders = sorted((run / "_run/phase-1").glob("candidate-*/model.safetensors"))
        self.weights = {path.parent.name: load_file(path) for path in folders}
        data = demo_digits(DIGIT_SCALES[self.model.config.model_type])["validation"][:]
        self.pixels, self.labels = data["pixel_values"], data["labels"]
        self.seen: dict[frozenset[str], dict[str, np.ndarray]] = {}

    @torch.no_grad()
    def of(self, names: frozenset[str], metric: str) -> np.ndarray:
        if names not in self.seen:
            parts = [self.weights[name] for name in sorted(names)]
            mean = {k: (sum(p[k].double() for p in parts) / len(parts)).to(v.dtype) for k, v in parts[0].items()}
            self.model.load_state_dict(mean)
            logits = self.model(pixel_values=self.pixels).logits
            self.seen[names] = {
                "accuracy": (logits.argmax(-1) == self.labels).double().numpy(),
                "loss": torch.nn.functional.cross_entropy(logits, self.labels, reduction="none").double().numpy(),
            }
        return self.seen[names][metric]


def screened(
    rows: Rows, names: list[str], metric: str, sample: np.ndarray, share: float, kind: str
) -> tuple[list[str], int]:
    """The choice, and how many evaluations of all rows it took beside those of the candidates."""
    sign = 1 if METRICS[metric] else -1
    count = max(round(share * len(sample)), 2)
    part = sample[:count] if kind == "any" else sample[differing(rows, names, metric, sample)[:count]]
    # Any part stands for all rows; beside the differing ones there is nothing to gain.
    scale = 1.0 if kind == "any" else count / len(sample)

    def values(chosen: list[str], on: np.ndarray) -> np.ndarray:
        return sign * rows.of(frozenset(chosen), metric)[on]

    order = sorted(names, key=lambda name: -values([name], sample).mean())
    chosen, full = [order[0]], 0
    for name in order[1:]:
        gains = values([*chosen, name], part) - values(chosen, part)
        gain, error = scale * gains.mean(), scale * gains.std(ddof=1) / count**0.5
        if abs(gain) <= error and full < 1:
            full += 1
            gain = values([*chosen, name], sample).mean() - values(chosen, sample).mean()
        if gain >= 0:
            chosen.append(name)
    if values(chosen, sample).mean() < values(order[:1], sample).mean():
        chosen = order[:1]
    return chosen, full + 1


def differing(rows: Rows, names: list[str], metric: str, sample: np.ndarray) -> np.ndarray:
    """Positions in the sample, those first in which the candidates' own scores differ most; one order for all trials."""
    spread = np.std([rows.of(frozenset([name]), metric)[sample] for name in names], axis=0)
    return np.argsort(-spread, kind="stable")


def greedy(rows: Rows, names: list[str], metric: str, sample: np.ndarray) -> list[str]:
    def score(weights: Mapping[str, float]) -> float:
        return float(rows.of(frozenset(weights), metric)[sample].mean())

    return list(greedy_ingredients(Pool({name: score({name: 1}) for name in names}, score, METRICS[metric]))[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="Folders of runs on the digits, with their candidates.")
    parser.add_argument("--repeats", type=int, default=200)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(describe_machine())
    lines = []
    for run in options.runs:
        rows = Rows(run)
        for metric in METRICS:
            for m in (3, 5, 10):
                names = sorted(rows.weights, key=lambda name: int(name.split("-")[1]))[:m]
                for kind, share in itertools.product(PARTS, (0.25, 0.5)):
                    draw, same, losses, evaluations = np.random.default_rng(0), 0, [], []
                    for _ in range(options.repeats):
                        sample = draw.integers(len(rows.labels), size=len(rows.labels))
                        wanted = greedy(rows, names, metric, sample)
                        found, full = screened(rows, names, metric, sample, share, kind)
                        same += set(wanted) == set(found)
                        means = [rows.of(frozenset(c), metric)[sample].mean() for c in (wanted, found)]
                        losses.append(abs(means[0] - means[1]))
                        evaluations.append(m + full + share * (m - 1))
                    lost, spent = statistics.fmean(losses), statistics.fmean(evaluations)
                    lines.append(
                        [
                            run.name,
                            metric,
                            m,
                            kind,
                            f"1/{1 / share:g}",
                            f"{same / options.repeats:.0%}",
                            f"{lost:.4f}",
                            f"{spent:.1f}",
                            2 * m - 1,
                        ]
                    )
    print_table(lines, ["run", "metric", "m", "part", "rows", "same choice", "score lost", "evaluations", "greedy's"])


if __name__ == "__main__":
    main()
