"""Every family of translation models the whole way: from a folder, through phases, a kill and the Hub, to a plain model."""

import json
from pathlib import Path

import pytest
import sacrebleu
import torch
from conftest import QUICK, collate, reversal
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, TrainerCallback

from sms_hf import Masks, SparseSoupTrainer, SparseSoupTrainingArguments, pack

from .conftest import run_python
from .translators import FAMILIES, make_model

TWO_PHASES = QUICK | {
    "target_sparsity": 0.75,
    "num_phases": 2,
    "num_candidates": 2,
    "num_train_epochs": 1,
    "save_strategy": "steps",
    "save_steps": 2,
    "predict_with_generate": True,
    "generation_max_length": 12,
    "metric_for_best_model": "bleu",
}


class Kill(TrainerCallback):
    """Ends the run between two checkpoints of the last candidate."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 5 and "phase-2/candidate-2" in args.output_dir:
            raise KeyboardInterrupt


def words(rows) -> list[str]:
    return [" ".join(f"w{token}" for token in row if token > 1) for row in rows]


def bleu(prediction) -> dict[str, float]:
    return {"bleu": sacrebleu.corpus_bleu(words(prediction.predictions), [words(prediction.label_ids)]).score}


def trainer_for(model, output_dir: Path, callbacks=()) -> SparseSoupTrainer:
    def collator(rows):
        """As `DataCollatorForSeq2Seq(tokenizer, model=model)`: FSMT's forward makes no decoder inputs from labels."""
        batch = collate(rows)
        make = getattr(model, "prepare_decoder_input_ids_from_labels", None)
        return batch if make is None else batch | {"decoder_input_ids": make(labels=batch["labels"].clone())}

    return SparseSoupTrainer(
        model=model,
        args=SparseSoupTrainingArguments(output_dir=str(output_dir), **TWO_PHASES),
        train_dataset=reversal(24),
        eval_dataset=reversal(8, seed=1),
        data_collator=collator,
        compute_metrics=bleu,
        callbacks=list(callbacks),
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Family -> folder with `base` (the dense model), `whole` (a run) and `cut` (the same run, killed and resumed)."""
    folders = {}
    for family in FAMILIES:
        folders[family] = root = tmp_path_factory.mktemp("families") / family.replace(" ", "-")
        make_model(family).save_pretrained(root / "base")
        trainer_for(load(root / "base"), root / "whole").train()
        with pytest.raises(KeyboardInterrupt):
            trainer_for(load(root / "base"), root / "cut", [Kill()]).train()
        assert (root / "cut/_run/phase-2/candidate-2/checkpoint-4").is_dir()
        trainer_for(load(root / "base"), root / "cut").train(resume_from_checkpoint=True)
    return folders


def load(folder: Path):
    return AutoModelForSeq2SeqLM.from_pretrained(folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_two_phases_end_in_a_plain_sparse_model(runs, family):
    root = runs[family]
    model, base = load(root / "whole"), load(root / "base")
    masks = Masks.load(root / "whole/masks.safetensors")
    masks.check(model)
    assert masks.sparsity() == pytest.approx(0.75, abs=1e-3)
    report = json.loads((root / "whole/report.json").read_text())
    assert [len(phase["candidates"]) for phase in report["phases"]] == [2, 2]
    assert {"bleu", "loss"} <= set(report["dense"])
    changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, base.state_dict()[name])]
    assert set(masks) <= set(changed)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_killed_run_ends_with_the_same_bytes(runs, family):
    whole, cut = (load_file(runs[family] / name / "model.safetensors") for name in ("whole", "cut"))
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_all_families_to_the_hub_and_back_by_name(runs, hub, tmp_path):
    names = {family: family.lower().replace(" ", "-") for family in FAMILIES}
    for root in runs.values():
        pack(root / "whole")
    push = "\n".join(f"push_to_hub({str(runs[family] / 'whole')!r}, 'tester/{name}')" for family, name in names.items())
    pull = f"""
import json, sms_hf
from transformers import AutoModelForSeq2SeqLM
from transformers.utils import logging
logging.set_verbosity_error()
for name in {list(names.values())}:
    for how, model in (
        ("plain", AutoModelForSeq2SeqLM.from_pretrained("tester/" + name)),
        ("compact", sms_hf.load("tester/" + name, prefer="compact")),
    ):
        state = model.state_dict().values()
        print(json.dumps([name, how, sum(float(t.double().abs().sum()) for t in state), sum(t.numel() for t in state)]))
"""
    done = run_python("from sms_hf import push_to_hub\n" + push, hub.environment(tmp_path / "pusher"))
    assert done.returncode == 0, done.stderr
    done = run_python(pull, hub.environment(tmp_path / "puller"))
    assert done.returncode == 0, done.stderr
    pulled = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    expected = []
    for family, name in names.items():
        state = load(runs[family] / "whole").state_dict().values()
        numbers = [sum(float(t.double().abs().sum()) for t in state), sum(t.numel() for t in state)]
        expected += [[name, "plain", *numbers], [name, "compact", *numbers]]
    assert pulled == expected


def test_positions_that_no_file_holds_are_not_trained(tmp_path):
    """After `from_pretrained` Marian's sinusoids ask for gradients; their training would be lost with the next save."""
    make_model("Marian").save_pretrained(tmp_path / "base")
    model = load(tmp_path / "base")
    names = [f"model.{side}.embed_positions.weight" for side in ("encoder", "decoder")]
    before = {name: model.state_dict()[name].clone() for name in names}
    assert not set(names) & set(load_file(tmp_path / "base/model.safetensors"))
    trainer = trainer_for(model, tmp_path / "run")
    assert not any(model.get_parameter(name).requires_grad for name in names)
    trainer.train()
    assert all(torch.equal(trainer.model.state_dict()[name], before[name]) for name in names)
