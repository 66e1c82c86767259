"""The prediction ensemble, against averages of probabilities made here."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import QUICK, collate, reversal, tiny_t5
from torch import nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    MarianConfig,
    MarianMTModel,
    NoRepeatNGramLogitsProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from sms_hf.training.ensemble import make_ensemble, mean_log_probabilities
from sms_hf.training.masked.repairs import ignores_num_items_in_batch, shifts_labels


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


class FixedConfig(PreTrainedConfig):
    model_type = "fixed"


class FixedForSequenceClassification(PreTrainedModel):
    config_class = FixedConfig

    def __init__(self, config, logits=(0.0, 0.0)):
        super().__init__(config)
        self.bias = nn.Parameter(torch.tensor(logits))
        self.post_init()

    def forward(self, input_ids=None, labels=None):
        logits = self.bias.expand(len(input_ids), -1)
        return SequenceClassifierOutput(loss=None if labels is None else F.cross_entropy(logits, labels), logits=logits)


def fixed():
    return [FixedForSequenceClassification(FixedConfig(), logits) for logits in ([1.0, 0.0], [1.0, 0.0], [0.0, 2.5])]


def far(make, seeds=(0, 1, 2)):
    """Models with large weights and untied heads: they differ, and generate more than one token over and over."""
    models = []
    for seed in seeds:
        torch.manual_seed(seed)
        model = make().eval()
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.5)
        models.append(model)
    return models


def t5():
    config = T5Config(
        vocab_size=24,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        decoder_start_token_id=0,
        tie_word_embeddings=False,
    )
    return T5ForConditionalGeneration(config)


def marian():
    config = MarianConfig(
        vocab_size=24,
        d_model=16,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_position_embeddings=64,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
        decoder_start_token_id=0,
        forced_eos_token_id=None,
        tie_word_embeddings=False,
    )
    return MarianMTModel(config)


def bart():
    config = BartConfig(
        vocab_size=24,
        d_model=16,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_position_embeddings=64,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
        decoder_start_token_id=1,
        forced_eos_token_id=None,
        tie_word_embeddings=False,
    )
    return BartForConditionalGeneration(config)


def gpt2():
    config = GPT2Config(
        vocab_size=24,
        n_positions=32,
        n_embd=16,
        n_layer=2,
        n_head=2,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    return GPT2LMHeadModel(config)


def segformer():
    config = SegformerConfig(
        num_encoder_blocks=2,
        depths=[1, 1],
        sr_ratios=[2, 1],
        hidden_sizes=[8, 16],
        patch_sizes=[3, 3],
        strides=[2, 2],
        num_attention_heads=[1, 1],
        decoder_hidden_size=8,
        num_labels=3,
        semantic_loss_ignore_index=255,
    )
    return SegformerForSemanticSegmentation(config)


def sentences():
    """Five pairs, with tokens below 24."""
    rows = [dict(row) for row in reversal(5, lengths=(2, 9))]
    for row in rows:
        row |= {name: [t if t < 2 else 2 + t % 22 for t in row[name]] for name in ("input_ids", "labels")}
    return rows


BATCH = collate(sentences())
SOURCES = {name: BATCH[name] for name in ("input_ids", "attention_mask")}
PROMPTS = {
    "input_ids": torch.tensor([[0, 0, 5, 6], [7, 8, 9, 10], [0, 11, 12, 3]]),
    "attention_mask": torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1]]),
}


def averaged(logits, dim=-1):
    """log of the mean of probabilities, in float64."""
    return torch.stack([z.double().softmax(dim) for z in logits]).mean(0).log().float()


# ---- Probabilities and losses ----------------------------------------------------------------------------------------


def test_probabilities_are_averaged_not_logits():
    # methods.md, section 10: averaging logits would say 1.
    output = make_ensemble(fixed())(input_ids=torch.zeros(2, 3), labels=torch.tensor([0, 1]))
    expected = torch.tensor([[0.512658, 0.487342]] * 2)
    torch.testing.assert_close(output.logits.exp(), expected, rtol=0, atol=1e-6)
    assert output.loss.item() == pytest.approx(-(np.log(0.512658) + np.log(0.487342)) / 2, abs=1e-6)
    assert isinstance(output, SequenceClassifierOutput)


def test_half_precision_logits_are_averaged_in_float32():
    logits = [torch.tensor([[1.0, 0.0]]).bfloat16(), torch.tensor([[0.0, 2.5]]).bfloat16()]
    result = mean_log_probabilities(logits)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, averaged(logits))


def test_far_apart_logits_do_not_overflow():
    result = mean_log_probabilities([torch.tensor([[1e4, 0.0]]), torch.tensor([[0.0, -torch.inf]])])
    assert result[0, 0].item() == 0.0
    assert result[0, 1].item() < -9e3


@pytest.mark.parametrize("make", [t5, marian, bart], ids=lambda make: make.__name__)
def test_sequence_to_sequence_is_teacher_forced_on_each_members_encoder(make):
    members = far(make)
    output = make_ensemble(members)(**BATCH)
    expected = averaged([member(**BATCH).logits for member in members])
    torch.testing.assert_close(output.logits, expected, rtol=1e-4, atol=1e-5)
    target = BATCH["labels"].ne(-100)
    picked = expected[target].gather(1, BATCH["labels"][target][:, None])
    torch.testing.assert_close(output.loss, -picked.mean())
    assert set(output) == {"loss", "logits"}
    assert isinstance(output, type(members[0](**BATCH)))


def test_causal_loss_is_shifted():
    members, labels = far(gpt2), PROMPTS["input_ids"].masked_fill(PROMPTS["attention_mask"] == 0, -100)
    output = make_ensemble(members)(**PROMPTS, labels=labels, num_items_in_batch=7)
    expected = averaged([member(**PROMPTS).logits for member in members])
    torch.testing.assert_close(output.logits, expected, rtol=1e-4, atol=1e-5)
    # Position and the token that follows; what follows on padding is a target, too.
    targets = [(0, 1, 5), (0, 2, 6), (1, 0, 8), (1, 1, 9), (1, 2, 10), (2, 0, 11), (2, 1, 12), (2, 2, 3)]
    terms = [expected[i, j, token] for i, j, token in targets]
    torch.testing.assert_close(output.loss, -torch.stack(terms).mean())
    assert set(output) == {"loss", "logits"}  # No cache that nobody asked for.


def test_segmentation_is_averaged_over_the_channels_and_upsampled():
    members = far(segformer)
    pixels, labels = torch.randn(2, 3, 32, 32), torch.randint(0, 3, (2, 32, 32))
    labels[:, :4] = 255
    output = make_ensemble(members)(pixel_values=pixels, labels=labels)
    expected = averaged([member(pixel_values=pixels).logits for member in members], dim=1)
    assert output.logits.shape == expected.shape == (2, 3, 16, 16)
    torch.testing.assert_close(output.logits, expected, rtol=1e-4, atol=1e-5)
    large = F.interpolate(expected, size=(32, 32), mode="bilinear").log_softmax(1)
    picked = large.gather(1, labels.where(labels < 255, torch.tensor(0))[:, None])[:, 0][labels < 255]
    torch.testing.assert_close(output.loss, -picked.mean())


PIXELS = {
    "pixel_values": torch.linspace(-1, 1, 6144).view(2, 3, 32, 32),
    "labels": torch.arange(2048).view(2, 32, 32) % 3,
}
CASES = [(t5, BATCH), (marian, BATCH), (bart, BATCH), (gpt2, PROMPTS | {"labels": PROMPTS["input_ids"]})]


@pytest.mark.parametrize(("make", "batch"), [*CASES, (segformer, PIXELS)], ids=lambda x: getattr(x, "__name__", ""))
def test_copies_of_a_model_answer_as_the_model(make, batch):
    member = far(make, seeds=(0,))[0]
    output, alone = make_ensemble([member, copy.deepcopy(member)])(**batch), member(**batch)
    dim = 1 if make is segformer else -1
    torch.testing.assert_close(output.logits, alone.logits.log_softmax(dim), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.loss, alone.loss, rtol=1e-5, atol=1e-6)


# ---- Generation ------------------------------------------------------------------------------------------------------

# No token twice: models that were not trained repeat themselves, which would hide what caches or beams mix up.
GENERATION = {"max_new_tokens": 10, "do_sample": False, "no_repeat_ngram_size": 1}
no_token_twice = NoRepeatNGramLogitsProcessor(1)


def greedy(members, sources, steps=10, start=0, eos=1):
    """Greedy decoding by averaged probabilities, without caches."""
    tokens = torch.full((len(sources["input_ids"]), 1), start)
    done = torch.zeros(len(tokens), dtype=torch.bool)
    for _ in range(steps):
        logits = averaged([member(**sources, decoder_input_ids=tokens).logits[:, -1] for member in members])
        following = no_token_twice(tokens, logits).argmax(-1).masked_fill(done, 0)
        tokens, done = torch.cat([tokens, following[:, None]], 1), done | (following == eos)
        if done.all():
            break
    return tokens


@pytest.mark.parametrize(("make", "start"), [(t5, 0), (marian, 0), (bart, 1)], ids=lambda x: getattr(x, "__name__", ""))
@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_decoding_averages_probabilities_at_every_step(make, start, use_cache):
    members = far(make)
    tokens = make_ensemble(members).generate(**SOURCES, **GENERATION, use_cache=use_cache)
    assert torch.equal(tokens, greedy(members, SOURCES, start=start))
    alone = [greedy([member], SOURCES, start=start) for member in members]
    assert not any(torch.equal(tokens, other) for other in alone)


@pytest.mark.parametrize("make", [t5, marian, bart, gpt2], ids=lambda make: make.__name__)
@pytest.mark.parametrize("num_beams", [1, 2])
def test_copies_generate_token_for_token_what_the_model_does(make, num_beams):
    member = far(make, seeds=(0,))[0]
    inputs = PROMPTS if make is gpt2 else SOURCES
    ensemble = make_ensemble([member, copy.deepcopy(member), copy.deepcopy(member)])
    settings = GENERATION | {"num_beams": num_beams}
    assert torch.equal(ensemble.generate(**inputs, **settings), member.generate(**inputs, **settings))


@pytest.mark.parametrize("make", [t5, marian, gpt2], ids=lambda make: make.__name__)
def test_beams_are_the_same_with_and_without_caches(make):
    inputs, ensemble = PROMPTS if make is gpt2 else SOURCES, make_ensemble(far(make))
    settings = GENERATION | {"num_beams": 3, "num_return_sequences": 2}
    cached = ensemble.generate(**inputs, **settings, use_cache=True)
    assert torch.equal(cached, ensemble.generate(**inputs, **settings, use_cache=False))


def test_a_returned_beam_has_the_averaged_score():
    members = far(t5)
    settings = {"max_new_tokens": 6, "num_beams": 3, "length_penalty": 0.0, "return_dict_in_generate": True}
    output = make_ensemble(members).generate(**SOURCES, **settings, output_scores=True)
    tokens = output.sequences
    logits = averaged([m(**SOURCES, decoder_input_ids=tokens[:, :-1]).logits for m in members])
    terms = logits.gather(2, tokens[:, 1:, None])[..., 0]
    ended = (tokens[:, 1:] == 1).cumsum(1) - (tokens[:, 1:] == 1).long() > 0
    torch.testing.assert_close(output.sequences_scores, terms.masked_fill(ended, 0).sum(1), rtol=1e-4, atol=1e-4)


def test_decoder_only_generation_averages_and_respects_the_padding():
    members = far(gpt2)
    ensemble = make_ensemble(members)
    tokens = ensemble.generate(**PROMPTS, **GENERATION)
    short = ensemble.generate(input_ids=PROMPTS["input_ids"][:1, 2:], bad_words_ids=[[0]], **GENERATION)
    assert tokens[0, 2:].tolist()[: short.shape[1]] == short[0].tolist()
    prefix = PROMPTS["input_ids"][1:2]
    for _ in range(10):
        logits = averaged([m(input_ids=prefix).logits[:, -1] for m in members])
        following = no_token_twice(prefix, logits).argmax(-1)
        prefix = torch.cat([prefix, following[:, None]], 1)
        if following.item() == 1:
            break
    assert tokens[1, : prefix.shape[1]].tolist() == prefix[0].tolist()


def test_every_encoder_runs_once():
    members, calls = far(t5), []
    for i, member in enumerate(members):
        member.encoder.register_forward_hook(lambda *_, i=i: calls.append(i))
    make_ensemble(members).generate(**SOURCES, max_new_tokens=8, num_beams=2)
    assert calls == [0, 1, 2]


# ---- In Trainer ------------------------------------------------------------------------------------------------------


def test_it_looks_like_a_member_and_shares_the_weights():
    members = far(t5)
    ensemble = make_ensemble(members)
    assert type(ensemble).__name__ == "T5ForConditionalGeneration"
    assert isinstance(ensemble, type(members[0]))
    assert not ensemble.training
    assert {p.data_ptr() for p in ensemble.parameters()} == {p.data_ptr() for m in members for p in m.parameters()}
    ensemble.generation_config.max_length = 3
    assert members[0].generation_config.max_length != 3
    assert shifts_labels(make_ensemble(far(gpt2)))
    assert ignores_num_items_in_batch(ensemble)
    assert not ignores_num_items_in_batch(make_ensemble(far(gpt2)))
    assert isinstance(ensemble(**BATCH, return_dict=False), tuple)
    torch.testing.assert_close(copy.deepcopy(ensemble)(**BATCH).logits, ensemble(**BATCH).logits)
    positional = ensemble(BATCH["input_ids"], BATCH["attention_mask"], labels=BATCH["labels"])
    torch.testing.assert_close(positional.loss, ensemble(**BATCH).loss)


def test_trainer_evaluates_it_as_one_model(tmp_path):
    members = far(t5)
    arguments = TrainingArguments(output_dir=str(tmp_path), per_device_eval_batch_size=5, **QUICK)
    data = sentences()
    trainer = Trainer(model=make_ensemble(members), args=arguments, eval_dataset=data, data_collator=collate)
    result = trainer.predict(data)
    expected = averaged([member(**BATCH).logits for member in members])
    np.testing.assert_allclose(result.predictions, expected.numpy(), rtol=1e-4, atol=1e-4)
    assert result.metrics["test_loss"] == pytest.approx(make_ensemble(members)(**BATCH).loss.item(), rel=1e-5)


def test_generation_in_seq2seq_trainer(tmp_path):
    members = far(t5)
    arguments = Seq2SeqTrainingArguments(
        output_dir=str(tmp_path), predict_with_generate=True, generation_max_length=11, generation_num_beams=1, **QUICK
    )
    trainer = Seq2SeqTrainer(model=make_ensemble(members), args=arguments, data_collator=collate)
    predictions = trainer.predict(sentences(), no_repeat_ngram_size=1).predictions
    tokens = greedy(members, SOURCES).numpy()
    assert (predictions[:, : tokens.shape[1]] == tokens).all()


def test_members_that_a_trainer_has_prepared_for_mixed_precision(tmp_path):
    members = far(t5)
    arguments = TrainingArguments(output_dir=str(tmp_path), bf16=True, **QUICK)
    data = sentences()
    for member in members:
        Trainer(model=member, args=arguments, data_collator=collate).evaluate(data)
    ensemble = make_ensemble(copy.deepcopy(members))
    result = Trainer(model=ensemble, args=arguments, data_collator=collate).predict(data)
    expected = averaged([member(**BATCH).logits for member in members])
    assert result.metrics["test_loss"] == pytest.approx(make_ensemble(members)(**BATCH).loss.item(), rel=1e-2)
    np.testing.assert_allclose(result.predictions, expected.numpy(), atol=0.2)


def test_the_soup_trainer_evaluates_it(make_trainer):
    member = tiny_t5()
    alone = make_trainer(model=member).evaluate()["eval_loss"]
    ensemble = make_ensemble([tiny_t5(), tiny_t5()])
    assert make_trainer(model=ensemble).evaluate()["eval_loss"] == pytest.approx(alone, rel=1e-5)


class Plain(nn.Module):
    """Not a model of transformers."""

    def __init__(self, logits):
        super().__init__()
        self.bias = nn.Parameter(torch.tensor(logits))

    def forward(self, x, labels=None):
        return {"logits": self.bias.expand(len(x), -1)}


def test_plain_modules(tmp_path):
    ensemble = make_ensemble([Plain([1.0, 0.0]), Plain([1.0, 0.0]), Plain([0.0, 2.5])])
    data = [{"x": torch.zeros(1), "labels": 0}, {"x": torch.zeros(1), "labels": 1}]
    result = Trainer(model=ensemble, args=TrainingArguments(output_dir=str(tmp_path), **QUICK)).predict(data)
    np.testing.assert_allclose(np.exp(result.predictions), [[0.512658, 0.487342]] * 2, atol=1e-6)
    assert result.metrics["test_loss"] == pytest.approx(0.693468, abs=1e-6)


# ---- Errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (lambda: [], "members must hold at least one model"),
        (lambda: [tiny_t5(), gpt2()], "must be of one class, got T5ForConditionalGeneration and GPT2LMHeadModel"),
        (
            lambda: [Plain([1.0, 0.0]), Plain([1.0, 0.0, 0.0])],
            "same shapes, .* member 1 differ from .* member 0: .'bias'.",
        ),
    ],
)
def test_members_that_do_not_fit(members, message):
    with pytest.raises(ValueError, match=message):
        make_ensemble(members())


def test_no_training_no_saving(tmp_path):
    ensemble = make_ensemble(far(t5)).train()
    with torch.enable_grad(), pytest.raises(RuntimeError, match=r"for evaluation only.*Call eval\(\)"):
        ensemble(**BATCH)
    with pytest.raises(ValueError, match="Save its members one by one"):
        ensemble.save_pretrained(tmp_path)


def test_models_without_a_distribution_over_classes():
    with pytest.raises(ValueError, match=r"two or more classes, got shape \(2, 1\)"):
        make_ensemble([Plain([1.0])])(torch.zeros(2))
    with pytest.raises(ValueError, match=r"labels must be class indices, got torch.float32"):
        make_ensemble([Plain([1.0, 0.0])])(torch.zeros(2), labels=torch.ones(2, 2))
    with pytest.raises(ValueError, match="labels must be class indices, got list"):
        make_ensemble([Plain([1.0, 0.0])])(torch.zeros(2), labels=[{}, {}])
    with pytest.raises(ValueError, match="must return a ModelOutput with logits, got Tensor"):
        make_ensemble([nn.Identity()])(torch.zeros(2, 2))


def test_caches_of_another_kind():
    ensemble = make_ensemble(far(gpt2))
    cache = ensemble.members[0](**PROMPTS, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="must be empty or an ensemble's own, got one of length 4"):
        ensemble(**PROMPTS, past_key_values=cache)
    with pytest.raises(ValueError, match="Pass use_cache=False"):
        ensemble(**PROMPTS, use_cache=True)
