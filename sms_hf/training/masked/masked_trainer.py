"""Ordinary training under a mask, with repairs for the places where Trainer would break a comparison of candidates."""

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import DistributedType
from accelerate.optimizer import AcceleratedOptimizer
from transformers import Trainer
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_pt_utils import find_batch_size
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput, rotate_checkpoints

from ...files.folder import MASKS
from ...sparsity.masks import Masks, check_fingerprint
from ..processes.groups import wait_for_group
from ..processes.sharding import embeddings_in_one_piece
from ..run_directory import read_seal, seal_checkpoint
from .adapters import mask_adapters_
from .checkpoints import freeze_left_out_, left_out_on_save, no_progress_bars, state_dict_names
from .gradual import GradualPruning
from .masking import MaskEnforcer
from .optimizer_state import keep_state_dtypes_
from .repairs import ignores_num_items_in_batch, shifts_labels
from .token_loss import WeightedMean, count_targets

# To a type checker the mixin is a Trainer; at run time it stands before whichever Trainer the user's class names.
_Trainer = Trainer if TYPE_CHECKING else object


class MaskedTrainerMixin(_Trainer):
    """
    Holds the zeros of a pruned model while a `Trainer` trains it.

    Set `trainer.masks` before `train()`: gradients are masked before clipping, weights after every optimizer step, and
    each save checks that pruned weights are exactly zero and writes the masks beside the weights. Also repaired, with or
    without masks: losses that ignore `num_items_in_batch` (T5 and its kin) or count a target too many (GPT-2), the
    evaluation loss (token-weighted), checkpoints that cannot be read back because their names were converted (ViT).
    Saved folders hold no `training_args.bin`: a pickle with the user's token in it, which nothing reads back.
    """

    model: torch.nn.Module

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        order = cls.__mro__
        if Trainer in order and order.index(Trainer) < order.index(MaskedTrainerMixin):
            bases = ", ".join(base.__name__ for base in cls.__bases__)
            raise TypeError(
                f"Expected the mixin before the Trainer that it changes, got class {cls.__name__}({bases}): Trainer's methods "
                "would win, and pruned weights come back. Put the mixin first."
            )

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        freeze_left_out_(self.model)
        if ignores_num_items_in_batch(self.model):
            self.model_accepts_loss_kwargs = False
        self._loss_shifts_labels = shifts_labels(self.model)
        self._enforcer: MaskEnforcer | None = None
        self._hooked: torch.optim.Optimizer | None = None
        self._gradual: GradualPruning | None = None
        self._eval_loss = WeightedMean()
        self._total_loss = 0.0
        if self.args.fsdp and self.accelerator.distributed_type != DistributedType.FSDP:
            raise ValueError(
                f"Expected a device that FSDP can shard over, got {self.args.device}: Accelerate would train by DDP and say "
                "nothing. Leave `fsdp` out."
            )

    @property
    def mean_loss(self) -> float:
        """Training loss, mean over all steps, those before a resume included, which Trainer's own leaves out."""
        return self._total_loss / max(self.state.global_step, 1)

    @property
    def loss_parts(self) -> list[tuple[float, float]]:
        """Sum of losses and number of targets of every batch of the last evaluation on this process."""
        return self._eval_loss.parts

    @property
    def masks(self) -> Masks | None:
        """Masks of the model that the trainer holds, or `None` for a dense model."""
        return self._enforcer.masks if self._enforcer is not None else None

    @masks.setter
    def masks(self, masks: Masks | None) -> None:
        if masks is not None:
            masks.parameters_of(self.model)  # Another model's are told here, not in the middle of a step.
            mask_adapters_(self.model, masks)
        self._enforcer = None if masks is None else MaskEnforcer(masks)

    def prune_while_training(self, gradual: GradualPruning) -> None:
        """Let masks change during the next `train()`, from those that are set now."""
        if self.args.fsdp:
            raise ValueError(
                "Expected no `fsdp` with a method that prunes while it trains: what to prune is decided on whole weights, and "
                "every process holds a part of them. Leave `fsdp` out: the processes of a candidate then train by DDP."
            )
        assert self.masks is not None
        self._gradual = gradual
        self.masks = gradual.begin(self.model, self.masks)

    def end_pruning(self, keep_dense: bool = False) -> None:
        """Make the masks that changed permanent, or bring the dense weights back in place of them."""
        if self._gradual is not None:
            assert self.masks is not None
            self.masks, self._gradual = self._gradual.finish(self.model, self.masks, keep_dense), None

    def save_named(self, folder: Path) -> None:
        """Save a model folder with the names of the state dict."""
        with state_dict_names(self.model), no_progress_bars():
            self._save(str(folder))

    # ---- Trainer's hooks ---------------------------------------------------------------------------------------------

    def _prepare_for_training(self, *args, **kwargs):
        with embeddings_in_one_piece(self.model) if self.args.fsdp else nullcontext():
            return super()._prepare_for_training(*args, **kwargs)

    def create_optimizer(self, *args, **kwargs):
        optimizer = super().create_optimizer(*args, **kwargs)
        # The one that Accelerate wraps around it has no hooks.
        raw = optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer
        if raw is not self._hooked:
            keep_state_dtypes_(raw)
            raw.register_step_pre_hook(lambda *_: self._before_step())
            raw.register_step_post_hook(lambda optimizer, *_: self._after_step(optimizer))
            self._hooked = raw
        return optimizer

    def _before_step(self) -> None:
        if self._gradual is not None:
            self._gradual.before_step(self.model)

    def _after_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self._gradual is not None:
            # Trainer counts a step when the optimizer has returned.
            step, last = self.state.global_step + 1, self.state.max_steps
            before = self.masks
            assert before is not None
            after = self._gradual.after_step(self.model, optimizer, before, step, last)
            if after is not before:
                self.masks = after
        if self._enforcer is not None:
            self._enforcer.mask_weights_(self.model)

    def training_step(self, *args, **kwargs) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        self._total_loss += float(loss)
        feedback = self._gradual is not None and self._gradual.feedback
        # Trainer clips right after this; no callback comes in between.
        if self._enforcer is not None and self.accelerator.sync_gradients and not feedback:
            self._enforcer.mask_gradients_(self.model)
        return loss

    def _run_epoch(self, *args, **kwargs) -> None:
        if self.state.global_step >= self.state.max_steps:
            # Resumed from a checkpoint of the last step, in the middle of an epoch: Trainer would train one step more.
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        folder = Path(resume_from_checkpoint)
        self._total_loss = read_seal(folder).get("total_loss", 0.0)
        if self._gradual is not None:
            self._gradual.load(folder)
            self.masks = Masks.of(folder)
        elif self.masks is not None:
            check_fingerprint(Masks.of(folder), self.masks.fingerprint(), str(folder))

    def _issue_warnings_after_load(self, load_result) -> None:
        """Warn of what is missing; not of tied weights, which stand in the file once, nor of what no file holds."""
        state, absent = self.model.state_dict(keep_vars=True), set(load_result.missing_keys)
        loaded = {tensor.data_ptr() for name, tensor in state.items() if name not in absent}
        computed = left_out_on_save(self.model)
        missing = [n for n in absent if n in state and state[n].data_ptr() not in loaded and n not in computed]
        if missing or load_result.unexpected_keys:
            super()._issue_warnings_after_load(load_result)

    def _save_checkpoint(self, model, trial) -> None:
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            with state_dict_names(self.model), no_progress_bars():
                super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        wait_for_group()  # Every process writes its random state.
        if not self.args.should_save:
            return
        folder = Path(str(self.args.output_dir))
        seal_checkpoint(folder / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}", {"total_loss": self._total_loss})
        # Only now, when the new one is whole, the old ones may go.
        rotate_checkpoints(str(folder), limit, self.state.best_model_checkpoint, use_mtime=True)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if self.masks is not None:
            # FSDP hands what was gathered to the one process that writes.
            if state_dict:
                self.masks.check_state(state_dict)
            else:
                self.masks.check(self.model)
        super()._save(output_dir, state_dict)
        if not self.args.should_save:
            return
        # A pickle that nobody needs, with the user's token in it.
        (Path(output_dir or str(self.args.output_dir)) / TRAINING_ARGS_NAME).unlink(missing_ok=True)
        if self.masks is not None:
            self.masks.save(Path(output_dir or str(self.args.output_dir)) / MASKS)
        if self._gradual is not None:
            self._gradual.save(Path(output_dir or str(self.args.output_dir)))

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None, **kwargs):
        own, counted = self._own_rows(inputs), inputs
        if own is not None:
            rows = find_batch_size(inputs)
            counted = {k: v[: max(own, 1)] if _has_rows(v, rows) else v for k, v in inputs.items()}
        label = next((counted[name] for name in self.label_names if counted.get(name) is not None), None)
        targets = 0 if label is None or own == 0 else count_targets(label, self._loss_shifts_labels)
        loss, logits, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys, **kwargs)
        if loss is not None:
            # All processes take this second pass, with or without rows of their own: wrappers wait for each other.
            again = own is not None
            own_loss = super().prediction_step(model, counted, True, ignore_keys)[0] if again else loss
            assert own_loss is not None
            self._eval_loss.add(float(own_loss), targets)
        return loss, logits, labels

    def _own_rows(self, inputs) -> int | None:
        """
        How many rows of a group's last batch are examples of this process, not repeated ones; `None` outside a last batch.

        Accelerate fills the last batches of several processes with rows from the start of the data.
        """
        state, rows = self.accelerator.gradient_state, find_batch_size(inputs)
        if self.args.world_size == 1 or rows is None or not state.end_of_dataloader or state.remainder <= 0:
            return None
        return min(max(state.remainder - self.args.process_index * rows, 0), rows)

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ) -> EvalLoopOutput:
        self._eval_loss = WeightedMean()
        shared, averaged = self.args.world_size > 1, self.args.average_tokens_across_devices
        if shared:
            # Seq2SeqTrainer would keep the rows that fill the last batches.
            self.gather_function = self.accelerator.gather_for_metrics
        try:
            # The mean of a process' own batch, to be weighted here: not its share in the mean over all processes.
            self.args.average_tokens_across_devices = averaged and not shared
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
        finally:
            self.args.average_tokens_across_devices = averaged
        if shared:
            sums = torch.tensor(self._eval_loss.sums, dtype=torch.float64, device=self.args.device)
            torch.distributed.all_reduce(sums)
            self._eval_loss = WeightedMean(*sums.tolist())
        key, metrics = f"{metric_key_prefix}_loss", output.metrics or {}
        if key in metrics and self._eval_loss.value is not None:
            metrics[key] = self._eval_loss.value
        return output


def _has_rows(value, rows: int | None) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() > 0 and len(value) == rows
