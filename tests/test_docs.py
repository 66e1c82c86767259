"""The pages of the documentation: their code runs as it stands, on small models and data, and their site builds."""

import importlib
import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import transformers
from conftest import QUICK
from PIL import Image
from transformers import DataCollatorForSeq2Seq, ViTConfig, ViTForImageClassification, ViTImageProcessorPil

import sms_hf
from sms_hf import SparseSoupTrainer, SparseSoupTrainingArguments, launching, tasks
from sms_hf.cli import main
from sms_hf.demo import (
    demo_classifier,
    demo_corpus,
    demo_judgements,
    demo_language_model,
    demo_sentences,
    demo_tokenizer,
    demo_translator,
    demo_word_tokenizer,
)

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
RUN = ["index.md", "faq.md", "guide.md", *(f"guides/{path.name}" for path in sorted((DOCS / "guides").glob("*.md")))]
HUB = {
    "google-t5/t5-small": "my-translator",
    "openai-community/gpt2": "my-lm",
}
"""What stands for a name of the Hub."""

pytestmark = [
    pytest.mark.usefixtures("datasets_cache"),
    # What TRL and PEFT ask for.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing.* is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
    pytest.mark.filterwarnings("ignore::UserWarning:trl"),
]


def fences(page, languages="python|bash"):
    """(language, code) of the blocks of a page, in their order."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(rf"^```({languages})\n(.*?)^```", text, flags=re.S | re.M)


def commands(code):
    """Lines of a block that start `sms-hf`, as arguments."""
    lines = [shlex.split(line, comments=True) for line in code.replace("\\\n", "").splitlines()]
    return [line[1:] for line in lines if line[:1] == ["sms-hf"]]


# ---- A folder with models and data of the names that the pages use -----------------------------------------------------


def write_corpus(folder, corpus):
    (folder / "corpus").mkdir()
    for split, name in (("train", "train"), ("validation", "val")):
        pairs = list(corpus[split]["translation"])
        for language in ("en", "de"):
            text = "".join(pair[language] + "\n" for pair in pairs)
            (folder / "corpus" / f"{name}.{language}").write_text(text, encoding="utf-8")
        datasets.Dataset.from_list(pairs).to_json(folder / f"{name}.jsonl")


def draw_images(folder):
    """Bright and dark ones."""
    for split, each in (("train", 8), ("val", 4), ("validation", 4)):
        for label, name in enumerate(("bright", "dark")):
            (folder / "images" / split / name).mkdir(parents=True)
            for i in range(each):
                pixels = np.full((8, 8), 200 - 150 * label + i, np.uint8)
                Image.fromarray(pixels).save(folder / "images" / split / name / f"{i}.png")


def save_vit(folder):
    names = {0: "bright", 1: "dark"}
    config = ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=8, patch_size=4,
        id2label=names, label2id={name: i for i, name in names.items()},
    )  # fmt: skip
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(folder)


@pytest.fixture(scope="module")
def corpus():
    return demo_corpus(num_train=48, num_validation=8, num_test=8)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory, corpus):
    """Made once, and copied for each page."""
    folder = tmp_path_factory.mktemp("workshop")
    tokenizer = demo_tokenizer(demo_corpus(num_train=600), vocab_size=400)
    translator = demo_translator(tokenizer)
    # So that it ends its sentences, which it has not learned to.
    translator.generation_config.exponential_decay_length_penalty = (3, 1e6)
    translator.save_pretrained(folder / "my-translator")
    tokenizer.save_pretrained(folder / "my-translator")
    write_corpus(folder, corpus)
    sentences = demo_sentences(200, 60, 4)
    words = demo_word_tokenizer(sentences["train"]["text"])
    demo_language_model(words, "gpt2").save_pretrained(folder / "my-lm")
    words.save_pretrained(folder / "my-lm")
    for split, name in (("train", "train"), ("validation", "val")):
        (folder / f"{name}.txt").write_text("\n".join(sentences[split]["text"]), encoding="utf-8")
    judgements = demo_judgements(48, 16, 4)
    for split, name in (("train", "train"), ("validation", "val")):
        table = judgements[split]
        labels = [int(label == "wrong") for label in table["label"]]
        datasets.Dataset.from_dict({"text": table["text"], "label": labels}).to_csv(folder / f"{name}.csv")
    classes = demo_word_tokenizer(judgements["train"]["text"], classifier=True)
    demo_classifier(classes, ["0", "1"]).save_pretrained(folder / "my-classifier")
    classes.save_pretrained(folder / "my-classifier")
    save_vit(folder / "my-vit")
    draw_images(folder)
    shutil.copytree(ROOT / "tests/compact/fixtures/bitmask-0.9.4", folder / "old-checkpoint")
    return folder


def encode(corpus, tokenizer):
    def row(pair):
        return tokenizer(pair["translation"]["en"], text_target=pair["translation"]["de"])

    return corpus.map(row, remove_columns=["translation"])


def translation_names(corpus):
    """What a reader of the FAQ has at hand."""
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained("my-translator")
    tokenizer = transformers.AutoTokenizer.from_pretrained("my-translator")
    data = encode(corpus, tokenizer)
    collator = DataCollatorForSeq2Seq(tokenizer, model)
    return {"model": model, "tokenizer": tokenizer, "collator": collator, "test": data["test"]} | splits(data)


def splits(data):
    return {"train": data["train"], "validation": data["validation"]}


def classifier_names(_):
    model = transformers.AutoModelForSequenceClassification.from_pretrained("my-classifier")
    tokenizer = transformers.AutoTokenizer.from_pretrained("my-classifier")
    data = read_table().map(lambda row: tokenizer(row["text"]), remove_columns="text")
    return {"model": model, "collator": transformers.DataCollatorWithPadding(tokenizer)} | splits(data)


def read_table():
    return datasets.load_dataset("csv", data_files={"train": "train.csv", "validation": "val.csv"})


def llama_names(_):
    tokenizer = transformers.AutoTokenizer.from_pretrained("my-lm")
    data = read_table().map(lambda row: tokenizer(row["text"]), remove_columns=["text", "label"])
    collator = transformers.DataCollatorForLanguageModeling(tokenizer, mlm=False)
    return {"model": demo_language_model(tokenizer, "llama"), "collator": collator} | splits(data)


def part_names(corpus):
    """Three models of one mask, none, and a score."""
    names = translation_names(corpus)
    for i in (1, 2, 3):
        names["model"].save_pretrained(f"run-{i}")
    return names | {"score": lambda folder: len(folder.name)}


def run_names(corpus):
    """A run that can be resumed."""
    names = translation_names(corpus)
    return names | {"trainer": soup_trainer(names, "soup")}


NAMES = {
    "index.md": classifier_names,
    "faq.md": run_names,
    "guide.md": part_names,
    "guides/lora.md": llama_names,
    "guides/resume.md": run_names,
}
"""Page -> what its blocks take as given."""
SAYS = {
    "index.md": ["80.0% of", "weights removed"],
    "faq.md": [
        "50.0%",
        "global empties most: ('encoder.block.0.layer.0.SelfAttention.q.weight', 1.0)",
        "All candidates of a soup must share one mask",
        "arguments.target_sparsity: 0.8 -> 0.5",
        "sparse-bitmask tensors expanded",
        "The model: greedy-soup",
        "model.safetensors",
    ],
    "guides/lora.md": ["LlamaForCausalLM 0.5"],
    "guides/translation.md": ["BLEU", "test bleu"],
    "guides/language-models.md": ["perplexity"],
}
"""Page -> some of what its code prints."""


def soup_trainer(names, folder):
    args = SparseSoupTrainingArguments(
        folder, target_sparsity=0.8, pruning_scope="uniform", num_phases=1, num_candidates=2, num_train_epochs=1,
        keep_candidates=True, **QUICK,
    )  # fmt: skip
    data = (names["collator"], names["train"], names["validation"], names["tokenizer"])
    return SparseSoupTrainer(names["model"], args, *data)


@pytest.fixture
def desk(workshop, corpus, tmp_path, monkeypatch):
    """The folder that a reader sits in, where names of the Hub lead to what lies there."""
    folder = tmp_path / "desk"
    shutil.copytree(workshop, folder)
    monkeypatch.chdir(folder)
    for key in ("WANDB_MODE", "WANDB_DISABLED"):
        monkeypatch.setenv(key, "disabled" if key == "WANDB_MODE" else "true")

    def local(loader):
        original = loader.from_pretrained
        monkeypatch.setattr(loader, "from_pretrained", lambda name, **kw: original(HUB.get(str(name), name), **kw))

    local(transformers.AutoTokenizer)
    local(transformers.AutoModelForSeq2SeqLM)
    local(transformers.AutoModelForCausalLM)
    load = datasets.load_dataset
    texts = datasets.DatasetDict({name: data.select(range(8)) for name, data in demo_sentences(8, 8, 8).items()})
    remote = {"wmt/wmt16": corpus, "Salesforce/wikitext": texts}
    monkeypatch.setattr(datasets, "load_dataset", lambda *names, **kw: remote.get(names[0]) or load(*names, **kw))
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **kw: HUB[name])
    monkeypatch.setattr(launching, "run_script", run_recipe)
    return folder


def run_recipe(script, options, num_processes):
    """In this process where model and data are here. Of others the options are read: demos take minutes, the Hub is far."""
    recipe = importlib.import_module(script.stem)
    if "--help" in options:
        return 0
    given = [
        *options,
        "--report_to",
        "none",
        "--disable_tqdm",
        "true",
        "--save_strategy",
        "no",
        "--dataloader_num_workers",
        "0",
    ]
    asked, _ = tasks.parse(given, str(script), recipe.RecipeArguments)
    if asked.hub_dataset is None and not asked.demo and Path(asked.model_name_or_path).is_dir():
        tasks.run(given, str(script), recipe.RecipeArguments, recipe.load_task)
    return 0


@pytest.mark.parametrize("page", RUN)
def test_the_code_of_a_page_runs_as_it_stands(page, desk, corpus, capsys):
    for package in {"guides/lora.md": ("peft", "trl"), "faq.md": ("peft", "ctranslate2")}.get(page, ()):
        pytest.importorskip(package, reason=f"{package} is not installed")
    if page in ("faq.md", "guides/resume.md"):
        soup_trainer(translation_names(corpus), "soup").train()
    names = NAMES.get(page, lambda _: {})(corpus)
    keeps = page != "faq.md"
    ran = 0
    for language, code in fences(page):
        if language == "python":
            given = names if keeps else NAMES[page](corpus)
            exec(compile(code, page, "exec"), given)
            ran += 1
        for command in commands(code) if language == "bash" else ():
            assert main(command) == 0, (command, capsys.readouterr().err)
            ran += 1
    assert ran
    printed = capsys.readouterr().out
    assert [line for line in SAYS.get(page, ()) if line not in printed] == []


def test_every_question_has_an_answer_that_runs():
    sections = re.split(r"^### ", (DOCS / "faq.md").read_text(encoding="utf-8"), flags=re.M)[1:]
    assert len(sections) > 20
    bare = [
        section.splitlines()[0] for section in sections if not re.search(r"^```(python|bash)$", section, flags=re.M)
    ]
    assert bare == []


def test_every_public_name_is_in_the_reference():
    shown = set()
    for path in (DOCS / "reference").glob("*.md"):
        shown |= set(re.findall(r"^::: ([\w.]+)$", path.read_text("utf-8"), flags=re.M))
    rooms = ("compact", "hub", "inference", "metrics", "report", "soup", "sparsity", "speed", "training")
    public = {f"sms_hf.{room}.{name}" for room in rooms for name in importlib.import_module(f"sms_hf.{room}").__all__}
    assert shown == public
    index = (DOCS / "reference/index.md").read_text("utf-8")
    assert set(re.findall(r"\[`(\w+)`\]", index)) == set(sms_hf.__all__)


def test_every_command_is_in_the_reference(capsys):
    assert main(["--help"]) == 0
    offered = set(re.findall(r"^  ([a-z]+) ", capsys.readouterr().out.partition("Commands:")[2], flags=re.M))
    page = (DOCS / "reference/command-line.md").read_text("utf-8")
    assert offered == set(re.findall(r"^\| `sms-hf (\w+)", page, flags=re.M))


def test_docstrings_are_rewritten_for_the_parser(monkeypatch):
    pytest.importorskip("griffe", reason="griffe is not installed: pip install sms_hf[docs]")
    monkeypatch.syspath_prepend(DOCS)
    rewrite = importlib.import_module("docstrings").rewrite
    given = inspect.cleandoc("""
        Average folders, as [`other`] does; [`private`] does not, and [`Report`](docs/report.md) is a page.
        `a + b`: text.

        Args:
            names, more (`str` or `list[str]`, *optional*, defaults to `"a"`): Which ones: [`other`].
            masks ([`Masks`] or `None`): May be (left) out.

        Returns:
            [`Masks`]: The masks, `{}` if there are none.

        Raises:
            OSError, ValueError: If not.

        >>> f(1, 2)
        3
        """)
    expected = inspect.cleandoc("""
        Average folders, as [`other`][room.other] does; `private` does not, and [`Report`](../report.md) is a page.
        `a + b`: text.

        Args:
            names, more (str | list[str], optional): Which ones: [`other`][room.other].
            masks (Masks | None): May be (left) out.

        Returns:
            Masks: The masks, `{}` if there are none.

        Raises:
            OSError | ValueError: If not.

        ```pycon
        >>> f(1, 2)
        3
        ```
        """)
    assert rewrite(given, {"other": "room.other", "Masks": "room.Masks"}).split() == expected.split()


def test_the_site_builds_without_a_warning_and_asks_nothing_of_the_network(tmp_path):
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install sms_hf[docs]")
    pytest.importorskip(
        "mkdocstrings_handlers.python", reason="mkdocstrings is not installed: pip install sms_hf[docs]"
    )
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=200, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for page in tmp_path.rglob("*.html"):
        loaded = re.findall(
            r"<(?:script|img|iframe)[^>]* src=\"?([^\" >]+)|<link[^>]* rel=\"?(?:stylesheet|preconnect)[^>]*",
            page.read_text("utf-8"),
        )
        assert not [source for source in loaded if source.startswith(("http:", "https:", "//"))], page
    reference = (tmp_path / "reference/sparsity.html").read_text("utf-8")
    assert 'id="sms_hf.sparsity.prune"' in reference
    options = (tmp_path / "reference/training.html").read_text("utf-8")
    assert "Fraction of the prunable weights to remove in the end" in options, "the help of the fields"
