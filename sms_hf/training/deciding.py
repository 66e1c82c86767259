"""Which arguments decide what a run computes: they must be equal when it is resumed."""

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

CHOOSES_BEST = frozenset({"eval_strategy", "eval_steps", "eval_delay", "save_strategy", "save_steps"})
"""Of Trainer's arguments: with `load_best_model_at_end` they say which checkpoints there are to choose from."""

INCIDENTAL = frozenset(
    {
        # Where things go, and what they are called.
        *("output_dir", "run_name", "project", "logging_dir", "trackio_space_id", "trackio_bucket_id"),
        *(
            "trackio_static_space_id",
            "overwrite_output_dir",
            "resume_from_checkpoint",
            "do_train",
            "do_eval",
            "do_predict",
        ),
        # What is said meanwhile.
        *("logging_strategy", "logging_first_step", "logging_steps", "logging_nan_inf_filter", "log_level"),
        *("log_level_replica", "log_on_each_node", "report_to", "disable_tqdm", "include_num_input_tokens_seen"),
        *("include_tokens_per_second", "skip_memory_metrics", "debug", "enable_jit_checkpoint"),
        # What is kept of it on the way.
        *("save_total_limit", "save_only_model", "save_on_each_node", "restore_callback_states_from_checkpoint"),
        *("eval_on_start", "eval_do_concat_batches", "do_concat_batches", "batch_eval_metrics", "prediction_loss_only"),
        *("include_for_metrics", "eval_use_gather_object", "eval_accumulation_steps", "per_device_eval_batch_size"),
        # The Hub.
        *(
            "push_to_hub",
            "hub_model_id",
            "hub_strategy",
            "hub_token",
            "hub_private_repo",
            "hub_always_push",
            "hub_revision",
        ),
        # The machine, and how it is made to go faster or to need less memory for the same numbers.
        *("use_cpu", "local_rank", "ddp_backend", "ddp_timeout", "ddp_bucket_cap_mb", "ddp_broadcast_buffers"),
        *(
            "ddp_find_unused_parameters",
            "ddp_static_graph",
            "accelerator_config",
            "parallelism_config",
            "fsdp",
            "fsdp_config",
        ),
        *("deepspeed", "dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers"),
        *(
            "dataloader_prefetch_factor",
            "dataloader_in_order",
            "dataloader_multiprocessing_context",
            "ignore_data_skip",
            "torch_empty_cache_steps",
            "auto_find_batch_size",
        ),
        *("dataloader_in_order", "dataloader_multiprocessing_context"),
        *("gradient_checkpointing", "gradient_checkpointing_kwargs", "activation_checkpointing"),
        *("activation_checkpointing_kwargs", "torch_compile", "torch_compile_backend", "torch_compile_mode"),
        *("use_liger_kernel", "liger_kernel_config", "full_determinism"),
    }
)
"""Trainer's arguments that change where a run goes, what it says or how fast it is, but not what it computes."""


def deciding_arguments(args: Any) -> dict[str, Any]:
    """
    The arguments that a result depends on, as JSON values: all but those that are known not to matter.

    Those are `args.incidental`, of Trainer's `INCIDENTAL`, and `CHOOSES_BEST` where no best checkpoint is chosen.
    """
    told = INCIDENTAL | args.incidental | (frozenset() if args.load_best_model_at_end else CHOOSES_BEST)
    return {f.name: _plain(getattr(args, f.name)) for f in fields(args) if f.name not in told}


def _plain(value: Any) -> Any:
    """Enums as their values, what is no JSON by its name."""
    value = getattr(value, "value", value)
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(part) for part in value]
    try:
        return json.loads(json.dumps(value))
    except TypeError:
        return getattr(value, "__qualname__", None) or type(value).__name__


def selection_metric(name: str | None, greater_is_better: bool | None) -> tuple[str, bool]:
    """What `metric_for_best_model` and `greater_is_better` ask for: a metric, and whether greater is better."""
    name = name or "loss"
    return name.removeprefix("eval_"), not name.endswith("loss") if greater_is_better is None else greater_is_better
