"""Rows of a part: measured once, kept as JSON, rendered as Markdown; and the time that there is."""

import contextlib
import gc
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _common import describe_machine, device_name

from sms_hf.files.records import read_json
from sms_hf.files.writing import write_json, write_text

Values = dict[str, Any]


class TimeUp(BaseException):
    """The time of a part is over. No `Exception`, so that nothing on the way takes it for a failure."""


@dataclass(frozen=True)
class Programme:
    """
    What is asked for.

    Attributes:
        device (`str`): `"cuda"` or `"cpu"`.
        tiny (`bool`): The smallest sizes, to see that every line runs.
        output (`Path`): Folder of all results.
    """

    device: str
    tiny: bool
    output: Path

    def choose(self, full: Any, tiny: Any) -> Any:
        return tiny if self.tiny else full


@dataclass(frozen=True)
class Part:
    """
    Attributes:
        rows (`Mapping[str, Callable]`): Name -> what measures it. They are measured in this order.
        render (`Callable`): Name -> values of the rows that are there; gives Markdown.
    """

    name: str
    title: str
    rows: Mapping[str, Callable[[], Values]]
    render: Callable[[dict[str, Values]], str]


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise [`TimeUp`] in the main thread once so many seconds have passed, wherever it is."""

    def ring(number: int, frame: object) -> None:
        raise TimeUp

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def carry_out(part: Part, programme: Programme, seconds: float) -> None:
    """
    Measure what is left of a part, for at most so many seconds.

    Raises:
        SystemExit: In a sentence, if rows failed or are left.
    """
    folder = programme.output / part.name
    try:
        with time_limit(seconds):
            for name, measure in part.rows.items():
                if name not in read_rows(part, folder):
                    print(f"{part.name}: {name}", flush=True)
                    write_json(folder / f"{name}.json", _measured(measure, programme))
                    write_report(part, programme)
    except TimeUp:
        pass
    write_report(part, programme)
    print((programme.output / f"{part.name}.md").read_text(encoding="utf-8"), flush=True)
    failed, left = read_errors(part, folder), [name for name in part.rows if name not in read_rows(part, folder)]
    if failed:
        raise SystemExit(f"{part.name}: {', '.join(failed)} failed ({folder}); the same command tries again.")
    if left:
        raise SystemExit(f"{part.name}: the time was too short for {', '.join(left)}; the same command goes on.")


def _measured(measure: Callable[[], Values], programme: Programme) -> Values:
    start = time.monotonic()
    try:
        values = {"values": measure()}
    except (Exception, SystemExit) as error:
        values = {"error": f"{type(error).__name__}: {error}"}
    gc.collect()
    if programme.device == "cuda":
        torch.cuda.empty_cache()
    machine = f"{device_name(programme.device)}; {describe_machine('transformers', 'accelerate')}"
    return values | {"took": time.monotonic() - start, "machine": machine}


def read_rows(part: Part, folder: Path) -> dict[str, Values]:
    """Name -> values of the rows that were measured."""
    return {name: row["values"] for name, row in _read(part, folder).items() if "values" in row}


def read_errors(part: Part, folder: Path) -> dict[str, str]:
    return {name: row["error"] for name, row in _read(part, folder).items() if "error" in row}


def _read(part: Part, folder: Path) -> dict[str, Values]:
    paths = {name: folder / f"{name}.json" for name in part.rows}
    return {name: read_json(path) for name, path in paths.items() if path.is_file()}


def write_report(part: Part, programme: Programme) -> None:
    """`PART.md` of all rows that are there."""
    folder = programme.output / part.name
    rows, errors = read_rows(part, folder), read_errors(part, folder)
    left = [name for name in part.rows if name not in rows and name not in errors]
    machines = dict.fromkeys(row["machine"] for row in _read(part, folder).values())
    command = f"python -m benchmarks.gpu {part.name} --device {programme.device}{' --tiny' * programme.tiny}"
    sections = [f"## {part.title}", "\n".join(["```", f"$ {command}", *machines, "```"])]
    sections += [part.render(rows)] if rows else []
    sections += [f"Failed: {name}: {message.strip().splitlines()[-1]}" for name, message in errors.items()]
    sections += [f"Not measured: {', '.join(left)}."] if left else []
    programme.output.mkdir(parents=True, exist_ok=True)
    write_text(programme.output / f"{part.name}.md", "\n\n".join(sections) + "\n")
