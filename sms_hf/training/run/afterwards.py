"""What a user asks after a run: scores on other data, of ensembles, of sub-soups."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ...files.folder import MASKS
from ...files.records import DamagedError, check_files
from ...report.schema import Comparison, Report
from ...report.table import best_candidate
from ...soup.averaging import Average
from ...soup.diagnostics import subsets
from ...soup.noise import difference_interval
from ..ensemble import make_ensemble
from ..plan.candidates import Phase
from ..run_directory import RunDirectory
from ..scoring import Score
from .bench import Bench


def score_run(
    bench: Bench, directory: RunDirectory, plan: Sequence[Phase], dataset: Any, dense: nn.Module | None
) -> dict[str, Score]:
    """Score every model that a run left on disk, and the one before pruning: `"phase-1/soup"`, ... -> its score."""
    scores = {} if dense is None else {"dense": bench.score_on(dense, dataset)}
    for phase in plan:
        folder = directory.phase(phase.number)
        for name, path in folder.models([candidate.name for candidate in phase.candidates]).items():
            scores[f"{folder.root.name}/{name}"] = bench.score_on(bench.load(path), dataset)
    return scores


def compare_scores(scores: Mapping[str, Score], metric: str, report: Report) -> list[Comparison]:
    """
    The last soup against the dense model, and against the candidate that the evaluation set would have chosen.

    Args:
        scores (`Mapping`): From [`score_run`].
        metric (`str`): The metric that decides.
        report ([`Report`]): Of the run.

    Returns:
        `list[Comparison]`: Of those models that were scored, as far as the noise of their scores can be told. A soup of the
        best candidate alone is not compared with it.
    """
    phase = report["phases"][-1]
    name, best = f"phase-{phase['number']}", best_candidate(phase)
    alone = phase["soup"] is None or phase["soup"]["ingredients"] == [best]
    found = []
    for other in ("dense", *([] if alone else [f"{name}/{best}"])):
        soup, against = scores.get(f"{name}/soup"), scores.get(other)
        if soup and against and soup.resampled and against.resampled:
            difference = soup.metrics[metric] - against.metrics[metric]
            interval = list(difference_interval(soup.resampled, against.resampled))
            found.append(Comparison(model=f"{name}/soup", against=other, difference=difference, interval=interval))
    return found


def score_ensemble(bench: Bench, folders: Mapping[str, Path], dataset: Any) -> dict[str, float]:
    """Metrics of the prediction ensemble of some candidates."""
    return bench.evaluate(make_ensemble([bench.load(folder) for folder in folders.values()]), dataset)


def score_subsoups(
    bench: Bench, folders: Mapping[str, Path], sizes: Sequence[int], dataset: Any, scope: str
) -> dict[tuple[str, ...], float]:
    """Scores of the uniform soups of all choices of so many candidates; the soups are spread over the processes."""
    choices, processes = subsets(list(folders), sizes), bench.args.processes

    def work(number: int) -> None:
        with Average([folders[name] for name in choices[number]]) as average:
            model = bench.load_from(average)
        bench.recalibrate_(model)
        processes.publish(f"{scope}/score/{number}", bench.evaluate(model, dataset))

    processes.fan_out(scope, range(len(choices)), work)
    return {tuple(c): processes.receive(f"{scope}/score/{i}")[bench.metric] for i, c in enumerate(choices)}


def kept_candidates(directory: RunDirectory, phase: Phase) -> dict[str, Path]:
    """
    Candidates of a phase whose weights were kept -> their folders, as the run wrote them.

    Raises:
        ValueError: If there are none.
        DamagedError: If one is something else.
    """
    folder = directory.phase(phase.number)
    folders = {candidate.name: folder.candidate(candidate.name) for candidate in phase.candidates}
    kept = {name: path for name, path in folders.items() if (path / MASKS).is_file()}
    if not kept:
        raise ValueError(
            f"Expected the candidates of phase {phase.number} in {directory.root}, found none. Train with "
            "keep_candidates=True."
        )
    for name in kept:
        try:
            check_files(folder.candidate_record(name))
        except DamagedError as error:
            raise DamagedError(
                f"Expected the candidates of phase {phase.number} as the run wrote them, but {error}. What is made of "
                f"them would be wrong: remove {kept[name]} to go on without it, or train again in another folder."
            ) from error
    return kept
