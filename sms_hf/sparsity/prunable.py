"""Which parameters of a model may be pruned, and why each other one may not."""

import re
from collections import Counter
from dataclasses import dataclass

from torch import nn

# Linear maps that are no `nn.Linear`: GPT-2's Conv1D is a matrix stored `(in, out)`. Named instead of imported, because
# this package knows torch alone.
LINEAR_CLASSES = ("torch.nn.modules.linear.Linear", "transformers.pytorch_utils.Conv1D")
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
# Parts of a name that mark weights whose role is to route or to summarise, not to compute: pruned only on request.
PROTECTED_PARTS = ("router", "pooler")
ROUTER = "router of experts (never pruned: it decides which of them compute)"


@dataclass(frozen=True)
class Prunable:
    """
    The weights of a model that pruning may touch.

    Attributes:
        parameters (`dict[str, nn.Parameter]`): Parameter name -> weight, in the model's order, each tensor once.
        skipped (`dict[str, str]`): Name of every other parameter -> the reason why it stays as it is.
    """

    parameters: dict[str, nn.Parameter]
    skipped: dict[str, str]

    @property
    def num_weights(self) -> int:
        return sum(p.numel() for p in self.parameters.values())

    def __str__(self) -> str:
        rows = [f"{name}  {tuple(p.shape)}  prunable" for name, p in self.parameters.items()]
        rows += [f"{name}  skipped: {reason}" for name, reason in self.skipped.items()]
        return "\n".join([f"{len(self.parameters)} prunable tensors, {self.num_weights:,} weights", *rows])


def find_prunable(
    model: nn.Module,
    target_modules: str | list[str] | None = None,
    exclude_modules: str | list[str] | None = None,
) -> Prunable:
    """
    Find the weights of linear maps inside the body of a model.

    Prunable by default: weights of `nn.Linear` and of GPT-2's `Conv1D`, `(out, in)` or `(in, out)`, and stacked expert
    matrices `(experts, ., .)`. Never: biases, norms, embeddings, position tables, tied weights, output embeddings,
    frozen parameters. By default not, but on request through `target_modules`: task heads (whatever lies outside the
    base model of a `PreTrainedModel`), routers, poolers, convolutions.

    Args:
        model (`nn.Module`): The model; ties are decided on this very instance.
        target_modules (`str` or `list[str]`, *optional*): Prune only these modules. As in PEFT, a string is a regular
            expression that must match the whole module name (`"all-linear"` stands for the default choice), a list holds
            module names or their last parts (`["q", "v"]`).
        exclude_modules (`str` or `list[str]`, *optional*): Modules to leave dense, in the same notation.

    Returns:
        [`Prunable`]: the weights, and the reason for every parameter that was left out.

    Raises:
        ValueError: If nothing is left to prune.
    """
    check_module_patterns(target_modules, exclude_modules)
    targets = None if target_modules == "all-linear" else target_modules
    head, names_of = _output_head(model), Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    parameters: dict[str, nn.Parameter] = {}
    skipped: dict[str, str] = {}
    for module_name, module in model.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            name = f"{module_name}.{leaf}" if module_name else leaf
            reason = _why_not(model, head, module_name, module, leaf, parameter, targets, exclude_modules)
            if reason is None and names_of[id(parameter)] > 1:
                reason = "tied to another parameter"
            if reason is None:
                parameters[name] = parameter
            else:
                skipped[name] = reason
    if not parameters:
        raise ValueError(_nothing_to_prune(model, target_modules, exclude_modules, skipped))
    return Prunable(parameters, skipped)


def _why_not(model, head, module_name, module, leaf, parameter, targets, excluded) -> str | None:
    if any(part.startswith("lora_") for part in module_name.split(".")):
        return "adapter (LoRA)"
    asked = targets is not None and matches(module_name, targets)
    if not _is_matrix(module, leaf, parameter, asked):
        return ROUTER if "router" in type(module).__name__.lower() else "no weight of a linear map"
    if not parameter.requires_grad:
        return "frozen (requires_grad is False)"
    if parameter is head:
        return "output embedding"
    if targets is not None and not asked:
        return "not in target_modules"
    if excluded is not None and matches(module_name, excluded):
        return "in exclude_modules"
    if asked:
        return None
    if is_outside_base_model(model, module_name):
        return "task head (name it in target_modules to prune it)"
    if any(part in module_name.lower() for part in PROTECTED_PARTS):
        return f"one of {', '.join(PROTECTED_PARTS)} (name it in target_modules to prune it)"
    return None


def _is_matrix(module: nn.Module, leaf: str, parameter: nn.Parameter, asked: bool) -> bool:
    if leaf == "weight" and _qualified_names(module).intersection(LINEAR_CLASSES):
        return True
    if leaf == "weight" and isinstance(module, CONVOLUTIONS):
        return asked
    # Mixture-of-experts layers hold all experts of a layer in one parameter `(experts, ., .)`.
    return parameter.dim() == 3 and "experts" in type(module).__name__.lower()


def matrix_dims(module: nn.Module) -> tuple[int, int] | None:
    """(output dimension, input dimension) of the weight of a linear map or convolution; None for any other module."""
    if isinstance(module, (nn.Linear, *CONVOLUTIONS)):
        return 0, 1
    return (1, 0) if _qualified_names(module).intersection(LINEAR_CLASSES) else None


def _qualified_names(module: nn.Module) -> set[str]:
    return {f"{cls.__module__}.{cls.__qualname__}" for cls in type(module).__mro__}


def _output_head(model: nn.Module) -> nn.Parameter | None:
    get = getattr(model, "get_output_embeddings", None)
    head = get() if get is not None else None
    return getattr(head, "weight", None)


def is_outside_base_model(model: nn.Module, module_name: str) -> bool:
    """True for the head of a `PreTrainedModel` such as `BertForSequenceClassification` (base model: `bert`)."""
    prefix = getattr(model, "base_model_prefix", "")
    has_base = bool(prefix) and any(name == prefix for name, _ in model.named_children())
    return has_base and module_name != prefix and not module_name.startswith(prefix + ".")


def check_module_patterns(target_modules: str | list[str] | None, exclude_modules: str | list[str] | None) -> None:
    """Raise `ValueError` for a broken regular expression."""
    for option, pattern in (("target_modules", target_modules), ("exclude_modules", exclude_modules)):
        try:
            re.compile(pattern if isinstance(pattern, str) else "")
        except re.error as error:
            raise ValueError(
                f"{option} must be a list of module names or one regular expression, got {pattern!r} ({error}). "
                r"Example: '.*\.(q|v)'."
            ) from None


def matches(module_name: str, patterns: str | list[str]) -> bool:
    """Whether `target_modules` or `exclude_modules` mean this module."""
    if isinstance(patterns, str):
        return re.fullmatch(patterns, module_name) is not None
    return any(module_name == p or module_name.endswith("." + p) for p in patterns)


def _nothing_to_prune(model, target_modules, exclude_modules, skipped) -> str:
    reasons = {
        name.removesuffix(".weight"): r
        for name, r in skipped.items()
        if not r.startswith(("no weight", "router", "adapter"))
    }
    frozen, linear = [name for name, reason in reasons.items() if reason.startswith("frozen")], list(reasons)
    if frozen and target_modules is None and exclude_modules is None:
        names = ", ".join(frozen[:3]) + (", ..." if len(frozen) > 3 else "")
        return (
            f"Expected at least one prunable weight in {type(model).__name__}, but {len(frozen)} of its {len(linear)} linear "
            f"maps are frozen ({names}) and may not be changed. Unfreeze what is to be pruned: model.requires_grad_(True)."
        )
    return (
        f"Expected at least one prunable weight in {type(model).__name__}, found none with "
        f"target_modules={target_modules!r}, exclude_modules={exclude_modules!r}. "
        f"Its linear maps are {linear[:8]}{' ...' if len(linear) > 8 else ''}: name some of them in target_modules."
    )
