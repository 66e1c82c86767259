"""A model in the form of an engine that people deploy on."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedModel

from ..choices import check_choice
from ..compact import load
from ..files.writing import check_unused, new_folder
from .engines import Comparison, compare_with_ctranslate2
from .shrinking import plan_shrinking, shrink


@dataclass(frozen=True)
class Export:
    """
    What [`export`] did. `str()` of it is a report.

    Attributes:
        folder (`Path`): The exported model.
        quantization (`str`): Of its weights; empty for those of the source.
        shrunken (`str`): What [`shrink`] removed before; empty where there was nothing.
        num_bytes (`tuple[int, int]`): Of the weights of the source, and of the export.
        comparison ([`Comparison`], *optional*): With the source, on sentences; `None` where none were given.
    """

    folder: Path
    quantization: str
    shrunken: str
    num_bytes: tuple[int, int]
    comparison: Comparison | None

    def __str__(self) -> str:
        before, after = self.num_bytes
        how = f", {self.quantization}" if self.quantization else ""
        lines = [f"{self.folder}: {before:,} -> {after:,} bytes ({after / before:.1%}){how}"]
        lines += [f"removed before: {self.shrunken}"] if self.shrunken else []
        lines.append(
            str(self.comparison) if self.comparison else "not compared with the source: no sentences were given"
        )
        return "\n".join(lines)


def export(
    model: str | Path | PreTrainedModel,
    output: str | Path,
    *,
    format: str = "ctranslate2",
    quantization: str | None = None,
    tokenizer: Any = None,
    sentences: Sequence[str] = (),
) -> Export:
    """
    Write a model for an engine, and see whether it says the same there.

    Units that are dead go first, by [`shrink`]: an engine computes with zeros as with any number, so only what is smaller is
    faster. Then the engine's own converter does its work, and greedy outputs are compared token by token.

    Args:
        model (`str`, `Path` or `PreTrainedModel`): A folder or a name of the Hub, dense or compact, or the model itself.
        output (`str` or `Path`): A new folder.
        format (`str`, *optional*, defaults to `"ctranslate2"`): `"ctranslate2"` (`pip install sms_hf[ctranslate2]`).
        quantization (`str`, *optional*): Of the engine, such as `"int8"`. Default: the dtype of the weights.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): Of a model that is given itself.
        sentences (`Sequence[str]`, *optional*): What to compare on: sources of a translator, prompts of a language model.

    Returns:
        [`Export`]: `print` it.

    Raises:
        ValueError: If the engine has no loader for the model or no such quantization, `output` is in use, or weights without
            quantization give other tokens on more than 5 % of the sentences: nothing is written then.
        ImportError: If the engine is not installed.
    """
    check_choice("format", format, sorted(FORMATS))
    output = Path(output)
    check_unused(output)
    if not isinstance(model, PreTrainedModel):
        tokenizer = AutoTokenizer.from_pretrained(model) if tokenizer is None else tokenizer
        model = load(model)
    if tokenizer is None:
        raise ValueError("export needs the tokenizer of a model that is given itself. Pass tokenizer=.")
    if sentences and not model.can_generate():
        raise ValueError(
            f"Expected no sentences for a {type(model).__name__}, which writes nothing that could be compared. Leave them out."
        )
    num_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
    small, shrunken = _without_dead_units(model)
    with tempfile.TemporaryDirectory() as name, new_folder(output) as folder:
        small.save_pretrained(name)
        tokenizer.save_pretrained(name)
        convert, compare = FORMATS[format]
        convert(Path(name), folder, quantization)
        try:
            comparison = compare(model, tokenizer, folder, sentences) if sentences else None
        except RuntimeError as error:
            raise ValueError(f"The engine cannot run what it converted: {' '.join(str(error).split())}") from error
        if comparison is not None and quantization is None and comparison.same < SAME:
            raise ValueError(
                f"Expected the tokens of the source from weights that are not quantized, got them for {comparison.same:.0%} of "
                f"{len(sentences)} sentences: this model is not converted right. Nothing was written."
            )
        after = sum(path.stat().st_size for path in folder.glob("*.bin"))
    return Export(output, quantization or "", shrunken, (num_bytes, after), comparison)


SAME = 0.95
"""Share of sentences on which an export that is not quantized must say the same: near ties may fall to the other side."""


def _without_dead_units(model: PreTrainedModel) -> tuple[PreTrainedModel, str]:
    try:
        plan = plan_shrinking(model)
    except ValueError:  # It has no layers of the kinds that shrink.
        return model, ""
    if not plan.kept:
        return model, ""
    gone = [str(change) for change in plan.changes if change.kept < change.units]
    return shrink(model), "; ".join(gone)


def _to_ctranslate2(source: Path, output: Path, quantization: str | None) -> None:
    try:
        from ctranslate2.converters import TransformersConverter
        from ctranslate2.specs.model_spec import ACCEPTED_MODEL_TYPES
    except ImportError as error:
        raise ImportError("format='ctranslate2' needs CTranslate2: pip install sms_hf[ctranslate2].") from error
    if quantization is not None:
        check_choice("quantization", quantization, sorted(ACCEPTED_MODEL_TYPES))
    files = [path.name for path in source.iterdir() if path.suffix in TOKENIZER_SUFFIXES and path.name != "config.json"]
    try:
        TransformersConverter(str(source), copy_files=files).convert(str(output), quantization=quantization, force=True)
    except (ValueError, AttributeError, NotImplementedError) as error:
        # An attribute that is missing: the converter is older than the transformers that it reads with.
        raise ValueError(f"CTranslate2 cannot take this model: {' '.join(str(error).split())}") from error


TOKENIZER_SUFFIXES = (".json", ".model", ".spm", ".txt", ".jinja")

FORMATS: dict[str, tuple[Callable[..., None], Callable[..., Comparison]]] = {
    "ctranslate2": (_to_ctranslate2, compare_with_ctranslate2)
}
"""Name -> (converter: source folder, output folder, quantization; comparison: model, tokenizer, output folder, sentences)."""
