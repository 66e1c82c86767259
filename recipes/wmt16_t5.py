"""
Prune a translator and make a sparse model soup of it.

    accelerate launch recipes/wmt16_t5.py                       google-t5/t5-small on wmt/wmt16 de-en from the Hub
    accelerate launch recipes/wmt16_t5.py --demo                no download: a small T5, trained here, on generated sentences
    accelerate launch recipes/wmt16_t5.py my_settings.yaml --target_sparsity 0.9 --parallel_dir data/

Settings come from a YAML file (by default `wmt16_t5.yaml` beside this script, with `--demo` `wmt16_t5_demo.yaml`); what
stands on the command line wins. `python recipes/wmt16_t5.py` does the same work on one process and gives the same model.
"""

import gzip
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import datasets
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    PreTrainedModel,
)

from sms_hf import SparseSoupTrainingArguments, tasks
from sms_hf.choices import nearest
from sms_hf.demo import demo_corpus, demo_optimizer, demo_tokenizer, demo_translator
from sms_hf.metrics import bleu_metrics, sacrebleu_signature
from sms_hf.tasks import FileArguments, RecipeError, Task

INSTEAD = "--model_name_or_path FOLDER and --parallel_dir FOLDER or --train_file/--validation_file/--test_file"
# Tokenizers that mark the language: how they spell its token, and where generation needs the target's.
LANGUAGE_TOKENS = {
    "MBartTokenizer": ("{}", "decoder_start_token_id"),
    "MBart50Tokenizer": ("{}", "forced_bos_token_id"),
    "NllbTokenizer": ("{}", "forced_bos_token_id"),
    "M2M100Tokenizer": ("__{}__", "forced_bos_token_id"),
}


@dataclass
class RecipeArguments(FileArguments):
    """Model and data; everything else are `SparseSoupTrainingArguments`."""

    model_name_or_path: str = field(
        default="google-t5/t5-small",
        metadata={"help": "Dense model: a name on the Hub or a folder. Any seq2seq model."},
    )
    dropout: float | None = field(
        default=None,
        metadata={"help": "Dropout while retraining, in [0, 1). Default: what the model was trained with."},
    )
    encoder_layers: int | None = field(
        default=None,
        metadata={
            "help": "Layers of the encoder to keep before pruning, those that the loss needs most. Default: all."
        },
    )
    decoder_layers: int | None = field(default=None, metadata={"help": "Layers of the decoder to keep. Default: all."})
    dataset_name: str = field(default="wmt/wmt16", metadata={"help": "Corpus on the Hub, with a `translation` column."})
    dataset_config_name: str | None = field(default="de-en", metadata={"help": "Configuration of that corpus."})
    train_file: str | None = field(
        default=None, metadata={"help": "JSON Lines, CSV or Parquet with a `translation` column or one per language."}
    )
    parallel_dir: str | None = field(
        default=None,
        metadata={"help": "Folder with train.SRC, train.TGT, val.*, test*.*, a sentence a line, or .gz of it."},
    )
    source_lang: str = field(default="en", metadata={"help": "Language to translate from, as the corpus names it."})
    target_lang: str = field(default="de", metadata={"help": "Language to translate to, as the corpus names it."})
    source_code: str | None = field(
        default=None, metadata={"help": "Name of source_lang in a multilingual tokenizer, e.g. en_XX or eng_Latn."}
    )
    target_code: str | None = field(default=None, metadata={"help": "Name of target_lang in a multilingual tokenizer."})
    source_prefix: str | None = field(
        default=None,
        metadata={"help": "Text before every source sentence. Default: the prefix in a T5's config, if any."},
    )
    source_column: str | None = field(
        default=None, metadata={"help": "Column of the files with the sentences to translate. Default: source_lang."}
    )
    target_column: str | None = field(
        default=None, metadata={"help": "Column of the files with their translations. Default: target_lang."}
    )
    max_source_length: int = field(default=128, metadata={"help": "Longer sources are cut to so many tokens."})
    max_target_length: int = field(default=128, metadata={"help": "Longer targets are cut to so many tokens."})


# ---- Data --------------------------------------------------------------------------------------------------------------


def load_corpus(recipe: RecipeArguments) -> datasets.DatasetDict:
    """Splits train, validation and test with a `translation` column of `{language: sentence}`."""
    if recipe.demo:
        corpus = demo_corpus()
    elif recipe.parallel_dir:
        corpus = read_parallel(Path(recipe.parallel_dir), recipe.source_lang, recipe.target_lang)
    elif recipe.train_file:
        corpus = read_files(recipe)
    else:
        corpus = tasks.read_hub(recipe, INSTEAD)
    return tasks.limit(corpus, recipe)


def read_parallel(folder: Path, source: str, target: str) -> datasets.DatasetDict:
    """`train.en(.gz)` and `train.de(.gz)`, `val*`, `test*`: line i of one is the translation of line i of the other."""
    if not folder.is_dir():
        raise RecipeError(
            f"Expected a folder with train.{source} and train.{target} at {folder}, found none. Check the path."
        )
    patterns = {"train": "train*", "validation": "val*", "test": "test*"}
    corpus = datasets.DatasetDict()
    for split, pattern in patterns.items():
        sources = sorted(p for end in (f".{source}", f".{source}.gz") for p in folder.glob(pattern + end))
        if not sources:
            continue
        theirs = sources[0].name.replace(f".{source}", f".{target}")
        candidates = [folder / theirs.removesuffix(".gz"), folder / (theirs.removesuffix(".gz") + ".gz")]
        mine, other = sources[0], next((path for path in candidates if path.is_file()), None)
        if other is None:
            raise RecipeError(f"{mine} needs its translation {candidates[0].name} (or .gz) beside it, found none.")
        left, right = read_lines(mine), read_lines(other)
        if len(left) != len(right):
            raise RecipeError(
                f"Parallel files need equal numbers of lines, got {len(left)} in {mine} and {len(right)} in {other}."
            )
        rows = [{source: a, target: b} for a, b in zip(left, right, strict=True)]
        corpus[split] = datasets.Dataset.from_dict({"translation": rows})
    return corpus


def read_lines(path: Path) -> list[str]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8", newline="\n") as file:
        return [line.rstrip("\n") for line in file]


def read_files(recipe: RecipeArguments) -> datasets.DatasetDict:
    """Files with a `translation` column (in CSV: as JSON), or with one column per language."""
    corpus = tasks.read_files(recipe.files)
    for split, data in corpus.items():
        corpus[split] = data.map(
            lambda row: {"translation": as_pair(row, recipe, recipe.files[str(split)])},  # noqa: B023
            remove_columns=data.column_names,
        )
    return corpus


def as_pair(row: dict, recipe: RecipeArguments, name: str) -> dict[str, str]:
    pair = row.get("translation", row)
    pair = json.loads(pair) if isinstance(pair, str) else pair
    columns = {
        recipe.source_lang: recipe.source_column or recipe.source_lang,
        recipe.target_lang: recipe.target_column or recipe.target_lang,
    }
    missing = [column for column in columns.values() if column not in pair]
    if missing:
        raise RecipeError(
            f"{name} needs a `translation` column with {tuple(columns)}, or the columns {tuple(columns.values())}, got "
            f"{sorted(row)}. Set --source_column and --target_column.{nearest(missing[0], sorted(pair))}"
        )
    return {language: pair[column] for language, column in columns.items()}


def tokenize(corpus: datasets.DatasetDict, tokenizer, prefix: str, recipe: RecipeArguments) -> datasets.DatasetDict:
    def encode(batch):
        sources = [prefix + pair[recipe.source_lang] for pair in batch["translation"]]
        targets = [pair[recipe.target_lang] for pair in batch["translation"]]
        rows = tokenizer(sources, max_length=recipe.max_source_length, truncation=True)
        labels = tokenizer(text_target=targets, max_length=recipe.max_target_length, truncation=True)["input_ids"]
        # `length` is what train_sampling_strategy="group_by_length" groups by.
        length = [len(source) + len(target) for source, target in zip(rows["input_ids"], labels, strict=True)]
        return {**rows, "labels": labels, "length": length}

    return corpus.map(encode, batched=True, remove_columns=["translation"], desc="tokenise")


# ---- Model -------------------------------------------------------------------------------------------------------------


def load_model(recipe: RecipeArguments) -> PreTrainedModel:
    name = recipe.model_name_or_path
    config = tasks.from_hub(name, lambda: AutoConfig.from_pretrained(name), INSTEAD)
    if recipe.dropout is not None:
        if not 0.0 <= recipe.dropout < 1.0:
            raise RecipeError(f"dropout must lie in [0, 1), got {recipe.dropout}. Pass 0 to retrain without dropout.")
        for key in ("dropout_rate", "dropout", "attention_dropout", "activation_dropout"):
            if key in config.to_dict():
                setattr(config, key, recipe.dropout)
    return tasks.from_hub(name, lambda: AutoModelForSeq2SeqLM.from_pretrained(name, config=config), INSTEAD)


def set_languages(model: PreTrainedModel, tokenizer, recipe: RecipeArguments) -> None:
    """Tell a multilingual tokenizer and model what is translated into what."""
    if type(tokenizer).__name__ not in LANGUAGE_TOKENS:
        return
    spelling, role = LANGUAGE_TOKENS[type(tokenizer).__name__]
    tokenizer.src_lang = recipe.source_code or recipe.source_lang
    tokenizer.tgt_lang = recipe.target_code or recipe.target_lang
    token = tokenizer.convert_tokens_to_ids(spelling.format(tokenizer.tgt_lang))
    if token in (None, tokenizer.unk_token_id):
        raise RecipeError(
            f"The tokenizer does not know the language {tokenizer.tgt_lang!r}. Set --source_code and --target_code to names it "
            "knows, such as en_XX and de_DE or eng_Latn and deu_Latn."
        )
    setattr(model.generation_config, role, token)
    if role == "decoder_start_token_id":
        model.config.decoder_start_token_id = token


def limit_generation(model: PreTrainedModel) -> None:
    """
    State the length limit as `max_length` alone.

    Seq2SeqTrainer sets `max_length` beside a `max_new_tokens` that it finds, and `generate` then warns at every batch.
    """
    generation = model.generation_config
    if generation is not None and generation.max_new_tokens is not None:
        generation.max_length, generation.max_new_tokens = generation.max_new_tokens + 1, None


def source_prefix(model: PreTrainedModel, recipe: RecipeArguments) -> str:
    if recipe.source_prefix is not None:
        return recipe.source_prefix
    tasks = getattr(model.config, "task_specific_params", None) or {}
    return tasks.get(f"translation_{recipe.source_lang}_to_{recipe.target_lang}", {}).get("prefix", "")


# ---- The task ----------------------------------------------------------------------------------------------------------


def load_task(recipe: RecipeArguments, args: SparseSoupTrainingArguments) -> Task:
    corpus = load_corpus(recipe)
    if recipe.demo:
        recipe.model_name_or_path = tasks.demo_model(
            recipe, args, lambda: demo_task(corpus, recipe, args), demo_optimizer
        )
    model = load_model(recipe)
    name = recipe.model_name_or_path
    tokenizer = tasks.from_hub(name, lambda: AutoTokenizer.from_pretrained(name), INSTEAD)
    set_languages(model, tokenizer, recipe)
    limit_generation(model)
    data = tokenize(corpus, tokenizer, source_prefix(model, recipe), recipe)
    keep = {"encoder": recipe.encoder_layers, "decoder": recipe.decoder_layers}
    collate = DataCollatorForSeq2Seq(tokenizer, model=model)
    model = tasks.keep_layers(model, keep, data["train"], collate, quiet=not args.processes.is_main)
    task = make_task(model, tokenizer, data, ter=args.metric_for_best_model in ("ter", "eval_ter"))
    task.card = {"tasks": "translation", "language": [recipe.source_lang, recipe.target_lang]}
    return task


def demo_task(corpus: datasets.DatasetDict, recipe: RecipeArguments, args: SparseSoupTrainingArguments) -> Task:
    """A small T5 from scratch."""
    tokenizer = demo_tokenizer(corpus)
    return make_task(demo_translator(tokenizer, seed=args.seed), tokenizer, tokenize(corpus, tokenizer, "", recipe))


def make_task(model, tokenizer, data: datasets.DatasetDict, ter: bool = False) -> Task:
    scores = ("BLEU", "chrF", "TER") if ter else ("BLEU", "chrF")
    return Task(
        model=model,
        train=data["train"],
        validation=data["validation"],
        test=data.get("test"),
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
        processing_class=tokenizer,
        compute_metrics=bleu_metrics(tokenizer, ter),
        footnote="".join(f"{name}: {sacrebleu_signature(name.lower())}; " for name in scores),
    )


if __name__ == "__main__":
    tasks.run(sys.argv[1:], __file__, RecipeArguments, load_task)
