"""Candidates on real processes: the same soup, bit for bit, for any number of them."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = """
import json
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from conftest import collate, reversal, tiny_t5
from sms_hf import SparseSoupTrainer, SparseSoupTrainingArguments
from transformers import TrainerCallback

class Fail(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if "candidate-2" in args.output_dir and "phase-2" in args.output_dir:
            raise RuntimeError("the cat sat on the keyboard")

class NoteGroup(TrainerCallback):
    def on_train_begin(self, args, state, control, **kwargs):
        notes["groups"].append([Path(args.output_dir).parent.name, args.world_size, args.gradient_accumulation_steps])

notes = {{"held": {{}}, "groups": []}}
common = dict(
    target_sparsity=0.75, learning_rate=3e-3, per_device_train_batch_size=4, save_strategy="no", pruning_scope="uniform",
    soup_method="uniform", report_to="none", disable_tqdm=True, dataloader_pin_memory=False, use_cpu=True,
)
for pruning_method, shared_fraction in [("gmp-soup", 0.0), ("sms", 0.5)] if "trunk" in sys.argv else []:
    args = SparseSoupTrainingArguments(
        output_dir=sys.argv[1] + "/" + pruning_method, pruning_method=pruning_method, shared_fraction=shared_fraction,
        trunk_processes=2, num_phases=1, num_candidates=2, num_train_epochs=2, train_sampling_strategy="sequential", **common
    )
    trainer = SparseSoupTrainer(
        model=tiny_t5(dropout=0.0), args=args, train_dataset=reversal(24), eval_dataset=reversal(10, seed=1),
        data_collator=collate, callbacks=[NoteGroup()],
    )
    trainer.train()
    notes["held"][pruning_method] = trainer.report["phases"][0]["candidates"][0]["steps"]
METHODS = [] if "trunk" in sys.argv else ["sms", "imp-reprune", "dpf-sms", "gmp-soup", "shared", "rounds"]
for method in ["sms"] if "fail" in sys.argv else METHODS:
    args = SparseSoupTrainingArguments(
        output_dir=sys.argv[1] + "/" + method, pruning_method="sms" if method in ("shared", "rounds") else method,
        shared_fraction=0.5 * (method == "shared"), averaging_rounds=1 + (method == "rounds"),
        outer_step=[0.7, 0.9] if method == "rounds" else None,
        candidate_data="shards" if method == "rounds" else "all", tail_average="lawa" if method == "rounds" else None,
        num_phases=2, num_candidates=3, num_train_epochs=1, keep_candidates=method == "sms",
        min_candidates=3 if "fail" in sys.argv else 1, **common
    )
    trainer = SparseSoupTrainer(
        model=tiny_t5(), args=args, train_dataset=reversal(24), eval_dataset=reversal(10, seed=1), data_collator=collate,
        callbacks=[Fail()] if "fail" in sys.argv else None,
    )
    trainer.train()
    notes["held"][method] = trainer.evaluate()["eval_loss"]
    if args.keep_candidates:
        subsoups = trainer.evaluate_subsoups(sizes=(2, 3))
        notes["asked"] = [trainer.evaluate_ensemble()["loss"], str(subsoups)]
# A file of its own: lines of several processes can break into each other in a pipe.
Path(f"{{sys.argv[1]}}/notes-{{args.processes.rank}}.json").write_text(json.dumps(notes))
import torch.distributed
assert not torch.distributed.is_initialized(), "nothing collective is left behind"
"""


def launch(tmp_path, processes, *options):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parents[2])))
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script)]
    if processes > 1:
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node",
            str(processes),
            str(script),
        ]
    folder = tmp_path / f"run-{processes}"
    result = subprocess.run(
        [*command, str(folder), *options], env=environment, capture_output=True, text=True, timeout=300
    )
    return folder, result


def sha(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_one_two_and_three_processes_give_the_same_models(tmp_path):
    models, notes = {}, {}
    for processes in (1, 2, 3):
        folder, result = launch(tmp_path, processes)
        assert result.returncode == 0, result.stderr[-3000:]
        models[processes] = {str(p.relative_to(folder)): sha(p) for p in folder.rglob("*.safetensors")}
        notes[processes] = [json.loads((folder / f"notes-{rank}.json").read_text()) for rank in range(processes)]
    # Of a method: the final model, the soups of its phases (two, one, three, two and twice four), and their masks, less those of
    # the dense weights that dpf-sms keeps; of sms also six candidates and two parents.
    assert len(models[1]) == (6 + 16) + 4 + 7 + 6 + 10 + 10
    assert models[1] == models[2] == models[3]
    assert list(notes[1][0]["held"]) == ["sms", "imp-reprune", "dpf-sms", "gmp-soup", "shared", "rounds"]
    # Every process holds the soup of each method; sub-soups and the ensemble do not depend on processes either.
    assert all(note == notes[1][0] for held in notes.values() for note in held)


def test_a_trunk_of_two_processes_is_that_of_one_that_takes_the_batches_of_both(tmp_path):
    models, groups = {}, {}
    for processes in (1, 2):
        folder, result = launch(tmp_path, processes, "trunk")
        assert result.returncode == 0, result.stderr[-3000:]
        notes = [json.loads((folder / f"notes-{rank}.json").read_text()) for rank in range(processes)]
        # 6 batches an epoch: of 1.1 of GMP's 2 epochs the trunk has twice as many; of 2 epochs of two candidates it has half.
        assert [note["held"] for note in notes] == [{"gmp-soup": 7, "sms": 6}] * processes
        models[processes] = {name: load_file(folder / name / "model.safetensors") for name in ("gmp-soup", "sms")}
        groups[processes] = [sorted(turn for turn in note["groups"] if turn[0] == "phase-1") for note in notes]
    assert groups[1] == [[["phase-1", 1, 2]] * 2]
    assert groups[2] == [[["phase-1", 2, 1]] * 2] * 2, "both train it, and accumulate nothing"
    for name, model in models[1].items():
        for key, ours in model.items():
            assert torch.equal(ours == 0, models[2][name][key] == 0), f"{name}: {key}"
            torch.testing.assert_close(ours, models[2][name][key], atol=2e-5, rtol=1e-4, msg=f"{name}: {key}")


@pytest.mark.parametrize("processes", [2])
def test_a_process_that_fails_ends_the_run_with_its_reason(tmp_path, processes):
    folder, result = launch(tmp_path, processes, "fail")
    assert result.returncode != 0
    assert "the cat sat on the keyboard" in result.stderr
    assert not (folder / "model.safetensors").exists()
