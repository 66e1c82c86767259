"""Whether a machine has what the programme needs; what travelled with the checkout is put to use first."""

import importlib.metadata
import importlib.util
import os
import sys
import zipfile
from pathlib import Path

from . import BUNDLE, ROOT

CARRIED = ("datasets", "evaluate", "dill", "multiprocess")
"""Modules whose wheels travel."""
MODULES = ("transformers", "accelerate", "huggingface_hub", *CARRIED, "sacrebleu", "sentencepiece", "safetensors")
MODULES += ("tabulate", "yaml", "pytest", "pytest_timeout", "hypothesis")
CORPUS = Path("data") / "multi30k"
CORPORA = (BUNDLE / CORPUS, ROOT.parent / "shared" / CORPUS)
LIMIT = 64 * 2**20
"""Bytes of the checkout and its bundle together."""


def provide(bundle: Path = BUNDLE) -> None:
    """Make this checkout importable here and in programs that are started, and the bundle's wheels where a module is missing."""
    # Under this name, because dill looks for it in a path to tell a package from code that is to be pickled whole.
    site = bundle / "site-packages"
    if any(not _is_there(name) for name in CARRIED):
        for wheel in sorted((bundle / "wheels").glob("*.whl")):  # Pure Python: unpacked is installed.
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(site)
    paths = [str(ROOT), *([str(site)] if site.is_dir() else [])]
    sys.path += [path for path in paths if path not in sys.path]
    os.environ["PYTHONPATH"] = os.pathsep.join([*paths, *filter(None, [os.environ.get("PYTHONPATH")])])
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    importlib.invalidate_caches()


def _is_there(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def find_corpus() -> Path | None:
    """The folder of Multi30k, if there is one."""
    return next((path for path in CORPORA if path.is_dir()), None)


def missing_modules() -> list[str]:
    """Modules that are not there, and packages that are older than this project takes."""
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10, where pytest brings it.
        import tomli as tomllib
    from packaging.requirements import Requirement

    missing = [name for name in MODULES if not _is_there(name)]
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    for requirement in map(Requirement, wanted):
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(str(requirement))
            continue
        if version not in requirement.specifier:
            missing.append(f"{requirement} (there is {version})")
    return missing


def check(device: str, with_corpus: bool = False) -> str:
    """
    A description of the machine.

    Raises:
        SystemExit: In one sentence, with all that is missing.
    """
    missing = missing_modules()
    if with_corpus and find_corpus() is None:
        missing.append(f"Multi30k in {' or '.join(map(str, CORPORA))}")
    if device == "cuda" and not _has_gpu():
        missing.append("a GPU that torch can use (without one: --device cpu --tiny)")
    if missing:
        raise SystemExit(
            f"Missing on this machine: {'; '.join(missing)}. What can travel is collected by make gpu-bundle."
        )
    from _common import describe_machine, device_name

    return f"{device_name(device)}; {describe_machine('transformers', 'accelerate', 'huggingface_hub', 'datasets')}"


def _has_gpu() -> bool:
    if not _is_there("torch"):
        return False
    import torch

    return torch.cuda.is_available()
