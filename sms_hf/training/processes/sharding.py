"""Candidates whose weights are spread over the processes of a group (FSDP2)."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...sparsity.masks import is_sharded, plain_name
from .groups import is_in_group

DEFERRED = "deferred"


@torch.no_grad()
def plain_model(model: nn.Module, copy: Callable[[], nn.Module], keep: bool) -> nn.Module | None:
    """
    The model that a trainer in a group has trained, as it was before it was sharded.

    All processes of the group must call this, before they leave [`training_group`].

    Args:
        model (`nn.Module`): `trainer.model`. By DDP it is plain.
        copy (`Callable`): Makes a plain model, whose weights are overwritten.
        keep (`bool`): Whether this process needs the model; the others get `None`.
    """
    if not any(is_sharded(parameter) for parameter in model.parameters()):
        return model if keep else None
    plain = copy() if keep else None
    target = plain.state_dict(keep_vars=True) if plain is not None else {}
    gathered = set()
    for name, value in model.state_dict(keep_vars=True).items():
        # Tied weights stand under several names, and gathering is what costs.
        if id(value) in gathered:
            continue
        gathered.add(id(value))
        whole: Any = value
        if is_sharded(value):
            whole = whole.full_tensor()
        if plain is not None:
            target[plain_name(name)].copy_(whole)
    return plain


@contextmanager
def embeddings_in_one_piece(model: nn.Module) -> Iterator[None]:
    """
    Let Accelerate shard a model whose embeddings serve more than two modules (T5, Marian, BART: encoder, decoder, head).

    It puts the input and the output embedding into a group of their own; torch refuses weights that another module outside
    of the group shares ("is shared with a parameter already managed by another FSDP group"). Without a look at them they
    fall to the root, all together.
    """
    names = ("get_input_embeddings", "get_output_embeddings")
    embeddings = [getattr(model, name)() if hasattr(model, name) else None for name in names]
    weights = {id(weight) for module in embeddings if (weight := getattr(module, "weight", None)) is not None}
    owners = {id(m) for m in model.modules() for p in m.parameters(recurse=False) if id(p) in weights}
    hidden = names if owners - {id(module) for module in embeddings} else ()
    vars(model).update(dict.fromkeys(hidden, lambda: None))  # On the instance, where it hides the method of the class.
    try:
        yield
    finally:
        for name in hidden:
            del vars(model)[name]


def defer_sharding_(args: Any) -> None:
    """
    Hold Trainer's option `fsdp` back until a group trains a candidate; call it before `TrainingArguments.__post_init__`.

    Trainer refuses `fsdp` in a single process, as every process is between candidates. So the wish moves into
    `fsdp_config`, and comes back in arguments that are made (`dataclasses.replace`) within [`training_group`].

    Raises:
        ValueError: For what FSDP2 on GPUs is not.
    """
    config = args.fsdp_config
    if isinstance(config, str):
        config = json.loads(config if config.startswith("{") else Path(config).read_text(encoding="utf-8"))
    config = dict(config or {})
    if not (args.fsdp or config.get(DEFERRED)):
        return
    version = int(config.get("version", config.get("fsdp_version", 2)))
    if version != 2 or config.get("xla"):
        raise ValueError(
            f"Expected FSDP of version 2, got fsdp_config={args.fsdp_config}. Version 1 and XLA flatten the parameters, which "
            'masks do not survive: set "version": 2.'
        )
    if not is_in_group():
        # A legacy string of options ("full_shard auto_wrap") is kept as it is.
        config[DEFERRED] = args.fsdp or config[DEFERRED]
        args.fsdp, args.fsdp_config = None, config
    else:
        args.fsdp = config.pop(DEFERRED, args.fsdp)
        args.fsdp_config = config


def wants_sharding(args: Any) -> bool:
    """Whether candidates are trained by FSDP2: `fsdp`, be it deferred or not."""
    return bool(args.fsdp or (args.fsdp_config or {}).get(DEFERRED))
