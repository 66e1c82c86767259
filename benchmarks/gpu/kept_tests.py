"""A pytest plugin: the outcome of each test is kept as soon as it is there, and what has passed is not run again."""

import os
import re
from pathlib import Path

from sms_hf.files.records import read_json
from sms_hf.files.writing import write_json

FOLDER = "SMS_HF_KEPT_TESTS"
"""Environment variable with the folder of the outcomes."""


def read_outcomes(folder: Path) -> list[dict[str, str]]:
    """`test`, `outcome` and `reason` of each test so far."""
    return [read_json(path) for path in sorted(folder.glob("*.json"))]


def pytest_collection_modifyitems(config, items) -> None:
    done = {row["test"] for row in read_outcomes(Path(os.environ[FOLDER])) if row["outcome"] != "failed"}
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in done])
    items[:] = [item for item in items if item.nodeid not in done]


def pytest_runtest_logreport(report) -> None:
    if report.when == "call" or report.outcome != "passed":
        reason = "" if report.passed else (report.longrepr[2] if report.skipped else report.longreprtext)
        name = re.sub(r"[^A-Za-z0-9]+", "-", report.nodeid).strip("-")
        row = {"test": report.nodeid, "outcome": report.outcome, "reason": reason}
        write_json(Path(os.environ[FOLDER]) / f"{name}.json", row)
