"""The prediction ensemble: several models that answer as one. A reference for soups, at m times their inference cost."""

import copy
import math
from collections.abc import Mapping
from functools import cache, reduce, wraps
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from .masked.repairs import shifts_labels

# What Accelerate leaves on a prepared model; the members keep theirs.
PREPARED = ("forward", "_original_forward", "_is_accelerate_prepared")

# To a type checker the mixin is a module; at run time it stands before the members' class.
_Model = nn.Module if TYPE_CHECKING else object


def make_ensemble(members: list[nn.Module]) -> nn.Module:
    """
    Prediction ensemble of models: the mean of their probabilities, with equal weights (Zimmer et al. 2024).

    The result is an instance of the members' class, so that `Trainer`, `Seq2SeqTrainer` and `generate` treat it as one of
    them. Its `logits` are `log((1/m) * sum_i softmax(z_i))` in float32, its `loss` is their cross entropy with `labels`,
    a plain mean over targets without auxiliary terms. For single-label classification of rows, tokens or pixels and for
    language models.

    In generation the next-token probabilities are averaged at every step on a prefix, or beam, that the members share.
    The paper does not say how it did that for translation; this is assumed.

    Args:
        members (`list[nn.Module]`): At least one model, all of one class and with parameters of the same shapes; shared,
            not copied. Their forward returns a `ModelOutput` (or `dict`) with `logits` of shape `(batch, classes)`,
            `(batch, length, classes)` or `(batch, classes, height, width)`. The configuration is the first one's.

    Returns:
        `nn.Module`: For evaluation only. Train and save the members instead.

    Raises:
        ValueError: If there is no member, or members differ in class or shapes.
    """
    _check_members(members)
    first = members[0]
    cls = _ensemble_class(type(first))
    ensemble: Any = cls.__new__(cls)  # Without __init__, which would make weights.
    nn.Module.__init__(ensemble)
    hidden = {*vars(ensemble), *PREPARED}
    vars(ensemble).update({name: value for name, value in vars(first).items() if name not in hidden})
    if isinstance(first, PreTrainedModel):
        # Seq2SeqTrainer writes into the generation config.
        ensemble.config = copy.deepcopy(first.config)
        if first.can_generate():
            ensemble.generation_config = copy.deepcopy(first.generation_config)
    ensemble.members = nn.ModuleList(members)
    return ensemble.train(first.training)


def _check_members(members: list[nn.Module]) -> None:
    if not members:
        raise ValueError("members must hold at least one model, got none. Pass the candidates of a phase.")
    shapes = [{name: tuple(p.shape) for name, p in member.named_parameters()} for member in members]
    for i, member in enumerate(members):
        if type(member) is not type(members[0]):
            raise ValueError(
                f"members must be of one class, got {type(members[0]).__name__} and {type(member).__name__}. Probabilities "
                "can only be averaged over the same classes."
            )
        differing = sorted(dict(shapes[i].items() ^ shapes[0].items()))
        if differing:
            raise ValueError(
                f"members must have parameters of the same shapes, but those of member {i} differ from those of member 0: "
                f"{differing[:3]}. Pass candidates of one run."
            )


@cache
def _ensemble_class(cls: type[nn.Module]) -> type[nn.Module]:
    """
    Class of ensembles of a class.

    It has the signature of the members' `forward`, from which Trainer takes columns and label names, and the name of their
    class, by which Trainer recognises question answering and language models.
    """

    @wraps(cls.forward)
    def forward(self, *args, **inputs):
        names = list(_parameters(cls.forward))[1:]  # Without self.
        return self._forward(dict(zip(names, args, strict=False)) | inputs)

    return type(cls.__name__, (EnsembleMixin, cls), {"forward": forward, "__module__": cls.__module__})


class EnsembleMixin(_Model):
    """What an ensemble does otherwise than its members' class; made by [`make_ensemble`]."""

    members: nn.ModuleList
    config: Any

    def _forward(self, inputs: dict[str, Any]) -> Any:
        if self.training and torch.is_grad_enabled():
            raise RuntimeError(
                "An ensemble is for evaluation only, got a forward pass in training mode with gradients. Call eval() on it, or "
                "train its members one by one."
            )
        return_dict, labels = inputs.pop("return_dict", None), inputs.get("labels")
        if isinstance(self, PreTrainedModel):
            outputs, caches = self._ask_pretrained(inputs)
        else:
            outputs, caches = [member(**inputs) for member in self.members], None
        fields: dict[str, Any] = {"logits": mean_log_probabilities([_logits(output) for output in outputs])}
        if labels is not None:
            # The members' own losses are dropped, but their labels are needed: decoder inputs are made from them.
            fields["loss"] = self._loss(fields["logits"], labels)
        if caches is not None:
            fields["past_key_values"] = caches
        result = type(outputs[0])(**fields)
        return result.to_tuple() if return_dict is False else result

    def _ask_pretrained(self, inputs: dict[str, Any]) -> tuple[list[Any], "MemberCaches | None"]:
        """Outputs of all members, each with its own share of what was computed before."""
        own: list[dict[str, Any]] = [{} for _ in self.members]
        states = inputs.pop("encoder_outputs", None)
        if states is not None:
            for share, state in zip(own, _split_states(states[0], len(own)), strict=True):
                share["encoder_outputs"] = state
        caches = self._member_caches(inputs)
        if caches is not None:
            for share, member_cache in zip(own, caches.members, strict=True):
                share["past_key_values"] = member_cache
        return [member(**inputs | share) for member, share in zip(self.members, own, strict=True)], caches

    def _member_caches(self, inputs: dict[str, Any]) -> "MemberCaches | None":
        """Take the cache out of the inputs: one per member, from the second step of `generate` on the same ones."""
        found = inputs.pop("past_key_values", None)
        if found is None and (inputs.get("use_cache") or inputs.get("cache_params") is not None):
            raise ValueError(
                f"Expected past_key_values with use_cache=True, got none: {type(self).__name__} has another kind of cache. "
                "Pass use_cache=False."
            )
        if found is None and "use_cache" in _parameters(type(self).forward):
            inputs["use_cache"] = False  # Many configurations say True, and nobody would take the cache.
        if found is None or isinstance(found, MemberCaches):
            return found
        if found.get_seq_length() != 0:
            raise ValueError(
                f"past_key_values must be empty or an ensemble's own, got one of length {found.get_seq_length()}. Leave it out: "
                "`generate` makes one."
            )
        return MemberCaches([copy.deepcopy(found) for _ in self.members])

    def _loss(self, logits: Tensor, labels: Any) -> Tensor:
        if not isinstance(labels, Tensor) or labels.is_floating_point():
            given = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
            raise ValueError(
                f"labels must be class indices, got {given}. Regression, detection and several labels per example have no "
                "distribution over classes to average; score a soup instead."
            )
        labels = labels.to(logits.device)
        if logits.dim() == 4:
            upsampled = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
            ignored = self.config.semantic_loss_ignore_index if isinstance(self, PreTrainedModel) else -100
            return F.cross_entropy(upsampled, labels.long(), ignore_index=ignored)
        if logits.dim() == 3 and shifts_labels(self.members[0]):
            logits, labels = logits[:, :-1], labels[:, 1:]
        return F.cross_entropy(logits.flatten(0, -2), labels.flatten().long(), ignore_index=-100)

    def get_encoder(self, *args, **kwargs) -> nn.Module:
        """What `generate` runs once: all members' encoders."""
        members: list[Any] = list(self.members)
        return MemberEncoders([member.get_encoder(*args, **kwargs) for member in members])

    def save_pretrained(self, *args, **kwargs):
        raise ValueError(
            "An ensemble cannot be saved: from_pretrained could not read it. Save its members one by one, or a soup of them."
        )


def mean_log_probabilities(logits: list[Tensor]) -> Tensor:
    """
    `log((1/m) * sum_i softmax(z_i))`, in float32.

    Args:
        logits (`list[Tensor]`): One per member, all `(..., classes)`, or `(batch, classes, height, width)`; two classes or
            more.
    """
    dim = 1 if logits[0].dim() == 4 else -1
    if logits[0].shape[dim] < 2:
        raise ValueError(
            f"logits must be of two or more classes, got shape {tuple(logits[0].shape)}. The probabilities of a single output "
            "(regression, sigmoid) cannot be averaged as softmax."
        )
    total = reduce(torch.logaddexp, (F.log_softmax(z.float(), dim) for z in logits))
    return total - math.log(len(logits))


def _logits(output: Any) -> Tensor:
    if not isinstance(output, Mapping) or not isinstance(output.get("logits"), Tensor):
        raise ValueError(
            f"members must return a ModelOutput with logits, got {type(output).__name__}. Ensembles are for classifiers and "
            "language models."
        )
    return output["logits"]


@cache
def _parameters(function: Any) -> Mapping[str, Any]:
    return signature(function).parameters


class MemberEncoders(nn.Module):
    """
    The members' encoders as one.

    Hidden states, `(batch, length, hidden)` each, stand side by side in `(batch, length, m * hidden)`: `generate` repeats
    the rows for beams and knows nothing of members.
    """

    def __init__(self, encoders: list[nn.Module]):
        super().__init__()
        self.encoders = nn.ModuleList(encoders)

        # `generate` reads from the signature what an encoder takes.
        @wraps(encoders[0].forward)
        def forward(*args, **inputs) -> BaseModelOutput:
            states = [encoder(*args, **inputs)[0] for encoder in encoders]
            return BaseModelOutput(last_hidden_state=torch.cat(states, dim=-1))

        self.forward = forward


def _split_states(states: Tensor, count: int) -> list[BaseModelOutput]:
    return [BaseModelOutput(last_hidden_state=part.contiguous()) for part in states.chunk(count, dim=-1)]


class MemberCaches(Cache):
    """One key-value cache per member, of which `generate` asks the length and whose rows it reorders with the beams."""

    def __init__(self, members: list[Cache]):
        super().__init__(layers=[])
        self.members = members

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.members[0].get_seq_length(layer_idx)

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        for member in self.members:
            member.reorder_cache(beam_idx)
