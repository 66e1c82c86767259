"""What an exported model says, and how fast, beside the model that it was made from."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sacrebleu
import torch
from transformers import PreTrainedModel

LONGEST = 128
"""Tokens that are written at most."""
TIMED = 16
"""Sentences that are timed, one by one, source and export in turn."""


@dataclass(frozen=True)
class Comparison:
    """
    Of an export with its source, greedy decoding.

    Attributes:
        count (`int`): Sentences.
        same (`float`): Share of them with the same tokens, in `[0, 1]`.
        bleu (`float`): Corpus BLEU of the export's outputs with the source's as references.
        milliseconds (`tuple[float, float]`): A sentence, one at a time, median: source, export.
        threads (`int`): Of both.
    """

    count: int
    same: float
    bleu: float
    milliseconds: tuple[float, float]
    threads: int

    def __str__(self) -> str:
        before, after = self.milliseconds
        return (
            f"{self.count} sentences, greedy: {self.same:.1%} with the tokens of the source, BLEU {self.bleu:.1f} between both; "
            f"{before:.1f} -> {after:.1f} ms a sentence ({before / after:.1f}x, {self.threads} thread(s), one at a time)"
        )


def compare_with_ctranslate2(
    model: PreTrainedModel, tokenizer: Any, folder: Path, sentences: Sequence[str]
) -> Comparison:
    """Greedy outputs of a model and of its export."""
    was_training = model.training
    model.eval()
    try:
        ways = _by_transformers(model, tokenizer), _by_ctranslate2(model, tokenizer, folder)
        return _compare(*ways, tokenizer, sentences, _longest(model))
    finally:
        model.train(was_training)


def _compare(
    source: Callable[[str], list[int]],
    export: Callable[[str], list[int]],
    tokenizer: Any,
    sentences: Sequence[str],
    longest: int,
) -> Comparison:
    special, outputs, seconds = set(tokenizer.all_special_ids), ([], []), ([], [])
    for number, sentence in enumerate(sentences):
        for side, write in enumerate((source, export)):
            start = time.perf_counter()
            written = write(sentence)
            if number < TIMED:
                seconds[side].append(time.perf_counter() - start)
            # transformers may be told to end with a certain token where it has to stop.
            outputs[side].append([token for token in written if token not in special][: longest - 1])
    same = [first == second for first, second in zip(*outputs, strict=True)]
    texts = [tokenizer.batch_decode(side) for side in outputs]
    bleu = 100.0 if all(same) else sacrebleu.corpus_bleu(texts[1], [texts[0]]).score  # That of nothing would be 0.
    times = tuple(1000 * statistics.median(side) for side in seconds)
    return Comparison(len(same), sum(same) / len(same), bleu, (times[0], times[1]), torch.get_num_threads())


def _longest(model: Any) -> int:
    """Tokens to write: at most half of the positions that the model has, where it counts them."""
    positions = getattr(model.config, "max_position_embeddings", None)
    return LONGEST if not positions else min(LONGEST, positions // 2)


def _by_transformers(model: Any, tokenizer: Any) -> Callable[[str], list[int]]:
    @torch.no_grad()
    def write(sentence: str) -> list[int]:
        inputs = tokenizer(sentence, return_tensors="pt").to(model.device)
        inputs.pop("token_type_ids", None)
        written = model.generate(**inputs, num_beams=1, do_sample=False, max_new_tokens=_longest(model))[0].tolist()
        return written if model.config.is_encoder_decoder else written[inputs["input_ids"].shape[1] :]

    return write


def _by_ctranslate2(model: Any, tokenizer: Any, folder: Path) -> Callable[[str], list[int]]:
    import ctranslate2

    settings = {"device": "cpu", "inter_threads": 1, "intra_threads": torch.get_num_threads()}
    tokens_of, ids_of = tokenizer.convert_ids_to_tokens, tokenizer.convert_tokens_to_ids
    if not model.config.is_encoder_decoder:
        generator = ctranslate2.Generator(str(folder), **settings)

        def go_on(sentence: str) -> list[int]:
            prompt = tokens_of(tokenizer(sentence)["input_ids"])
            result = generator.generate_batch(
                [prompt], max_length=_longest(model), sampling_topk=1, include_prompt_in_result=False
            )
            return ids_of(result[0].sequences[0])

        return go_on
    translator = ctranslate2.Translator(str(folder), **settings)
    forced = model.generation_config.forced_bos_token_id
    prefix = None if forced is None else [[tokens_of(forced)]]
    # Marian's padding is none of the engine's tokens.
    words = [word for word in model.generation_config.bad_words_ids or [] if word != [tokenizer.pad_token_id]]
    banned = [tokens_of(word) for word in words]

    def translate(sentence: str) -> list[int]:
        source = tokens_of(tokenizer(sentence)["input_ids"])
        result = translator.translate_batch(
            [source],
            target_prefix=prefix,
            beam_size=1,
            max_decoding_length=_longest(model),
            suppress_sequences=banned or None,
        )
        return ids_of(result[0].hypotheses[0])

    return translate
