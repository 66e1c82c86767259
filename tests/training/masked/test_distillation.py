"""Distillation by hand, and candidates that are taught by the dense model."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from conftest import tiny_t5
from torch.nn.functional import log_softmax

from sms_hf.training.masked.distillation import feature_loss, logits_of, soft_target_loss


def soft(student, teacher, labels, *args):
    return soft_target_loss(torch.tensor(student), torch.tensor(teacher), labels, *args)


def test_two_classes_by_hand():
    """p = (3/4, 1/4) at T = 1 of the teacher, (1/2, 1/2) of the student: KL = 3/4 ln 3/2 + 1/4 ln 1/2."""
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    loss = soft([[0.0, 0.0]], [[math.log(3.0), 0.0]], None, 1.0, False)
    assert float(loss) == pytest.approx(expected)
    # Twice the logits at twice the temperature: the same distributions, times T squared.
    warm = soft([[0.0, 0.0]], [[2 * math.log(3.0), 0.0]], None, 2.0, False)
    assert float(warm) == pytest.approx(4 * expected)


def test_what_is_no_target_does_not_count():
    alike, unlike = [0.0, 0.0], [math.log(3.0), 0.0]
    one = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    told, asked = [[unlike, unlike, alike]], [[alike, alike, alike]]
    labels = torch.tensor([[1, -100, 0]])
    assert float(soft(asked, told, labels, 1.0, False)) == pytest.approx(one / 2)
    # A language model's position i answers for label i + 1, and the last one for none.
    assert float(soft(asked, told, torch.tensor([[-100, 1, 0]]), 1.0, True)) == pytest.approx(one)
    # Of an accumulated batch of ten targets.
    assert float(soft(asked, told, labels, 1.0, False, 10)) == pytest.approx(one / 10)


def test_what_is_no_distribution_over_classes_is_refused():
    with pytest.raises(ValueError, match=r"logits of two or more classes, one of which is right, got \(1, 1\)"):
        soft([[0.0]], [[0.0]], None, 1.0, False)
    with pytest.raises(ValueError, match=r"got \(1, 2\) and labels of torch.float32: a regression, or several labels"):
        soft([[0.0, 1.0]], [[0.0, 1.0]], torch.tensor([[1.0, 0.0]]), 1.0, False)


def test_pixels_are_targets_one_by_one():
    loss = soft([[[[0.0, 0.0]], [[0.0, 0.0]]]], [[[[math.log(3.0), 0.0]], [[0.0, 0.0]]]], None, 1.0, False)
    assert float(loss) == pytest.approx((0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 2)


def test_logits_that_do_not_align_are_refused():
    with pytest.raises(ValueError, match=r"logits of one shape, got \(1, 2\) and \(1, 3\)"):
        soft([[0.0, 0.0]], [[0.0, 0.0, 0.0]], None, 1.0, False)
    with pytest.raises(ValueError, match="needs a model whose output has logits, got SimpleNamespace"):
        logits_of(SimpleNamespace())
    with pytest.raises(
        ValueError, match=r"one for each label, got \(1, 3, 2\) and labels \(1, 2\): what aligns them \(CTC\)"
    ):
        soft(torch.zeros(1, 3, 2).tolist(), torch.zeros(1, 3, 2).tolist(), torch.zeros(1, 2).long(), 1.0, False)


def divergence(model, dense, trainer):
    """Mean KL of the dense model's next token distributions to a model's, on the training data."""
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(8)])
    with torch.no_grad():
        logits, told = model.eval()(**batch).logits, dense.eval()(**batch).logits
    p, q = log_softmax(told, -1), log_softmax(logits, -1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def test_candidates_that_are_taught_answer_more_like_the_dense_model(make_trainer, tmp_path):
    dense = tiny_t5(seed=3, dropout=0.0)
    found = {}
    for weight in (0.0, 1.0):
        settings = {
            "distill_weight": weight,
            "num_train_epochs": 3,
            "num_phases": 1,
            "output_dir": str(tmp_path / str(weight)),
        }
        trainer = make_trainer(settings, model=copy.deepcopy(dense))
        trainer.train()
        trainer.masks.check(trainer.model)
        found[weight] = divergence(trainer.model, dense, trainer)
    assert found[1.0] < 0.5 * found[0.0]


def test_without_a_weight_there_is_no_teacher(make_trainer, monkeypatch):
    from sms_hf.training.run.bench import Bench

    def asked(self):
        raise AssertionError("a forward pass for nothing")

    monkeypatch.setattr(Bench, "_dense", asked)
    make_trainer({"num_phases": 1, "distill_temperature": 4.0}).train()


def test_the_weight_may_vary(make_trainer):
    trainer = make_trainer({"num_candidates": None, "vary": {"distill_weight": [0.0, 0.5]}, "num_phases": 1})
    trainer.train()
    losses = [c["train_loss"] for c in trainer.report["phases"][0]["candidates"]]
    assert losses[0] != losses[1]


@pytest.mark.parametrize("wrong", [{"distill_weight": 1.5}, {"distill_weight": -0.1}, {"distill_temperature": 0.0}])
def test_weights_and_temperatures_that_make_no_sense(make_args, wrong):
    with pytest.raises(ValueError, match=r"distill_weight must lie in \[0, 1\] and distill_temperature above 0"):
        make_args(**wrong)


def test_biases_and_norms_alone_are_retrained(make_trainer):
    trainer = make_trainer({"retrained": "biases-and-norms", "num_phases": 1, "keep_candidates": True})
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    changed = {
        n for n, p in trainer.model.named_parameters() if not torch.equal(p, before[n] * (trainer.masks.get(n, 1)))
    }
    assert changed
    assert all("layer_norm" in name for name in changed), "a T5 has no biases"
    assert all(p.requires_grad for p in trainer.model.parameters())
    with pytest.raises(ValueError, match="Expected retrained='all' with pruning_method='gmp'"):
        make_trainer({"retrained": "biases-and-norms", "pruning_method": "gmp"})


def test_a_loss_of_the_users_own_is_distilled_too(make_args):
    """Whatever signature it has, in front of Trainer's and behind ours."""
    from conftest import collate, reversal
    from transformers import Seq2SeqTrainer

    from sms_hf import SparseSoupMixin

    class Theirs(Seq2SeqTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
            loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
            return (3 * loss, outputs) if return_outputs else 3 * loss

    class Soup(SparseSoupMixin, Theirs):
        pass

    losses = []
    for number, weight in enumerate((0.0, 1e-9)):
        args = make_args(distill_weight=weight, num_phases=1, output_dir=f"{make_args().output_dir}-{number}")
        trainer = Soup(tiny_t5(), args, collate, reversal(24), reversal(10, seed=1))
        trainer.train()
        losses.append(trainer.report["phases"][0]["candidates"][0]["train_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0] > 9, "three times a loss of about 4"


def test_a_model_without_biases_and_norms_is_refused_before_anything_is_trained(make_trainer, tmp_path):
    model = tiny_t5()
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.dim() > 1)
    with pytest.raises(
        ValueError, match="Expected biases or norms to train with retrained='biases-and-norms', found none"
    ):
        make_trainer({"retrained": "biases-and-norms"}, model=model).train()
    assert not (tmp_path / "run/_run").exists()


# ---- Features ------------------------------------------------------------------------------------------------------------


def test_features_by_hand():
    """Layer 1: (1 + 0) / (4 + 1) = 0.2, padding left out; layer 2: 9 / 9 = 1. The embeddings do not count."""
    embeddings = torch.full((1, 3, 1), 7.0)
    taught = {
        "hidden_states": (embeddings, torch.tensor([[[2.0], [1.0], [50.0]]]), torch.tensor([[[3.0], [0.0], [9.0]]]))
    }
    mine = {"hidden_states": (0 * embeddings, torch.tensor([[[1.0], [1.0], [0.0]]]), torch.zeros(1, 3, 1))}
    inputs = {"attention_mask": torch.tensor([[1, 1, 0]])}
    assert float(feature_loss(mine, taught, inputs)) == pytest.approx(1.2)
    assert float(feature_loss(taught, taught, inputs)) == 0.0
    with pytest.raises(ValueError, match="distill_features needs a model whose output has hidden states"):
        feature_loss({"logits": embeddings}, {"logits": embeddings}, {})


@pytest.mark.parametrize("kind", ["t5", "bert", "gpt2", "vit", "llama", "segformer", "whisper"])
@torch.no_grad()
def test_models_of_many_kinds_have_features(kind):
    model, inputs = families(kind)
    outputs = model.eval()(**inputs, output_hidden_states=True)
    assert float(feature_loss(outputs, outputs, inputs)) == 0.0
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        parameter.mul_(0.5)
    assert float(feature_loss(other(**inputs, output_hidden_states=True), outputs, inputs)) > 0.1
    taught, student = logits_of(outputs), logits_of(other(**inputs))
    assert float(soft_target_loss(student, taught, inputs["labels"], 2.0, False)) > 0


def families(kind):
    import transformers as tf

    torch.manual_seed(0)
    tokens, mask = torch.randint(3, 20, (2, 6)), torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    labels = torch.randint(3, 20, (2, 5))
    text = {"input_ids": tokens, "attention_mask": mask}
    if kind == "t5":
        return tiny_t5(), {**text, "labels": labels}
    if kind == "bert":
        config = tf.BertConfig(vocab_size=20, num_labels=3, **small)
        return tf.BertForSequenceClassification(config), {**text, "labels": torch.tensor([0, 2])}
    if kind == "gpt2":
        config = tf.GPT2Config(vocab_size=20, n_embd=16, n_layer=2, n_head=2, n_positions=16)
        return tf.GPT2LMHeadModel(config), {**text, "labels": tokens}
    if kind == "llama":
        return tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=20, **small)), {**text, "labels": tokens}
    if kind == "vit":
        config = tf.ViTConfig(image_size=8, patch_size=4, num_channels=1, num_labels=3, **small)
        return tf.ViTForImageClassification(config), {
            "pixel_values": torch.randn(2, 1, 8, 8),
            "labels": torch.tensor([0, 2]),
        }
    if kind == "segformer":
        from sms_hf.demo import demo_segmenter

        return demo_segmenter(["a", "b"]), {
            "pixel_values": torch.randn(2, 3, 32, 32),
            "labels": torch.zeros(2, 32, 32).long(),
        }
    config = tf.WhisperConfig(
        vocab_size=20,
        num_mel_bins=8,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_source_positions=16,
        max_target_positions=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    return tf.WhisperForConditionalGeneration(config), {"input_features": torch.randn(2, 8, 32), "labels": labels}


def test_features_teach(make_trainer, tmp_path):
    dense, found = tiny_t5(seed=3, dropout=0.0), {}
    for weight in (0.0, 1.0):
        settings = {
            "distill_features": weight,
            "num_train_epochs": 3,
            "num_phases": 1,
            "output_dir": str(tmp_path / str(weight)),
        }
        trainer = make_trainer(settings, model=copy.deepcopy(dense))
        trainer.train()
        batch = trainer.data_collator([trainer.train_dataset[i] for i in range(8)])
        with torch.no_grad():
            states = [m.eval()(**batch, output_hidden_states=True) for m in (trainer.model, dense)]
            found[weight] = float(feature_loss(*states, batch))
    assert found[1.0] < 0.8 * found[0.0]


# ---- Logits on the disk ----------------------------------------------------------------------------------------------------


def digits_trainer(tmp_path, name, **settings):
    from sms_hf import SparseSoupTrainer, SparseSoupTrainingArguments
    from sms_hf.demo import demo_digits, demo_image_classifier

    data = demo_digits()
    args = SparseSoupTrainingArguments(
        output_dir=str(tmp_path / name), target_sparsity=0.5, num_phases=2, num_candidates=2, max_steps=4, learning_rate=1e-3,
        per_device_train_batch_size=8, distill_weight=0.5, report_to="none", disable_tqdm=True, use_cpu=True,
        save_strategy="no", dataloader_pin_memory=False, **settings,
    )  # fmt: skip
    model = demo_image_classifier([str(i) for i in range(10)])
    return SparseSoupTrainer(
        model, args, train_dataset=data["train"].select(range(40)), eval_dataset=data["validation"]
    )


@pytest.mark.parametrize("data", ["all", "shards"])
def test_logits_from_the_disk_are_those_of_every_step(tmp_path, monkeypatch, data):
    """Rows of an image are padded by nothing: the same model but for the rounding of other batches."""
    live = digits_trainer(tmp_path, "live", candidate_data=data)
    live.train()
    from sms_hf.training.run.bench import Bench

    calls, dense = [], Bench._dense
    monkeypatch.setattr(Bench, "_dense", lambda self: calls.append(1) or dense(self))
    cached = digits_trainer(tmp_path, "cached", candidate_data=data, distill_cache=True)
    cached.train()
    assert len(calls) == 1, "asked once, for all candidates and phases"
    for name, weight in live.model.named_parameters():
        torch.testing.assert_close(cached.model.get_parameter(name), weight, rtol=1e-4, atol=1e-6)
    logits = tmp_path / "cached/_run/teacher.safetensors"
    assert logits.stat().st_size < 40 * 10 * 4 + 200
    again = digits_trainer(tmp_path, "cached", candidate_data=data, distill_cache=True)
    again.train(resume_from_checkpoint=True)
    assert len(calls) == 1


def test_logits_of_tokens_are_not_kept(make_trainer):
    trainer = make_trainer({"distill_weight": 0.5, "distill_cache": True})
    with pytest.raises(ValueError, match=r"distill_cache needs logits \(rows, classes\), one for each of the 24 rows"):
        trainer.train()


@pytest.mark.parametrize("wrong", [{}, {"distill_weight": 0.5, "distill_features": 1.0}])
def test_a_cache_of_nothing(make_args, wrong):
    with pytest.raises(
        ValueError, match="distill_cache keeps logits, for distill_weight above 0 and no distill_features"
    ):
        make_args(distill_cache=True, **wrong)
    with pytest.raises(ValueError, match="distill_features must be at least 0, got -1"):
        make_args(distill_features=-1.0)
