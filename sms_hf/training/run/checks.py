"""
What can be told before anything is trained: settings that do not go together, and data that the model cannot take.

What is wrong with the data shows in their first batch; it is said in words of the data.
"""

from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from ...sparsity.prunable import find_prunable
from ..cost.measure import num_examples
from ..processes.groups import make_group
from ..spawning import check_copyable, overridden_by
from .bench import Bench


def check_inputs(bench: Bench, resume_from_checkpoint: Any, trial: Any) -> None:
    """
    Look at a trainer and at the arguments of its `train()`.

    Raises:
        ValueError: For what would fail later, or do something else than it says.
    """
    trainer, args = bench.trainer, bench.args
    if trial is not None:
        raise ValueError("Expected no hyperparameter search trial. Use `vary` to train candidates with other settings.")
    if resume_from_checkpoint not in (None, True, False):
        raise ValueError(
            f"resume_from_checkpoint must be True or False, got {resume_from_checkpoint!r}. A run is resumed from its "
            "output_dir, whatever it had finished."
        )
    check_copyable(trainer)
    make_group(args.processes, args.candidate_processes)
    if trainer.optimizer is not None or trainer.lr_scheduler is not None:
        raise ValueError(
            "Expected no `optimizers`: one optimizer cannot serve several candidates. Pass "
            "optimizer_cls_and_kwargs=(cls, {...}), or set optim, learning_rate and lr_scheduler_type in args."
        )
    if trainer.optimizer_cls_and_kwargs is not None and "learning_rate" in cast("dict", args.vary or {}):
        raise ValueError(
            "Expected `vary` without learning_rate, because optimizer_cls_and_kwargs sets the learning rate itself. "
            "Use optim and learning_rate in args instead."
        )
    for name, count in num_examples(trainer).items():
        if count == 0:
            raise ValueError(f"{name} must hold at least one example, got an empty one. Check files and filters.")
    if trainer.train_dataset is None or trainer.eval_dataset is None:
        raise ValueError("Expected train_dataset and eval_dataset: candidates are trained on one, scored on the other.")
    by_row = {
        f"candidate_data={args.candidate_data!r}": args.candidate_data != "all",
        "distill_cache": args.distill_cache,
    }
    for option in [name for name, asked in by_row.items() if asked and not hasattr(trainer.train_dataset, "__len__")]:
        raise ValueError(
            f"{option} needs a train_dataset whose length is known, got a {type(trainer.train_dataset).__name__}. Leave it out."
        )
    if args.retrained != "all" and not any(p.requires_grad and p.dim() < 2 for p in trainer.model.parameters()):
        raise ValueError(
            f"Expected biases or norms to train with retrained={args.retrained!r}, found none in {type(trainer.model).__name__}. "
            "Leave it out."
        )
    find_prunable(trainer.model, args.target_modules, args.exclude_modules)
    bench.skipped_by_pattern(trainer.model)
    judge = bench.judge(trainer.model)
    check_first_batch(judge, trainer.train_dataset, "train_dataset")
    check_first_batch(judge, trainer.eval_dataset, "eval_dataset")


def check_first_batch(judge: Any, dataset: Any, name: str) -> None:
    """
    Collate the first rows of a data set and look whether the model can take them.

    Data that can be read only once (streams) are left alone.

    Args:
        judge (`Trainer`): Not the one whose data are to be trained on: its collator may draw numbers.
        dataset (`Dataset`): As `train_dataset` or `eval_dataset`.
        name (`str`): What the user calls it.

    Raises:
        ValueError: Where no column is an input of the model, there are no labels, or tokens are not in the vocabulary.
    """
    if not hasattr(dataset, "__len__") or isinstance(dataset, dict):
        return
    _check_columns(judge, dataset, name)
    with torch.random.fork_rng():
        batch = next(iter(judge.get_eval_dataloader(dataset)))
    if not hasattr(batch, "keys"):
        return
    _check_labels(judge, batch, name)
    model = judge.model
    if isinstance(model, PreTrainedModel):
        _check_tokens(model, batch, name)
        if model.config.model_type == "fsmt" and "decoder_input_ids" not in batch:
            # Its forward would shift the source instead, and train on that without a word.
            raise ValueError(
                f"Expected decoder_input_ids in the batches of {name}, which FSMT does not make from labels, got "
                f"{sorted(batch)}. Collate by DataCollatorForSeq2Seq(tokenizer, model=model)."
            )


def _check_columns(judge: Any, dataset: Any, name: str) -> None:
    columns = getattr(dataset, "column_names", None)
    if not columns or not judge.args.remove_unused_columns:
        return
    judge._set_signature_columns_if_needed()
    taken = judge._signature_columns
    if not set(columns).intersection(taken):
        raise ValueError(
            f"Expected columns in {name} that {type(judge.model).__name__} takes ({', '.join(taken[:3])}, ...), got {columns}. "
            f"Tokenize first: {name}.map(lambda row: tokenizer(row[{columns[0]!r}], truncation=True)). Columns that only the "
            "collator reads need remove_unused_columns=False."
        )


def _check_labels(judge: Any, batch: Any, name: str) -> None:
    makes_its_own_loss = overridden_by(type(judge), "compute_loss") is not None or "compute_loss" in vars(judge)
    if makes_its_own_loss or judge.can_return_loss or any(batch.get(label) is not None for label in judge.label_names):
        return
    raise ValueError(
        f"Expected labels ({', '.join(judge.label_names)}) in the batches of {name}, got {sorted(batch)}: there is no loss. Let "
        "the collator make them (DataCollatorForSeq2Seq(tokenizer, model=model), DataCollatorForLanguageModeling(tokenizer, "
        "mlm=False)), or say in label_names how they are called."
    )


def _check_tokens(model: PreTrainedModel, batch: Any, name: str) -> None:
    """Token ids beyond the embeddings: on a GPU an assertion that names nothing, on a CPU an index out of range."""
    for key, embeddings in (("input_ids", model.get_input_embeddings), ("labels", model.get_output_embeddings)):
        try:
            weight = getattr(embeddings(), "weight", None)
        except NotImplementedError:
            continue
        ids = batch.get(key)
        if not isinstance(weight, nn.Parameter) or not _are_tokens(ids) or int(ids.max()) < len(weight):
            continue
        raise ValueError(
            f"Expected {key} of {name} below {len(weight)}, the tokens that {type(model).__name__} knows, got {int(ids.max())}. "
            "Use the model's own tokenizer, or model.resize_token_embeddings(len(tokenizer))."
        )


def _are_tokens(ids: Any) -> bool:
    return isinstance(ids, torch.Tensor) and ids.dim() == 2 and ids.numel() > 0 and not ids.is_floating_point()
