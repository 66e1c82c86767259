"""
The methods of the paper and their neighbours, as rows of one table: each turns the user's options into phases.

Everything that a method is lies in its phases: who is retrained, for how long, from which weights, and what becomes of
the candidates. The trainer carries out phases and knows no method.

The budget of retraining is `num_phases * num_train_epochs` for every method that trains one model (two exceptions:
`pruned` and `one-shot`, which have one phase by definition), and the number of candidates times as much for those that
average and for `imp-mx`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ...choices import check_choice
from ...sparsity.schedules import check_sparsity, gradual_sparsities, num_pruning_events, phase_sparsities
from .candidates import SEED_STRIDE, Candidate, Phase

PRUNING_EVENTS = 12
"""Of GMP and DPF, unless the interval between them is given."""
PRUNING_END = 0.55
"""
Fraction of the training after which GMP and DPF prune no more. Sparse networks are under-trained (Kuznedelev et al., TMLR
2024): what is left for the last mask decides more than how gently it was reached. docs/results.md has the measurement.
"""


@dataclass(frozen=True)
class Request:
    """
    What the user asks for.

    Attributes:
        target_sparsity (`float`): In `[0, 1)`.
        num_phases (`int`): At least 1.
        variants (`list[dict]`): Overrides of the candidates of the first phase, each with its seed.
        num_train_epochs (`float`): Epochs of retraining per phase; `max_steps`, where positive, counts instead of it.
        max_steps (`int`): Optimizer steps per phase, or -1.
        warmup_steps (`float`): As in `TrainingArguments`: below 1 a fraction, else steps.
        pruning_interval (`float`, *optional*): Epochs between two pruning events of GMP and DPF.
        pruning_end (`float`, *optional*): Fraction of the training after which GMP and DPF prune no more, in `(0, 1)`.
        phase_shares (`list[float]`, *optional*): Each phase's part of the epochs of all phases; together 1.
        shared_fraction (`float`): Part of the epochs of a phase that its candidates share before they part, in `[0, 1)`.
        trunk_processes (`int`): That train by data parallelism what candidates share before they part, at least 1.
        averaging_rounds (`int`): How often the candidates of a phase are averaged, at least 1.
        outer_step (`list[float]`, *optional*): Learning rate and momentum of the step towards each of these averages.
        dense_train_epochs (`float`, *optional*): Epochs that BIMP trains before it prunes.
        original_num_epochs (`float`, *optional*): Epochs of the training that made the dense model, for ALLR.
    """

    target_sparsity: float
    num_phases: int
    variants: list[dict[str, Any]]
    num_train_epochs: float = 3.0
    max_steps: int = -1
    warmup_steps: float = 0.0
    pruning_interval: float | None = None
    pruning_end: float | None = None
    phase_shares: list[float] | None = None
    shared_fraction: float = 0.0
    trunk_processes: int = 1
    averaging_rounds: int = 1
    outer_step: list[float] | None = None
    dense_train_epochs: float | None = None
    original_num_epochs: float | None = None

    @property
    def budget(self) -> float:
        """Epochs that a method which trains one model has in all."""
        return self.num_phases * self.num_train_epochs


@dataclass(frozen=True)
class Method:
    """
    A row of the table.

    Attributes:
        plan (`Callable`): [`Request`] -> phases.
        averages (`bool`): Whether the number of candidates matters.
        prunes_while_training (`bool`): Whether masks change while a candidate is trained.
        options (`frozenset[str]`): Of a [`Request`], those that it has a use for and others have not.
    """

    plan: Callable[[Request], list[Phase]]
    averages: bool = False
    prunes_while_training: bool = False
    options: frozenset[str] = frozenset()


def make_plan(method: str, request: Request) -> list[Phase]:
    """
    The phases of a run.

    Raises:
        ValueError: For an unknown method, or options that make no sense.
    """
    check_choice("pruning_method", method, sorted(METHODS))
    check_sparsity("target_sparsity", request.target_sparsity)
    phase_sparsities(request.target_sparsity, request.num_phases)
    if request.num_train_epochs <= 0 and request.max_steps <= 0 and method != "pruned":
        raise ValueError(
            f"num_train_epochs must be above 0, got {request.num_train_epochs}. Set it, or max_steps, or choose "
            "pruning_method='pruned' to see what pruning alone does."
        )
    _check_options(method, request)
    return METHODS[method].plan(request)


def _check_options(method: str, request: Request) -> None:
    shares, fraction = request.phase_shares, request.shared_fraction
    for option in sorted({option for row in METHODS.values() for option in row.options} - METHODS[method].options):
        if getattr(request, option) != getattr(Request, option):  # The class holds the defaults.
            whose = ", ".join(repr(name) for name, row in METHODS.items() if option in row.options)
            raise ValueError(f"{option} is for pruning_method={whose}, got {method!r}. Leave it out.")
    if shares is not None and (len(shares) != request.num_phases or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6):
        raise ValueError(
            f"phase_shares must be num_phases={request.num_phases} fractions above 0 with a sum of 1, got {shares}. [0.25, 0.75] "
            "gives the second of two phases three times the epochs of the first."
        )
    if not 0.0 <= fraction < 1.0:
        raise ValueError(f"shared_fraction must lie in [0, 1), got {fraction}. 0: candidates part at once.")
    if request.averaging_rounds < 1 or (request.averaging_rounds > 1 and fraction):
        raise ValueError(
            f"averaging_rounds must be at least 1, and 1 with shared_fraction, got {request.averaging_rounds} and {fraction}."
        )
    if request.trunk_processes < 1 or (request.trunk_processes > 1 and method == "sms" and not fraction):
        raise ValueError(
            f"trunk_processes must be at least 1, and 1 without a trunk, got {request.trunk_processes} and "
            f"shared_fraction={fraction}. For 'sms' set shared_fraction above 0; 'gmp-soup' always has a trunk."
        )
    step = request.outer_step
    if step is not None and (len(step) != 2 or request.averaging_rounds == 1 or step[0] <= 0 or not 0 <= step[1] < 1):
        raise ValueError(
            "outer_step must be a learning rate above 0 and a momentum in [0, 1), with averaging_rounds above 1, got "
            f"{step} and {request.averaging_rounds}. DiLoCo's are [0.7, 0.9]."
        )
    if request.pruning_end is not None and not 0.0 < request.pruning_end < 1.0:
        raise ValueError(f"pruning_end must lie in (0, 1), got {request.pruning_end}. Default: {PRUNING_END}.")


# ---- Prune, then retrain -------------------------------------------------------------------------------------------------


def _pruned(request: Request) -> list[Phase]:
    """Pruned once, not retrained at all: the floor of the table."""
    untrained = {**request.variants[0], "num_train_epochs": 0.0, "max_steps": -1}
    return [Phase(1, request.target_sparsity, _candidates([untrained], 1))]


def _one_shot(request: Request) -> list[Phase]:
    """Han et al. 2015: pruned once, retrained once."""
    return _iterative(replace(request, num_phases=1, variants=request.variants[:1]))


def _imp(request: Request) -> list[Phase]:
    """Iterative magnitude pruning: Sparse Model Soups (Zimmer et al., ICLR 2024), Algorithm 1 with `m = 1`."""
    return _iterative(replace(request, variants=request.variants[:1]))


def _imp_mx(request: Request) -> list[Phase]:
    """IMP whose every phase is `m` times as long, with one schedule stretched over it: the epochs of a soup in series."""
    longer = lasting(request, request.variants[0], len(request.variants))
    return _iterative(replace(request, variants=[longer]))


def _sms(request: Request) -> list[Phase]:
    """
    Sparse Model Soups (Zimmer, Spiegel, Pokutta, ICLR 2024), Algorithm 1.

    With a `shared_fraction` `f` each of its phases is two here: of its `m k` epochs `f m k` as one model, then `m` copies for
    `(1 - f) k` each, which go on with its optimizer along one schedule (branching late: Gupta et al., SWAP, ICLR 2020; with
    `trunk_processes` they train that one model together, as SWAP and post-local SGD do: Lin et al., ICLR 2020).

    With `averaging_rounds` `R` each is `R` phases here: the copies are averaged `R` times, and go on from the average, each
    with its own optimizer, along one schedule (PAPA-all: Jolicoeur-Martineau et al., TMLR 2024; DART: Jain et al., CVPR 2023;
    local SGD: Stich, ICLR 2019), or from an `outer_step` towards it (DiLoCo: Douillard et al. 2023).
    """
    if not request.shared_fraction and request.averaging_rounds == 1:
        return _iterative(request)
    phases: list[Phase] = []
    for phase, length in zip(_iterative(request), _lengths(request), strict=True):
        cut = _branched if request.shared_fraction else _in_rounds
        phases += cut(request, phase.sparsity, phase.number, length)
    return phases


def _branched(request: Request, sparsity: float, number: int, length: float) -> list[Phase]:
    """A trunk and its branches; `length`: of one candidate of SMS, in units of the arguments' own."""
    shared = request.shared_fraction * len(request.variants) / request.trunk_processes
    alone = 1 - request.shared_fraction
    path = (shared + alone) * length
    border, first = shared / (shared + alone), 2 * number - 1
    trunk = _candidates([_trunk(request, shared * length, path)], first)
    branches = _candidates([_part(request, variant, alone * length, path) for variant in request.variants], first + 1)
    return [
        Phase(first, sparsity, trunk, batches=request.trunk_processes, window=(0.0, border), keeps_optimizers=True),
        Phase(first + 1, sparsity, branches, window=(border, 1.0), goes_on=True),
    ]


def _in_rounds(request: Request, sparsity: float, number: int, length: float) -> list[Phase]:
    """A phase cut at the averages within it; `length`: of one candidate, in units of the arguments' own."""
    rounds = request.averaging_rounds
    first = (number - 1) * rounds + 1
    part = [_part(request, variant, length / rounds, length) for variant in request.variants]
    return [
        Phase(
            first + r,
            sparsity,
            _candidates(part, first + r),
            window=(r / rounds, (r + 1) / rounds),
            keeps_optimizers=r < rounds - 1,
            goes_on=r > 0,
            outer_step=None if request.outer_step is None else (request.outer_step[0], request.outer_step[1]),
        )
        for r in range(rounds)
    ]


def _imp_reprune(request: Request) -> list[Phase]:
    """IMP-RePrune of the same paper: `m` whole runs of IMP, averaged at the end, pruned to the goal again."""
    return _separate_runs(request, "reprune")


def _imp_avg(request: Request) -> list[Phase]:
    """IMP-RePrune without pruning again: denser than the goal. The paper names it but does not define it: assumed."""
    return _separate_runs(request, "average")


def _iterative(request: Request, first: int = 1) -> list[Phase]:
    """`num_phases` phases, numbered from `first`."""
    sparsities = phase_sparsities(request.target_sparsity, request.num_phases)
    return [
        Phase(j, sparsity, _candidates([lasting(request, variant, length) for variant in request.variants], j))
        for j, (sparsity, length) in enumerate(zip(sparsities, _lengths(request), strict=True), start=first)
    ]


def _lengths(request: Request) -> list[float]:
    """How long each phase is, in units of the arguments' own length."""
    shares, count = request.phase_shares, request.num_phases
    return [1.0] * count if shares is None else [share * count for share in shares]


def _separate_runs(request: Request, merge: str) -> list[Phase]:
    *early, last = _iterative(request)
    alone = [replace(phase, own_parents=phase.number > 1, merge="none") for phase in early]
    return [*alone, replace(last, own_parents=last.number > 1, merge=merge)]


# ---- Prune during training -----------------------------------------------------------------------------------------------


def _gmp(request: Request) -> list[Phase]:
    """Gradual magnitude pruning (Zhu and Gupta 2017): one training, pruned along the cubic schedule, no recovery."""
    return _gradual(request, feedback=False)


def _gmp_mx(request: Request) -> list[Phase]:
    """GMP that is `m` times as long: the epochs of a soup in series, along one schedule."""
    return _gradual(replace(request, variants=[request.variants[0]]), feedback=False, factor=len(request.variants))


def _gmp_soup(request: Request) -> list[Phase]:
    """
    GMP until its last pruning event; then `m` copies finish the training, with its optimizer and its schedule, and are averaged.

    Of the path of GMP, `L` epochs, the copies go through `1 - pruning_end`: `pruning_end L + (1 - pruning_end) m L` in all; with
    `p` `trunk_processes`, as many steps of `p` times as many examples, `p pruning_end L + (1 - pruning_end) m L`.
    """
    events, border = _events(request), _last_event(request)
    path = request.num_phases
    trunk = _trunk(request, border * path, path)
    branches = [_part(request, variant, (1 - border) * path, path) for variant in request.variants]
    within = tuple((position / border, sparsity) for position, sparsity in events)
    return [
        Phase(
            1,
            0.0,
            _candidates([trunk], 1),
            batches=request.trunk_processes,
            events=within,
            window=(0.0, border),
            keeps_optimizers=True,
        ),
        Phase(2, request.target_sparsity, _candidates(branches, 2), window=(border, 1.0), goes_on=True),
    ]


def _dpf(request: Request) -> list[Phase]:
    """Dynamic pruning with feedback (Lin et al., ICLR 2020): GMP's sparsities, but the dense weights live on."""
    return _gradual(request, feedback=True)


def _gradual(request: Request, feedback: bool, factor: int = 1) -> list[Phase]:
    whole = lasting(request, request.variants[0], request.num_phases * factor)
    return [Phase(1, 0.0, _candidates([whole], 1), events=_events(request), feedback=feedback)]


def _events(request: Request) -> tuple[tuple[float, float], ...]:
    """(fraction of the training, sparsity from then on) of every pruning event."""
    count, interval = _event_times(request, PRUNING_EVENTS, PRUNING_END)
    sparsities = gradual_sparsities(request.target_sparsity, count)
    return tuple((j * interval / request.budget, sparsity) for j, sparsity in enumerate(sparsities, start=1))


def _last_event(request: Request) -> float:
    return _events(request)[-1][0]


def _event_times(request: Request, count: int, end: float) -> tuple[int, float]:
    """Number of pruning events, and epochs between them; `count` and `end` where the user says neither."""
    interval, last = request.pruning_interval, request.pruning_end
    if interval is None:
        return count, (end if last is None else last) * request.budget / count
    fitting = num_pruning_events(request.budget, interval)
    if last is not None:
        fitting = min(fitting, int(last * request.budget / interval + 1e-9))
    if fitting < 1:
        raise ValueError(
            f"pruning_interval={interval:g} epochs leaves no pruning event before pruning_end={last:g} of {request.budget:g} "
            "epochs. Lower the interval, or leave one of the two out."
        )
    return fitting, interval


def _gmp_sms(request: Request) -> list[Phase]:
    """
    GMP cut into segments between its pruning events; in each, copies are trained and averaged.

    The learning rate follows one schedule over all segments, the optimizer starts anew in each. The paper says that soups
    go with pruning during training, not how: assumed.
    """
    return _segments(request)


def _dpf_sms(request: Request) -> list[Phase]:
    """
    DPF in segments: the dense weights are averaged, the mask is taken from their average, and frozen in the last segment.

    Assumed, as for GMP with soups.
    """
    *early, last = _segments(request)
    return [
        replace(phase, events=((0.0, phase.sparsity),), feedback=True, keeps_dense=True) if phase.sparsity else phase
        for phase in early
    ] + [last]


def _segments(request: Request) -> list[Phase]:
    count, interval = _event_times(request, request.num_phases, request.num_phases / (request.num_phases + 1))
    sparsities = [0.0, *gradual_sparsities(request.target_sparsity, count)]
    borders = [j * interval / request.budget for j in range(len(sparsities))] + [1.0]
    phases = []
    for number, sparsity in enumerate(sparsities, start=1):
        start, stop = borders[number - 1 : number + 1]
        variants = [
            _part(request, variant, (stop - start) * request.num_phases, request.num_phases)
            for variant in request.variants
        ]
        phases.append(Phase(number, sparsity, _candidates(variants, number), window=(start, stop)))
    return phases


def _bimp(request: Request) -> list[Phase]:
    """BIMP (Zimmer et al., ICLR 2023): a short dense training, then IMP with ALLR, all within one budget."""
    return _budgeted(replace(request, variants=request.variants[:1]))


def _bimp_sms(request: Request) -> list[Phase]:
    """BIMP whose phases after the dense training are soups. Assumed, as for GMP with soups."""
    return _budgeted(request)


def _budgeted(request: Request) -> list[Phase]:
    dense = request.budget / 2 if request.dense_train_epochs is None else request.dense_train_epochs
    if not 0 < dense < request.budget:
        raise ValueError(
            f"dense_train_epochs must lie between 0 and num_phases * num_train_epochs = {request.budget:g}, the whole budget, "
            f"got {dense:g}. The rest of the budget is retraining."
        )
    if request.max_steps > 0 and request.original_num_epochs is None:
        raise ValueError(
            "BIMP with max_steps needs original_num_epochs, the epochs that its learning rate is relative to. Set it, or "
            "give num_train_epochs instead of max_steps."
        )
    share = dense / request.budget
    dense_variant = lasting(request, request.variants[0], share * request.num_phases)
    allr = {"retrain_schedule": "allr", "original_num_epochs": request.original_num_epochs or dense}
    variants = [{**allr, **lasting(request, variant, 1 - share)} for variant in request.variants]
    return [Phase(1, 0.0, _candidates([dense_variant], 1)), *_iterative(replace(request, variants=variants), first=2)]


GRADUAL = frozenset({"pruning_interval", "pruning_end"})
ITERATIVE = frozenset({"phase_shares"})
SHARING = ITERATIVE | {"shared_fraction", "trunk_processes", "averaging_rounds", "outer_step"}

METHODS = {
    "pruned": Method(_pruned),
    "one-shot": Method(_one_shot),
    "imp": Method(_imp, options=ITERATIVE),
    "imp-mx": Method(_imp_mx, averages=True, options=ITERATIVE),
    "imp-reprune": Method(_imp_reprune, averages=True, options=ITERATIVE),
    "imp-avg": Method(_imp_avg, averages=True, options=ITERATIVE),
    "sms": Method(_sms, averages=True, options=SHARING),
    "gmp": Method(_gmp, prunes_while_training=True, options=GRADUAL),
    "gmp-mx": Method(_gmp_mx, averages=True, prunes_while_training=True, options=GRADUAL),
    "gmp-soup": Method(_gmp_soup, averages=True, prunes_while_training=True, options=GRADUAL | {"trunk_processes"}),
    "dpf": Method(_dpf, prunes_while_training=True, options=GRADUAL),
    "bimp": Method(_bimp, options=ITERATIVE | {"dense_train_epochs"}),
    "gmp-sms": Method(_gmp_sms, averages=True, options=GRADUAL),
    "dpf-sms": Method(_dpf_sms, averages=True, prunes_while_training=True, options=GRADUAL),
    "bimp-sms": Method(_bimp_sms, averages=True, options=ITERATIVE | {"dense_train_epochs"}),
}
"""`pruning_method` -> how its phases are planned. A method of your own is one more row."""


def lasting(request: Request, overrides: dict[str, Any], factor: float) -> dict[str, Any]:
    """Overrides for a training `factor` times as long, with its schedule stretched; a factor of 1 changes nothing."""
    if factor == 1:
        return overrides
    longer: dict[str, Any] = {}
    steps = overrides.get("max_steps", request.max_steps)
    if steps > 0:
        longer["max_steps"] = max(round(steps * factor), 1)
    else:
        longer["num_train_epochs"] = overrides.get("num_train_epochs", request.num_train_epochs) * factor
    warmup = overrides.get("warmup_steps", request.warmup_steps)
    if warmup >= 1:
        longer["warmup_steps"] = round(warmup * factor)
    return {**overrides, **longer}


def _part(request: Request, overrides: dict[str, Any], part: float, whole: float) -> dict[str, Any]:
    """Overrides for a training `part` times as long, a part of one `whole` times as long, over which its schedule goes on."""
    warmup = lasting(request, overrides, whole).get("warmup_steps", request.warmup_steps)
    longer = lasting(request, overrides, part)
    return {**longer, "warmup_steps": warmup} if warmup >= 1 else longer


def _trunk(request: Request, steps: float, whole: float) -> dict[str, Any]:
    """
    Overrides for what candidates share: `steps` times as many steps, of a path `whole` times as long.

    By `p` processes a step sees `p` batches, so that there are `p` times as many epochs in it.
    """
    first = request.variants[0]
    by_steps = first.get("max_steps", request.max_steps) > 0
    return _part(request, first, steps if by_steps else steps * request.trunk_processes, whole)


def _candidates(variants: list[dict[str, Any]], number: int) -> tuple[Candidate, ...]:
    """Candidates of one phase: later phases see the data in another order."""
    offset = SEED_STRIDE * (number - 1)
    return tuple(
        Candidate(f"candidate-{i}", {**overrides, "seed": overrides["seed"] + offset})
        for i, overrides in enumerate(variants, start=1)
    )
