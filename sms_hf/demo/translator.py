"""Tokenizer and small translation model of the demo, both made on the spot so that nothing is downloaded."""

import io
from typing import Any

import sentencepiece
import torch
from datasets import DatasetDict
from torch import nn
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerBase,
    T5Config,
    T5ForConditionalGeneration,
    T5Tokenizer,
)
from transformers.optimization import Adafactor

_SPECIAL: dict[str, Any] = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
_WIDTH, _HEADS, _MAX_TOKENS = 128, 4, 64


def demo_tokenizer(corpus: DatasetDict, vocab_size: int = 1600) -> T5Tokenizer:
    """Subword tokenizer shared by both languages, trained on the training split.

    One training thread and a fixed sentence order make it the same in every process.
    """
    sentences = [text for pair in corpus["train"]["translation"] for text in (pair["en"], pair["de"])]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        model_type="unigram",
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        character_coverage=1.0,
        normalization_rule_name="identity",
        num_threads=1,
        minloglevel=2,
        **_SPECIAL,
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    pieces = [(processor.id_to_piece(index), processor.get_score(index)) for index in range(len(processor))]
    return T5Tokenizer(
        vocab=pieces,
        pad_token=pieces[0][0],
        eos_token=pieces[1][0],
        unk_token=pieces[2][0],
        extra_ids=0,
        clean_up_tokenization_spaces=False,
        model_max_length=_MAX_TOKENS,
    )


def demo_translator(tokenizer: PreTrainedTokenizerBase, seed: int = 0) -> T5ForConditionalGeneration:
    """
    Small randomly initialised T5 for the demo corpus: 2 + 2 layers, width 128.

    Train it with [`demo_optimizer`]. The initialisation has its own random stream; the caller's global generator is left as
    it was.
    """
    special: dict[str, Any] = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=_WIDTH,
        d_kv=_WIDTH // _HEADS,
        d_ff=2 * _WIDTH,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=_HEADS,
        dropout_rate=0.0,
        **special,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = T5ForConditionalGeneration(config)
    # As long a limit as the longest sentences need keeps evaluation fast while the model still repeats itself.
    model.generation_config = GenerationConfig(max_length=32, num_beams=1, do_sample=False, **special)
    return model


def demo_optimizer(model: nn.Module, learning_rate: float = 5e-2) -> Adafactor:
    """
    The optimizer that T5 was made for: Adafactor with steps relative to the scale of each weight.

    T5's attention is not divided by the root of its width; its initialisation makes up for that with small query weights.
    Steps of one size for all weights, as AdamW takes them, need several times as many to leave the plateau at the start.
    """
    return Adafactor(model.parameters(), lr=learning_rate, scale_parameter=True, relative_step=False, warmup_init=False)
