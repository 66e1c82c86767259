"""Translation models of every family, small; for Marian and T5 with sentencepiece tokenizers trained on the demo's corpus."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    FSMTConfig,
    FSMTForConditionalGeneration,
    M2M100Config,
    M2M100ForConditionalGeneration,
    MarianConfig,
    MarianMTModel,
    MarianTokenizer,
    MBartConfig,
    MBartForConditionalGeneration,
    MT5Config,
    MT5ForConditionalGeneration,
    NllbMoeConfig,
    NllbMoeForConditionalGeneration,
    PegasusConfig,
    PegasusForConditionalGeneration,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
    UMT5Config,
    UMT5ForConditionalGeneration,
)

BART_LIKE: dict[str, Any] = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 64,
}
T5_LIKE: dict[str, Any] = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4}
TOKENS = {
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 0,
    "decoder_start_token_id": 0,
    "forced_eos_token_id": 1,
}

FAMILIES: dict[str, tuple[Callable[..., PreTrainedModel], Callable[..., Any], dict[str, Any]]] = {
    "Marian": (MarianMTModel, MarianConfig, BART_LIKE),
    "BART": (BartForConditionalGeneration, BartConfig, BART_LIKE),
    "mBART": (MBartForConditionalGeneration, MBartConfig, BART_LIKE),
    "M2M100 and NLLB": (M2M100ForConditionalGeneration, M2M100Config, BART_LIKE),
    "NLLB of experts": (
        NllbMoeForConditionalGeneration,
        NllbMoeConfig,
        BART_LIKE | {"num_experts": 2, "encoder_sparse_step": 1, "decoder_sparse_step": 1, "expert_capacity": 16},
    ),
    "Pegasus": (PegasusForConditionalGeneration, PegasusConfig, BART_LIKE),
    "FSMT": (
        FSMTForConditionalGeneration,
        FSMTConfig,
        BART_LIKE | {"src_vocab_size": 64, "tgt_vocab_size": 64, "langs": ["en", "de"]},
    ),
    "T5": (T5ForConditionalGeneration, T5Config, T5_LIKE),
    "mT5": (MT5ForConditionalGeneration, MT5Config, T5_LIKE),
    "UMT5": (UMT5ForConditionalGeneration, UMT5Config, T5_LIKE),
}


def make_model(family: str, **changes: Any) -> PreTrainedModel:
    """A model with 64 tokens and random weights, the same in every call."""
    model, config, sizes = FAMILIES[family]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return model(config(**{"vocab_size": 64, "dropout_rate": 0.1} | TOKENS | sizes | changes))


def marian_folder(folder: Path, pairs: Sequence[dict[str, str]]) -> Path:
    """
    A Marian as its users have it: two sentencepiece models, one vocabulary, tied embeddings, sinusoidal positions.

    It is taught English-German pairs until it knows them by heart.
    """
    folder.mkdir(parents=True)
    pieces: list[str] = []
    for name, language in (("source", "en"), ("target", "de")):
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([pair[language] for pair in pairs]),
            model_prefix=str(folder / name),
            vocab_size=300,
            hard_vocab_limit=False,
            minloglevel=2,
        )
        (folder / f"{name}.model").rename(folder / f"{name}.spm")
        (folder / f"{name}.vocab").unlink()
        spm = sentencepiece.SentencePieceProcessor(model_file=str(folder / f"{name}.spm"))
        pieces += [spm.id_to_piece(i) for i in range(3, spm.get_piece_size())]
    names = ["</s>", "<unk>", *dict.fromkeys(pieces), "<pad>"]
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(names)}))
    tokenizer = MarianTokenizer(
        *(str(folder / name) for name in ("source.spm", "target.spm", "vocab.json")), source_lang="en", target_lang="de"
    )
    tokenizer.save_pretrained(folder)
    pad, end = len(names) - 1, 0
    special = {"pad_token_id": pad, "decoder_start_token_id": pad, "eos_token_id": end, "forced_eos_token_id": end}
    sizes = {"d_model": 64, "max_position_embeddings": 128, "scale_embedding": True, "static_position_embeddings": True}
    model = make_model("Marian", vocab_size=len(names), bos_token_id=None, **special, **sizes)
    teach(model, tokenizer, pairs)
    model.save_pretrained(folder)
    return folder


def teach(
    model: PreTrainedModel, tokenizer: MarianTokenizer, pairs: Sequence[dict[str, str]], steps: int = 300
) -> None:
    english, german = ([pair[language] for pair in pairs] for language in ("en", "de"))
    batch = tokenizer(english, text_target=german, padding=True, return_tensors="pt")
    batch["labels"][batch["labels"] == tokenizer.pad_token_id] = -100
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(steps):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
