"""What a run writes about itself: pure functions from results to JSON values."""

import dataclasses
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, TrainerState
from transformers.trainer_utils import TrainOutput

from ...sparsity.masks import Masks
from ..deciding import deciding_arguments
from ..masked.candidate import Norms
from ..plan.candidates import Phase
from .fingerprints import data_digest, weights_digest

TIMINGS = ("_runtime", "_per_second", "_preparation_time")
PACKAGES = ("torch", "transformers", "accelerate")


def run_settings(
    args: Any, plan: Sequence[Phase], model: nn.Module, data: Mapping[str, Any], num_examples: Mapping[str, int | None]
) -> dict[str, Any]:
    """
    What makes a run this run: compared when it is resumed.

    Args:
        args ([`SparseSoupArguments`]), plan (`Sequence[Phase]`), model (`nn.Module`): Of the run, the model before pruning.
        data (`Mapping`): Name -> data set.
        num_examples (`Mapping`): Name -> its rows, where they are known.
    """
    return {
        "arguments": deciding_arguments(args),
        "plan": [dataclasses.asdict(phase) for phase in plan],
        "model": {
            "class": type(model).__name__,
            "num_parameters": sum(p.numel() for p in model.parameters()),
            "config": _own_config(model),
            "weights": weights_digest(model),
        },
        "num_examples": dict(num_examples),
        "data": {name: data_digest(dataset) for name, dataset in data.items()},
        # Its own from itself: a checkout need not be installed.
        "versions": {
            "sms_hf": sys.modules["sms_hf"].__version__,
            **{package: version(package) for package in PACKAGES},
        },
    }


def _own_config(model: Any) -> dict[str, Any]:
    """What the model's configuration (dropout, for one) has other than its class; not where it came from, which may move."""
    config = getattr(model, "config", None)
    if not isinstance(config, PreTrainedConfig):
        return {}
    values = json.loads(config.to_json_string(use_diff=True))
    return {key: value for key, value in values.items() if key not in ("_name_or_path", "transformers_version")}


def origin(settings: Mapping[str, Any]) -> str:
    """
    What a phase's parent says of the run that made it: digest of the settings, which know the weights before pruning.

    Equal runs have equal ones, on any number of processes.
    """
    told = {key: value for key, value in settings.items() if key != "versions"}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def parent_record(model: nn.Module, masks: Masks, norms: Norms, skipped: Mapping[str, str]) -> dict[str, Any]:
    """The parent of a phase: what was removed, and which tensors a pattern of N:M could not take."""
    return {
        "sparsity": masks.sparsity(),
        "model_sparsity": (masks.num_weights - masks.num_kept) / sum(p.numel() for p in model.parameters()),
        "num_kept": masks.num_kept,
        "num_weights": masks.num_weights,
        "mask_fingerprint": masks.fingerprint(),
        "sparsity_per_tensor": masks.sparsity_per_tensor(),
        "norms": dataclasses.asdict(norms),
        "skipped_by_pattern": dict(skipped),
    }


def phase_record(
    phase: Phase,
    parent: Mapping[str, Any],
    candidates: Sequence[Mapping[str, Any]],
    soup: Mapping[str, Any] | None,
    diagnostics: Mapping[str, Any],
    greater_is_better: bool,
) -> dict[str, Any]:
    """A phase in the report: parent, candidates with mean and best, soup with its ingredients and every trial."""
    scores = [candidate["score"] for candidate in candidates if not candidate["failure"]]
    return {
        "number": phase.number,
        "parent": dict(parent),
        "candidates": [{k: v for k, v in candidate.items() if k != "resampled"} for candidate in candidates],
        "mean_score": sum(scores) / len(scores),
        "best_score": max(scores) if greater_is_better else min(scores),
        "soup": None if soup is None else dict(soup),
        "diagnostics": dict(diagnostics),
    }


def train_output(report: Mapping[str, Any], seconds: float) -> TrainOutput:
    """The report as Trainer returns it."""
    candidates = [c for phase in report["phases"] for c in phase["candidates"]]
    metrics: dict[str, float] = {"train_runtime": seconds}
    for phase in report["phases"]:
        prefix = f"phase_{phase['number']}"
        metrics[f"{prefix}_sparsity"] = phase["soup"]["sparsity"] if phase["soup"] else phase["parent"]["sparsity"]
        metrics[f"{prefix}_mean_candidate_{report['metric']}"] = phase["mean_score"]
        metrics[f"{prefix}_best_candidate_{report['metric']}"] = phase["best_score"]
        if phase["soup"]:
            metrics |= {f"{prefix}_soup_{key}": value for key, value in phase["soup"]["metrics"].items()}
    losses = [c["train_loss"] for c in candidates if c["train_loss"] is not None]
    loss = sum(losses) / len(losses) if losses else 0.0
    return TrainOutput(sum(c["steps"] for c in candidates), loss, metrics)


def final_state(report: Mapping[str, Any]) -> TrainerState:
    """
    What `trainer.state` holds after a run: steps, epochs and operations of all candidates together, and one history of them.

    Its entries are those that each candidate logged, its final metrics, and those of each phase's soup, with `phase`
    (from 1) and `candidate` or `soup` beside them. `step` counts on from one candidate to the next.
    """
    history: list[dict[str, Any]] = []
    state = TrainerState(log_history=history, epoch=0.0)
    for phase in report["phases"]:
        for candidate in phase["candidates"]:
            whose = {"phase": phase["number"], "candidate": candidate["name"]}
            history += [{**entry, **whose, "step": state.global_step + entry["step"]} for entry in candidate["log"]]
            state.global_step += candidate["steps"]
            state.epoch = (state.epoch or 0.0) + candidate["epochs"]
            state.total_flos += candidate["total_flos"]
            if candidate["failure"] is None:
                history.append({**_evaluated(candidate), **whose, "step": state.global_step})
        if phase["soup"]:
            whose = {"phase": phase["number"], "soup": phase["soup"]["ingredients"]}
            history.append({**_evaluated(phase["soup"]), **whose, "step": state.global_step})
    state.max_steps = state.global_step
    return state


def _evaluated(record: Mapping[str, Any]) -> dict[str, Any]:
    return {f"eval_{name}": value for name, value in record["metrics"].items()}


def without_timings(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics as Trainer returns or logs them, but for those of the clock: what is left is the same in every run."""
    return {name: value for name, value in metrics.items() if not name.endswith(TIMINGS)}
