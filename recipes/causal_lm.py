"""
Prune a language model and make a sparse model soup of it.

    accelerate launch recipes/causal_lm.py                              openai-community/gpt2 on wikitext-2 from the Hub
    accelerate launch recipes/causal_lm.py --demo                       no download: a small GPT-2, trained here
    accelerate launch recipes/causal_lm.py --demo --demo_model llama --output_dir runs/llama_demo
    accelerate launch recipes/causal_lm.py --train_file train.txt --validation_file val.txt --test_file test.txt

Settings come from a YAML file (by default `causal_lm.yaml` beside this script, with `--demo` `causal_lm_demo.yaml`); what
stands on the command line wins. Texts are tokenised, joined and cut into blocks of equal length, so there is no padding.
Selection is by the loss per token on the validation set; what is printed is the perplexity, exp(loss).
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain

import datasets
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, default_data_collator

from sms_hf import SparseSoupTrainingArguments, tasks
from sms_hf.demo import demo_language_model, demo_sentences, demo_word_tokenizer
from sms_hf.tasks import FileArguments, RecipeError, Task

INSTEAD = "--model_name_or_path FOLDER and --train_file/--validation_file/--test_file"


@dataclass
class RecipeArguments(FileArguments):
    """Model and data; everything else are `SparseSoupTrainingArguments`."""

    model_name_or_path: str = field(
        default="openai-community/gpt2",
        metadata={"help": "Dense language model: a name on the Hub or a folder. GPT-2, Llama or any other decoder."},
    )
    demo_model: str = field(
        default="gpt2", metadata={"help": "With --demo: kind of the small model.", "choices": ["gpt2", "llama"]}
    )
    dataset_name: str = field(default="Salesforce/wikitext", metadata={"help": "Data set on the Hub."})
    dataset_config_name: str | None = field(
        default="wikitext-2-raw-v1", metadata={"help": "Configuration of that data set."}
    )
    train_file: str | None = field(
        default=None, metadata={"help": "Plain text (.txt), or JSON Lines, CSV or Parquet with a column of texts."}
    )
    text_column: str = field(default="text", metadata={"help": "Column of the texts."})
    block_size: int = field(default=512, metadata={"help": "Length of a training and evaluation example in tokens."})


# ---- Data --------------------------------------------------------------------------------------------------------------


def load_corpus(recipe: RecipeArguments) -> datasets.DatasetDict:
    """Splits train, validation and test with a `text` column."""
    if recipe.demo:
        corpus = demo_sentences()
    elif recipe.train_file:
        corpus = tasks.read_files(recipe.files, with_text=True)
    else:
        corpus = tasks.read_hub(recipe, INSTEAD)
    column = "text" if recipe.demo else recipe.text_column
    for split, data in corpus.items():
        if column not in data.column_names:
            raise RecipeError(
                f"Expected a column {column!r} in the {split} data, it has {data.column_names}. Set --text_column."
            )
    corpus = datasets.DatasetDict({split: data.select_columns([column]) for split, data in corpus.items()})
    return tasks.limit(corpus if column == "text" else corpus.rename_column(column, "text"), recipe)


def make_blocks(corpus: datasets.DatasetDict, tokenizer, size: int) -> datasets.DatasetDict:
    """Blocks of `size` tokens; what is left at the end of some thousand texts and does not fill one is dropped."""

    def cut(batch):
        tokens = list(chain.from_iterable(encode(batch["text"], tokenizer)))
        rows = [tokens[i : i + size] for i in range(0, len(tokens) - size + 1, size)]
        return {"input_ids": rows, "labels": rows}

    blocks = corpus.map(cut, batched=True, batch_size=10_000, remove_columns=["text"], desc="cut into blocks")
    for split, data in blocks.items():
        if len(data) == 0:
            raise RecipeError(
                f"The {split} split must fill a block of {size} tokens, it is shorter. Lower --block_size."
            )
    return blocks


def encode(texts: list[str], tokenizer) -> Iterator[list[int]]:
    """Token ids of each text. One that ends with a newline is a line of a longer text, any other is a text of its own."""
    for text in texts:
        if text.endswith("\n") or not text:
            yield tokenizer(text, add_special_tokens=False)["input_ids"]
            continue
        tokens, end = tokenizer(text)["input_ids"], tokenizer.eos_token_id
        yield tokens if end is None or tokens[-1:] == [end] else [*tokens, end]


# ---- The task ----------------------------------------------------------------------------------------------------------


def load_task(recipe: RecipeArguments, args: SparseSoupTrainingArguments) -> Task:
    corpus = load_corpus(recipe)
    if recipe.demo:
        recipe.model_name_or_path = tasks.demo_model(recipe, args, lambda: demo_task(corpus, recipe, args.seed))
    name = recipe.model_name_or_path
    model: PreTrainedModel = tasks.from_hub(name, lambda: AutoModelForCausalLM.from_pretrained(name), INSTEAD)
    if recipe.demo and model.config.model_type != recipe.demo_model:
        raise RecipeError(
            f"Expected a {recipe.demo_model} in {name}, found a {model.config.model_type}. Set another --output_dir or "
            "--dense_dir."
        )
    tokenizer = tasks.from_hub(name, lambda: AutoTokenizer.from_pretrained(name), INSTEAD)
    return make_task(model, tokenizer, corpus, recipe.block_size)


def demo_task(corpus: datasets.DatasetDict, recipe: RecipeArguments, seed: int) -> Task:
    """A small GPT-2 or Llama from scratch."""
    tokenizer = demo_word_tokenizer(corpus["train"]["text"])
    return make_task(demo_language_model(tokenizer, recipe.demo_model, seed), tokenizer, corpus, recipe.block_size)


def make_task(model, tokenizer, corpus: datasets.DatasetDict, size: int) -> Task:
    longest = getattr(model.config, "max_position_embeddings", None) or size
    if not 2 <= size <= longest:
        raise RecipeError(f"block_size must lie in [2, {longest}], the positions that the model knows, got {size}.")
    data = make_blocks(corpus, tokenizer, size)
    return Task(
        model=model,
        train=data["train"],
        validation=data["validation"],
        test=data.get("test"),
        # Not the one for language modelling: it takes an end of text that serves as padding out of the labels.
        data_collator=default_data_collator,
        processing_class=tokenizer,
        perplexity=True,
        footnote=f"Blocks of {size} tokens; ",
    )


if __name__ == "__main__":
    tasks.run(sys.argv[1:], __file__, RecipeArguments, load_task)
