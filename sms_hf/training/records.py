"""What a run writes about itself: pure functions from results to JSON values."""

import dataclasses
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from transformers.trainer_utils import TrainOutput

from ..soup.recipes import GreedyTrial
from .candidates import HYPERPARAMETERS, Phase

# Besides the hyperparameters, the arguments that change the result of a run. Others may differ when it is resumed.
DECIDING = (
    "target_sparsity",
    "num_phases",
    "num_candidates",
    "vary",
    "soup_method",
    "pruning_scope",
    "pruning_criterion",
    "target_modules",
    "exclude_modules",
    "max_sparsity_per_layer",
    "metric_for_best_model",
    "greater_is_better",
    "load_best_model_at_end",
    "bf16",
    "fp16",
    "predict_with_generate",
    "generation_max_length",
    "generation_num_beams",
)
PACKAGES = ("sms_hf", "torch", "transformers", "accelerate")


def run_settings(
    args: Any, plan: Sequence[Phase], model: Any, num_examples: Mapping[str, int | None]
) -> dict[str, Any]:
    """What makes a run this run: compared when it is resumed."""
    return {
        "arguments": {key: _plain(getattr(args, key)) for key in (*DECIDING, *HYPERPARAMETERS) if hasattr(args, key)},
        "plan": [dataclasses.asdict(phase) for phase in plan],
        "model": {"class": type(model).__name__, "num_parameters": sum(p.numel() for p in model.parameters())},
        "num_examples": dict(num_examples),
        "versions": {package: version(package) for package in PACKAGES},
    }


def phase_record(
    phase: Phase,
    parent: Mapping[str, Any],
    candidates: Sequence[Mapping[str, Any]],
    ingredients: Sequence[str],
    trials: Sequence[GreedyTrial],
    metrics: Mapping[str, float],
    metric: str,
    greater_is_better: bool,
) -> dict[str, Any]:
    """A phase in the report: parent, candidates with mean and best, soup with its ingredients and every trial."""
    scores = [candidate["score"] for candidate in candidates if not candidate["diverged"]]
    return {
        "number": phase.number,
        "parent": dict(parent),
        "candidates": [dict(candidate) for candidate in candidates],
        "mean_score": sum(scores) / len(scores),
        "best_score": max(scores) if greater_is_better else min(scores),
        "soup": {
            "ingredients": list(ingredients),
            "score": metrics[metric],
            "metrics": dict(metrics),
            "trials": [dataclasses.asdict(trial) for trial in trials],
        },
    }


def train_output(report: Mapping[str, Any], seconds: float) -> TrainOutput:
    """The report as Trainer returns it."""
    candidates = [c for phase in report["phases"] for c in phase["candidates"]]
    metrics: dict[str, float] = {"train_runtime": seconds}
    for phase in report["phases"]:
        prefix = f"phase_{phase['number']}"
        metrics[f"{prefix}_sparsity"] = phase["parent"]["sparsity"]
        metrics[f"{prefix}_mean_candidate_{report['metric']}"] = phase["mean_score"]
        metrics[f"{prefix}_best_candidate_{report['metric']}"] = phase["best_score"]
        metrics |= {f"{prefix}_soup_{key}": value for key, value in phase["soup"]["metrics"].items()}
    loss = sum(c["train_loss"] for c in candidates) / len(candidates)
    return TrainOutput(sum(c["steps"] for c in candidates), loss, metrics)


def _plain(value: Any) -> Any:
    """Enums as their values; the rest is JSON already."""
    return getattr(value, "value", value)
