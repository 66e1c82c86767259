"""The model card: what the Hub shows, made from the lineage."""

from collections.abc import Collection, Mapping
from string import Template
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from tabulate import tabulate

from ..files.folder import FIGURE
from ..report.comparison import describe_comparison
from ..report.loading import auto_class, task_of
from ..report.table import describe, format_report
from ..report.text import plain
from .lineage import is_repo_name

BEGIN = "<!-- sms_hf: from here to the end mark, text is written anew at every push; text outside is kept -->"
END = "<!-- sms_hf: end -->"
TAGS = ("sparse", "model-soup", "pruned", "sms_hf")

_TEXT = Template("""
# $name

$model_class with **$sparsity of its prunable weights removed**: $origin, pruned in $phases and $made
([Sparse Model Soups](https://arxiv.org/abs/2306.16788), made with `sms_hf`). Of all its weights,
embeddings included, $model_sparsity are zero.

## Load it

$load
## Results

`$metric` on the evaluation set, by which the soup was chosen$tested:

$table
$compared$figure
## Files

$files

$compact
$speed
## How it was made

$settings

Everything else (every candidate's settings and score, what the soup tried, sparsity of every layer, fingerprint of the mask)
is in [`sparse_soup.json`](sparse_soup.json).

## Cite

```bibtex
@inproceedings{zimmer2024sparse,
  title = {Sparse Model Soups: A Recipe for Improved Pruning via Model Averaging},
  author = {Max Zimmer and Christoph Spiegel and Sebastian Pokutta},
  booktitle = {International Conference on Learning Representations},
  year = {2024}
}
```
""")

_LOAD_DENSE = Template("""An ordinary model with zeros in place:

```python
from transformers import $auto

model = $auto.from_pretrained("$name")
```
""")

_LOAD_COMPACT = Template("""$what, with `pip install sms_hf`:

```python
import sms_hf

model = sms_hf.load("$name")
```
""")


def make_card(
    lineage: Mapping[str, Any],
    name: str,
    files: Mapping[str, int],
    figure: bool = False,
    load_from: str | None = None,
    **metadata: Any,
) -> str:
    """
    The card of a model.

    Args:
        lineage (`Mapping`): What `sparse_soup.json` holds.
        name (`str`): The repository, or what the model is called.
        files (`Mapping[str, int]`): Weight file -> bytes.
        figure (`bool`, *optional*): Whether [`FIGURE`] lies beside it.
        load_from (`str`, *optional*): What `from_pretrained` takes. Default: the name.
        metadata: More of the Hub's metadata: `language`, `license`, `datasets`, `tags`, ...

    Returns:
        `str`: Markdown with YAML metadata.
    """
    last, metric = lineage["phases"][-1], lineage["metric"]
    model_class, parent = lineage["model"]["class"], lineage["parent"]["name"]
    dense = [file for file in files if ".sparse" not in file]
    compact = [file for file in files if ".sparse" in file]
    test = lineage.get("test") or {}
    text = _TEXT.substitute(
        name=plain(name),
        sparsity=f"{100 * lineage['sparsity']:.4g} %",
        model_sparsity=f"{100 * lineage['model_sparsity']:.4g} %",
        model_class=plain(model_class),
        origin=_origin(parent),
        phases="one phase" if len(lineage["phases"]) == 1 else f"{len(lineage['phases'])} phases",
        made=_made(last),
        load=_load(load_from or name, lineage, bool(dense), bool(compact)),
        metric=plain(metric),
        tested=", and on the test set, which no choice has seen" if test else "",
        table=format_report(lineage, test, style="github"),
        compared=_compared(lineage),
        figure=f"\n![Scores of each phase]({FIGURE})\n" if figure else "",
        files=tabulate(
            [[f"`{plain(n)}`", f"{size / 1e6:.2f} MB"] for n, size in files.items()], ["file", "size"], "github"
        ),
        compact="`*.sparse.safetensors` holds the same weights in less room: kept values and a mask."
        if compact
        else "",
        speed=_speed(lineage.get("measured")),
        settings=_settings(lineage, last),
    )
    data = ModelCardData(**_metadata(lineage, name, test, metadata))
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n{BEGIN}\n{text}\n{END}\n"))


def merge_cards(new: str, old: str | None, chosen: Collection[str] = ()) -> str:
    """
    A new card into one that is there already: its owner's text and metadata stay, what sms_hf wrote is replaced.

    Args:
        new (`str`): From [`make_card`].
        old (`str`, *optional*): The card that is there.
        chosen (`Collection[str]`, *optional*): Metadata that was asked for this time: it replaces what is there.
    """
    if not old:
        return new
    mine, theirs = ModelCard(new), ModelCard(old, ignore_metadata_errors=True)
    kept = {key: value for key, value in theirs.data.to_dict().items() if key not in {"tags", "model-index", *chosen}}
    data = {**mine.data.to_dict(), **kept}
    data["tags"] = list(dict.fromkeys([*(theirs.data.get("tags") or []), *(mine.data.get("tags") or [])]))
    others = [r for r in theirs.data.to_dict().get("model-index") or [] if r.get("name") != mine.data.get("model_name")]
    if results := [*others, *(mine.data.to_dict().get("model-index") or [])]:
        data["model-index"] = results
    generated, text = mine.text.strip(), theirs.text
    if BEGIN in text and END in text.split(BEGIN, 1)[1]:
        before, rest = text.split(BEGIN, 1)
        text = before + generated + rest.split(END, 1)[1]
    else:
        text = f"{text.rstrip()}\n\n{generated}\n"
    return f"---\n{yaml.safe_dump(data, sort_keys=False, allow_unicode=True)}---\n{text.lstrip()}"


def _metadata(
    lineage: Mapping[str, Any], name: str, test: Mapping[str, Any], more: Mapping[str, Any]
) -> dict[str, Any]:
    model_class, parent = lineage["model"]["class"], lineage["parent"]["name"]
    task = task_of(model_class)
    extra = dict(more)
    datasets = extra.get("datasets")
    data: dict[str, Any] = {"library_name": "transformers", **extra}
    data["tags"] = list(dict.fromkeys([*(extra.get("tags") or []), *TAGS]))
    if parent:
        data |= {"base_model": parent, "base_model_relation": "finetune"}
    if task:
        data["pipeline_tag"] = extra.get("pipeline_tag", task)
    soup = f"phase-{lineage['phases'][-1]['number']}/soup"
    scores = {"validation": (lineage["phases"][-1]["soup"] or lineage["phases"][-1]["candidates"][0])["score"]}
    if soup in test:
        scores["test"] = test[soup]
    if task:
        first = str((datasets if isinstance(datasets, str) else next(iter(datasets or []), "")) or "")
        data["model_name"] = name.split("/")[-1]
        data["eval_results"] = [
            EvalResult(
                task_type=data["pipeline_tag"],
                dataset_type=first or "unknown",
                dataset_name=first or "the data of the run",
                dataset_split=split,
                metric_type=lineage["metric"],
                metric_value=score,
            )
            for split, score in scores.items()
        ]
    return data


def _compared(lineage: Mapping[str, Any]) -> str:
    found = [plain(describe_comparison(c, lineage["metric"])) for c in lineage.get("comparisons", ())]
    return f"\nOn the test set (paired bootstrap over its rows): {'; '.join(found)}.\n" if found else ""


def _load(name: str, lineage: Mapping[str, Any], dense: bool, compact: bool) -> str:
    words = {"name": plain(name), "auto": plain(auto_class(lineage["model"]["class"]))}
    parts = [_LOAD_DENSE.substitute(words)] if dense else []
    if compact:
        parts.append(
            _LOAD_COMPACT.substitute(
                words, what="The same weights from the smaller file" if dense else "Kept values and a mask"
            )
        )
    return "\n".join(parts)


def _origin(parent: str | None) -> str:
    if not parent:
        return "a dense model"
    # Whoever pushes a folder may not be who wrote its lineage.
    return f"[{parent}](https://huggingface.co/{parent})" if is_repo_name(parent) else plain(parent)


def _made(phase: Mapping[str, Any]) -> str:
    """What became of the candidates: an average only where there was one."""
    soup, count = phase["soup"], len(phase["candidates"])
    if soup is None or count == 1:
        return "retrained"
    if len(soup["ingredients"]) == 1:
        return f"retrained: the best of {count} candidates; averaging did not help"
    fingerprints = {candidate.get("mask_fingerprint") for candidate in phase["candidates"]}
    shared = " that share one mask" if len(fingerprints) == 1 else ""
    return f"averaged from {len(soup['ingredients'])} retrained copies{shared}"


def _settings(lineage: Mapping[str, Any], last: Mapping[str, Any]) -> str:
    chosen = (
        "pruning_method",
        "pruning_scope",
        "pruning_criterion",
        "pruning_pattern",
        "soup_method",
        "num_train_epochs",
    )
    rows = [[f"`{key}`", plain(lineage["arguments"][key])] for key in chosen if key in lineage["arguments"]]
    candidates = ", ".join(
        describe({plain(k): plain(v) for k, v in c["overrides"].items()}) for c in last["candidates"]
    )
    rows.append(["candidates of the last phase", candidates])
    rows += [[f"rows of `{plain(key)}`", f"{count:,}"] for key, count in lineage["num_examples"].items() if count]
    if lineage["parent"]["revision"]:
        rows.append(["revision of the base model", f"`{plain(lineage['parent']['revision'])}`"])
    rows.append(["versions", ", ".join(f"{plain(k)} {plain(v)}" for k, v in lineage["versions"].items())])
    return tabulate(rows, ["setting", "value"], "github")


def _speed(measured: Mapping[str, Any] | None) -> str:
    if not measured:
        return ""
    loads = ", ".join(f"{plain(form)} {seconds:.2f} s" for form, seconds in measured["load_seconds"].items())
    return (
        f"\nMeasured on {plain(measured['machine'])}: loading {loads} (files in the page cache); evaluating "
        f"{measured['samples_per_second']:.0f} examples a second in batches of {measured['batch_size']:d}. Zeros alone do not "
        "make a matrix product faster.\n"
    )
