"""Ordinary training under a mask, in every set-up that users have, and the repairs of Trainer."""

import copy
import math

import pytest
import torch
from conftest import CHECKPOINTING, QUICK, collate, reversal, tiny_t5
from safetensors.torch import load_file
from torch.nn.utils import parametrize
from transformers import (
    AutoModelForSeq2SeqLM,
    GPT2Config,
    GPT2LMHeadModel,
    MarianConfig,
    MarianMTModel,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
    ViTConfig,
    ViTForImageClassification,
)

from sms_hf import MaskedTrainerMixin, Masks, prune


class MaskedTrainer(MaskedTrainerMixin, Seq2SeqTrainer):
    pass


def arguments(folder, **changes):
    settings = {
        "output_dir": str(folder),
        "num_train_epochs": 2,
        "weight_decay": 0.1,
    }
    return Seq2SeqTrainingArguments(**QUICK | settings | changes)


def masked_trainer(folder, model=None, trainer=MaskedTrainer, callbacks=None, **changes):
    model = tiny_t5() if model is None else model
    masks = prune(model, 0.9, scope="uniform")  # A global ranking empties q of a T5 fresh from initialisation.
    data = {"train_dataset": reversal(24), "eval_dataset": reversal(10, seed=1)}
    made = trainer(model=model, args=arguments(folder, **changes), data_collator=collate, callbacks=callbacks, **data)
    if trainer is MaskedTrainer:
        made.masks = masks
    return made, masks


class Watch(TrainerCallback):
    """Largest pruned weight after every step and at every evaluation."""

    def __init__(self, masks=None):
        self.masks, self.leaks = masks, []

    def look(self, model):
        pruned = [model.get_parameter(name)[~mask].abs().max().item() for name, mask in self.masks.items()]
        self.leaks.append(max(pruned))

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.look(model)

    def on_evaluate(self, args, state, control, model=None, **kwargs):
        self.look(model)


SETUPS = {
    "adamw": {"optim": "adamw_torch"},
    "fused adamw": {"optim": "adamw_torch_fused"},
    "adafactor": {"optim": "adafactor"},
    "sgd with momentum": {"optim": "sgd", "optim_args": "momentum=0.9"},
    "gradient accumulation and clipping": {"gradient_accumulation_steps": 2, "max_grad_norm": 0.1},
    "bf16 autocast": {"bf16": True},
    "gradient checkpointing": {CHECKPOINTING: True},
}


@pytest.mark.parametrize("setup", SETUPS.values(), ids=SETUPS)
def test_pruned_weights_are_exactly_zero_everywhere(tmp_path, setup):
    watch = Watch()
    saving = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
    trainer, masks = masked_trainer(tmp_path, callbacks=[watch], **setup, **saving)
    watch.masks, before = masks, copy.deepcopy(trainer.model.state_dict())
    trainer.train()
    assert len(watch.leaks) >= 6
    assert watch.leaks == [0.0] * len(watch.leaks)
    masks.check(trainer.model)
    changed = [n for n in masks if not torch.equal(before[n], trainer.model.state_dict()[n])]
    assert changed == list(masks), "every pruned tensor must have been trained"
    for checkpoint in tmp_path.glob("checkpoint-*"):
        masks.check(AutoModelForSeq2SeqLM.from_pretrained(checkpoint))
        assert Masks.load(checkpoint / "masks.safetensors").fingerprint() == masks.fingerprint()


@pytest.mark.parametrize("given", [True, False], ids=["the user's optimizer", "Trainer's optimizer"])
def test_an_optimizer_with_a_past_does_not_revive_weights(tmp_path, given):
    """Momentum of weights that were pruned later, and weight decay, whoever made the optimizer."""
    model = tiny_t5()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    trainer = MaskedTrainer(
        model=model,
        args=arguments(tmp_path, optim="sgd", optim_args="momentum=0.9"),
        train_dataset=reversal(24),
        data_collator=collate,
        optimizers=(sgd if given else None, None),
    )
    trainer.train()
    trainer.masks = prune(model, 0.5)
    trainer.train()
    trainer.masks.check(model)
    assert len(trainer._hooked._optimizer_step_post_hooks) == 1


def test_training_equals_training_of_mask_times_weight(tmp_path):
    """The semantics: the same as a parametrization `mask * weight`, clipping norm and optimizer statistics included."""

    class Multiply(torch.nn.Module):
        def __init__(self, mask):
            super().__init__()
            self.register_buffer("mask", mask, persistent=False)

        def forward(self, weight):
            return weight * self.mask

    class Norms(TrainerCallback):
        def __init__(self):
            self.norms = []

        def on_log(self, args, state, control, logs=None, **kwargs):
            self.norms += [logs["grad_norm"]] if "grad_norm" in logs else []

    common = {"logging_steps": 1, "optim": "adafactor", "max_grad_norm": 0.5}
    ours, theirs = Norms(), Norms()
    trainer, masks = masked_trainer(tmp_path / "a", callbacks=[ours], **common)
    trainer.train()
    plain, _ = masked_trainer(tmp_path / "b", trainer=Seq2SeqTrainer, callbacks=[theirs], **common)
    for name, mask in masks.items():
        parametrize.register_parametrization(
            plain.model.get_submodule(name.removesuffix(".weight")), "weight", Multiply(mask)
        )
    plain.train()
    assert len(ours.norms) == 12
    assert ours.norms == pytest.approx(theirs.norms, rel=1e-4)
    for name in masks:
        module = plain.model.get_submodule(name.removesuffix(".weight"))
        assert torch.allclose(trainer.model.get_parameter(name), module.weight, atol=1e-5)


def test_resume_from_a_checkpoint_equals_the_uninterrupted_run(tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 5}
    whole, _ = masked_trainer(tmp_path / "whole", **saving)
    whole.train()
    again, masks = masked_trainer(tmp_path / "again", **saving)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-5"))
    masks.check(again.model)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name


def test_a_save_with_a_revived_weight_is_an_error_that_names_it(tmp_path):
    trainer, masks = masked_trainer(tmp_path)
    name = next(iter(masks))
    index = tuple((~masks[name]).nonzero()[0].tolist())
    with torch.no_grad():
        trainer.model.get_parameter(name)[index] = 1e-30
    with pytest.raises(ValueError, match=r"must be exactly 0\.0, but 1 are not") as error:
        trainer.save_model()
    assert name in str(error.value)
    assert str(index) in str(error.value)


def first_grad_norm(folder, model, accumulation, trainer=MaskedTrainer):
    norms = []

    class First(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            norms.append(logs.get("grad_norm"))

    batch = 8 // accumulation
    made = trainer(
        model=copy.deepcopy(model),
        args=arguments(
            folder,
            gradient_accumulation_steps=accumulation,
            per_device_train_batch_size=batch,
            max_steps=1,
            logging_steps=1,
        ),
        train_dataset=reversal(8, lengths=(6, 7)),
        data_collator=collate,
        callbacks=[First()],
    )
    made.train()
    return norms[0]


def marian():
    torch.manual_seed(0)
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "dropout": 0.0, "activation_dropout": 0.0}
    tokens = {"vocab_size": 64, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    return MarianMTModel(MarianConfig(d_model=16, max_position_embeddings=32, **sizes, **heads, **tokens))


def gpt2():
    torch.manual_seed(0)
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=32, n_embd=16, n_layer=1, n_head=2, **dropout))


@pytest.mark.parametrize("make", [lambda: tiny_t5(dropout=0.0), marian], ids=["t5", "marian"])
def test_gradients_do_not_grow_with_gradient_accumulation(tmp_path, make):
    model = make()
    norms = [first_grad_norm(tmp_path, model, steps) for steps in (1, 2, 4)]
    assert norms[1] == pytest.approx(norms[0], rel=1e-3)
    assert norms[2] == pytest.approx(norms[0], rel=1e-3)
    assert first_grad_norm(tmp_path, model, 4, Seq2SeqTrainer) > 3 * norms[0], "Trainer is repaired: drop our repair"


def test_models_that_count_their_targets_keep_trainers_exact_weighting(tmp_path):
    trainer = MaskedTrainer(model=gpt2(), args=arguments(tmp_path), train_dataset=reversal(8), data_collator=collate)
    assert trainer.model_accepts_loss_kwargs


def test_evaluation_loss_is_the_mean_over_tokens_whatever_the_batch_size(tmp_path):
    model, data = tiny_t5(), reversal(11, seed=3, lengths=(2, 20))
    model.eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for row in data:
            batch = collate([row])
            tokens = len(row["labels"])
            total, count = total + model(**batch).loss.item() * tokens, count + tokens
    losses = []
    for size in (8, 1, 4):
        trainer = MaskedTrainer(
            model=model,
            args=arguments(tmp_path, per_device_eval_batch_size=size),
            eval_dataset=data,
            data_collator=collate,
        )
        losses.append(trainer.evaluate()["eval_loss"])
    assert losses == pytest.approx([total / count] * 3, rel=1e-5)


def test_causal_language_models_do_not_count_the_first_token(tmp_path):
    model, data = gpt2().eval(), reversal(7, seed=3, lengths=(2, 20)).map(lambda row: {"labels": row["input_ids"]})
    total, count = 0.0, 0
    with torch.no_grad():
        for row in data:
            batch = collate([row])
            total += model(**batch).loss.item() * (len(row["labels"]) - 1)
            count += len(row["labels"]) - 1
    trainer = MaskedTrainer(
        model=model, args=arguments(tmp_path, per_device_eval_batch_size=3), eval_dataset=data, data_collator=collate
    )
    assert trainer.evaluate()["eval_loss"] == pytest.approx(total / count, rel=1e-5)


def test_checkpoints_of_models_with_converted_names_are_read_back(tmp_path):
    """ViT: `save_pretrained` renames its tensors, and Trainer's raw load_state_dict would restore next to nothing."""
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=8, patch_size=4
    )
    images = torch.randn(12, 3, 8, 8)
    data = [{"pixel_values": image, "labels": i % 2} for i, image in enumerate(images)]
    model = ViTForImageClassification(config)
    masks = prune(model, 0.5)
    saving = {"save_strategy": "epoch", "eval_strategy": "epoch", "load_best_model_at_end": True, "num_train_epochs": 3}
    trainer = MaskedTrainer(
        model=model, args=arguments(tmp_path, learning_rate=0.3, **saving), train_dataset=data, eval_dataset=data
    )
    trainer.masks = masks
    trainer.train()
    best = trainer.state.best_model_checkpoint
    written = ViTForImageClassification.from_pretrained(best).state_dict()
    assert trainer.state.best_metric < max(log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log)
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensor, written[name]), name
    assert trainer.evaluate()["eval_loss"] == pytest.approx(trainer.state.best_metric)
    assert math.isfinite(trainer.state.best_metric)
    trainer.save_model(tmp_path / "final")
    final = load_file(tmp_path / "final" / "model.safetensors")
    assert final.keys() != trainer.model.state_dict().keys(), "the final model keeps the names that other tools know"
