"""What a person reads of a forecast."""

from collections.abc import Iterator, Sequence

from ...report.text import format_bytes, format_seconds
from .forecast import Forecast

NEARLY = 0.9
"""Share of the free disk from which a run is warned."""


# ---- Lines ---------------------------------------------------------------------------------------------------------------


def start_lines(cost: Forecast) -> Iterator[str]:
    """The first lines of a run: one, and a warning where the disk would fill."""
    need = format_bytes(cost.disk_bytes)
    disk = need if cost.free_bytes is None else f"{need} of {format_bytes(cost.free_bytes)} free"
    yield f"{_trainings(cost)}; disk {disk}, memory {_memory(cost)} a process without activations"
    yield from _warning(cost)


def forecast_lines(cost: Forecast) -> Iterator[str]:
    """What `sms-hf plan` prints."""
    line = _trainings(cost)
    if cost.total_steps:
        line += f", {cost.total_steps:,} in all"
    if cost.serial_steps:
        line += f", {cost.serial_steps:,.0f} one after the other"
    yield line
    idle = cost.processes - max(cost.candidates) * cost.group_size
    if idle > 0:
        yield f"no phase has more than {max(cost.candidates)} candidate(s): {idle} of {cost.processes} processes stay idle"
    if cost.seconds is not None and cost.seconds_per_step is not None:
        yield (
            f"time: {format_seconds(cost.seconds)} of training ({_per_step(cost.seconds_per_step)}, measured here on one "
            f"process); on top come start-up and at most {_count(cost.serial_scores, 'score')} one after the other"
        )
    free = "" if cost.free_bytes is None else f", {format_bytes(cost.free_bytes)} free"
    yield f"disk: {format_bytes(cost.disk_bytes)} at the fullest{free}"
    memory = f"memory: {_memory(cost)} a process without activations"
    if not cost.on_cpu:
        memory += f", and {format_bytes(cost.copy_bytes)} of the CPU's"
    if cost.peak_bytes is not None:
        memory += f"; {format_bytes(cost.peak_bytes)} with them, measured here"
    yield memory
    yield from cost.notes
    yield from _warning(cost)


def estimate_line(
    cost: Forecast, seconds_per_step: float, seconds_per_score: float | None = None, passed: float = 0.0
) -> str | None:
    """
    How long the run will take.

    Args:
        cost ([`Forecast`]): Of the run.
        seconds_per_step (`float`): Of a step by the run's own arguments.
        seconds_per_score (`float`, *optional*): Of one evaluation, as the dense model's took; None where it was not measured.
        passed (`float`, *optional*): Seconds since the run began: start-up, the dense model's score, the first parent.
    """
    if not cost.serial_steps:
        return None
    training = seconds_per_step * cost.serial_steps
    parts = [f"{format_seconds(training)} for the {_count(cost.trainings, 'training')} ({_per_step(seconds_per_step)})"]
    if seconds_per_score is None:
        return f"{parts[0]}, without scoring"
    scoring = seconds_per_score * cost.serial_scores
    parts.append(f"{format_seconds(scoring)} for at most {_count(cost.serial_scores, 'score')} one after the other")
    return f"{format_seconds(passed + training + scoring)} in all: " + ", ".join([*parts, f"{passed:.0f} s until here"])


def _trainings(cost: Forecast) -> str:
    line = f"{_range(cost.candidates, 'candidate')} x {_count(cost.num_phases, 'phase')} on "
    together = f", {cost.group_size} for each candidate" if cost.group_size > 1 else ""
    line += f"{_count(cost.processes, 'process')}{together}: {_count(cost.trainings, 'training')}"
    known = [steps for steps in cost.steps if steps is not None]
    return f"{line} of {_range(known, 'step')}" if known else line


def _memory(cost: Forecast) -> str:
    return format_bytes(cost.memory_bytes + (cost.copy_bytes if cost.on_cpu else 0))


def _warning(cost: Forecast) -> Iterator[str]:
    if cost.free_bytes is None or cost.disk_bytes <= NEARLY * cost.free_bytes:
        return
    what = "would fill" if cost.disk_bytes > cost.free_bytes else "will be nearly full"
    yield (
        f"WARNING: the disk {what}: {format_bytes(cost.disk_bytes)} needed, {format_bytes(cost.free_bytes)} free. Lower "
        "save_total_limit, set save_strategy='no' or keep_candidates=False, or choose an output_dir on another disk."
    )


def _range(values: Sequence[int], noun: str) -> str:
    low, high = min(values), max(values)
    return _count(high, noun) if low == high else f"{low:,} to {_count(high, noun)}"


def _count(number: int, noun: str) -> str:
    plural = "es" if noun.endswith("s") else "s"
    return f"{number:,} {noun}{'' if number == 1 else plural}"


def _per_step(seconds: float) -> str:
    return f"{seconds:.2g} s a step" if seconds < 10 else f"{seconds:.0f} s a step"
