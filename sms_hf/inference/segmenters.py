"""The models of `tokenizers` that cut words into tokens: how a vocabulary is read from them, closed, and written back."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Entries = Mapping[str, int]
"""Token -> id."""


@dataclass(frozen=True)
class Segmenter:
    """
    What can be done with the `model` of a `tokenizer.json`.

    Attributes:
        read (`Callable`): Model -> token -> id.
        close (`Callable`): Model, wanted ids -> those of them that it has, and all that these need.
        write (`Callable`): Model, old id -> new id: take out, in place, what has no new one.
    """

    read: Callable[[dict[str, Any]], dict[str, int]]
    close: Callable[[dict[str, Any], set[int]], set[int]]
    write: Callable[[dict[str, Any], Mapping[int, int]], None]


# ---- Unigram: a list of (piece, score), whose positions are ids ------------------------------------------------------------


def _read_unigram(model: dict[str, Any]) -> dict[str, int]:
    return {piece: number for number, (piece, _) in enumerate(model["vocab"])}


def _close_unigram(model: dict[str, Any], wanted: set[int]) -> set[int]:
    """The lowest score stays: what an unknown character costs is relative to it."""
    scores = [score for _, score in model["vocab"]]
    lowest = {scores.index(min(scores))} if scores else set()
    unknown = set() if model.get("unk_id") is None else {model["unk_id"]}
    return {number for number in wanted if number < len(scores)} | lowest | unknown


def _write_unigram(model: dict[str, Any], number: Mapping[int, int]) -> None:
    model["vocab"] = [entry for old, entry in enumerate(model["vocab"]) if old in number]
    if model.get("unk_id") is not None:
        model["unk_id"] = number[model["unk_id"]]


# ---- BPE: token -> id, and merges in the order of their rank ----------------------------------------------------------------


def _merges(model: dict[str, Any]) -> list[tuple[str, str]]:
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    return [(first, second) for first, second in pairs]


def _merged(model: dict[str, Any], merge: tuple[str, str]) -> str:
    """What a merge makes: a token within a word loses the prefix that says so."""
    return merge[0] + merge[1][len(model.get("continuing_subword_prefix") or "") :]


def _close_bpe(model: dict[str, Any], wanted: set[int]) -> set[int]:
    """
    With a token both parts of every merge that makes it.

    So every merge on the way to a token that stays is still there, in its rank, and none is taken that was not before.
    """
    vocabulary = model["vocab"]
    parts: dict[str, list[tuple[str, str]]] = {}
    for merge in _merges(model):
        parts.setdefault(_merged(model, merge), []).append(merge)
    kept = {token for token, number in vocabulary.items() if number in wanted}
    kept |= {model["unk_token"]} & set(vocabulary) if model.get("unk_token") else set()
    waiting = list(kept)
    while waiting:
        new = {part for merge in parts.get(waiting.pop(), ()) for part in merge} - kept
        kept |= new
        waiting += new
    return {vocabulary[token] for token in kept}


def _write_bpe(model: dict[str, Any], number: Mapping[int, int]) -> None:
    _write_words(model, number)
    left = model["vocab"]
    model["merges"] = [list(m) for m in _merges(model) if m[0] in left and m[1] in left and _merged(model, m) in left]


# ---- WordPiece and WordLevel: token -> id -----------------------------------------------------------------------------------


def _read_words(model: dict[str, Any]) -> dict[str, int]:
    return dict(model["vocab"])


def _close_words(model: dict[str, Any], wanted: set[int]) -> set[int]:
    unknown = {model["vocab"][model["unk_token"]]} if model.get("unk_token") in model["vocab"] else set()
    return wanted & set(model["vocab"].values()) | unknown


def _write_words(model: dict[str, Any], number: Mapping[int, int]) -> None:
    model["vocab"] = {token: number[old] for token, old in model["vocab"].items() if old in number}


SEGMENTERS = {
    "Unigram": Segmenter(_read_unigram, _close_unigram, _write_unigram),
    "BPE": Segmenter(_read_words, _close_bpe, _write_bpe),
    "WordPiece": Segmenter(_read_words, _close_words, _write_words),
    "WordLevel": Segmenter(_read_words, _close_words, _write_words),
}
"""`type` of the model in a `tokenizer.json` -> what can be done with it."""
