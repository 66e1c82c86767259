"""
Prune a text classifier and make a sparse model soup of it.

    accelerate launch recipes/text_classification.py              google-bert/bert-base-uncased on GLUE's sst2 from the Hub
    accelerate launch recipes/text_classification.py --demo       no download: a small BERT, trained here, judges sentences
    accelerate launch recipes/text_classification.py --train_file train.csv --validation_file val.csv --test_file test.csv
    accelerate launch recipes/text_classification.py --text_column premise --text_pair_column hypothesis ...

Settings come from a YAML file (by default `text_classification.yaml` beside this script, with `--demo`
`text_classification_demo.yaml`); what stands on the command line wins. The model has to be fine-tuned already, or the dense
training that pruning starts from is missing: a model without a fitting head gets a new one, and a line says so.
"""

import sys
from dataclasses import dataclass, field
from typing import Any

import datasets
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
)

from sms_hf import SparseSoupTrainingArguments, tasks
from sms_hf.demo import demo_classifier, demo_judgements, demo_word_tokenizer
from sms_hf.metrics import classification_metrics
from sms_hf.tasks import FileArguments, RecipeError, Task

INSTEAD = "--model_name_or_path FOLDER and --train_file/--validation_file/--test_file"


@dataclass
class RecipeArguments(FileArguments):
    """Model and data; everything else are `SparseSoupTrainingArguments`."""

    model_name_or_path: str = field(
        default="google-bert/bert-base-uncased",
        metadata={"help": "Dense classifier: a name on the Hub or a folder. Any model for sequence classification."},
    )
    dataset_name: str = field(default="nyu-mll/glue", metadata={"help": "Data set on the Hub."})
    dataset_config_name: str | None = field(default="sst2", metadata={"help": "Configuration of that data set."})
    train_file: str | None = field(
        default=None, metadata={"help": "JSON Lines, CSV or Parquet with columns for text and label."}
    )
    text_column: str | None = field(
        default=None, metadata={"help": "Column of the text. Default: text or sentence, whichever there is."}
    )
    text_pair_column: str | None = field(default=None, metadata={"help": "Column of a second text, if there is one."})
    label_column: str = field(default="label", metadata={"help": "Column of the label, a name or a number."})
    max_length: int = field(default=128, metadata={"help": "Longer texts are cut to so many tokens."})


# ---- Data --------------------------------------------------------------------------------------------------------------


def load_corpus(recipe: RecipeArguments) -> tuple[datasets.DatasetDict, dict[Any, str]]:
    """Splits with the columns `text`, `label` and perhaps `pair`, and the name of every label."""
    if recipe.demo:
        corpus = demo_judgements()
    elif recipe.train_file:
        corpus = tasks.read_files(recipe.files)
    else:
        corpus = tasks.read_hub(recipe, INSTEAD)
    corpus = datasets.DatasetDict({split: choose_columns(data, str(split), recipe) for split, data in corpus.items()})
    small = tasks.limit(corpus, recipe)
    if "test" in small and small["test"].unique("label") == [-1]:
        print("The labels of the test split are hidden (-1): there will be no test scores.", flush=True)
        del small["test"]
    names = label_names(corpus["train"])
    for split, data in small.items():
        unseen = [label for label in data.unique("label") if label not in names]
        if unseen:
            raise RecipeError(
                f"Every label must occur in the training data ({list(names.values())}), got {unseen[:8]} in the {split} split."
            )
    return small, names


def choose_columns(data: datasets.Dataset, split: str, recipe: RecipeArguments) -> datasets.Dataset:
    text = recipe.text_column or next((c for c in ("text", "sentence") if c in data.column_names), "text")
    wanted = {text: "text", recipe.label_column: "label"}
    if recipe.text_pair_column:
        wanted[recipe.text_pair_column] = "pair"
    return tasks.select_columns(data, split, wanted, "--text_column, --text_pair_column and --label_column")


def label_names(train: datasets.Dataset) -> dict[Any, str]:
    """Label as the data hold it -> its name, in the order of the model's outputs."""
    if isinstance(train.features["label"], datasets.ClassLabel):
        return dict(enumerate(train.features["label"].names))
    labels = train.unique("label")
    if not all(isinstance(label, (str, int)) for label in labels):
        raise RecipeError(f"Labels must be names or whole numbers, got {labels[:8]}. Set --label_column.")
    return {label: str(label) for label in sorted(labels)}


def tokenize(corpus: datasets.DatasetDict, tokenizer, positions: dict[Any, int], max_length: int):
    def encode(batch):
        texts = (batch["text"], batch["pair"]) if "pair" in batch else (batch["text"],)
        rows = tokenizer(*texts, max_length=max_length, truncation=True)
        # `length` is what train_sampling_strategy="group_by_length" groups by.
        labels, length = [positions[label] for label in batch["label"]], [len(row) for row in rows["input_ids"]]
        return {**rows, "labels": labels, "length": length}

    return corpus.map(encode, batched=True, remove_columns=corpus["train"].column_names, desc="tokenise")


# ---- The task ----------------------------------------------------------------------------------------------------------


def load_task(recipe: RecipeArguments, args: SparseSoupTrainingArguments) -> Task:
    corpus, labels = load_corpus(recipe)
    if recipe.demo:
        recipe.model_name_or_path = tasks.demo_model(recipe, args, lambda: demo_task(corpus, labels, args.seed))
    name, names = recipe.model_name_or_path, list(labels.values())
    model, order = tasks.model_for_classes(AutoModelForSequenceClassification, name, names, args.seed, INSTEAD)
    tokenizer = tasks.from_hub(name, lambda: AutoTokenizer.from_pretrained(name), INSTEAD)
    if tokenizer.pad_token is None:  # Decoders are trained without one.
        tokenizer.pad_token, model.config.pad_token_id = tokenizer.eos_token, tokenizer.eos_token_id
    positions = {label: order.index(label_name) for label, label_name in labels.items()}
    return make_task(model, tokenizer, tokenize(corpus, tokenizer, positions, recipe.max_length))


def demo_task(corpus: datasets.DatasetDict, labels: dict[Any, str], seed: int) -> Task:
    """A small BERT from scratch."""
    tokenizer = demo_word_tokenizer(corpus["train"]["text"], classifier=True)
    positions = {label: i for i, label in enumerate(labels)}
    data = tokenize(corpus, tokenizer, positions, tokenizer.model_max_length)
    return make_task(demo_classifier(tokenizer, list(labels.values()), seed), tokenizer, data)


def make_task(model, tokenizer, data: datasets.DatasetDict) -> Task:
    return Task(
        model=model,
        train=data["train"],
        validation=data["validation"],
        test=data.get("test"),
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
        compute_metrics=classification_metrics(),
        footnote=f"Classes: {', '.join(model.config.id2label.values())}; ",
    )


if __name__ == "__main__":
    tasks.run(sys.argv[1:], __file__, RecipeArguments, load_task)
