"""A small run made by hand, for tests of its page: numbers that can be looked for."""

from copy import deepcopy
from typing import Any

EMPTIED, THIN = "encoder.q.weight", "encoder.o.weight"


def candidate(number: int, score: float, **changes: Any) -> dict[str, Any]:
    record = {
        "name": f"candidate-{number}",
        "overrides": {"seed": 40 + number},
        "steps": 30,
        "epochs": 1.0,
        "total_flos": 0.0,
        "train_loss": 1.5,
        "log": [{"loss": 3.0 / step, "step": 10 * step} for step in (1, 2, 3)],
        "failure": None,
        "metrics": {"bleu": score},
        "score": score,
        "seconds": 12.5,
    }
    return record | changes


def trial(
    names: list[str], score: float, accepted: bool, error: float | None = None, sure: float | None = None
) -> dict:
    return {"ingredients": names, "score": score, "accepted": accepted, "standard_error": error, "sure": sure}


def small_report() -> dict[str, Any]:
    """One phase: candidate 1 and 2 in the soup, 3 left out, 4 failed; one of two tensors emptied."""
    layers = {EMPTIED: 1.0, THIN: 0.25}
    pairs = [(1, 2, 0.125), (1, 3, 2.5), (2, 3, 0.75)]
    phase = {
        "number": 1,
        "parent": {
            "sparsity": 0.625,
            "model_sparsity": 0.5,
            "num_kept": 75,
            "num_weights": 200,
            "mask_fingerprint": "ab" * 32,
            "sparsity_per_tensor": layers,
            "norms": {"before": 2.0, "after": 1.5, "fraction": 0.625},
            "skipped_by_pattern": {},
            "origin": "cd" * 32,
        },
        "candidates": [
            candidate(1, 31.5),
            candidate(2, 30.25),
            candidate(3, 29.0),
            {**candidate(4, 0.0, failure="its loss is nan"), "score": None},
        ],
        "mean_score": 30.25,
        "best_score": 31.5,
        "soup": {
            "ingredients": ["candidate-1", "candidate-2"],
            "weights": [1.0, 1.0],
            "score": 33.0,
            "metrics": {"bleu": 33.0},
            "trials": [
                trial(["candidate-1"], 31.5, True),
                trial(["candidate-1", "candidate-2"], 33.0, True, 0.4, 0.97),
                trial(["candidate-1", "candidate-2", "candidate-3"], 32.25, False, 0.5, 0.81),
            ],
            "sparsity": 0.625,
            "sparsity_per_tensor": layers,
        },
        "diagnostics": {
            "geometry": {
                "distances": [[0, 7.25, 8], [7.25, 0, 9], [8, 9, 0]],
                "angles": [[0, 3, 4], [3, 0, 5], [4, 5, 0]],
            },
            "midpoints": [
                {"between": [f"candidate-{a}", f"candidate-{b}"], "loss": 1.0, "barrier": x} for a, b, x in pairs
            ],
            "warnings": ["candidate-1 and candidate-3 share no basin"],
            "theoretical_speedup": 1.75,
        },
        "seconds": 60.0,
    }
    settings = {
        "arguments": {
            "pruning_method": "sms",
            "target_sparsity": 0.625,
            "soup_method": "greedy",
            "greater_is_better": True,
        },
        "plan": [{"number": 1, "sparsity": 0.625, "candidates": [], "merge": "soup"}],
        "model": {
            "class": "T5ForConditionalGeneration",
            "num_parameters": 250,
            "config": {"d_model": 8},
            "weights": "ef" * 32,
        },
        "num_examples": {"train_dataset": 1000, "eval_dataset": None},
        "data": {"train_dataset": None},
        "versions": {"sms_hf": "0.1.0", "torch": "2.13.0"},
    }
    dense = {"bleu": 35.0, "loss": 1.0}
    return deepcopy({"version": 1, "metric": "bleu", "settings": settings, "dense": dense, "phases": [phase]})


def large_report(count: int = 200) -> dict[str, Any]:
    """One phase of many candidates, each with a long log, all in the soup."""
    report = small_report()
    phase = report["phases"][0]
    names = [f"candidate-{number}" for number in range(1, count + 1)]
    log = [{"loss": 1.0 + (step * 7919 % 13) / 10, "step": step} for step in range(1, 1001)]
    phase["candidates"] = [candidate(n, 30.0, log=log, started=1e9 + n, process=n % 8) for n in range(1, count + 1)]
    phase["soup"] |= {
        "ingredients": names,
        "trials": [trial(names[: n + 1], 33.0, True, 0.1, 0.9) for n in range(count)],
    }
    distances = [[float(abs(i - j)) for j in range(count)] for i in range(count)]
    phase["diagnostics"] = {"geometry": {"distances": distances, "angles": distances}, "warnings": ["no basin"] * 300}
    phase["soup"]["sparsity_per_tensor"] = {f"block.{i}.weight": 0.5 for i in range(1000)}
    return report
