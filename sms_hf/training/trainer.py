"""The user's trainer: the phases, told top to bottom."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedModel, Seq2SeqTrainer, Trainer, TrainingArguments
from transformers.trainer_utils import TrainOutput

from ..files.folder import MASKS
from ..sparsity.masks import Masks
from ..sparsity.patterns import nm_skipped
from ..sparsity.prunable import find_prunable
from .adapters import has_adapters, take_adapters_
from .arguments import SparseSoupArguments
from .candidates import Phase
from .failures import disk_error, is_disk_error
from .first_batch import check_first_batch
from .groups import make_group
from .methods import METHODS
from .planning import start_lines
from .progress import dense_line, parent_line, soup_lines
from .publishing import PublishingMixin
from .records import final_state, origin, phase_record, run_settings, train_output
from .run_directory import RunDirectory, model_files, read_record, remove_weights, write_record
from .spawning import Rebuildable, check_copyable, is_spawning
from .stopping import Stopped, stop_on_signals
from .timing import TimeEstimate, plan_run
from .weights import forget_accelerate_, freeze_left_out_, load_weights_

HOW_TO_RESUME = "Go on with train(resume_from_checkpoint=True) (--resume in the recipes)."


class SparseSoupMixin(PublishingMixin, metaclass=Rebuildable):
    """
    Turns a `Trainer` into one that makes sparse model soups: `class SoupSFT(SparseSoupMixin, SFTTrainer)`.

    `train()` runs the phases of Sparse Model Soups (Zimmer, Spiegel, Pokutta, ICLR 2024, Algorithm 1): prune, retrain
    copies that share the mask, average them, repeat. Every copy is retrained by a fresh trainer of the user's own class,
    on whichever process is free. Afterwards the trainer holds the final soup: `evaluate`, `predict`, `save_model` and
    `push_to_hub` speak of it, and `state.log_history` of all candidates and soups.

    Attributes:
        masks ([`Masks`] or `None`): Masks of the model that the trainer holds.
        report (`dict` or `None`): After `train()`, what `report.json` holds.
        card (`dict`): For the model card: keyword arguments of `push_to_hub` (`language`, `license`, `tags`, ...).
    """

    def __init__(self, *args, **kwargs):
        given = next((value for value in (*args, *kwargs.values()) if isinstance(value, TrainingArguments)), None)
        if not isinstance(given, SparseSoupArguments):
            raise ValueError(
                f"args must be SparseSoupTrainingArguments, got {'none' if given is None else type(given).__name__}. For another "
                "Trainer's arguments write a dataclass `class MyArguments(SparseSoupArguments, TheirArguments)`."
            )
        super().__init__(*args, **kwargs)
        if not is_spawning():
            self._take_adapters()
            self._check_folders()
        self.report: dict[str, Any] | None = None
        self.card: dict[str, Any] = {}
        self._disk_bytes = 0

    def _take_adapters(self) -> None:
        """Prune the base of a model with LoRA adapters; each candidate gets adapters of its own, and is merged at its end."""
        if not has_adapters(self.model):
            return
        method = METHODS[self.args.pruning_method]
        if self.args.candidate_processes > 1 or method.prunes_while_training:
            raise ValueError(
                f"Adapters need a base and masks that stay as they are while a candidate is trained by one process, got "
                f"pruning_method={self.args.pruning_method!r} and candidate_processes={self.args.candidate_processes}. Use "
                "'sms', 'imp' or their kin, or train the whole model."
            )
        self.model, self._adapters = take_adapters_(self.model)
        self.model_wrapped = self.model
        freeze_left_out_(self.model)

    def _check_folders(self) -> None:
        """Raise for trainers that write folders of their own form, in which candidates could not be read back."""
        writer = next((cls for cls in type(self).__mro__ if "_save" in vars(cls) and not _is_ours(cls)), Trainer)
        if writer is not Trainer and not isinstance(self.model, PreTrainedModel):
            raise ValueError(
                f"Expected a Trainer that saves models as transformers does, got {writer.__name__}, which writes folders of its "
                f"own form for a {type(self.model).__name__}. Prune and retrain the Transformer inside it by SparseSoupTrainer."
            )

    # ---- The phases --------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint=None, trial=None, ignore_keys_for_eval=None) -> TrainOutput:
        """
        Make the soup.

        Args:
            resume_from_checkpoint (`bool`, *optional*): `True` goes on with the run in `args.output_dir`, or starts one.

        Returns:
            `TrainOutput`: Optimizer steps of all candidates together, their mean training loss, and the metrics of every
            phase (`phase_1_soup_<metric>`, ...).

        Raises:
            ValueError: For settings or data that make no sense, or an `output_dir` that holds another run.
            RuntimeError: If fewer than `min_candidates` of a phase are left, or another process failed or hangs.
            OSError: If a file cannot be written; the run can be resumed when there is room.
            SystemExit: After SIGTERM or Ctrl-C, when what was in training is saved.
        """
        if self._is_candidate:
            return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        start, processes, scope = time.time(), self.args.processes, self._scope("train")
        try:
            with stop_on_signals():
                self._check_inputs(resume_from_checkpoint, trial)
                self.report = self._run_phases(self._run, resume_from_checkpoint is True, scope)
                self.state = final_state(self.report)
                if self.args.push_to_hub:
                    self.push_to_hub()
        except Stopped as stopped:
            self._say(f"{stopped.signal}: stopped, nothing finished is lost. {HOW_TO_RESUME}")
            raise
        except BaseException as error:
            full = disk_error(error, self._run.root, self._disk_bytes) if is_disk_error(error) else None
            processes.fail(full or error)
            if full is not None:
                raise full from error
            raise
        return train_output(self.report, time.time() - start)

    def _run_phases(self, run: RunDirectory, resume: bool, scope: str) -> dict[str, Any]:
        processes, plan, metric = self.args.processes, self.args.make_plan(), self.args.selection_metric[0]
        settings = run_settings(self.args, plan, self.model, self._num_examples())
        self._origin = origin(settings, self.model)
        processes.check_shared(f"{scope}/shared", run.root)
        processes.on_main(f"{scope}/open", lambda: run.open(settings, processes.was_at(run.root) or resume))
        self._disk_bytes = processes.on_main(f"{scope}/cost", self._tell_cost)
        self._release_model_()
        dense = processes.on_main(f"{scope}/dense", lambda: self._score_dense(run))
        self._say(dense_line(dense, metric))
        finished = processes.on_main(f"{scope}/finished", lambda: self._finished(plan, run))
        phases = [
            self._run_phase(phase, len(plan), run, f"{scope}/phase-{phase.number}", phase.number in finished)
            for phase in plan
        ]
        self._hold(run.soup(plan[-1].number))
        report = {"metric": metric, "settings": settings, "dense": dense, "phases": phases}
        processes.on_main(f"{scope}/save", lambda: self._save_final(run, report))
        return report

    def _run_phase(
        self, phase: Phase, num_phases: int, run: RunDirectory, scope: str, is_finished: bool
    ) -> dict[str, Any]:
        processes, start = self.args.processes, time.time()
        if is_finished:
            return read_record(run.phase_record(phase.number))
        pending = processes.on_main(f"{scope}/pending", lambda: self._pending(phase, run))
        parent = processes.on_main(f"{scope}/parent", lambda: self._prune_parent(phase, run, bool(pending)))
        self._say(parent_line(phase, num_phases, parent))
        processes.fan_out(
            f"{scope}/candidates",
            pending,
            lambda i: self._retrain(phase, phase.candidates[i], run, scope),
            self.args.candidate_processes,
        )
        return processes.on_main(f"{scope}/merged", lambda: self._finish_phase(phase, parent, run, start))

    def _score_dense(self, run: RunDirectory) -> dict[str, float]:
        """Score the model before pruning: the table's first row, and a check of the metric before hours of training."""
        there, start = run.whole(run.dense_record), time.perf_counter()
        if there is not None:
            return there
        metrics = self._evaluate_copy(self._copy())
        if self._estimate is not None:
            self._estimate.seconds_per_score = time.perf_counter() - start
        return write_record(run.dense_record, metrics)

    def _finished(self, plan: Sequence[Phase], run: RunDirectory) -> list[int]:
        """Numbers of the phases that are whole: what they hand on is there, or has been used up."""
        finished: list[int] = []
        for phase in reversed(plan):
            used_up = phase.merge == "none" and phase.number + 1 in finished
            run.check_origin(phase.number, self._origin)
            record = run.whole(run.phase_record(phase.number), files=not used_up)
            if record is not None:
                finished.append(phase.number)
                run.check_notes(phase.number)
                if record["soup"] is not None:  # The run may have ended before it had cleared up.
                    self._remove_candidates(phase.number, run)
        return finished

    def _pending(self, phase: Phase, run: RunDirectory) -> list[int]:
        """Positions of the candidates that are not done yet. Failed ones are tried again only if too few are left."""
        records = [run.whole(run.candidate_record(phase.number, c.name)) for c in phase.candidates]
        failed = [record is not None and record["failure"] is not None for record in records]
        again = len(records) - sum(failed) < self.args.min_candidates
        return [i for i, record in enumerate(records) if record is None or (again and failed[i])]

    def _finish_phase(self, phase: Phase, parent: dict[str, Any], run: RunDirectory, start: float) -> dict[str, Any]:
        """Merge the candidates, if the phase says so; the record of the phase last."""
        records = [read_record(run.candidate_record(phase.number, c.name)) for c in phase.candidates]
        self._check_enough(phase, records)
        if not self.args.keep_candidates:
            remove_weights(run.parent(phase.number))
        metric, greater = self.args.selection_metric
        soup, diagnostics = (None, {}) if phase.merge == "none" else self._merge(phase, records, run)
        record = phase_record(phase, parent, records, soup, diagnostics, greater)
        left = [run.candidate(phase.number, r["name"]) for r in records if r["failure"] is None]
        folders = left if soup is None else [run.soup(phase.number)]
        files = [path for folder in folders for path in model_files(folder)]
        if soup is None:
            files += run.candidate_records(phase.number)  # Read by the phases that go on from the candidates.
        record = write_record(run.phase_record(phase.number), record | {"seconds": time.time() - start}, files)
        if soup is not None:
            self._remove_candidates(phase.number, run)
        for line in soup_lines(record, metric):
            self._say(line)
        return record

    def _remove_candidates(self, number: int, run: RunDirectory) -> None:
        """Remove what only this phase needed, and the phases before it that waited for it."""
        if self.args.keep_candidates:
            return
        for phase in self.args.make_plan()[:number]:
            for folder in (run.parent(phase.number), *(run.candidate(phase.number, c.name) for c in phase.candidates)):
                remove_weights(folder)

    def _hold(self, folder: Path) -> None:
        """Make this trainer the trainer of the model in a folder."""
        load_weights_(self.model, folder)
        self.masks = Masks.load(folder / MASKS)
        self._move_model_to_device(self.model, self.args.device)

    def _tell_cost(self) -> int:
        """Say what is to come; bytes that the run directory takes at the fullest."""
        cost = plan_run(self, measure=False)
        for line in start_lines(cost):
            self._say(line)
        self._estimate = TimeEstimate(cost)
        return cost.disk_bytes

    def _release_model_(self) -> None:
        """Make `self.model` plain again and move it off the accelerator: from here on it only serves to be copied."""
        forget_accelerate_(self.model)
        self.accelerator.free_memory()
        self.model_wrapped = self.model.to("cpu")

    # ---- Checks ------------------------------------------------------------------------------------------------------

    def _check_inputs(self, resume_from_checkpoint, trial) -> None:
        if trial is not None:
            raise ValueError(
                "Expected no hyperparameter search trial. Use `vary` to train candidates with other settings."
            )
        if resume_from_checkpoint not in (None, True, False):
            raise ValueError(
                f"resume_from_checkpoint must be True or False, got {resume_from_checkpoint!r}. A run is resumed from its "
                "output_dir, whatever it had finished."
            )
        check_copyable(self)
        make_group(self.args.processes, self.args.candidate_processes)
        if self.optimizer is not None or self.lr_scheduler is not None:
            raise ValueError(
                "Expected no `optimizers`: one optimizer cannot serve several candidates. Pass "
                "optimizer_cls_and_kwargs=(cls, {...}), or set optim, learning_rate and lr_scheduler_type in args."
            )
        if self.optimizer_cls_and_kwargs is not None and "learning_rate" in cast("dict", self.args.vary or {}):
            raise ValueError(
                "Expected `vary` without learning_rate, because optimizer_cls_and_kwargs sets the learning rate itself. "
                "Use optim and learning_rate in args instead."
            )
        for name, count in self._num_examples().items():
            if count == 0:
                raise ValueError(f"{name} must hold at least one example, got an empty one. Check files and filters.")
        if self.train_dataset is None or self.eval_dataset is None:
            raise ValueError(
                "Expected train_dataset and eval_dataset: candidates are trained on one, scored on the other."
            )
        find_prunable(self.model, self.args.target_modules, self.args.exclude_modules)
        nm_skipped(self.model, self.args.pruning_pattern, self.args.target_modules, self.args.exclude_modules)
        judge = self._judge(self.model)
        check_first_batch(judge, self.train_dataset, "train_dataset")
        check_first_batch(judge, self.eval_dataset, "eval_dataset")


def _is_ours(cls: type) -> bool:
    return cls.__module__.startswith("sms_hf.")


class SparseSoupTrainer(SparseSoupMixin, Seq2SeqTrainer):
    """
    Trainer for sparse model soups of any Hugging Face model; Trainer's own signature and attributes.

    A `Seq2SeqTrainer`, so that `predict_with_generate` works for translation; for all other models it is a `Trainer`.
    What it does: [`SparseSoupMixin`].
    """

    def __init__(self, *args, optimizer_cls_and_kwargs=None, **kwargs):
        model = args[0] if args else kwargs.get("model")
        if isinstance(model, str):
            raise ValueError(
                f"model must be a model, got the name {model!r}. Load it first, by the class for its task: "
                f"AutoModelForSeq2SeqLM.from_pretrained({model!r}), AutoModelForCausalLM..."
            )
        super().__init__(*args, **kwargs)
        # Trainer takes this by name, Seq2SeqTrainer forgets to.
        self.optimizer_cls_and_kwargs = optimizer_cls_and_kwargs
