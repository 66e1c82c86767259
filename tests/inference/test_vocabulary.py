"""Smaller vocabularies: texts of kept tokens are cut as before, and the model says the same of them."""

import json
import random

import pytest
import sentencepiece
import torch
import transformers as tf
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from sms_hf import Masks, prune, trim_vocabulary
from sms_hf.cli import main
from sms_hf.demo import demo_corpus, demo_tokenizer, demo_translator
from sms_hf.inference.segmenters import SEGMENTERS

TEXT = "the cat sat on a mat while two small dogs ran home and nobody saw where those birds were going at night"
WORDS = TEXT.split()


def sentences(count, seed=0, words=WORDS):
    draw = random.Random(seed)
    return [" ".join(draw.choice(words) for _ in range(draw.randint(3, 9))) for _ in range(count)]


FEW, MANY = sentences(40, words=WORDS[:8]), sentences(400)


def unigram():
    corpus = demo_corpus(60, 4, 4)
    return demo_tokenizer(corpus, 300), [pair["en"] for pair in corpus["train"]["translation"]]


def bpe():
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    special = ["<|end|>"]
    inner.train_from_iterator(
        MANY,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    names = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), "<|end|>")  # As GPT-2 has it.
    return tf.PreTrainedTokenizerFast(tokenizer_object=inner, **names), MANY


def wordpiece():
    inner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    inner.normalizer, inner.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    inner.train_from_iterator(
        MANY, trainers.WordPieceTrainer(vocab_size=120, special_tokens=special, show_progress=False)
    )
    ids = {token: inner.token_to_id(token) for token in special}
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(token, ids[token]) for token in ("[CLS]", "[SEP]")]
    )
    names = {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    return tf.PreTrainedTokenizerFast(tokenizer_object=inner, **names), MANY


def marian(folder):
    folder.mkdir()
    pieces = set()
    for side, texts in (("source", MANY), ("target", [text[::-1] for text in MANY])):
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts), model_prefix=str(folder / side), vocab_size=90, hard_vocab_limit=False, minloglevel=2
        )  # fmt: skip
        (folder / f"{side}.model").rename(folder / f"{side}.spm")
        model = sentencepiece.SentencePieceProcessor(str(folder / f"{side}.spm"))
        pieces |= {model.id_to_piece(i) for i in range(len(model))} - {"<unk>", "<s>", "</s>"}
    tokens = ["</s>", "<unk>", *sorted(pieces), "<pad>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    return tf.MarianTokenizer(str(folder / "source.spm"), str(folder / "target.spm"), str(folder / "vocab.json"))


def model_of(kind, tokenizer):
    size = len(tokenizer)
    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    if kind == "t5":
        return demo_translator(tokenizer).eval()
    if kind == "gpt2":
        config = tf.GPT2Config(
            vocab_size=size, n_embd=16, n_layer=1, n_head=2, n_positions=64, eos_token_id=0, bos_token_id=0
        )
        return tf.GPT2LMHeadModel(config).eval()
    if kind == "bert":
        return tf.BertForMaskedLM(tf.BertConfig(vocab_size=size, pad_token_id=0, **small)).eval()
    config = tf.MarianConfig(
        vocab_size=size, decoder_vocab_size=size, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=64, pad_token_id=size - 1,
        eos_token_id=0, decoder_start_token_id=size - 1, forced_eos_token_id=0,
    )  # fmt: skip
    model = tf.MarianMTModel(config).eval()
    model.generation_config.bad_words_ids = [[size - 1], [5]]
    with torch.no_grad():
        model.final_logits_bias.normal_()
    return model


@pytest.fixture(params=["t5", "gpt2", "bert", "marian"])
def case(request, tmp_path):
    """Kind, model, tokenizer, texts to trim by."""
    makers = {"t5": unigram, "gpt2": bpe, "bert": wordpiece, "marian": lambda: (marian(tmp_path / "marian"), MANY)}
    tokenizer, texts = makers[request.param]()
    return request.param, model_of(request.param, tokenizer), tokenizer, texts[: len(texts) // 8]


def renumbered(tokenizer, smaller):
    """Old id -> new id."""
    new = smaller.get_vocab()
    return {old: new[token] for token, old in tokenizer.get_vocab().items() if token in new}


@torch.no_grad()
def test_texts_of_kept_tokens_are_the_same_to_the_model(case, tmp_path):
    kind, model, tokenizer, texts = case
    few = texts[:12]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    small, smaller = trim_vocabulary(model, tokenizer, few, [text[::-1] for text in few] if kind == "marian" else None)
    assert len(smaller) < len(tokenizer)
    assert small.num_parameters() < model.num_parameters()
    number = renumbered(tokenizer, smaller)
    assert len(number) == len(smaller) == small.config.vocab_size
    assert sorted(number.values()) == list(range(len(smaller)))
    assert type(small) is type(model)
    assert type(smaller) is type(tokenizer)
    checked = 0
    for text in [*texts, *sentences(60, seed=7)]:
        old = tokenizer(text)["input_ids"]
        if not set(old) <= set(number) or tokenizer.unk_token_id in old:
            continue
        checked += 1
        new = smaller(text)["input_ids"]
        assert new == [number[token] for token in old], text
        assert smaller.decode(new) == tokenizer.decode(old)
        more = {"decoder_input_ids": torch.tensor([old[:3]])} if kind in ("t5", "marian") else {}
        logits = model(torch.tensor([old]), **more).logits[..., list(number)]
        more = {"decoder_input_ids": torch.tensor([new[:3]])} if more else {}
        found = small(torch.tensor([new]), **more).logits[..., list(number.values())]
        torch.testing.assert_close(found, logits, rtol=0, atol=1e-6)
    assert checked >= 10
    small.save_pretrained(tmp_path / "small")
    smaller.save_pretrained(tmp_path / "small")
    again = type(small).from_pretrained(tmp_path / "small")
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in small.state_dict().items())
    read = tf.AutoTokenizer.from_pretrained(tmp_path / "small")
    assert [read(text)["input_ids"] for text in texts] == [smaller(text)["input_ids"] for text in texts]
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items()), (
        "the old one is as it was"
    )
    for name in ("pad_token_id", "eos_token_id", "unk_token_id"):
        old = getattr(tokenizer, name)
        assert getattr(smaller, name) == (None if old is None else number[old])


def test_a_translator_writes_as_before_where_it_may(tmp_path):
    """The best of the tokens that are left, step by step: the same as the old one that is kept from writing the others."""
    tokenizer = marian(tmp_path / "marian")
    model = model_of("marian", tokenizer)
    small, smaller = trim_vocabulary(model, tokenizer, FEW, [text[::-1] for text in FEW])
    number = renumbered(tokenizer, smaller)
    assert small.generation_config.pad_token_id == small.config.decoder_start_token_id == number[len(tokenizer) - 1]
    assert [number[len(tokenizer) - 1]] in small.generation_config.bad_words_ids
    gone = [[token] for token in range(len(tokenizer)) if token not in number]
    for text in FEW[:6]:
        old, new = (t(text, return_tensors="pt") for t in (tokenizer, smaller))
        wanted = model.generate(
            **old, max_new_tokens=12, num_beams=1, bad_words_ids=[*model.generation_config.bad_words_ids, *gone]
        )
        found = small.generate(**new, max_new_tokens=12, num_beams=1)
        assert found[0].tolist() == [number[token] for token in wanted[0].tolist()]


def test_the_closure_of_merges_by_hand():
    """To make "abc" from "ab" + "c" or "a" + "bc", both ways stay; "cd" goes, and with it its merge."""
    vocabulary = {token: i for i, token in enumerate(["a", "b", "c", "d", "ab", "bc", "cd", "abc"])}
    model = {
        "vocab": vocabulary,
        "merges": [["a", "b"], ["b", "c"], ["c", "d"], ["ab", "c"], ["a", "bc"]],
        "unk_token": None,
    }
    kept = SEGMENTERS["BPE"].close(model, {7})
    assert sorted(kept) == [0, 1, 2, 4, 5, 7]
    SEGMENTERS["BPE"].write(model, {old: new for new, old in enumerate(sorted(kept))})
    assert model["vocab"] == {"a": 0, "b": 1, "c": 2, "ab": 3, "bc": 4, "abc": 5}
    assert model["merges"] == [["a", "b"], ["b", "c"], ["ab", "c"], ["a", "bc"]]


def test_the_lowest_score_of_a_unigram_model_stays():
    model = {"vocab": [["<unk>", 0.0], ["a", -1.0], ["b", -9.0], ["c", -2.0]], "unk_id": 0}
    assert SEGMENTERS["Unigram"].close(model, {1}) == {0, 1, 2}
    SEGMENTERS["Unigram"].write(model, {1: 0, 2: 1, 0: 2})
    assert model["unk_id"] == 2


def test_tokens_may_be_kept_by_name_and_others_become_smaller_ones():
    tokenizer, texts = unigram()
    model = model_of("t5", tokenizer)
    gone = next(
        token for token in tokenizer.get_vocab() if len(token) > 4 and token not in tokenizer.tokenize(texts[0])
    )
    _, without = trim_vocabulary(model, tokenizer, texts[:1])
    _, smaller = trim_vocabulary(model, tokenizer, texts[:1], keep=[gone])
    assert gone in smaller.get_vocab()
    assert gone not in without.get_vocab()
    word = gone.replace("▁", "")
    assert without.decode(without(word)["input_ids"], skip_special_tokens=True).strip() == word
    with pytest.raises(ValueError, match=r"`keep` must name tokens of the tokenizer, got \['no such token'\]"):
        trim_vocabulary(model, tokenizer, texts, keep=["no such token"])


def test_what_cannot_be_trimmed():
    tokenizer, texts = unigram()
    model = model_of("t5", tokenizer)
    with pytest.raises(ValueError, match="trim_vocabulary needs texts to see which tokens occur, got none"):
        trim_vocabulary(model, tokenizer, [])
    with pytest.raises(ValueError, match=r"Expected a tokenizer with a tokenizer\.json, or a MarianTokenizer"):
        trim_vocabulary(model, tf.ByT5Tokenizer(), texts)
    config = tf.T5Config(**{**model.config.to_dict(), "vocab_size": 40})
    with pytest.raises(
        ValueError, match="Expected a tokenizer of this model, whose vocabulary has 40 tokens, got one with token"
    ):
        trim_vocabulary(tf.T5ForConditionalGeneration(config), tokenizer, texts)
    model.shared.weight.data = model.shared.weight.data.to(torch.float8_e4m3fn)
    image = tf.ViTModel(
        tf.ViTConfig(image_size=8, patch_size=4, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    )
    with pytest.raises(ValueError, match="Expected a model with an embedding for each of its"):
        trim_vocabulary(image, tokenizer, texts)


def test_the_command(tmp_path, capsys):
    tokenizer, texts = unigram()
    model, source = model_of("t5", tokenizer), tmp_path / "source"
    masks = prune(model, 0.5)
    model.save_pretrained(source)
    tokenizer.save_pretrained(source)
    masks.save(source / "masks.safetensors")
    (tmp_path / "texts.txt").write_text("\n".join(texts[:5]), encoding="utf-8")
    assert main(["trim", str(source), "--texts", str(tmp_path / "texts.txt"), "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert f"{len(tokenizer):,} -> " in printed
    small = tf.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out")
    assert Masks.of(tmp_path / "out").fingerprint() == masks.fingerprint()
    masks.check(small)
    assert len(tf.AutoTokenizer.from_pretrained(tmp_path / "out")) == small.config.vocab_size < len(tokenizer)
    twice = ["--texts", str(tmp_path / "texts.txt"), "--texts", str(tmp_path / "texts.txt")]
    assert main(["trim", str(source), *twice, "--output", str(tmp_path / "more"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["tokens"] == [len(tokenizer), small.config.vocab_size]
    assert facts["parameters"][1] == small.num_parameters()
    assert main(["trim", str(source), "--texts", str(tmp_path / "none.txt")]) == 1
    assert "none.txt" in capsys.readouterr().err


# ---- What once went wrong ------------------------------------------------------------------------------------------------


def gpt2_of(tokenizer, **settings):
    torch.manual_seed(0)
    ids = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.eos_token_id}
    config = {
        "vocab_size": len(tokenizer),
        "n_embd": 16,
        "n_layer": 1,
        "n_head": 2,
        "n_positions": 64,
        **ids,
        **settings,
    }
    return tf.GPT2LMHeadModel(tf.GPT2Config(**config)).eval()


def bpe_ending_in_end():
    """As GPT-2's: the special token is the last one."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(MANY, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False))
    return tf.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|end|>", bos_token="<|end|>")


def test_settings_are_renumbered_once():
    """The new number of the last token is the old one of a token that stays with another number."""
    tokenizer = bpe_ending_in_end()
    model = gpt2_of(tokenizer)
    kept = MANY[:5]
    small, smaller = trim_vocabulary(model, tokenizer, kept)
    number = renumbered(tokenizer, smaller)
    end = number[tokenizer.eos_token_id]
    assert number.get(end, end) != end, "or this test would pass for a config that is renumbered twice"
    assert small.config.eos_token_id == small.generation_config.eos_token_id == smaller.eos_token_id == end
    assert model.config.eos_token_id == tokenizer.eos_token_id


def test_settings_of_lists_of_lists():
    tokenizer = bpe_ending_in_end()
    model = gpt2_of(tokenizer)
    few = ["and nobody cat"]
    seen = tokenizer(few[0])["input_ids"]
    gone, forced = (tokenizer.get_vocab()[token] for token in ("Ġbirds", "Ġwhere"))
    model.generation_config.force_words_ids = [[[seen[0]], [forced, seen[1]]]]
    model.generation_config.bad_words_ids = [[seen[1]], [gone, seen[0]]]
    model.generation_config.suppress_tokens = [gone, seen[2]]
    model.generation_config.sequence_bias = {(seen[0],): -5.0, (gone,): 1.0}
    small, smaller = trim_vocabulary(model, tokenizer, few)
    number, settings = renumbered(tokenizer, smaller), small.generation_config
    assert gone not in number
    assert settings.force_words_ids == [[[number[seen[0]]], [number[forced], number[seen[1]]]]]
    assert settings.bad_words_ids == [[number[seen[1]]]]
    assert settings.suppress_tokens == [number[seen[2]]]
    assert settings.sequence_bias == {(number[seen[0]],): -5.0}
    model.generation_config.sequence_bias = [[[seen[0]], -5.0], [[gone], 1.0]]
    small, _ = trim_vocabulary(model, tokenizer, few)
    assert small.generation_config.sequence_bias == [[[number[seen[0]]], -5.0]]


def test_an_id_behind_the_tokens_keeps_its_row():
    """A model with more rows than tokens, one of which its settings speak of; the others go."""
    tokenizer = bpe_ending_in_end()
    size = len(tokenizer)
    model = gpt2_of(tokenizer, vocab_size=size + 10, pad_token_id=size + 5)
    small, smaller = trim_vocabulary(model, tokenizer, MANY[:5])
    assert small.config.pad_token_id == len(smaller)
    assert small.config.vocab_size == len(smaller) + 1
    old, new = model.get_input_embeddings().weight, small.get_input_embeddings().weight
    assert torch.equal(new[len(smaller)], old[size + 5])


@torch.no_grad()
def test_both_halves_of_two_models_in_one_are_cut():
    tokenizer, texts = wordpiece()
    half = {"vocab_size": len(tokenizer), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    encoder = tf.BertModel(tf.BertConfig(**half, intermediate_size=32))
    writer = tf.BertConfig(**half, intermediate_size=32, is_decoder=True, add_cross_attention=True)
    model = tf.EncoderDecoderModel(encoder=encoder, decoder=tf.BertLMHeadModel(writer)).eval()
    small, smaller = trim_vocabulary(model, tokenizer, texts[:3])
    assert small.config.encoder.vocab_size == small.config.decoder.vocab_size == len(smaller) < len(tokenizer)
    number = renumbered(tokenizer, smaller)
    old, new = (torch.tensor([t(texts[0])["input_ids"]]) for t in (tokenizer, smaller))
    assert old.tolist() != new.tolist()
    wanted = model(input_ids=old, decoder_input_ids=old).logits[..., list(number)]
    found = small(input_ids=new, decoder_input_ids=new).logits[..., list(number.values())]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


def test_embeddings_of_layers_are_refused():
    """Gemma 3n looks up a second table by ids of tokens, of another size."""
    tokenizer = bpe_ending_in_end()
    config = tf.Gemma3nTextConfig(
        vocab_size=len(tokenizer), vocab_size_per_layer_input=len(tokenizer), hidden_size=16, hidden_size_per_layer_input=4,
        intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=8, laurel_rank=4,
        num_kv_shared_layers=0, layer_types=["full_attention"] * 2, activation_sparsity_pattern=[0.0, 0.0],
    )  # fmt: skip
    with pytest.raises(
        ValueError, match="one embedding for each token, got Gemma3nForCausalLM, which has others for its"
    ):
        trim_vocabulary(tf.Gemma3nForCausalLM(config), tokenizer, MANY[:5])


@pytest.mark.parametrize("mark", [{"continuing_subword_prefix": "##"}, {"end_of_word_suffix": "</w>"}])
def test_merges_of_marked_tokens(mark):
    """Within a word as "##a", or at its end as "a</w>"."""
    inner = Tokenizer(models.BPE(unk_token="[UNK]", **mark))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=150, special_tokens=["[UNK]"], show_progress=False, **mark)
    inner.train_from_iterator(MANY, trainer)
    tokenizer = tf.PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]", eos_token="[UNK]")
    _, smaller = trim_vocabulary(gpt2_of(tokenizer), tokenizer, FEW[:3])
    assert len(smaller) < len(tokenizer)
    for text in FEW[:3]:
        assert smaller.tokenize(text) == tokenizer.tokenize(text)
    for text in MANY:
        assert "[UNK]" not in smaller.tokenize(text), "any text of known characters can be spelled"


def test_one_text_is_no_list_of_texts():
    tokenizer, texts = unigram()
    model = model_of("t5", tokenizer)
    for arguments in ((texts[0],), (texts, texts[0])):
        with pytest.raises(ValueError, match="must be several texts, got a single one"):
            trim_vocabulary(model, tokenizer, *arguments)
    with pytest.raises(ValueError, match="`keep` must be several tokens, got a single one, 'the'"):
        trim_vocabulary(model, tokenizer, texts, keep="the")


# ---- Tokenizers of transformers --------------------------------------------------------------------------------------------

FAIRSEQ = ["<s>", "<pad>", "</s>", "<unk>"]
CLASSES = {
    "T5Tokenizer": ("Unigram", ["<pad>", "</s>", "<unk>"], {}),
    "XLMRobertaTokenizer": ("Unigram", FAIRSEQ, {}),
    "MBartTokenizer": ("Unigram", FAIRSEQ, {"src_lang": "en_XX", "tgt_lang": "de_DE"}),
    "NllbTokenizer": ("BPE", FAIRSEQ, {"src_lang": "eng_Latn", "tgt_lang": "deu_Latn"}),
    "PegasusTokenizer": ("Unigram", ["<pad>", "</s>", "<unk>"], {}),
    "AlbertTokenizer": ("Unigram", ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"], {}),
    "XLNetTokenizer": ("Unigram", ["<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>", "<eod>", "<eop>"], {}),
    "LlamaTokenizer": ("BPE", ["<unk>", "<s>", "</s>"], {}),
    "GemmaTokenizer": ("BPE", ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"], {}),
    "GPT2Tokenizer": ("ByteLevel", ["<|endoftext|>"], {}),
    "RobertaTokenizer": ("ByteLevel", ["<s>", "<pad>", "</s>", "<unk>", "<mask>"], {}),
    "BertTokenizer": ("WordPiece", ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], {}),
}


def tokenizer_of(name):
    kind, special, settings = CLASSES[name]
    common = {"special_tokens": special, "show_progress": False, "vocab_size": 400 if kind == "ByteLevel" else 150}
    if kind == "Unigram":
        inner, trainer = Tokenizer(models.Unigram()), trainers.UnigramTrainer(unk_token="<unk>", **common)
    elif kind == "WordPiece":
        inner, trainer = Tokenizer(models.WordPiece(unk_token="[UNK]")), trainers.WordPieceTrainer(**common)
    else:
        alphabet = pre_tokenizers.ByteLevel.alphabet() if kind == "ByteLevel" else []
        inner, trainer = Tokenizer(models.BPE()), trainers.BpeTrainer(initial_alphabet=alphabet, **common)
    before = {
        "WordPiece": pre_tokenizers.BertPreTokenizer(),
        "ByteLevel": pre_tokenizers.ByteLevel(add_prefix_space=False),
    }
    inner.pre_tokenizer = before.get(kind, pre_tokenizers.Metaspace())
    inner.train_from_iterator(MANY, trainer)
    saved = json.loads(inner.to_str())["model"]
    vocabulary = [tuple(entry) for entry in saved["vocab"]] if kind == "Unigram" else saved["vocab"]
    merges = {"merges": [tuple(merge) for merge in saved["merges"]]} if "merges" in saved else {}
    return getattr(tf, name)(vocab=vocabulary, **merges, **settings)


@pytest.mark.parametrize("name", CLASSES)
def test_random_texts_of_kept_tokens(name, tmp_path):
    """Each class builds its tokenizer from a vocabulary in a way of its own: it must come back as it was trimmed."""
    tokenizer, draw = tokenizer_of(name), random.Random(0)
    model = tf.GPT2LMHeadModel(
        tf.GPT2Config(vocab_size=len(tokenizer), n_embd=4, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=0)
    )
    _, smaller = trim_vocabulary(model, tokenizer, ["going at night nobody"], ["birds"])
    smaller.save_pretrained(tmp_path)
    number, again = renumbered(tokenizer, smaller), tf.AutoTokenizer.from_pretrained(tmp_path)
    assert sorted(number.values()) == list(range(len(smaller)))
    assert len(smaller) < len(tokenizer)
    ordinary = sorted(set(number) - set(tokenizer.all_special_ids) - set(tokenizer.get_added_vocab().values()))
    checked = 0
    for _ in range(300):
        text = tokenizer.decode(draw.choices(ordinary, k=draw.randint(1, 12)))
        for arguments in ({"text": text}, {"text_target": text}):
            old = tokenizer(**arguments)["input_ids"]
            if number.keys() >= set(old) and (name != "BertTokenizer" or tokenizer.unk_token_id not in old):
                checked += 1
                new = smaller(**arguments)["input_ids"]
                assert new == again(**arguments)["input_ids"] == [number[token] for token in old], text
                assert smaller.decode(new) == tokenizer.decode(old)
    assert checked >= 100
    for role in ("pad", "eos", "bos", "unk", "cls", "sep", "mask"):
        old = getattr(tokenizer, f"{role}_token_id")
        assert getattr(smaller, f"{role}_token_id") == (None if old is None else number[old])
