"""The contract of `report.json` and `sparse_soup.json`: the types, the page, and what a run writes."""

import json
import re
from pathlib import Path
from typing import get_type_hints

import pytest

from sms_hf.files.folder import CheckpointError
from sms_hf.report import format_report, read_lineage, read_report, schema

PAGE = (Path(__file__).parents[2] / "docs" / "report.md").read_text(encoding="utf-8")
SECTIONS = {
    "## `report.json`": schema.Report,
    "### `settings`": schema.Settings,
    "### `phases[i]`": schema.Phase,
    "### `phases[i].parent`": schema.Parent,
    "### `phases[i].candidates[j]`": schema.Candidate,
    "### `phases[i].soup`": schema.Soup,
    "### `phases[i].diagnostics`": schema.Diagnostics,
    "## `sparse_soup.json`": schema.Lineage,
}


def fields(section):
    """Names in the first column of a section's table."""
    text = PAGE.split(f"{section}\n")[1].split("\n#")[0]
    rows = re.findall(r"^\| (`.*?) \|", text, flags=re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`(\w+)`", row)}


@pytest.mark.parametrize("section", SECTIONS)
def test_the_page_names_every_field_and_no_other(section):
    assert fields(section) == set(get_type_hints(SECTIONS[section]))


def check(value, kind):
    """A JSON object has the fields of its type: all that it must, and none besides."""
    assert kind.__required_keys__ <= set(value) <= set(get_type_hints(kind)), kind.__name__


def test_a_real_report_holds_what_it_says(make_trainer, tmp_path):
    trainer = make_trainer({"keep_candidates": True})
    trainer.train()
    report = read_report(tmp_path / "run")
    assert report == json.loads(json.dumps(trainer.report))
    check(report, schema.Report)
    check(report["settings"], schema.Settings)
    check(report["settings"]["model"], schema.Model)
    for phase in report["phases"]:
        check(phase, schema.Phase)
        check(phase["parent"], schema.Parent)
        check(phase["soup"], schema.Soup)
        check(phase["diagnostics"], schema.Diagnostics)
        for candidate in phase["candidates"]:
            check(candidate, schema.Candidate)
        for trial in phase["soup"]["trials"]:
            check(trial, schema.Trial)
    lineage = read_lineage(tmp_path / "run")
    check(lineage, schema.Lineage)
    assert format_report(lineage) == format_report(report)
    trainer.args.per_device_eval_batch_size = 1
    trainer.evaluate_run(trainer.eval_dataset, dense=trainer.model)
    compared = read_lineage(tmp_path / "run")
    check(compared, schema.Lineage)
    for comparison in compared["comparisons"]:
        check(comparison, schema.Comparison)
    assert str(tmp_path) not in json.dumps(lineage["arguments"])


@pytest.mark.parametrize(
    ("name", "read", "key"), [("report.json", read_report, "version"), ("sparse_soup.json", read_lineage, "format")]
)
def test_what_another_version_wrote_is_refused(tmp_path, name, read, key):
    with pytest.raises(CheckpointError, match=f"Expected a model folder with {name}, found none"):
        read(tmp_path)
    (tmp_path / name).write_text(json.dumps({key: 99}))
    with pytest.raises(CheckpointError, match=rf"must be of {key} .*, got 99\. Read it with the version of sms_hf"):
        read(tmp_path)
