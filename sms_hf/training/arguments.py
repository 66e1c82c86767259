"""The user's options: Trainer's own, and a few flat fields."""

import json
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, cast, get_args

from transformers import Seq2SeqTrainingArguments, TrainingArguments

from ..choices import check_choice
from ..compact.folders import FORMATS
from ..soup.ingredients import NEEDS_PARENT, SOUP_METHODS
from ..sparsity.pruning import CRITERIA, SCOPES, check_options, pattern_sparsity
from ..sparsity.schedules import RETRAIN_SCHEDULES
from .deciding import selection_metric
from .plan.candidates import Phase, vary_candidates
from .plan.learning_rate import check_schedule
from .plan.methods import METHODS, Request, make_plan
from .plan.rows import CANDIDATE_DATA
from .plan.tail import TAIL_AVERAGES
from .processes.launch import join_processes
from .processes.sharding import defer_sharding_, wants_sharding
from .processes.store import Processes

RETRAINED = ("all", "biases-and-norms")
LESS_IS_BETTER = ("ter", "eval_ter")
"""Metrics of `sms_hf.metrics` that Trainer would take for better where greater, as all but losses."""

_TrainingArguments = TrainingArguments if TYPE_CHECKING else object


@dataclass
class SparseSoupArguments(_TrainingArguments):
    """
    The options of a sparse model soup, to be mixed into any `TrainingArguments`:
    `class SoupSFTConfig(SparseSoupArguments, SFTConfig)`. Help of each option: its field.

    Attributes:
        incidental (`frozenset[str]`): Options that results do not depend on, so that a run may be resumed with others. A
            subclass adds its own; all that is not named here, nor incidental in Trainer, is compared.
    """

    incidental: ClassVar[frozenset[str]] = frozenset({"keep_candidates", "min_candidates", "sparse_format"})

    pruning_method: str = field(
        default="sms",
        metadata={
            "help": "'sms': sparse model soups. One model: 'pruned' (not retrained), 'one-shot', 'imp', 'imp-mx' (IMP, "
            "retrained as long as all candidates together), 'gmp', 'dpf', 'bimp' (one training of num_phases x "
            "num_train_epochs, pruned meanwhile), 'gmp-mx'. Several: 'gmp-soup' (GMP, whose last part is trained by all "
            "candidates), 'imp-reprune', 'imp-avg', 'gmp-sms', 'dpf-sms', 'bimp-sms'.",
            "choices": sorted(METHODS),
        },
    )
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
    min_candidates: int = field(
        default=1,
        metadata={
            "help": "Candidates of a phase that must succeed. One that diverges, runs out of memory or raises an error is left "
            "out, with its traceback in the report, while the others go on; with fewer left than this the run ends."
        },
    )
    candidate_processes: int = field(
        default=1,
        metadata={
            "help": "Processes that train one candidate together, by DDP, or sharded by FSDP2 with `fsdp`. The batch of a step "
            "grows by this factor, as in Trainer."
        },
    )
    soup_method: str = field(
        default="greedy",
        metadata={
            "help": "Which candidates are averaged: 'greedy' adds them best first while `metric_for_best_model` on the "
            "evaluation set does not get worse, 'uniform' takes all. For reference: 'learned' and 'learned-layers' weigh them by "
            "the gradient of its loss, 'model-stock' pulls their mean towards the parent, 'lottery-pools' tries coefficients.",
            "choices": sorted(SOUP_METHODS),
        },
    )
    soup_min_gain: float | None = field(
        default=None,
        metadata={
            "help": "'greedy': what a candidate must add to the score, in standard errors of the gain (paired bootstrap over the "
            "evaluation set), so that noise adds nobody. Default: anything that is not worse."
        },
    )
    pruning_scope: str = field(
        default="global",
        metadata={
            "help": "'global' ranks the weights of all layers together, 'uniform' prunes every layer equally, 'erk' and "
            "'uniform+' spare small layers and the first one, 'lamp' ranks by the share in what is left of a layer.",
            "choices": sorted(SCOPES),
        },
    )
    pruning_criterion: str = field(
        default="magnitude",
        metadata={
            "help": "Which weights go first: 'magnitude' the smallest, 'random' any, 'wanda' the smallest times the norm of "
            "their inputs, 'taylor' those that the loss depends on least; the last two look at calibration_batches.",
            "choices": sorted(CRITERIA),
        },
    )
    calibration_batches: int = field(
        default=8,
        metadata={
            "help": "Batches of the training data, of per_device_eval_batch_size rows, that the criteria 'wanda' and "
            "'taylor' look at."
        },
    )
    pruning_pattern: str = field(
        default="unstructured",
        metadata={
            "help": "'unstructured', 'N:M' such as '2:4' (N of M consecutive weights are kept), or whole 'neurons', 'heads' or "
            "'filters'. All but the first need pruning_scope 'uniform'."
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
    pruning_interval: float | None = field(
        default=None,
        metadata={
            "help": "GMP and DPF: epochs between two pruning events, the last one such an interval before the end. Default: 12 "
            "events until pruning_end; with soups between them num_phases events."
        },
    )
    pruning_end: float | None = field(
        default=None,
        metadata={
            "help": "GMP and DPF: fraction of the training, in (0, 1), after which nothing more is pruned. Default: 0.55; with "
            "pruning_interval, or soups between events, an interval before the end."
        },
    )
    phase_shares: list[float] | None = field(
        default=None,
        metadata={
            "help": "IMP, SMS and their kin: each phase's part of the epochs of all phases, as 0.25 0.75. Default: equal."
        },
    )
    shared_fraction: float = field(
        default=0.0,
        metadata={
            "help": "SMS: part of the epochs of all candidates of a phase, in [0, 1), that is trained as one model before they "
            "part. 0: as in the paper."
        },
    )
    trunk_processes: int = field(
        default=1,
        metadata={
            "help": "GMP-soup, and SMS with shared_fraction: processes that train together (DDP) what candidates share before "
            "they part; where there are fewer, gradients are accumulated. As many as candidates: all have work all the time."
        },
    )
    averaging_rounds: int = field(
        default=1,
        metadata={
            "help": "SMS: how often the candidates of a phase are averaged; all but the last time they go on from the average, "
            "each with its own optimizer (PAPA, DART, local SGD). 1: as in the paper."
        },
    )
    outer_step: list[float] | None = field(
        default=None,
        metadata={
            "help": "With averaging_rounds: learning rate and momentum of a step from where candidates started to their "
            "average, as 0.7 0.9 (DiLoCo). Default: they go on from the average."
        },
    )
    candidate_data: str = field(
        default="all",
        metadata={
            "help": "Which rows of the training data a candidate sees: 'all', 'shards' its own part, so often that it takes as "
            "many steps, or 'bootstrap', rows drawn with replacement.",
            "choices": list(CANDIDATE_DATA),
        },
    )
    dense_train_epochs: float | None = field(
        default=None,
        metadata={"help": "BIMP: epochs of dense training before the first pruning. Default: half of the budget."},
    )
    retrain_schedule: str | None = field(
        default=None,
        metadata={
            "help": "Learning rate of retraining: 'llr' linear, 'allr' linear from a peak that depends on what was pruned, "
            "'clr' cosine, 'ft' constant, 'lrw' and 'slr' as in the dense training. Default: lr_scheduler_type.",
            "choices": sorted(RETRAIN_SCHEDULES),
        },
    )
    min_learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "Last learning rate of the dense training: 'ft' stays at it, 'clr' ends at it. Default: its log, or 0."
        },
    )
    original_schedule: str | None = field(
        default=None,
        metadata={
            "help": "Schedule of the dense training for 'lrw' and 'slr': its folder or trainer_state.json, or a name such as "
            "'linear' (with original_num_epochs)."
        },
    )
    original_num_epochs: float | None = field(
        default=None,
        metadata={"help": "Epochs of the dense training, for 'allr', or with a name in original_schedule."},
    )
    retrained: str = field(
        default="all",
        metadata={
            "help": "Which parameters candidates train: 'all', or 'biases-and-norms', a hundredth of them: little memory, and "
            "weights stay those of the parent (PERP, Zimmer et al. 2023).",
            "choices": list(RETRAINED),
        },
    )
    tail_average: str | None = field(
        default=None,
        metadata={
            "help": "What a candidate ends with instead of its last weights: 'ema', their exponential mean over a tenth of its "
            "steps, or 'lawa', the mean of five snapshots in its last fifth.",
            "choices": sorted(TAIL_AVERAGES),
        },
    )
    distill_weight: float = field(
        default=0.0,
        metadata={
            "help": "Share of the loss, in [0, 1], that asks candidates for the logits of the model before pruning (Hinton et "
            "al. 2015). 0: none, and no forward pass of that model."
        },
    )
    distill_temperature: float = field(
        default=2.0,
        metadata={"help": "Temperature, above 0, of both distributions in the distilled part of the loss."},
    )
    distill_features: float = field(
        default=0.0,
        metadata={
            "help": "Weight, at least 0, of the states after every layer of that model on top of the loss (SquareHead, Kurtic et "
            "al. 2023). 0: none."
        },
    )
    distill_cache: bool = field(
        default=False,
        metadata={
            "help": "Compute the logits of that model once for every row of the training data: for classifiers whose rows do not "
            "change, without augmentation."
        },
    )
    bn_recalibration_fraction: float = field(
        default=1.0,
        metadata={
            "help": "Fraction of the training data, in [0, 1], from which the statistics of batch norms are estimated again "
            "for every candidate and soup. 0: not at all. Models without batch norm are left alone."
        },
    )
    sparse_format: str = field(
        default="dense",
        metadata={
            "help": "Weights of the final model: 'dense' with zeros in place, which every tool loads; 'compact', kept values and "
            "a mask, smaller, which sms_hf loads; 'both', side by side.",
            "choices": list(FORMATS),
        },
    )
    keep_candidates: bool = field(
        default=False, metadata={"help": "Keep the weights of every candidate, not only of the soups."}
    )

    def __init_subclass__(cls, **kwargs):
        # So that `class MyConfig(SparseSoupArguments, TheirConfig): pass` has the options of both without `@dataclass`.
        super().__init_subclass__(**kwargs)
        dataclass(cls)

    def __post_init__(self):
        # First of all, so that Trainer's own set-up below sees a single process.
        processes = join_processes()
        self._check_numbers()
        if isinstance(self.vary, str):
            self.vary = _parse_vary(self.vary)
        check_choice("soup_method", self.soup_method, sorted(SOUP_METHODS))
        if self.soup_min_gain is not None and (not self.soup_min_gain >= 0 or self.soup_method != "greedy"):
            raise ValueError(
                f"soup_min_gain must be at least 0, and goes with soup_method='greedy', got {self.soup_min_gain} with "
                f"{self.soup_method!r}. Leave it out."
            )
        check_options(self.pruning_scope, self.pruning_criterion, self.max_sparsity_per_layer, self.pruning_pattern)
        self._check_pattern()
        check_schedule(self)
        check_choice("retrained", self.retrained, RETRAINED)
        check_choice("candidate_data", self.candidate_data, list(CANDIDATE_DATA))
        if self.tail_average is not None:
            check_choice("tail_average", self.tail_average, sorted(TAIL_AVERAGES))
        if not 0.0 <= self.distill_weight <= 1.0 or self.distill_temperature <= 0.0:
            raise ValueError(
                f"distill_weight must lie in [0, 1] and distill_temperature above 0, got {self.distill_weight} and "
                f"{self.distill_temperature}."
            )
        if self.distill_features < 0:
            raise ValueError(f"distill_features must be at least 0, got {self.distill_features}.")
        if self.distill_cache and (
            self.distill_features or not (self.distill_weight or "distill_weight" in (self.vary or ()))
        ):
            raise ValueError(
                f"distill_cache keeps logits, for distill_weight above 0 and no distill_features, got {self.distill_weight} and "
                f"{self.distill_features}. Leave it out."
            )
        check_choice("sparse_format", self.sparse_format, FORMATS)
        if not 0.0 <= self.bn_recalibration_fraction <= 1.0:
            raise ValueError(f"bn_recalibration_fraction must lie in [0, 1], got {self.bn_recalibration_fraction}.")
        if self.max_sparsity_per_layer is not None and self.max_sparsity_per_layer < self.target_sparsity:
            # The last phase would find out, after all the others were trained.
            raise ValueError(
                f"max_sparsity_per_layer must be at least target_sparsity={self.target_sparsity}, got "
                f"{self.max_sparsity_per_layer}: no layer could reach the goal. Raise it, or lower target_sparsity."
            )
        if self.deepspeed:
            raise ValueError(
                "Expected no `deepspeed`: it keeps its own fp32 copy of the weights and steps inside backward(), so masks would "
                "not hold. Shard large candidates by candidate_processes and fsdp=True."
            )
        if self.candidate_processes < 1:
            raise ValueError(f"candidate_processes must be at least 1, got {self.candidate_processes}.")
        defer_sharding_(self)
        if not processes.is_main:
            self.disable_tqdm = True
            self.push_to_hub = False
        if self.greater_is_better is None and self.metric_for_best_model in LESS_IS_BETTER:
            self.greater_is_better = False
        super().__post_init__()
        self._check_sharding()
        if self.n_gpu > 1:  # One candidate, one device: a launch gives every process its own. No nn.DataParallel.
            self._n_gpu = 1
        processes.timeout = float(self.ddp_timeout)
        if not _one_training:
            self._check_plan()

    def _check_plan(self) -> None:
        plan = self.make_plan()
        fewest = min(len(phase.candidates) for phase in plan if not phase.is_trunk)
        if self.min_candidates < 1 or self.min_candidates > max(fewest, 1):
            raise ValueError(f"min_candidates must lie between 1 and {fewest} candidates, got {self.min_candidates}.")
        if self.retrained != "all" and METHODS[self.pruning_method].prunes_while_training:
            raise ValueError(
                f"Expected retrained='all' with pruning_method={self.pruning_method!r}, got {self.retrained!r}: what is pruned "
                "while it is trained has to be trained. Take 'sms', 'imp' or their kin."
            )
        if wants_sharding(self) and (self.tail_average or any(phase.keeps_optimizers for phase in plan)):
            raise ValueError(
                "Expected no fsdp with shared_fraction, averaging_rounds or tail_average: the optimizer with which candidates go "
                "on, and the mean of their weights, lie in parts on several processes. Leave one of the two out."
            )
        if self.candidate_processes > 1 and self.trunk_processes > 1:
            raise ValueError(
                f"Expected no candidate_processes with trunk_processes, got {self.candidate_processes} and "
                f"{self.trunk_processes}: either all is trained by groups of one size, or a trunk by many processes and each "
                "candidate by one. Leave one of the two out."
            )
        if self.tail_average and (self.load_best_model_at_end or any(phase.feedback for phase in plan)):
            raise ValueError(
                f"Expected no tail_average with load_best_model_at_end, which takes the weights of one step, nor with DPF, whose "
                f"masks come and go, got {self.tail_average!r}. Leave one of the two out."
            )
        looks_at_data = CRITERIA[self.pruning_criterion].observes is not None
        if looks_at_data and self.calibration_batches < 1:
            raise ValueError(f"calibration_batches must be at least 1, got {self.calibration_batches}.")
        if looks_at_data and METHODS[self.pruning_method].prunes_while_training:
            raise ValueError(
                f"Expected no pruning_method={self.pruning_method!r} with pruning_criterion={self.pruning_criterion!r}: it "
                "prunes in the middle of a training, where nothing is calibrated. Take 'sms', 'imp' or their kin, or 'magnitude'."
            )
        if self.load_best_model_at_end and METHODS[self.pruning_method].prunes_while_training:
            raise ValueError(
                f"Expected no load_best_model_at_end with pruning_method={self.pruning_method!r}: an earlier checkpoint is not "
                "pruned to the end. Leave it out."
            )

    def _check_numbers(self) -> None:
        """A number in quotes would pass, and fail somewhere in the arithmetic of the plan."""
        for option in fields(self):
            value, kinds = getattr(self, option.name), set(get_args(option.type)) or {option.type}
            if isinstance(value, str) and kinds & {int, float} and str not in kinds:
                raise ValueError(f"{option.name} must be a number, got the text {value!r}. Write it without quotes.")

    def _check_sharding(self) -> None:
        if not wants_sharding(self):
            return
        if self.device.type == "cpu":
            raise ValueError(
                "fsdp needs GPUs, got CPUs, on which Accelerate would train by DDP and say nothing. Leave it out."
            )
        if self.candidate_processes < 2:
            raise ValueError(
                "fsdp needs candidate_processes of at least 2: the processes that hold a candidate together, got 1."
            )
        if METHODS[self.pruning_method].prunes_while_training:
            raise ValueError(
                f"Expected no fsdp with pruning_method={self.pruning_method!r}: what to prune while training is decided on whole "
                "weights, and every process holds a part of them. Without fsdp the processes of a candidate train by DDP."
            )

    def _check_pattern(self) -> None:
        given = pattern_sparsity(self.pruning_pattern)
        if given is not None and abs(given - self.target_sparsity) > 1e-6:
            raise ValueError(
                f"pruning_pattern={self.pruning_pattern!r} removes {given:g} of the weights, target_sparsity is "
                f"{self.target_sparsity:g}. Set target_sparsity={given:g}."
            )

    @property
    def processes(self) -> Processes:
        """The processes of this launch."""
        return join_processes()

    def make_plan(self) -> list[Phase]:
        """The phases and candidates that these arguments ask for; `ValueError` where they make no sense."""
        vary = cast("dict | None", self.vary)  # Parsed when the arguments were made.
        request = Request(
            target_sparsity=self.target_sparsity,
            num_phases=self.num_phases,
            variants=vary_candidates(self.num_candidates, vary, self.seed),
            num_train_epochs=self.num_train_epochs,
            max_steps=self.max_steps,
            warmup_steps=self.warmup_steps,
            pruning_interval=self.pruning_interval,
            pruning_end=self.pruning_end,
            phase_shares=self.phase_shares,
            shared_fraction=self.shared_fraction,
            trunk_processes=self.trunk_processes,
            averaging_rounds=self.averaging_rounds,
            outer_step=self.outer_step,
            dense_train_epochs=self.dense_train_epochs,
            original_num_epochs=self.original_num_epochs,
        )
        return make_plan(self.pruning_method, request)

    @property
    def keeps_parents(self) -> bool:
        """Whether a parent is needed until its soup is made."""
        return self.soup_method in NEEDS_PARENT or self.outer_step is not None

    @property
    def selection_metric(self) -> tuple[str, bool]:
        """Metric that decides between candidates and whether greater is better; the evaluation loss by default."""
        return selection_metric(self.metric_for_best_model, self.greater_is_better)


@dataclass
class SparseSoupTrainingArguments(SparseSoupArguments, Seq2SeqTrainingArguments):
    """
    `Seq2SeqTrainingArguments` with the options of a sparse model soup; serves models of every kind.

    Trainer's arguments describe the retraining of one candidate (`learning_rate`, `num_train_epochs`, ...), on one process.
    `metric_for_best_model` and `greater_is_better` also decide the greedy soup. `output_dir` is the run directory: the
    final model lies in it, everything else in its folder `_run`.
    """


_one_training = False


def one_training(args: SparseSoupArguments, **changes: Any) -> SparseSoupArguments:
    """
    Arguments of one training of a run, or of a score: the run's, with changes.

    They still say what the run is, but a plan of phases need not make sense with the changes.
    """
    global _one_training
    _one_training = True
    try:
        return replace(args, **changes)
    finally:
        _one_training = False


def _parse_vary(text: str) -> dict:
    try:
        vary = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f'`vary` must be JSON such as {{"seed": [1, 2, 3]}}, got {text!r} ({error}).') from None
    if not isinstance(vary, dict):
        raise ValueError(f'`vary` must be a JSON object such as {{"seed": [1, 2, 3]}}, got {text!r}.')
    return vary
