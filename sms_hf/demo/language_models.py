"""Small models of the demo for English sentences: a classifier and two language models, from scratch."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

T = TypeVar("T", bound=PreTrainedModel)

_WIDTH, _LAYERS, _HEADS = 64, 2, 4


def demo_classifier(
    tokenizer: PreTrainedTokenizerBase, labels: Sequence[str], seed: int = 0
) -> BertForSequenceClassification:
    """Small randomly initialised BERT: 2 layers, width 64, no dropout; the caller's global generator is left alone."""
    special: dict[str, Any] = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    config = BertConfig(
        hidden_size=_WIDTH,
        num_hidden_layers=_LAYERS,
        num_attention_heads=_HEADS,
        intermediate_size=2 * _WIDTH,
        max_position_embeddings=tokenizer.model_max_length,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=_WIDTH**-0.5,  # At the usual 0.02, so narrow a BERT stays on a plateau for long.
        id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
        **special,
    )
    return _seeded(lambda: BertForSequenceClassification(config), seed)


def demo_language_model(
    tokenizer: PreTrainedTokenizerBase, kind: str = "gpt2", seed: int = 0
) -> GPT2LMHeadModel | LlamaForCausalLM:
    """
    Small randomly initialised language model: 2 layers, width 64, no dropout; the global generator is left alone.

    Args:
        kind (`str`, *optional*, defaults to `"gpt2"`): `"gpt2"` or `"llama"`.
    """
    if kind not in LANGUAGE_MODELS:
        raise ValueError(f"kind must be one of {sorted(LANGUAGE_MODELS)}, got {kind!r}.")
    return _seeded(lambda: LANGUAGE_MODELS[kind](tokenizer), seed)


def _gpt2(tokenizer: PreTrainedTokenizerBase) -> GPT2LMHeadModel:
    config = GPT2Config(
        n_embd=_WIDTH,
        n_layer=_LAYERS,
        n_head=_HEADS,
        n_inner=2 * _WIDTH,
        n_positions=tokenizer.model_max_length,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        **_special(tokenizer),
    )
    return GPT2LMHeadModel(config)


def _llama(tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    config = LlamaConfig(
        hidden_size=_WIDTH,
        num_hidden_layers=_LAYERS,
        num_attention_heads=_HEADS,
        num_key_value_heads=_HEADS // 2,
        intermediate_size=2 * _WIDTH,
        max_position_embeddings=tokenizer.model_max_length,
        tie_word_embeddings=True,
        **_special(tokenizer),
    )
    return LlamaForCausalLM(config)


LANGUAGE_MODELS = {"gpt2": _gpt2, "llama": _llama}


def _special(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    return {"vocab_size": len(tokenizer), "bos_token_id": end, "eos_token_id": end, "pad_token_id": pad}


def _seeded(make: Callable[[], T], seed: int) -> T:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()
