"""The user's options: Trainer's own, and a few flat fields."""

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from transformers import Seq2SeqTrainingArguments, TrainingArguments

from ..soup.recipes import SOUP_METHODS
from ..sparsity.pruning import CRITERIA, SCOPES, check_options
from .candidates import Phase, make_plan
from .fanout import Processes, join_processes

_TrainingArguments = TrainingArguments if TYPE_CHECKING else object


@dataclass
class SparseSoupArguments(_TrainingArguments):
    """
    The options of a sparse model soup, to be mixed into any `TrainingArguments`:
    `class SoupSFTConfig(SparseSoupArguments, SFTConfig)`. Help of each option: its field.
    """

    target_sparsity: float = field(
        default=0.8, metadata={"help": "Fraction of the prunable weights to remove in the end, in [0, 1)."}
    )
    num_phases: int = field(
        default=2,
        metadata={"help": "Number of prune, retrain, average cycles. Each removes the same fraction of what is left."},
    )
    num_candidates: int | None = field(
        default=None,
        metadata={"help": "Retrained copies per phase. Default: the combinations in `vary`, or 3 seeds."},
    )
    vary: dict | str | None = field(
        default=None,
        metadata={
            "help": "What differs between the candidates: a mapping of hyperparameters to lists of values (on the command "
            'line as JSON), for example {"seed": [1, 2, 3]} or {"weight_decay": [0, 0.01], "learning_rate": [1e-4, 3e-4]}; '
            "several keys give all combinations. Default: the seed. Seeds grow by 1000 with every phase."
        },
    )
    soup_method: str = field(
        default="greedy",
        metadata={
            "help": "Which candidates are averaged: 'greedy' adds them best first while `metric_for_best_model` on the "
            "evaluation set does not get worse, 'uniform' takes all.",
            "choices": sorted(SOUP_METHODS),
        },
    )
    pruning_scope: str = field(
        default="global",
        metadata={
            "help": "'global' ranks the weights of all layers together, 'uniform' prunes every layer equally.",
            "choices": sorted(SCOPES),
        },
    )
    pruning_criterion: str = field(
        default="magnitude",
        metadata={
            "help": "Which weights go first: 'magnitude' the smallest, 'random' any.",
            "choices": sorted(CRITERIA),
        },
    )
    target_modules: list[str] | str | None = field(
        default=None,
        metadata={
            "help": "Prune only these modules: a list of names or their last parts, or (the form for the command line) one "
            "regular expression for the whole name. Default: the linear layers inside the model's body."
        },
    )
    exclude_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Leave these modules dense; notation as in `target_modules`."}
    )
    max_sparsity_per_layer: float | None = field(
        default=None,
        metadata={"help": "No layer may lose more than this fraction, in (0, 1]. Guards against emptied layers."},
    )
    keep_candidates: bool = field(
        default=False, metadata={"help": "Keep the weights of every candidate, not only of the soups."}
    )

    def __post_init__(self):
        # First of all, so that Trainer's own set-up below sees a single process.
        processes = join_processes()
        if isinstance(self.vary, str):
            self.vary = _parse_vary(self.vary)
        if self.soup_method not in SOUP_METHODS:
            raise ValueError(f"soup_method must be one of {sorted(SOUP_METHODS)}, got {self.soup_method!r}.")
        check_options(self.pruning_scope, self.pruning_criterion, self.max_sparsity_per_layer)
        if self.max_sparsity_per_layer is not None and self.max_sparsity_per_layer < self.target_sparsity:
            # The last phase would find out, after all the others were trained.
            raise ValueError(
                f"max_sparsity_per_layer must be at least target_sparsity={self.target_sparsity}, got "
                f"{self.max_sparsity_per_layer}: no layer could reach the goal. Raise it, or lower target_sparsity."
            )
        if self.deepspeed or self.fsdp:
            raise ValueError(
                "Expected no `deepspeed` and no `fsdp`: DeepSpeed keeps its own fp32 copy of the weights and steps inside "
                "backward(), FSDP replaces the parameters, so masks would not hold. Every process trains whole candidates: "
                "use plain `accelerate launch`."
            )
        if not processes.is_main:
            self.disable_tqdm = True
            self.push_to_hub = False
        super().__post_init__()
        if self.n_gpu > 1:  # One candidate, one device: a launch gives every process its own. No nn.DataParallel.
            self._n_gpu = 1
        self.make_plan()

    @property
    def processes(self) -> Processes:
        """The processes of this launch."""
        return join_processes()

    def make_plan(self) -> list[Phase]:
        """The phases and candidates that these arguments ask for; `ValueError` where they make no sense."""
        vary = cast("dict | None", self.vary)  # Parsed when the arguments were made.
        return make_plan(self.target_sparsity, self.num_phases, self.num_candidates, vary, self.seed)

    @property
    def selection_metric(self) -> tuple[str, bool]:
        """Metric that decides between candidates and whether greater is better; the evaluation loss by default."""
        name = self.metric_for_best_model or "loss"
        greater = self.greater_is_better
        return name.removeprefix("eval_"), not name.endswith("loss") if greater is None else greater


@dataclass
class SparseSoupTrainingArguments(SparseSoupArguments, Seq2SeqTrainingArguments):
    """
    `Seq2SeqTrainingArguments` with the options of a sparse model soup; serves models of every kind.

    Trainer's arguments describe the retraining of one candidate (`learning_rate`, `num_train_epochs`, ...), on one process.
    `metric_for_best_model` and `greater_is_better` also decide the greedy soup. `output_dir` is the run directory: the
    final model lies in it, everything else in its folder `_run`.
    """


def _parse_vary(text: str) -> dict:
    try:
        vary = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f'`vary` must be JSON such as {{"seed": [1, 2, 3]}}, got {text!r} ({error}).') from None
    if not isinstance(vary, dict):
        raise ValueError(f'`vary` must be a JSON object such as {{"seed": [1, 2, 3]}}, got {text!r}.')
    return vary
