"""A candidate: ordinary training under a mask, from which a run can be resumed, stopped and scored."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch.optim.lr_scheduler import LambdaLR

from ...sparsity.masks import local
from ...sparsity.schedules import allr_scale
from ..arguments import SparseSoupArguments
from ..plan.learning_rate import original_epochs, retrain_factor, shift_
from ..processes.failures import Diverged
from ..processes.groups import anyone
from ..processes.say import say
from ..processes.stopping import leave_if_wished, stop_wished
from .masked_trainer import MaskedTrainerMixin
from .optimizer_state import go_on_with_
from .tail_average import TailAverage
from .teaching import Teacher


@dataclass(frozen=True)
class Norms:
    """
    What ALLR compares (Zimmer et al., ICLR 2023).

    Attributes:
        before, after (`float`): L2 norm of all weights and biases before and after pruning, the latter at most the former.
        fraction (`float`): Removed of the prunable weights that were left, in `[0, 1)`.
    """

    before: float
    after: float
    fraction: float


@dataclass(frozen=True)
class Retraining:
    """
    What the training of a candidate depends on besides its arguments.

    Attributes:
        norms ([`Norms`], *optional*): Around the pruning that it starts from, for ALLR.
        window (`tuple[float, float]`): The part of one learning rate schedule that it goes through.
        optimizer (`Path`, *optional*): State of an optimizer to go on with.
        teacher ([`Teacher`], *optional*): What it is asked for besides the right answers.
    """

    norms: Norms | None = None
    window: tuple[float, float] = (0.0, 1.0)
    optimizer: Path | None = None
    teacher: Teacher | None = None


class CandidateMixin(MaskedTrainerMixin):
    """
    What a trainer does otherwise while it retrains a candidate, and what it tells the other processes meanwhile.

    Attributes:
        retraining ([`Retraining`], *optional*): Set by the run; `None` for every other trainer.
    """

    args: SparseSoupArguments
    retraining: Retraining | None = None
    _tail: TailAverage | None = None
    _losses: tuple[int, torch.Tensor] | None = None

    def last_loss(self) -> float | None:
        """Of the last step of a candidate, as Trainer sums it over the step's batches. Waits for the accelerator."""
        return None if self._losses is None else float(self._losses[1])

    def average_tail(self, tail: TailAverage) -> None:
        """Let the next `train()` end with a mean of its weights."""
        self._tail = tail

    def take_tail_average(self) -> None:
        """Put that mean in place of the last weights, under the last mask."""
        if self._tail is not None:
            self._tail.put_(self.model)
            self._tail = None
            if self._enforcer is not None:
                self._enforcer.mask_weights_(self.model)

    def _after_step(self, optimizer: torch.optim.Optimizer) -> None:
        super()._after_step(optimizer)
        if self._tail is not None:
            self._tail.update(self.model, self.state.global_step + 1, self.state.max_steps)

    def training_step(self, *args, **kwargs) -> torch.Tensor:
        self.args.processes.beat()
        loss = super().training_step(*args, **kwargs)
        # Scaled losses of fp16 overflow now and then; weights do not recover.
        if self.retraining is not None and anyone(not torch.isfinite(loss)):
            self._check_finite()
        step, before = self.state.global_step, self._losses
        self._losses = (step, loss if before is None or before[0] != step else before[1] + loss)
        return loss

    def compute_loss(self, model, inputs, *args, **kwargs):
        teacher = None if self.retraining is None or not model.training else self.retraining.teacher
        if teacher is None:
            return super().compute_loss(model, inputs, *args, **kwargs)
        given = dict(inputs)  # Trainer may take the labels out.
        return_outputs = kwargs.pop("return_outputs", args[0] if args else False)
        loss, outputs = super().compute_loss(model, teacher.asks(inputs), True, *args[1:], **kwargs)
        num_items = kwargs.get("num_items_in_batch")
        # As Trainer does it: what is divided by all targets is summed over steps, and averaged over processes.
        across = self.args.average_tokens_across_devices and num_items is not None
        scales = (
            self.accelerator.num_processes if across else 1,
            1 if num_items is None else 1 / self.current_gradient_accumulation_steps,
        )
        with self.accelerator.autocast():  # As the student's forward pass has it.
            told = teacher.answers(given)
        loss = teacher.loss(loss, outputs, told, given, self._loss_shifts_labels, num_items, scales)
        return (loss, outputs) if return_outputs else loss

    def prediction_step(self, *args, **kwargs):
        self.args.processes.beat()
        if self.retraining is None:  # A candidate saves first, after the step.
            leave_if_wished()
        return super().prediction_step(*args, **kwargs)

    def _check_finite(self) -> None:
        if anyone(not all_finite(self.model)):
            raise Diverged(f"its weights are not finite after step {self.state.global_step}")

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        # Of sharded weights only the leader is here, with all that was gathered.
        if self.retraining is not None and state_dict is None:
            self._check_finite()
        super()._save(output_dir, state_dict)
        if self._tail is not None and self.args.should_save:
            self._tail.save(Path(output_dir or str(self.args.output_dir)))

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self._tail is not None:
            self._tail.load(Path(resume_from_checkpoint), self.args.device)

    def _maybe_log_save_evaluate(self, *args, **kwargs) -> None:
        super()._maybe_log_save_evaluate(*args, **kwargs)
        # Where Trainer itself saves: what it had to do after this step is done, and is part of its state.
        if self.retraining is not None and anyone(stop_wished()):
            self._save_checkpoint(self.model, trial=None)
            say(f"{Path(str(self.args.output_dir)).name}: saved at step {self.state.global_step}")
            leave_if_wished(True)

    def create_optimizer(self, *args, **kwargs):
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        if is_new and self.retraining is not None and self.retraining.optimizer is not None:
            go_on_with_(optimizer, self.retraining.optimizer)
        return optimizer

    # ---- Learning rate -----------------------------------------------------------------------------------------------

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        if self.retraining is None or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        start, stop = self.retraining.window
        whole = round(num_training_steps / (stop - start))
        if self.args.retrain_schedule is None:
            scheduler = super().create_scheduler(whole, optimizer)
        else:
            per_epoch = self._steps_per_epoch(num_training_steps)
            scale = self._allr_scale(num_training_steps / per_epoch)
            factor = retrain_factor(self.args, whole, per_epoch, scale)
            scheduler = self.lr_scheduler = LambdaLR(cast("Any", optimizer or self.optimizer), factor)
            self._created_lr_scheduler = True
        if start > 0:
            shift_(scheduler, round(start * whole))
        return scheduler

    def _steps_per_epoch(self, num_training_steps: int) -> float:
        if self.args.max_steps <= 0:
            return num_training_steps / self.args.num_train_epochs
        if not hasattr(self.train_dataset, "__len__"):
            raise ValueError(
                f"retrain_schedule={self.args.retrain_schedule!r} needs a train_dataset whose length is known. Choose 'llr', or "
                "leave retrain_schedule out."
            )
        batch = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return max(len(cast("Any", self.train_dataset)) / batch, 1.0)

    def _allr_scale(self, epochs: float) -> float:
        norms = self.retraining and self.retraining.norms
        if self.args.retrain_schedule != "allr" or norms is None:
            return 1.0
        return allr_scale(norms.before, norms.after, norms.fraction, epochs, original_epochs(self.args))


@torch.no_grad()
def all_finite(model: torch.nn.Module) -> bool:
    """Whether no parameter holds NaN or infinity; of sharded ones, the share of this process."""
    return all(bool(torch.isfinite(local(p)).all()) for p in model.parameters())
