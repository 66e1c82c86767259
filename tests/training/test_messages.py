"""What people get wrong first: each told in a sentence, before anything is trained."""

import datasets
import pytest
from conftest import collate, reversal, tiny_t5
from transformers import (
    FSMTConfig,
    FSMTForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
)

from sms_hf import SparseSoupTrainer, find_prunable

TEXT = datasets.Dataset.from_dict({"text": ["a b", "c d"] * 6})
TOO_LARGE = datasets.Dataset.from_list([{"input_ids": [5, 99], "attention_mask": [1, 1], "labels": [5, 1]}] * 12)
LABELS_TOO_LARGE = datasets.Dataset.from_list([{"input_ids": [5, 9], "attention_mask": [1, 1], "labels": [70, 1]}] * 12)


def without_labels(rows):
    return {name: tensor for name, tensor in collate(rows).items() if name != "labels"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"data_collator": without_labels},
            r"labels \(labels\) in the batches of train_dataset, got \['attention_mask', 'input_",
        ),
        (
            {"train_dataset": TEXT},
            r"columns in train_dataset that T5ForCond.*got \['text'\]. Tokenize first: train_dataset.map\(",
        ),
        ({"eval_dataset": TEXT}, r"columns in eval_dataset that T5ForCond.*got \['text'\]"),
        (
            {"train_dataset": TOO_LARGE},
            r"input_ids of train_dataset below 64, .*got 99\. Use the model's own tokenizer",
        ),
        ({"eval_dataset": LABELS_TOO_LARGE}, r"labels of eval_dataset below 64, .*got 70"),
    ],
)
def test_data_that_the_model_cannot_take(make_trainer, changes, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        make_trainer(**changes).train()
    assert not (tmp_path / "run" / "_run").exists()


def test_causal_data_without_labels(make_trainer):
    """Which ended in "metric_for_best_model must be a metric that the evaluation returns ()"."""
    tokens = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=2, n_positions=16, **tokens))
    with pytest.raises(ValueError, match=r"Expected labels.*DataCollatorForLanguageModeling\(tokenizer, mlm=False\)"):
        make_trainer(model=model, data_collator=without_labels).train()


def test_a_trainer_with_a_loss_of_its_own_is_not_asked_for_labels(make_trainer):
    class Own(SparseSoupTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            output = model(**inputs)
            loss = output.logits.square().mean()
            return (loss, output) if return_outputs else loss

    template = make_trainer()
    own = Own(
        model=template.model,
        args=template.args,
        train_dataset=reversal(8),
        eval_dataset=reversal(4),
        data_collator=lambda rows: {**without_labels(rows), "decoder_input_ids": collate(rows)["input_ids"]},
    )
    with pytest.raises(ValueError, match=r"evaluation returns \(none: its data have no labels\), got 'loss'"):
        own.train()


def test_fsmt_would_train_on_its_source(make_trainer):
    sizes = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 16}
    vocabulary = {
        "src_vocab_size": 64,
        "tgt_vocab_size": 64,
        "langs": ["en", "de"],
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    model = FSMTForConditionalGeneration(FSMTConfig(**vocabulary, **sizes, **heads, pad_token_id=0))
    with pytest.raises(ValueError, match=r"decoder_input_ids in the batches of train_dataset.*DataCollatorForSeq2Seq"):
        make_trainer(model=model).train()


def test_a_name_is_no_model(make_args):
    with pytest.raises(ValueError, match=r"got the name 'gpt2'. Load it first.*from_pretrained\('gpt2'\)"):
        SparseSoupTrainer(model="gpt2", args=make_args())
    with pytest.raises(ValueError, match=r"got the name 'gpt2'"):
        SparseSoupTrainer("gpt2", make_args())


@pytest.mark.parametrize(
    ("option", "text"),
    [("num_train_epochs", "3"), ("target_sparsity", "0.5"), ("num_candidates", "2"), ("max_steps", "9")],
)
def test_a_number_in_quotes(make_args, option, text):
    with pytest.raises(ValueError, match=f"{option} must be a number, got the text '{text}'"):
        make_args(**{option: text})


def test_other_settings_on_resume_name_what_differs_and_no_more(make_trainer):
    make_trainer({"num_phases": 1}).train()
    words = (
        r"got others: arguments.learning_rate: 0.003 -> 0.0001; arguments.num_candidates: 2 -> 3. Resume with the same"
    )
    with pytest.raises(ValueError, match=words):
        make_trainer({"num_phases": 1, "num_candidates": 3, "learning_rate": 1e-4}).train(resume_from_checkpoint=True)


def test_a_package_that_is_missing_is_said_once(make_trainer):
    with pytest.raises(ImportError) as caught:
        make_trainer({"optim": "adamw_8bit"}).train()
    assert str(caught.value).count("pip install -U bitsandbytes") == 1
    assert "learning_rate" not in str(caught.value)


def test_candidates_that_fail_alike_are_one_reason(make_trainer):
    """A cause in the data is no matter of the learning rate."""
    rows = [*reversal(8).to_list(), *TOO_LARGE.to_list()]
    with pytest.raises(RuntimeError) as caught:
        make_trainer(train_dataset=datasets.Dataset.from_list(rows)).train()
    message = str(caught.value)
    assert message.count("index out of range") == 1
    assert "candidate-1, candidate-2: IndexError" in message
    assert "Mend the cause and resume" in message
    assert "learning_rate" not in message


def test_a_body_that_is_frozen():
    model = tiny_t5().requires_grad_(False)
    with pytest.raises(ValueError, match=r"linear maps are frozen \(encoder.*Unfreeze.*model.requires_grad_\(True\)"):
        find_prunable(model)
