"""The user's trainer: a run behind Trainer's own methods."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, Seq2SeqTrainer, TrainingArguments
from transformers.trainer_utils import TrainOutput

from ..report.schema import Comparison, Report
from .arguments import SparseSoupArguments
from .cost.forecast import Forecast
from .cost.measure import forecast_run, num_examples
from .live.screen import Screen
from .live.terminal import watched
from .masked.adapters import has_adapters, take_adapters_
from .masked.candidate import CandidateMixin
from .masked.checkpoints import freeze_left_out_
from .plan.candidates import Phase
from .plan.methods import METHODS
from .processes.failures import disk_error, is_disk_error
from .processes.say import say
from .processes.stopping import Stopped, stop_on_signals
from .run.afterwards import compare_scores, kept_candidates, score_ensemble, score_run, score_subsoups
from .run.bench import Bench
from .run.checks import check_inputs
from .run.publishing import Publisher
from .run.records import final_state, run_settings, train_output
from .run.soup_run import SoupRun
from .run_directory import RunDirectory
from .spawning import Rebuildable, is_spawning, overridden_by

HOW_TO_RESUME = "Go on with train(resume_from_checkpoint=True) (--resume in the recipes)."


class SparseSoupMixin(CandidateMixin, metaclass=Rebuildable):
    """
    Turns a `Trainer` into one that makes sparse model soups: `class SoupSFT(SparseSoupMixin, SFTTrainer)`.

    `train()` runs the phases of Sparse Model Soups (Zimmer, Spiegel, Pokutta, ICLR 2024, Algorithm 1): prune, retrain
    copies that share the mask, average them, repeat. Every copy is retrained by a fresh trainer of the user's own class,
    on whichever process is free. Afterwards the trainer holds the final soup: `evaluate`, `predict`, `save_model` and
    `push_to_hub` speak of it, and `state.log_history` of all candidates and soups.

    Attributes:
        masks ([`Masks`] or `None`): Masks of the model that the trainer holds.
        report ([`Report`](docs/report.md) or `None`): After `train()`, what `report.json` holds.
        comparisons (`list[Comparison]`): After `evaluate_run()`, whether the soup's test score differs by more than noise.
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
        # Of LoRA: what candidates are given on top of the parent, and merged into it at their end.
        self._adapters: Any = None
        if not is_spawning():
            self._take_adapters()
            self._check_folders()
        self.report: Report | None = None
        self.comparisons: list[Comparison] = []
        self.card: dict[str, Any] = {}

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
        if self.args.retrained != "all" or any(phase.keeps_optimizers for phase in self.args.make_plan()):
            raise ValueError(
                f"Adapters are what their candidates train, each from a start of its own: expected retrained='all', no "
                f"shared_fraction and averaging_rounds=1, got {self.args.retrained!r}, {self.args.shared_fraction} and "
                f"{self.args.averaging_rounds}. Leave them out, or train without adapters."
            )
        self.model, self._adapters = take_adapters_(self.model)
        self.model_wrapped = self.model
        freeze_left_out_(self.model)

    def _check_folders(self) -> None:
        """Raise for trainers that write folders of their own form, in which candidates could not be read back."""
        writer = overridden_by(type(self), "_save")
        if writer is not None and not isinstance(self.model, PreTrainedModel):
            raise ValueError(
                f"Expected a Trainer that saves models as transformers does, got {writer.__name__}, which writes folders of its "
                f"own form for a {type(self.model).__name__}. Prune and retrain the Transformer inside it by SparseSoupTrainer."
            )

    # ---- The run -----------------------------------------------------------------------------------------------------

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
        if self.retraining is not None:
            return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        start, processes, scope, disk_bytes = time.time(), self.args.processes, self._scope("train"), 0
        with stop_on_signals():
            try:
                check_inputs(Bench(self), resume_from_checkpoint, trial)
                plan = self.args.make_plan()
                # By the main process alone: it looks at files that it will soon change.
                cost = forecast_run(self, measure=False, plan=plan) if processes.is_main else None
                disk_bytes = processes.on_main(f"{scope}/disk", lambda: cost and cost.disk_bytes)
                with watched(processes, self.args, scope, self._screen(plan)):
                    self.report = self._run(plan, cost, scope, resume_from_checkpoint is True)
                self.state = final_state(self.report)
                if self.args.push_to_hub:
                    self.push_to_hub()
            except Stopped as stopped:
                if processes.is_main:
                    say(f"{stopped.signal}: stopped, nothing finished is lost. {HOW_TO_RESUME}", logging.WARNING)
                raise
            except BaseException as error:
                full = disk_error(error, self._directory.root, disk_bytes) if is_disk_error(error) else None
                processes.fail(full or error)
                if full is not None:
                    raise full from error
                raise
        return train_output(self.report, time.time() - start)

    def _run(self, plan: Sequence[Phase], cost: Forecast | None, scope: str, resume: bool) -> Report:
        bench, directory, processes = Bench(self), self._directory, self.args.processes
        data = {"train_dataset": self.train_dataset, "eval_dataset": self.eval_dataset}
        settings = processes.on_main(
            f"{scope}/settings", lambda: run_settings(self.args, plan, self.model, data, num_examples(self))
        )
        processes.check_shared(f"{scope}/shared", directory.root)
        run = SoupRun(bench, directory, processes, plan, scope, self._adapters)
        report = run.make(settings, cost, resume)
        bench.hold_(directory.phase(plan[-1].number).soup)
        processes.on_main(f"{scope}/save", lambda: Publisher(bench, directory).save_final(report))
        return report

    def _screen(self, plan: Sequence[Phase]) -> Screen:
        folder = Path(str(self.args.output_dir))
        return Screen(folder.name, self.args.selection_metric[0], plan, folder)

    @property
    def _directory(self) -> RunDirectory:
        return RunDirectory(str(self.args.output_dir))

    def _scope(self, what: str) -> str:
        """A name that all processes give to this call, and to no other."""
        return f"{what}-{self.args.processes.take(f'{what}-{self.args.processes.rank}')}"

    # ---- What a user asks after a run --------------------------------------------------------------------------------

    def evaluate_run(self, dataset, dense: torch.nn.Module | None = None) -> dict[str, float]:
        """
        Score every model that the run left on disk on other data: the test set, once, after all choices are made.

        Args:
            dataset (`Dataset`): As `eval_dataset`.
            dense (`nn.Module`, *optional*): The model before pruning, to be scored along.

        Returns:
            `dict[str, float]`: `"dense"`, `"phase-1/candidate-1"` (with `keep_candidates`), `"phase-1/soup"`, ... -> the
            value of `metric_for_best_model`.
        """
        bench, plan = Bench(self), self.args.make_plan()
        report = self.report

        def work() -> tuple[dict[str, float], list[Comparison]]:
            scores = score_run(bench, self._directory, plan, dataset, dense)
            values = {name: score.metrics[bench.metric] for name, score in scores.items()}
            return values, [] if report is None else compare_scores(scores, bench.metric, report)

        scores, self.comparisons = self.args.processes.on_main(self._scope("evaluate-run"), work)
        if self.args.processes.is_main and report is not None:
            Publisher(bench, self._directory).describe(report, scores, self.comparisons)
        return scores

    def evaluate_ensemble(self, dataset=None, phase: int | None = None) -> dict[str, float]:
        """
        Score the prediction ensemble of a phase's candidates: a reference that costs as many models at inference.

        Probabilities are averaged, with equal weights; in translation the next token's, at every step of decoding
        (Zimmer et al. 2024; the latter is assumed).

        Args:
            dataset (`Dataset`, *optional*): Default: `eval_dataset`.
            phase (`int`, *optional*): Counts from 1. Default: the last.

        Returns:
            `dict[str, float]`: All metrics.

        Raises:
            ValueError: If the candidates' weights were not kept.
        """
        folders = self._kept_candidates(phase)
        return self.args.processes.on_main(
            self._scope("evaluate-ensemble"), lambda: score_ensemble(Bench(self), folders, dataset)
        )

    def evaluate_subsoups(
        self, dataset=None, sizes: Sequence[int] = (2, 3), phase: int | None = None
    ) -> dict[tuple[str, ...], float]:
        """
        Score the uniform soup of every pair, every triple, ... of a phase's candidates, as in the paper's figure of knobs.

        The soups are spread over the processes.

        Args:
            dataset (`Dataset`, *optional*): Default: `eval_dataset`.
            sizes (`Sequence[int]`, *optional*, defaults to `(2, 3)`): Numbers of ingredients.
            phase (`int`, *optional*): Counts from 1. Default: the last.

        Returns:
            `dict[tuple[str, ...], float]`: Ingredients -> the value of `metric_for_best_model`.
        """
        return score_subsoups(
            Bench(self), self._kept_candidates(phase), sizes, dataset, self._scope("evaluate-subsoups")
        )

    def _kept_candidates(self, number: int | None) -> dict[str, Path]:
        plan = self.args.make_plan()
        return kept_candidates(self._directory, plan[-1 if number is None else number - 1])

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        candidates: bool = False,
        **kwargs: Any,
    ) -> Any:
        """
        Push the soup, as [`sms_hf.push_to_hub`] does: once, by the main process. The others return at once.

        Args:
            commit_message, blocking, token, revision, private: As in `Trainer.push_to_hub`.
            candidates (`bool`, *optional*, defaults to `False`): Also push the candidates of the last phase, each to a branch
                `phase-2-candidate-1`. They are there with `keep_candidates=True`.
            kwargs: Those of `Trainer.create_model_card`: `language`, `license`, `tags`, `dataset_tags`, ...

        Returns:
            `CommitInfo` of the soup, or a `Future` of it with `blocking=False`; None on other processes.

        Raises:
            ValueError: If the candidates' weights were not kept.
        """
        if self.retraining is not None or self.report is None:
            return super().push_to_hub(commit_message, blocking, token, revision, private, **kwargs)
        if not self.args.processes.is_main:
            return None
        kept = self._kept_candidates(None) if candidates else {}
        publisher, message = Publisher(Bench(self), self._directory), commit_message or "End of training"
        return publisher.push(message, blocking, token, revision, private, kept, kwargs)


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
