"""A dense T5 for the translation part, trained from scratch on the device, to be gone on with after a cut."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.trainer_utils import get_last_checkpoint
from wmt16_t5 import RecipeArguments, make_task, read_parallel, tokenize

from sms_hf.demo import demo_optimizer, demo_tokenizer
from sms_hf.files.writing import new_folder

SPECIAL: dict[str, Any] = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
SHAPE = {"d_model": 256, "d_kv": 64, "d_ff": 1536, "num_layers": 6, "num_heads": 8, "dropout_rate": 0.2}
"""Of 20 M parameters with 8,000 pieces."""


def train_dense(data: Path, folder: Path, device: str, tiny: bool) -> dict[str, Any]:
    """
    Train it, and write it to `folder/parent`, its weights rounded to bfloat16, which halves what travels.

    Returns:
        `dict`: Parameters, epochs, and the scores of the rounded model on validation and test.
    """
    parent, training = folder / "parent", folder / "training"
    corpus = read_parallel(data, "en", "de")
    tokenizer = demo_tokenizer(corpus, vocab_size=200 if tiny else 8000)
    shape = SHAPE | ({"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4} if tiny else {})
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(T5Config(vocab_size=len(tokenizer), **shape, **SPECIAL))
    model.generation_config = GenerationConfig(max_length=8 if tiny else 64, num_beams=1, do_sample=False, **SPECIAL)
    task = make_task(model, tokenizer, tokenize(corpus, tokenizer, "", RecipeArguments()))
    args = Seq2SeqTrainingArguments(
        output_dir=str(training),
        num_train_epochs=1 if tiny else 20,
        max_steps=4 if tiny else -1,
        per_device_train_batch_size=128,
        per_device_eval_batch_size=512,
        lr_scheduler_type="linear",
        warmup_steps=2 if tiny else 400,
        label_smoothing_factor=0.1,
        train_sampling_strategy="group_by_length",
        predict_with_generate=True,
        use_cpu=device == "cpu",
        bf16=True,
        save_strategy="steps" if tiny else "epoch",
        save_steps=2,
        save_total_limit=1,
        logging_steps=200,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=device == "cuda",
    )
    trainer = Seq2SeqTrainer(
        model=model,
        args=args,
        train_dataset=task.train,
        data_collator=task.data_collator,
        processing_class=tokenizer,
        compute_metrics=task.compute_metrics,
        optimizers=(demo_optimizer(model, learning_rate=1e-2), None),
    )
    training.mkdir(parents=True, exist_ok=True)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(training))
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    scores = {
        split: trainer.evaluate(getattr(task, split), metric_key_prefix=split) for split in ("validation", "test")
    }
    shutil.rmtree(parent, ignore_errors=True)
    with new_folder(parent) as partial:
        tokenizer.save_pretrained(partial)
        model.bfloat16().save_pretrained(partial)
        config = json.loads((partial / "config.json").read_text(encoding="utf-8"))
        # It is retrained in float32.
        (partial / "config.json").write_text(json.dumps(config | {"dtype": "float32"}, indent=2), encoding="utf-8")
    shutil.rmtree(training)
    bleu = {f"{split}_bleu": scores[split][f"{split}_bleu"] for split in scores}
    return {"parameters": model.num_parameters(), "epochs": trainer.state.epoch, **bleu}
