"""A smaller vocabulary: tokens that never occur go, from the tokenizer and from the model's embeddings."""

import copy
import json
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

from .rebuilding import Cut, rebuild, shape, skeleton, tensors
from .segmenters import SEGMENTERS, Entries

TOKENIZER, SETTINGS = "tokenizer.json", "tokenizer_config.json"
MARIAN = "vocab.json"
"""Of a tokenizer that looks up the pieces of sentencepiece models, which stay as they are."""
IDS = ("_token_id", "_token_ids", "_token_index", "_ids", "suppress_tokens")
"""Ends of the names of settings that hold ids of tokens."""
NEEDED = ("_token_id", "_token_ids", "_token_index", "force_words_ids")
"""Of those that must stay; what settings only forbid may go."""
SIZES = ("vocab_size", "decoder_vocab_size")


def trim_vocabulary(
    model: PreTrainedModel,
    tokenizer: Any,
    texts: Iterable[str],
    target_texts: Iterable[str] | None = None,
    *,
    keep: Collection[str] = (),
) -> tuple[PreTrainedModel, Any]:
    """
    Remove tokens that do not occur in texts, as for languages of a multilingual model (Abdaoui et al. 2020, "Load What You
    Need"; Ushio et al. 2023).

    Special and added tokens, bytes and single characters stay as well. A text of which every token has stayed is cut into
    the same tokens as before, and the model's outputs for these are the same; one with other tokens is cut into smaller ones.
    (Unigram: the best path is still there, and so is the piece with the lowest score, which sets that of unknown
    characters. BPE: with a token all tokens stay that it may be merged from. WordPiece: a longer match would have been taken
    before; a word that was unknown as a whole may become known. Marian: the pieces of sentencepiece are the same, those that
    have gone are unknown.)

    Args:
        model (`PreTrainedModel`): With one vocabulary for its input and its output. It does not change.
        tokenizer (`PreTrainedTokenizerBase`): Of that model: with a `tokenizer.json` of a Unigram, BPE or WordPiece model, or a
            `MarianTokenizer`. It does not change.
        texts (`Iterable[str]`): What the model is to read, for example the training data.
        target_texts (`Iterable[str]`, *optional*): What a translator is to write, tokenized as targets.
        keep (`Collection[str]`, *optional*): Further tokens to keep.

    Returns:
        `tuple`: A new model of the same class that shares no memory with `model`, and its tokenizer. Kept tokens are in their
        old order.

    Raises:
        ValueError: If there are no texts, tokens of `keep` are unknown, the tokenizer is of another kind, or the model cannot
            be cut at its vocabulary.
    """
    size = _vocabulary_size(model)
    wanted = _tokens_of(tokenizer, texts, target_texts) | _ids_of(tokenizer, keep)
    wanted |= set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())
    named = {id for settings in _settings(model, size) for id in _ids_in(settings) if id < size}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer.save_pretrained(folder)
        ids = _trim_files(folder, type(tokenizer).__name__, wanted | named)
        smaller = type(tokenizer).from_pretrained(folder)
    last = max(tokenizer.get_vocab().values())  # Rows behind the tokens stay where settings speak of them.
    return _trim_model(model, [*ids, *sorted(id for id in named if id > last)], size), smaller


# ---- Tokens --------------------------------------------------------------------------------------------------------------


def _tokens_of(tokenizer: Any, texts: Iterable[str], target_texts: Iterable[str] | None) -> set[int]:
    for name, given in (("texts", texts), ("target_texts", target_texts)):
        if isinstance(given, str):
            raise ValueError(f"`{name}` must be several texts, got a single one, {given[:20]!r}. Put it into a list.")
    sources, targets = list(texts), [] if target_texts is None else list(target_texts)
    if not sources:
        raise ValueError("trim_vocabulary needs texts to see which tokens occur, got none.")
    encoded = tokenizer(sources)["input_ids"] + (tokenizer(text_target=targets)["input_ids"] if targets else [])
    return {token for row in encoded for token in row}


def _ids_of(tokenizer: Any, keep: Collection[str]) -> set[int]:
    if isinstance(keep, str):
        raise ValueError(f"`keep` must be several tokens, got a single one, {keep[:20]!r}. Put it into a list.")
    vocabulary = tokenizer.get_vocab()
    unknown = sorted(set(keep) - set(vocabulary))
    if unknown:
        raise ValueError(f"`keep` must name tokens of the tokenizer, got {unknown[:3]}.")
    return {vocabulary[token] for token in keep}


def _trim_files(folder: Path, kind: str, wanted: set[int]) -> list[int]:
    """Trim what a tokenizer has saved; old ids of the tokens that stay, in order."""
    if (folder / TOKENIZER).is_file():
        saved = json.loads((folder / TOKENIZER).read_text(encoding="utf-8"))
        segmenter = SEGMENTERS.get(saved["model"].get("type"))
        if segmenter is None:
            raise ValueError(f"Expected a tokenizer of {', '.join(SEGMENTERS)}, got {saved['model'].get('type')!r}.")
        added = {token["id"] for token in saved["added_tokens"]}
        entries = segmenter.read(saved["model"])
        ids = sorted(segmenter.close(saved["model"], wanted | _characters(entries)) | added)
        number = {old: new for new, old in enumerate(ids)}
        segmenter.write(saved["model"], number)
        saved["added_tokens"] = [{**token, "id": number[token["id"]]} for token in saved["added_tokens"]]
        _renumber_templates(saved.get("post_processor"), number)
        (folder / TOKENIZER).write_text(json.dumps(saved, ensure_ascii=False), encoding="utf-8")
        _renumber_added(folder / SETTINGS, number)
        return ids
    if (folder / MARIAN).is_file() and not (folder / "target_vocab.json").is_file() and any(folder.glob("*.spm")):
        entries = json.loads((folder / MARIAN).read_text(encoding="utf-8"))
        ids = sorted(wanted & set(entries.values()) | _characters(entries))
        number = {old: new for new, old in enumerate(ids)}
        left = {token: number[old] for token, old in entries.items() if old in number}
        (folder / MARIAN).write_text(json.dumps(left, ensure_ascii=False), encoding="utf-8")
        _renumber_added(folder / SETTINGS, number)
        return ids
    raise ValueError(
        f"Expected a tokenizer with a {TOKENIZER}, or a MarianTokenizer with one vocabulary, got {kind}. The tokens of others "
        "cannot be removed one by one."
    )


def _characters(entries: Entries) -> set[int]:
    """Single characters, also at the start, within or at the end of a word, and bytes: any text can still be spelled."""
    return {
        id
        for token, id in entries.items()
        if len(token.removeprefix("▁").removeprefix("##").removeprefix("Ġ").removesuffix("</w>")) <= 1
        or _is_byte(token)
    }


def _is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _renumber_templates(processor: Any, number: Mapping[int, int]) -> None:
    """Ids of special tokens in what puts them around a text."""
    if not isinstance(processor, dict):
        return
    for part in processor.get("processors", []):
        _renumber_templates(part, number)
    special = processor.get("special_tokens")
    for token in special.values() if isinstance(special, dict) else ():
        token["ids"] = [number[old] for old in token["ids"]]
    for key in ("sep", "cls"):  # BERT's and RoBERTa's: (token, id).
        if isinstance(processor.get(key), list):
            processor[key][1] = number[processor[key][1]]


def _renumber_added(path: Path, number: Mapping[int, int]) -> None:
    settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if "added_tokens_decoder" in settings:
        decoder = settings["added_tokens_decoder"]
        settings["added_tokens_decoder"] = {str(number[int(old)]): token for old, token in decoder.items()}
        path.write_text(json.dumps(settings, ensure_ascii=False, indent=2), encoding="utf-8")


# ---- The model -----------------------------------------------------------------------------------------------------------


def _trim_model(model: PreTrainedModel, ids: list[int], size: int) -> PreTrainedModel:
    index = torch.tensor(ids)
    if ids[-1] >= size:
        raise ValueError(
            f"Expected a tokenizer of this model, whose vocabulary has {size} tokens, got one with token {ids[-1]}."
        )
    number = {old: new for new, old in enumerate(ids)}
    config = copy.deepcopy(model.config)
    for part in _parts(config, size):
        for field in SIZES:
            if getattr(part, field, None) == size:
                setattr(part, field, len(ids))
        _renumber_settings(part, number)
    needed = {name: shape(tensor) for name, tensor in tensors(skeleton(model, config))}
    kept: dict[str, Cut] = {}
    for name, tensor in tensors(model):
        cut = _cut_of(shape(tensor), needed.get(name), size, index)
        if cut is None:
            raise ValueError(
                f"Expected a model that can be cut at its vocabulary of {size}, got {type(model).__name__}, whose {name} is "
                f"{shape(tensor)} and would have to be {needed.get(name)}."
            )
        if cut[1] is not None:
            kept[name] = (cut[0], cut[1])
    small = rebuild(model, config, kept)
    if small.can_generate():
        _renumber_settings(small.generation_config, number)
    return small


def _cut_of(
    old: tuple[int, ...], new: tuple[int, ...] | None, size: int, index: torch.Tensor
) -> tuple[int, torch.Tensor | None] | None:
    """Dimension and what stays along it, nothing where the shapes are the same; `None` where they do not fit."""
    if new is None or len(old) != len(new):
        return None
    differing = [dim for dim, (was, now) in enumerate(zip(old, new, strict=True)) if was != now]
    if not differing:
        return 0, None
    fits = len(differing) == 1 and (old[differing[0]], new[differing[0]]) == (size, len(index))
    return (differing[0], index) if fits else None


def _vocabulary_size(model: PreTrainedModel) -> int:
    weight: Any = getattr(model.get_input_embeddings(), "weight", None)
    size: Any = getattr(model.config.get_text_config(), "vocab_size", None)
    if weight is None or not weight.is_floating_point() or len(weight) != size:
        raise ValueError(
            f"Expected a model with an embedding for each of its {size} tokens, in floating point, got {type(model).__name__}. "
            "Trim before quantizing."
        )
    if any(getattr(part, "vocab_size_per_layer_input", None) for part in _parts(model.config, size)):  # Gemma 3n.
        raise ValueError(
            f"Expected a model with one embedding for each token, got {type(model).__name__}, which has others for its layers."
        )
    return size


def _parts(config: PreTrainedConfig, size: int) -> Iterator[PreTrainedConfig]:
    """A configuration and those within it, each once, but for parts with another vocabulary, such as codes of sounds."""
    if getattr(config, "vocab_size", None) in (None, size):
        yield config
    for part in list(vars(config).values()):
        if isinstance(part, PreTrainedConfig):
            yield from _parts(part, size)


def _settings(model: PreTrainedModel, size: int) -> list[PreTrainedConfig | GenerationConfig]:
    return [*_parts(model.config, size), *([model.generation_config] if model.can_generate() else [])]


def _ids_in(settings: PreTrainedConfig | GenerationConfig) -> set[int]:
    """Ids of tokens that settings speak of, but for forbidden ones."""
    values = (value for name, value in vars(settings).items() if name.endswith(NEEDED))
    return {id for value in values for id in _flat(value) if id >= 0}


def _flat(value: Any) -> Iterator[int]:
    """Ids of tokens, also in lists of lists."""
    if isinstance(value, (list, tuple)):
        for part in value:
            yield from _flat(part)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield value


def _renumber_settings(settings: PreTrainedConfig | GenerationConfig, number: Mapping[int, int]) -> None:
    """In place. To be called once: new numbers are no old ones."""
    for name, value in list(vars(settings).items()):
        if name == "sequence_bias" and value:
            setattr(settings, name, _renumbered_bias(value, number))
        elif name.endswith(IDS) and not isinstance(value, (bool, str, dict)) and value is not None:
            setattr(settings, name, _renumbered(value, number))


def _renumbered(value: Any, number: Mapping[int, int]) -> Any:
    if isinstance(value, int):
        return number.get(value, value)
    if value and all(isinstance(part, list) for part in value):  # A word that cannot be written any more needs no ban.
        return [_renumbered(word, number) for word in value if number.keys() >= set(_flat(word))] or None
    return [number[token] for token in value if token in number]


def _renumbered_bias(value: Any, number: Mapping[int, int]) -> Any:
    """Words and what is added to their scores, as a dictionary or, as it is stored, as pairs."""
    pairs = value.items() if isinstance(value, dict) else value
    left = [([number[token] for token in word], bias) for word, bias in pairs if number.keys() >= set(word)]
    if isinstance(value, dict):
        return {tuple(word): bias for word, bias in left} or None
    return [[word, bias] for word, bias in left] or None
