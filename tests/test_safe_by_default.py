"""Nothing runs that nobody asked for, no secret is written down, and names from outside stay names."""

import ast
import builtins
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from conftest import tiny_t5
from huggingface_hub import ModelCard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    TrainerCallback,
)

import sms_hf
from sms_hf.cli import main
from sms_hf.demo import demo_word_tokenizer
from sms_hf.hub.lineage import make_lineage
from sms_hf.hub.model_card import BEGIN, END, make_card, merge_cards
from sms_hf.sparsity.masks import Masks

ROOT = Path(__file__).parents[1]

# ---- No code in data -------------------------------------------------------------------------------------------------

MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
CALLS = {"torch.load", "torch.save", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "os.system"}
BUILTINS = {"eval", "exec", "compile", "__import__"}


def unsafe(source):
    """(line, what) of everything in a module that reads or writes code as data, or runs text as code."""
    found = []
    for node in ast.walk(ast.parse(source)):
        line, what = getattr(node, "lineno", 0), None
        if isinstance(node, ast.Import):
            what = next((a.name for a in node.names if a.name.split(".")[0] in MODULES), None)
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            what = node.module if (node.module or "").split(".")[0] in MODULES else next(iter(names & CALLS), None)
        elif isinstance(node, ast.Attribute):
            what = ast.unparse(node) if ast.unparse(node) in CALLS else None
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in BUILTINS:
            what = node.func.id
        elif isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "trust_remote_code", "shell"):
            off = isinstance(node.value, ast.Constant) and node.value.value is False
            asked = isinstance(node.value, ast.Name) and node.value.id == node.arg  # Of a function's own argument.
            line, what = node.value.lineno, None if off or asked else node.arg
        elif isinstance(node, ast.arguments):
            named = list(zip(node.args[len(node.args) - len(node.defaults) :], node.defaults, strict=True))
            named += zip(node.kwonlyargs, node.kw_defaults, strict=True)
            off = {a.arg for a, default in named if isinstance(default, ast.Constant) and default.value is False}
            every = [a for a in (*node.posonlyargs, *node.args, *node.kwonlyargs) if a.arg == "trust_remote_code"]
            line, what = next(((a.lineno, a.arg) for a in every if a.arg not in off), (line, None))
        elif isinstance(node, ast.Constant) and node.value == "trust_remote_code":
            what = node.value
        if what:
            found.append((line, what))
    return found


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import dump",
        "import torch\ntorch.load('a')",
        "from torch import load, save",
        "import numpy as np\nnp.load(f, allow_pickle=True)",
        "eval('1')",
        "yaml.load(text, Loader=loader)",
        "m.from_pretrained(n, trust_remote_code=flag)",
        "def load(n, trust_remote_code=True): pass",
        "def load(n, trust_remote_code): pass",
        "def load(n, *, trust_remote_code): pass",
        "options = {'trust_remote_code': True}",
        "subprocess.run(line, shell=True)",
    ],
)
def test_the_search_finds(source):
    assert unsafe(source)


@pytest.mark.parametrize(
    "source",
    [
        "model.eval()",
        "yaml.safe_load(t)",
        "re.compile('a')",
        "m.from_pretrained(n, trust_remote_code=False)",
        "def load(n, trust_remote_code=False): m.from_pretrained(n, trust_remote_code=trust_remote_code)",
    ],
)
def test_the_search_leaves_alone(source):
    assert not unsafe(source)


def test_no_module_reads_or_writes_code_as_data():
    files = [*(ROOT / "sms_hf").rglob("*.py"), *(ROOT / "recipes").glob("*.py")]
    assert len(files) > 50
    found = {str(path.relative_to(ROOT)): unsafe(path.read_text("utf-8")) for path in files}
    assert not {path: lines for path, lines in found.items() if lines}


# ---- Code of a model -------------------------------------------------------------------------------------------------

EVIL = """
from pathlib import Path
Path({marker!r}).write_text("ran")
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast
class EvilConfig(BertConfig): model_type = "evil"
class EvilModel(BertForSequenceClassification): config_class = EvilConfig
class EvilTokenizer(BertTokenizerFast): pass
"""


@pytest.fixture(params=["bert", "evil"], ids=["a known model type", "its own model type"])
def folder(request, tmp_path):
    """A model with code of its own; `ran` appears beside it when anybody runs that."""
    tokenizer = demo_word_tokenizer(["a b c"], classifier=True)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer), **sizes))
    masks = sms_hf.prune(model, 0.5)
    model.save_pretrained(tmp_path / "model")
    masks.save(tmp_path / "model" / "masks.safetensors")
    tokenizer.save_pretrained(tmp_path / "model")
    # Modules are remembered by file name for as long as the process lives: a name for every test.
    code = f"evil_{abs(hash(str(tmp_path)))}"
    (tmp_path / "model" / f"{code}.py").write_text(EVIL.format(marker=str(tmp_path / "ran")))
    classes = {"AutoConfig": "EvilConfig", "AutoModel": "EvilModel", "AutoModelForSequenceClassification": "EvilModel"}
    for name, entries in (
        ("config.json", {auto: f"{code}.{cls}" for auto, cls in classes.items()}),
        ("tokenizer_config.json", {"AutoTokenizer": [None, f"{code}.EvilTokenizer"]}),
    ):
        path = tmp_path / "model" / name
        values = json.loads(path.read_text("utf-8")) | {"auto_map": entries}
        if name == "config.json":
            values["model_type"] = request.param
        path.write_text(json.dumps(values), encoding="utf-8")
    return tmp_path / "model"


def quietly(action):
    """Whatever an action ends with."""
    try:
        action()
    except Exception as error:
        return error
    return None


def uses(folder):
    plan = ["--use_cpu", "True", "--report_to", "none", "--output_dir", str(folder.parent / "run")]
    return {
        "load": lambda: sms_hf.load(folder),
        "load dense": lambda: sms_hf.load(folder, "dense"),
        "inspect": lambda: main(["inspect", str(folder)]),
        "plan": lambda: main(["plan", str(folder), *plan]),
        "pack": lambda: main(["pack", str(folder)]),
        "load compact": lambda: sms_hf.load(folder, "compact"),
        "unpack": lambda: main(["unpack", str(folder), "--output", str(folder.parent / "unpacked")]),
        "rescue": lambda: main(["rescue", str(folder), "--output", str(folder.parent / "rescued")]),
    }


def recipe(folder):
    from sms_hf import tasks

    return {
        "model": lambda: tasks.model_for_classes(
            AutoModelForSequenceClassification, str(folder), ["no", "yes"], 0, "another"
        ),
        "tokenizer": lambda: AutoTokenizer.from_pretrained(str(folder)),
    }


def test_code_of_a_model_is_not_run(folder, monkeypatch):
    def nobody(prompt=""):
        raise EOFError

    monkeypatch.setattr(builtins, "input", nobody)
    for what, use in {**uses(folder), **recipe(folder)}.items():
        error = quietly(use)
        assert not (folder.parent / "ran").exists(), f"{what} ran the model's code ({error})"


@pytest.mark.parametrize("folder", ["evil"], indirect=True)
def test_nobody_is_asked_to_run_code(folder, monkeypatch):
    """`yes | sms-hf plan MODEL` must not; and a question that waits 15 seconds for an answer is none."""
    asked = []

    def answer(prompt=""):
        asked.append(prompt)
        return "y"

    monkeypatch.setattr(builtins, "input", answer)
    for use in uses(folder).values():
        quietly(use)
    assert not (folder.parent / "ran").exists()
    assert not asked


# ---- Secrets ---------------------------------------------------------------------------------------------------------

TOKEN, OTHER = "hf_SECRETSECRETSECRET", "hf_OTHEROTHEROTHEROTHER"


class KeepsCheckpoints(TrainerCallback):
    """Copies every checkpoint of a candidate: they are removed when it is done."""

    def __init__(self, folder):
        self.folder = folder

    def on_save(self, args, state, control, **kwargs):
        path = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        shutil.copytree(path, self.folder / "_".join(path.parts[-3:-1]) / path.name)


def test_a_run_leaves_no_secret_and_no_pickle_behind(make_trainer, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("HF_TOKEN", OTHER)
    settings = {"hub_token": TOKEN, "save_strategy": "steps", "save_steps": 2, "keep_candidates": True}
    options = {
        "run_name": "a run",
        "sparse_format": "both",
        "disable_tqdm": False,
        "log_level": "info",
        "num_phases": 1,
    }
    trainer = make_trainer({**settings, **options}, callbacks=[KeepsCheckpoints(tmp_path / "checkpoints")])
    trainer.train()
    trainer.evaluate_run(trainer.eval_dataset)
    print(trainer.args, sms_hf.format_report(trainer.report))
    trainer.save_model(str(tmp_path / "again"))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len([path for path in files if path.name == "trainer_state.json"]) >= 4, "checkpoints were there"
    leaks = [str(path) for path in files if any(token.encode() in path.read_bytes() for token in (TOKEN, OTHER))]
    assert not leaks
    said = "".join(capfd.readouterr())
    assert "phase 1" in said
    assert TOKEN not in said
    assert OTHER not in said
    # What Trainer itself keeps in a checkpoint, until the candidate is done: optimizer, schedule, random states.
    own = {"optimizer.pt", "scheduler.pt", "rng_state.pth", "scaler.pt"}
    pickles = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz"}
    found = [path for path in files if path.suffix in pickles]
    assert not [path for path in found if path.parent.parent.parent != tmp_path / "checkpoints"]
    assert {path.name for path in found} <= own
    assert not [path for path in files if path.name == "training_args.bin"]


# ---- Names from outside ----------------------------------------------------------------------------------------------

HOSTILE = [
    "a | b",
    "a \\| b \\",
    "two\nlines\r\nand | more",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "`code` ``` fence",
    "\n---\nlicense: mit\n---\n",
    "--- !!python/object/apply:os.system ['true']",
    "../../etc/passwd",
    "[y](javascript:alert(1))",
    "![](http://tracker)",
    END,
    BEGIN,
    "# heading\n\n| a | b |\n|---|---|",
    '"""\nimport os',
    "key: value # comment",
    "${name} $table {0} %s",
    "\u2028\u0085\x00\x1b[31m\u202e",
    "no",
    "1e3",
    "",
]
words = st.one_of(st.sampled_from(HOSTILE), st.text(max_size=30), st.text("|\\`<>!-[]()#\n\r &'\"", max_size=12))


def examples(count):
    health = list(HealthCheck)
    return settings(derandomize=True, max_examples=count, deadline=None, database=None, suppress_health_check=health)


def lineage_of(word, masks):
    """A lineage in which every name that may come from outside is this word. Numbers are numbers."""
    score = {word: 1.5, "loss": 2.5}
    candidate = {"name": "candidate-1", "overrides": {"seed": 1, "optim": word, word: word}, "steps": 1, "epochs": 1.0}
    candidate |= {"score": 1.5, "metrics": score, "failure": None}
    phase = {
        "number": 1,
        "parent": {"sparsity": 0.75, "mask_fingerprint": "ab"},
        "candidates": [candidate, {**candidate, "name": "candidate-2", "failure": word}],
        "mean_score": 1.5,
        "best_score": 1.5,
        "soup": {"ingredients": ["candidate-1"], "score": 1.5, "metrics": score, "trials": [], "sparsity": 0.75},
    }
    report = {
        "metric": word,
        "settings": {
            "arguments": {"pruning_method": word, "pruning_scope": word, "run_name": word},
            "plan": [],
            "model": {"class": f"{word}ForCausalLM", "num_parameters": 40},
            "num_examples": {word: 3},
            "versions": {word: word},
        },
        "dense": {word: 1.0},
        "phases": [phase],
    }
    measured = {"machine": word, "load_seconds": {word: 1.0}, "samples_per_second": 1.0, "batch_size": 2}
    lineage = make_lineage(report, masks, None, None, {"phase-1/soup": 1.25, "dense": 1.0}, measured)
    # As in a folder of somebody else.
    return {**lineage, "parent": {"name": word or None, "revision": word or "c0ffee"}}


def tables_of(text):
    """The Markdown tables of a text: for each the numbers of columns of its rows."""
    tables, inside = [], False
    for line in text.splitlines():
        row = line.startswith("|")
        if row and not inside:
            tables.append([])
        if row:
            tables[-1].append(len(re.findall(r"(?<!\\)\|", line)) - 1)
        inside = row
    return tables


def prose_of(card):
    """The card without metadata, our two marks and the fences of code."""
    body = ModelCard(card).text.replace(BEGIN, "", 1).replace(END, "", 1)
    return re.sub(r"^```\w+\n.*?^```$", "", body, flags=re.DOTALL | re.MULTILINE)


def check_card(word):
    kept = torch.zeros(4, 4, dtype=torch.bool)
    kept[0] = True
    lineage = lineage_of(word, Masks({"w": kept}))
    put = {"tags": [word, "mine"], "license": word, "language": [word], "datasets": [word]}
    put = {key: value for key, value in put.items() if value}
    files = {f"model-{word}.safetensors": 10**6}
    plain = make_card(lineage_of("word", Masks({"w": kept})), "user/soup", {"model-word.safetensors": 10**6})
    card = make_card(lineage, f"user/{word}", files, **put)
    for text in (card, merge_cards(card, None), merge_cards(card, card), merge_cards(card, plain)):
        body = ModelCard(text).text
        assert body.count(BEGIN) == body.count(END) == 1, f"{word!r} looks like our mark"
        # Scripts and images, headings, tables and fences are ours alone.
        prose = prose_of(text)
        assert not re.search(r"<[A-Za-z/!?]", prose), f"HTML in the card: {re.search(r'<[A-Za-z/!?].*', prose)[0]!r}"
        assert "```" not in prose, f"{word!r} opens a fence"
        assert re.findall(r"^#+ ", prose, re.MULTILINE) == re.findall(r"^#+ ", prose_of(plain), re.MULTILINE)
        assert not re.search(r"!\[(?!Scores)", prose)
        assert "](javascript" not in prose
        assert [set(t) for t in tables_of(prose)] == [set(t) for t in tables_of(prose_of(plain))], (
            f"{word!r} in a table"
        )
        assert [len(t) for t in tables_of(prose)] == [len(t) for t in tables_of(prose_of(plain))], (
            f"{word!r} in a table"
        )
    data = yaml.safe_load(re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)[1])
    assert {key: data[key] for key in put if key != "tags"} == {key: put[key] for key in put if key != "tags"}
    assert data["tags"][:2] == list(dict.fromkeys([word, "mine"]))[:2]
    assert data.get("base_model") == (word or None)
    result = data["model-index"][0]["results"][0]["metrics"][0]
    assert (result["type"], result["value"]) == (word, 1.5)
    found = ModelCard(card).data
    assert found.eval_results[0].metric_type == word
    code = "\n".join(re.findall(r"^```python\n(.*?)^```$", ModelCard(card).text, re.DOTALL | re.MULTILINE))
    assert [line.split("(")[0].split(" import")[0] for line in code.splitlines() if line] == [
        line.split("(")[0].split(" import")[0]
        for line in "\n".join(
            re.findall(r"^```python\n(.*?)^```$", ModelCard(plain).text, re.DOTALL | re.MULTILINE)
        ).splitlines()
        if line
    ], f"{word!r} changes the code"


@pytest.mark.parametrize("word", HOSTILE)
def test_names_stay_names_in_the_card(word):
    check_card(word)


@examples(40)
@given(words)
def test_any_text_stays_text_in_the_card(word):
    check_card(word)


@examples(100)
@given(words)
def test_the_tables_of_a_report_keep_their_shape(word):
    kept = torch.ones(4, 4, dtype=torch.bool)
    report = lineage_of(word, Masks({"w": kept}))
    ours, plain = (
        [sms_hf.format_report(r, style=style) for style in ("github", "simple")]
        for r in (report, lineage_of("word", Masks({"w": kept})))
    )
    assert tables_of(ours[0]) == tables_of(plain[0])
    assert len(ours[1].splitlines()) == len(plain[1].splitlines())
    assert not re.search(r"<[A-Za-z/!?]", ours[0])


@pytest.mark.parametrize("name", ["a|b", "<b>", "x`y"])
def test_a_run_in_a_folder_and_with_a_metric_of_any_name(make_args, make_trainer, tmp_path, name):
    def metric(prediction):
        return {name: 0.5}

    options = {"output_dir": str(tmp_path / name), "metric_for_best_model": name, "greater_is_better": True}
    trainer = make_trainer(
        {**options, "run_name": f"{name}\n---\n", "num_phases": 1, "num_candidates": 1, "max_steps": 1},
        compute_metrics=metric,
    )
    trainer.train()
    card = (tmp_path / name / "README.md").read_text("utf-8")
    assert ModelCard(card).data.eval_results[0].metric_type == name
    assert not re.search(r"<[A-Za-z/!?]", prose_of(card))
    assert all(len(set(columns)) == 1 for columns in tables_of(prose_of(card)))


@pytest.mark.parametrize(
    "parent", ["../gone/model", "./model", "/home/me/model", "a/b/c", "..", "a--b", "C:\\me\\model"]
)
def test_a_path_is_no_repository(parent):
    kept = torch.ones(4, 4, dtype=torch.bool)
    report = lineage_of("word", Masks({"w": kept}))
    settings = {"model": report["model"], "arguments": {}, "plan": [], "num_examples": {}, "versions": {}}
    lineage = make_lineage({**report, "settings": settings}, Masks({"w": kept}), parent, "c0ffee")
    assert lineage["parent"] == {"name": None, "revision": None}


def test_a_model_of_the_tests_has_no_parent():
    assert tiny_t5().config._name_or_path in ("", None)
