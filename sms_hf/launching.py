"""Recipes by their names, from a checkout or an installed wheel, on one process or many."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from .choices import nearest

COMPARISON = "compare"
"""The script that runs several recipes: a command of its own."""


def recipe_folder() -> Path:
    """
    Where the recipes lie: in the checkout, or where the wheel has put them.

    Raises:
        ValueError: If they are nowhere.
    """
    checkout = Path(__file__).parents[1] / "recipes"
    if (checkout / f"{COMPARISON}.py").is_file():
        return checkout
    try:
        files = distribution("sms_hf").files or []
    except PackageNotFoundError:
        files = []
    for file in files:
        if file.parts[-2:] == ("recipes", f"{COMPARISON}.py"):
            return Path(str(file.locate())).resolve().parent
    raise ValueError("The recipes of sms_hf were not installed with it. Install its wheel anew, or use a checkout.")


def tasks() -> list[str]:
    """Names of the recipes."""
    return sorted(path.stem for path in recipe_folder().glob("*.py") if path.stem != COMPARISON)


def recipe(task: str) -> Path:
    """
    The script of a task.

    Raises:
        ValueError: If there is none of this name; it offers the nearest.
    """
    name = task.removesuffix(".py")
    if name not in tasks():
        raise ValueError(f"Expected a task, one of {', '.join(tasks())}, got {task!r}.{nearest(name, tasks())}")
    return recipe_folder() / f"{name}.py"


def copy_recipe(task: str, folder: Path) -> list[Path]:
    """
    Copy a recipe and its settings, to start one's own from.

    Raises:
        ValueError: If a file of that name is there already; nothing is copied then.
    """
    script = recipe(task)
    names = (script.name, f"{script.stem}.yaml", f"{script.stem}_demo.yaml")
    targets = [folder / name for name in names if script.with_name(name).is_file()]
    there = [str(path) for path in targets if path.exists()]
    if there:
        raise ValueError(f"{', '.join(there)} would be written over. Name another folder, or remove it.")
    folder.mkdir(parents=True, exist_ok=True)
    for path in targets:
        shutil.copyfile(script.with_name(path.name), path)
    return targets


def run_script(script: Path, arguments: Sequence[str], num_processes: int) -> int:
    """
    Run a recipe as `python` or `accelerate launch` would: its exit code.

    Args:
        script (`Path`): The recipe.
        arguments (`Sequence[str]`): Its own.
        num_processes (`int`): On this machine, at least 1; each takes a GPU of its own where there are some.
    """
    if num_processes < 1:
        raise ValueError(f"num_processes must be at least 1, got {num_processes}.")
    command, environment = [sys.executable], dict(os.environ)
    if num_processes > 1:
        # torchrun is what `accelerate launch` starts, and asks for no configuration of the machine.
        command += ["-m", "sms_hf.torchrun", "--standalone", "--nproc_per_node", str(num_processes)]
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_processes)))
    code = _wait(subprocess.Popen([*command, str(script), *arguments], env=environment))
    return code if code >= 0 else 128 - code  # As shells tell it, where a signal ended the script.


def _wait(process: subprocess.Popen[bytes]) -> int:
    """
    The exit code of a process, to which signals are passed on until it has ended.

    What a signal asks for is the script's to do: it writes down what is in training. `subprocess.run` would kill it a
    quarter of a second after Ctrl-C, and leave it behind after SIGTERM.
    """
    if threading.current_thread() is not threading.main_thread():
        return process.wait()
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda number, _: process.send_signal(number)) for number in numbers}
    try:
        return process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
