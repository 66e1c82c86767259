"""Who teaches a candidate: the model before pruning, in every step, or its logits, computed once for every row."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .distillation import feature_loss, logits_of, soft_target_loss

ROW = "sms_hf_row"
"""Input of a batch: which rows of the training data it holds, where logits are looked up."""


@dataclass(frozen=True)
class Teacher:
    """
    What a candidate is asked for besides the right answers.

    Attributes:
        weight (`float`): Share of the loss that asks for logits, in `[0, 1]`.
        temperature (`float`): Of both distributions, above 0.
        features (`float`): Weight of the states after every layer, on top of the loss; at least 0.
        model (`nn.Module`, *optional*): The model before pruning, on the device; not where there are `logits`.
        logits (`Tensor`, *optional*): Those of every row of the training data, `(rows, classes)`.
    """

    weight: float
    temperature: float
    features: float
    model: nn.Module | None = None
    logits: Tensor | None = None

    def asks(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The inputs of the student."""
        own = {name: value for name, value in inputs.items() if name != ROW}
        return own | ({"output_hidden_states": True} if self.features else {})

    @torch.no_grad()
    def answers(self, inputs: Mapping[str, Any]) -> Any:
        """Of the model before pruning, where it is asked in every step."""
        return None if self.model is None else self.model(**self.asks(inputs))

    def loss(
        self,
        loss: Tensor,
        outputs: Any,
        told: Any,
        inputs: Mapping[str, Any],
        shifts_labels: bool,
        num_items_in_batch: Any,
        scales: tuple[float, float],
    ) -> Tensor:
        """
        `(1 - weight) loss + weight * soft targets + features * SquareHead`.

        Args:
            loss (`Tensor`), outputs (`ModelOutput`): Of the student.
            told (`ModelOutput`, *optional*): What [`answers`] gave for the same inputs.
            inputs (`Mapping`): Of the batch, labels and rows included.
            shifts_labels, num_items_in_batch: As for [`soft_target_loss`].
            scales (`tuple[float, float]`): Factors of the soft targets and of the features: what makes them means over the
                whole batch, where it is in parts on several processes or steps.
        """
        total = (1 - self.weight) * loss
        if self.weight:
            student = logits_of(outputs)
            taught = logits_of(told) if self.logits is None else self.logits[inputs[ROW].cpu()].to(student.device)
            labels = inputs.get("labels")
            soft = soft_target_loss(student, taught, labels, self.temperature, shifts_labels, num_items_in_batch)
            total = total + self.weight * scales[0] * soft
        if self.features:
            total = total + self.features * scales[1] * feature_loss(outputs, told, inputs)
        return total


class NumberedRows:
    """Training data whose rows say which they are. Numbers go through [`carry_rows`]."""

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {**self.dataset[row], ROW: row}

    def __getitems__(self, rows: list[int]) -> list[dict[str, Any]]:
        """Many at a time: `datasets` is far slower row by row."""
        fetch = getattr(self.dataset, "__getitems__", None)
        found = fetch(rows) if fetch is not None else [self.dataset[row] for row in rows]
        return [{**features, ROW: row} for features, row in zip(found, rows, strict=True)]


def carry_rows(collate: Callable[[Sequence[Any]], Any]) -> Callable[[Sequence[Any]], Any]:
    """A collator that knows nothing of the numbers, and a batch that has them."""

    def carrying(features: Sequence[Any]) -> Any:
        rows = [feature[ROW] for feature in features if ROW in feature]
        batch = collate([{k: v for k, v in feature.items() if k != ROW} for feature in features])
        if rows:
            batch[ROW] = torch.tensor(rows)
        return batch

    return carrying
