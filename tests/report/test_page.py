"""The page of a run: what it says, and that nothing of others becomes markup."""

import json
import re
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from html.parser import HTMLParser
from pathlib import Path

import pytest
from small_runs import EMPTIED, THIN, candidate, large_report, small_report

from sms_hf.cli import main
from sms_hf.files.records import write_record
from sms_hf.report.facts import Run, different_settings, trials, verdict
from sms_hf.report.page import make_comparison, make_page
from sms_hf.watching import read_run, watch

pytest.importorskip("matplotlib", reason="The page needs matplotlib: pip install sms_hf[report].")
pytestmark = pytest.mark.figures
MINUS = "\N{MINUS SIGN}"
ATTACK = "<script>alert(1)</script>"


class Reader(HTMLParser):
    """Text of table rows, ids, and tags of a page."""

    def __init__(self, html):
        super().__init__()
        self.rows, self.ids, self.tags, self.links, self._open = [], [], [], [], False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.links += [value for key, value in attrs.items() if key in ("href", "src", "xlink:href")]
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th") and self.rows:
            self.rows[-1].append("")
        self._open = tag in ("td", "th") or (self._open and tag in ("code", "span", "wbr"))

    def handle_endtag(self, tag):
        self._open = self._open and tag not in ("td", "th")

    def handle_data(self, data):
        if self._open:
            self.rows[-1][-1] += data


def page_of(report, **more):
    return make_page(Run("my-run", report, **more))


@pytest.fixture(scope="module")
def page():
    return page_of(small_report(), sizes={"model.safetensors": 2_500_000}, load=["import sms_hf", "sms_hf.load('x')"])


def test_the_numbers_of_the_run_are_in_its_tables(page):
    rows = Reader(page).rows
    for row in (
        ["dense", "35.00", "0.00", ""],
        ["candidate-1", "31.50", "62.50", "seed=41 · in the soup"],
        ["candidate-3", "29.00", "62.50", "seed=43"],
        ["candidate-4", "", "62.50", "seed=44 · failed, left out: its loss is nan"],
        ["mean candidate", "30.25", "62.50", ""],
        ["best candidate (1)", "31.50", "62.50", ""],
        ["soup (candidates 1, 2)", "33.00", "62.50", ""],
        ["1", "31.50", "", "", "", "✓ kept"],
        ["+ 2", "33.00", "+1.50", "0.40", "97%", "✓ kept"],
        ["+ 3", "32.25", f"{MINUS}0.75", "0.50", "81%", "✗ left out"],
        [EMPTIED, "emptied"],
        [THIN, "25.0"],
        ["1", "", "7.25", "8"],
        ["1", "", "0.125", "2.5"],
        ["model.safetensors", "2.5 MB", "2,500,000"],
        ["pruning_method", "sms"],
        ["train_dataset", "1000"],
        ["1", "60", "50", "120"],
    ):
        assert row in rows, row


def test_what_is_said_of_it(page):
    for text in (
        "T5ForConditionalGeneration without 62.5 % of its prunable weights: pruned in 1 phase, averaged from 2 of 4 retrained",
        "2 of 3 stayed in. It ended because no candidate was left; 3 made the average worse.",
        "Phase 1 emptied 1 of 2 tensors",
        "candidate-1 and candidate-3 share no basin",
        f"{MINUS}2.00 against dense",
        "torch 2.13.0",
        "sms_hf.load(&#39;x&#39;)",
    ):
        assert text in page, text
    assert "Not finished" not in page
    assert "time-line" not in page


def test_the_time_line_is_there_where_runs_tell_when_and_where():
    report = small_report()
    for number, record in enumerate(report["phases"][0]["candidates"]):
        record |= {"started": 1_700_000_000.0 + 12.5 * number, "process": number % 2}
    page = page_of(report)
    assert "4 candidates on 2 processes, 50 seconds." in page


def test_test_scores_and_measurements_come_from_the_lineage():
    measured = {"machine": "a CPU", "load_seconds": {"dense": 0.5}, "batch_size": 8, "samples_per_second": 99.6}
    lineage = {"test": {"dense": 34.0, "phase-1/soup": 32.125}, "measured": measured, "model_sparsity": 0.5}
    page = page_of(small_report(), lineage=lineage)
    assert ["soup (candidates 1, 2)", "33.00", "32.12", "62.50", ""] in Reader(page).rows
    assert "Measured on a CPU: loading dense 0.50 s" in page
    assert "evaluating 100 examples a second in batches of 8" in page


NOISE = [
    {"model": "phase-1/soup", "against": "dense", "difference": -1.875, "interval": [-2.5, -1.25]},
    {"model": "phase-1/soup", "against": "phase-1/candidate-1", "difference": 0.5, "interval": [-0.25, 1.125]},
]
SENTENCES = [
    "soup against dense: -1.88 bleu, 95 % interval -2.50 to -1.25: more than noise",
    "soup against best candidate (1): +0.50 bleu, 95 % interval -0.25 to 1.12: within noise",
]


def test_what_of_a_test_score_is_noise_stands_under_the_table():
    lineage = {"test": {"dense": 34.0, "phase-1/soup": 32.125}, "measured": None, "model_sparsity": 0.5}
    page = page_of(small_report(), lineage=lineage | {"comparisons": NOISE})
    said = "On the test set (paired bootstrap over its rows):</p>\n<ul>\n"
    said += "".join(f"<li>{sentence}</li>\n" for sentence in SENTENCES)
    after_the_table = page.split("soup (candidates 1, 2)")[1].split("<section")[0]
    assert said + "</ul>" in after_the_table
    assert "paired bootstrap over its rows" not in page_of(small_report(), lineage=lineage), "nothing is known"
    hostile = [NOISE[0] | {"against": f"phase-1/{ATTACK}"}]
    assert "script" not in Reader(page_of(small_report(), lineage=lineage | {"comparisons": hostile})).tags


def test_of_runs_side_by_side_each_says_what_is_noise():
    lineage = {"test": {"dense": 34.0, "phase-1/soup": 32.125}, "comparisons": NOISE[1:]}
    page = make_comparison([Run("first", small_report(), lineage), Run("second", small_report())])
    said = f"On the test set, within each run (paired bootstrap over its rows):</p>\n<ul>\n<li>first: {SENTENCES[1]}</li>\n</ul>"
    assert said in page
    assert "paired bootstrap" not in make_comparison([Run("second", small_report())] * 2)


def test_a_loss_gets_better_as_it_falls():
    report = small_report()
    report["settings"]["arguments"] |= {"greater_is_better": False, "soup_min_gain": 1.0}
    run = Run("run", report)
    assert [t.gain for t in trials(run, report["phases"][0]["soup"])] == ["", f"{MINUS}1.50", "+0.75"]
    assert verdict(run, report["phases"][0]).endswith("3 did not gain 1 standard error.")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"soup": None}, "Not merged: the candidates go on, each for itself."),
        ({"soup": None, "seconds": None}, "Not merged yet."),
        ({"candidates": [candidate(1, 30.0)]}, "One candidate: nothing to average."),
    ],
)
def test_why_there_is_no_soup(changes, said):
    report = small_report()
    report["phases"][0] |= changes
    assert verdict(Run("run", report), report["phases"][0]) == said
    assert said in page_of(report)


def test_equal_runs_have_equal_pages_and_every_id_is_there_once(page):
    again = page_of(small_report(), sizes={"model.safetensors": 2_500_000}, load=["import sms_hf", "sms_hf.load('x')"])
    assert again == page
    ids = Reader(page).ids
    assert len(ids) == len(set(ids)) > 10
    used = set(re.findall(r"url\(#(.*?)\)", page)) | {link[1:] for link in Reader(page).links if link.startswith("#")}
    assert used <= set(ids)


def test_nothing_comes_from_elsewhere(page):
    reader = Reader(page)
    assert not {"script", "link", "iframe", "object", "img", "form", "foreignobject", "base"} & set(reader.tags)
    assert [link for link in reader.links if not link.startswith("#")] == ["https://arxiv.org/abs/2306.16788"]
    assert not re.search(r"@import|url\((?!#)", page)
    assert "#0a0b" not in page  # All marker colours have become the page's.
    assert "var(--soup)" in page
    assert "currentColor" in page


def poisoned(value):
    """Every name and text of a report, hostile."""
    if isinstance(value, dict):
        return {
            (f"{key}{ATTACK}" if key in (EMPTIED, THIN, "torch", "seed") else key): poisoned(v)
            for key, v in value.items()
        }
    if isinstance(value, list):
        return [poisoned(v) for v in value]
    return ATTACK + "\"' onload=x $\\foo$ \x00 \ud800 評価" if value in ("sms", "its loss is nan", "2.13.0") else value


def test_what_others_wrote_is_text():
    report = poisoned(small_report())
    metric = f"{ATTACK}$\\foo$\"'\x00\ud800評"
    report["metric"] = metric
    report["dense"][metric] = 35.0
    report["settings"]["model"]["class"] = ATTACK
    report["phases"][0]["diagnostics"]["warnings"] = [ATTACK]
    page = make_page(Run(ATTACK, report, sizes={ATTACK: 1}, load=[ATTACK], unfinished=ATTACK))
    assert "script" not in Reader(page).tags
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 12
    page.encode("utf-8")
    assert "script" not in Reader(make_comparison([Run(ATTACK, report)] * 2)).tags


def test_two_hundred_candidates_are_still_a_page():
    page = page_of(large_report())
    assert len(page) < 2_000_000
    text = page.replace("\n", "")
    assert "<details><summary>All 200 candidates of phase 1</summary>" in text
    assert "<details><summary>All 200 averages that were tried</summary>" in text
    assert "soup of 200 candidates" in page
    assert "297 more warnings" in page
    assert "400 more are in <code>report.json</code>" in page
    assert "data:image/png;base64," in page  # Heat maps of 40,000 cells.


def test_runs_side_by_side():
    other = small_report()
    other["settings"]["arguments"]["target_sparsity"] = 0.9
    other["settings"]["versions"]["torch"] = "2.14.0"
    other["phases"][0]["soup"] |= {"score": 28.5, "sparsity": 0.9}
    runs = [Run("first", small_report(), sizes={"model.safetensors": 1234}), Run("second", other)]
    assert different_settings(runs) == [("target_sparsity", ["0.625", "0.9"]), ("versions.torch", ["2.13.0", "2.14.0"])]
    page = make_comparison(runs)
    rows = Reader(page).rows
    assert ["1", "first", "soup", "62.50", "33.00", "35.00", "", "1,234", "60"] in rows
    assert ["2", "second", "soup", "90.00", "28.50", "35.00", "", "", "60"] in rows
    assert ["target_sparsity", "0.625", "0.9"] in rows
    assert "Score against sparsity" in page
    losses = small_report() | {"metric": "loss"}
    with pytest.raises(ValueError, match="Expected runs that chose by one metric, got 'bleu' and 'loss'"):
        make_comparison([runs[0], Run("third", losses)])


# ---- Folders -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def run_folder(tmp_path):
    folder = tmp_path / "my-run"
    folder.mkdir()
    (folder / "report.json").write_text(json.dumps(small_report()))
    return folder


def unfinished_folder(folder):
    """Phase 1 pruned, one candidate done, one in training, two to come."""
    report = small_report()
    phase = report["phases"][0]
    planned = [{"name": c["name"], "overrides": c["overrides"]} for c in phase["candidates"]]
    report["settings"]["plan"][0]["candidates"] = planned
    report["settings"]["arguments"]["metric_for_best_model"] = "eval_bleu"
    internal = folder / "_run"
    write_record(internal / "run.json", report["settings"])
    write_record(internal / "dense.json", report["dense"])
    write_record(internal / "phase-1" / "parent.json", phase["parent"])
    write_record(internal / "phase-1" / "candidate-1.json", {**phase["candidates"][0], "resampled": [1.0]})
    lines = [json.dumps({"loss": 2.0 / n, "step": 10 * n, "max_steps": 40, "epoch": n / 4}) for n in (1, 2)]
    (internal / "phase-1" / "candidate-2.log").write_text("\n".join([*lines, '{"loss": 0.1, "st']))
    return folder


def test_the_command_writes_the_page_into_the_run(run_folder, tmp_path, capsys, monkeypatch):
    assert main(["report", str(run_folder)]) == 0
    assert capsys.readouterr().out == f"{run_folder / 'report.html'}\n"
    assert "<h1>my-run</h1>" in (run_folder / "report.html").read_text(encoding="utf-8")
    assert main(["report", str(run_folder), "--output", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").read_bytes() == (run_folder / "report.html").read_bytes()
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(run_folder), str(run_folder)]) == 0
    assert "2 runs" in Path("comparison.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda folder: None, "Expected the folder of a run, with report.json or _run/run.json, found neither in"),
        (lambda folder: folder.rmdir(), "Expected the folder of a run, found no folder"),
        (lambda folder: (folder / "report.json").write_text('{"version": 1, "metr'), "report.json is damaged"),
        (
            lambda folder: (folder / "report.json").write_text('{"version": 1}'),
            "does not hold what a run writes (KeyError: 'settings')",
        ),
        (
            lambda folder: (folder / "report.json").write_text(
                json.dumps(small_report() | {"phases": [{"number": 1}]})
            ),
            "does not hold what a run writes (KeyError: '",
        ),
        (lambda folder: (folder / "report.json").write_text('{"version": 2}'), "must be of version 1, got 2"),
        (
            lambda folder: (unfinished_folder(folder) / "_run" / "dense.json").write_text('{"bleu": 1}'),
            "dense.json is no whole record",
        ),
    ],
)
def test_what_is_no_run_is_one_sentence(tmp_path, capsys, write, said):
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder")
    assert main(["report", str(tmp_path / "folder")]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.startswith("sms-hf: ")
    assert error.count("\n") == 1


def test_where_the_page_cannot_go_is_one_sentence(run_folder, tmp_path, capsys):
    assert main(["report", str(run_folder), "--output", str(tmp_path / "none" / "page.html")]) == 1
    assert "Expected a file in a folder that is there" in capsys.readouterr().err
    assert main(["report", str(run_folder), str(run_folder), "--watch"]) == 1
    assert "Expected one run and no --output with --watch" in capsys.readouterr().err


def test_without_matplotlib_the_extra_is_named(run_folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["report", str(run_folder)]) == 1
    assert "pip install sms_hf[report]" in capsys.readouterr().err
    assert not (run_folder / "report.html").exists()


def test_a_run_that_goes_on(tmp_path):
    before = unfinished_folder(tmp_path / "run")
    files = {path: path.read_bytes() for path in before.rglob("*") if path.is_file()}
    run = read_run(tmp_path / "run")
    assert run.unfinished
    assert run.unfinished.startswith(
        "Phase 1 of 1: 1 of 4 candidates are done. candidate-2 in training, step 20 of 40. Last written 20"
    )
    page = make_page(run)
    rows = Reader(page).rows
    assert ["candidate-1", "31.50", "62.50", "seed=41"] in rows
    assert ["candidate-2", "", "62.50", "seed=42 · in training, step 20 of 40"] in rows
    assert ["candidate-3", "", "62.50", "seed=43 · not done yet"] in rows
    assert "Not finished." in page
    assert "Training loss over steps of 2 candidates." in page
    assert files == {path: path.read_bytes() for path in before.rglob("*") if path.is_file()}


def test_looking_at_runs_imports_no_framework(run_folder, tmp_path):
    """It is to be there at once. In a process of its own: here they are imported."""
    for name in ("model.safetensors", "model.sparse.safetensors", "masks.safetensors"):
        (run_folder / name).write_bytes(b"1234")
    going_on = unfinished_folder(tmp_path / "run")
    code = f"""
import sys
from sms_hf.cli import main
from sms_hf.watching import watch
assert main(["report", {str(run_folder)!r}]) == main(["report", {str(going_on)!r}]) == 0
assert main(["report", {str(run_folder)!r}, {str(run_folder)!r}, "--output", {str(tmp_path / "both.html")!r}]) == 0
watch({str(going_on)!r}, 0).server_close()
print(sorted({{"torch", "transformers", "accelerate", "safetensors", "huggingface_hub"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stderr
    assert "model.sparse.safetensors" in (run_folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("kept", [["run.json"], ["run.json", "dense.json"]])
def test_a_run_that_has_only_begun(tmp_path, kept):
    folder = unfinished_folder(tmp_path / "run")
    for path in sorted((folder / "_run").rglob("*.*")):
        if path.name not in kept:
            path.unlink()
    assert "no phase has begun" in make_page(read_run(folder))


@pytest.fixture
def watched(tmp_path):
    server = watch(unfinished_folder(tmp_path / "run"), 0)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield tmp_path / "run", server
    server.shutdown()
    thread.join()
    server.server_close()


def ask(server, path="/", host=None):
    request = urllib.request.Request(
        f"http://127.0.0.1:{server.server_port}{path}", headers={"Host": host} if host else {}
    )
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
        return answer.read().decode("utf-8")


def test_a_watched_run_is_shown_as_it_is_now(watched):
    folder, server = watched
    assert server.server_address[0] == "127.0.0.1"
    first = ask(server)
    assert '<meta http-equiv="refresh" content="5">' in first
    assert "1 of 4 candidates are done" in first
    write_record(folder / "_run" / "phase-1" / "candidate-2.json", candidate(2, 30.0))
    assert "2 of 4 candidates are done" in ask(server)
    (folder / "report.json").write_text("{")
    with pytest.raises(urllib.error.HTTPError) as error:
        ask(server)
    assert error.value.code == 503
    assert "damaged" in error.value.read().decode()
    (folder / "report.json").write_text(json.dumps(small_report()))
    last = ask(server)
    assert "refresh" not in last
    assert "Not finished" not in last


def test_a_watched_run_is_for_this_machine_alone(watched):
    server = watched[1]
    for path, host, code in (("/", "evil.example", 403), ("/report.json", None, 404), ("/../../etc/passwd", None, 404)):
        with pytest.raises(urllib.error.HTTPError) as error:
            ask(server, path, host)
        error.value.close()
        assert error.value.code == code
    with pytest.raises(ValueError, match=r"Expected a port that is free, got \d+ .* --port"):
        watch(watched[0], server.server_port)


# ---- At the end of a run -----------------------------------------------------------------------------------------------


def test_a_run_ends_with_its_page_and_the_command_makes_the_same(make_trainer, tmp_path, capsys):
    make_trainer().train()
    made = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "T5ForConditionalGeneration without 75 % of its prunable weights" in made
    assert main(["report", str(tmp_path / "run")]) == 0
    again = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    without_sizes = [re.sub(r"<tr><th scope=\"row\"><code>_run/.*", "", page) for page in (made, again)]
    assert without_sizes[0] == without_sizes[1]


def test_a_page_that_fails_costs_no_run(make_trainer, tmp_path, capsys, monkeypatch):
    def broken(run):
        raise RuntimeError("no ink")

    monkeypatch.setattr("sms_hf.training.run.publishing.make_page", broken)
    make_trainer({"num_phases": 1}).train()
    assert "no report.html: RuntimeError: no ink" in capsys.readouterr().out
    assert (tmp_path / "run" / "model.safetensors").is_file()
