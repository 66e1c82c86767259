"""What a training on an accelerator could break: run with `pytest -m gpu`. Without one the same runs are on the CPU."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import CHECKPOINTING, reversal, tiny_t5
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    T5ForConditionalGeneration,
    TrainerCallback,
    default_data_collator,
)

from sms_hf import Masks, find_prunable, load, pack, prune, speed_up
from sms_hf.speed import paths, speed_table

pytestmark = pytest.mark.gpu

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
JOB = Path(__file__).with_name("job.py")
needs_gpu = pytest.mark.skipif(not ON_GPU, reason="there is no GPU")

EXACT = {"use_cpu": not ON_GPU, "full_determinism": True}
"""Kernels that give the same bits every time."""

SETTINGS = {
    "fused AdamW": {"optim": "adamw_torch_fused"},
    "bf16": {"bf16": True},
    "Adafactor in bf16": {"optim": "adafactor", "bf16": True},
    "SGD with momentum": {"optim": "sgd", "optim_args": "momentum=0.9", "learning_rate": 0.05, "weight_decay": 0.1},
    "gradient checkpointing": {"bf16": True, CHECKPOINTING: True},
    "accumulation and clipping": {"gradient_accumulation_steps": 2, "max_grad_norm": 0.1, "bf16": True},
}
ON_GPU_ALONE = {
    "fp16 with its scaler": {"fp16": True},
    "TF32": {"tf32": True},
}


@pytest.mark.parametrize(
    "changes",
    [*SETTINGS.values(), *(pytest.param(changes, marks=needs_gpu) for changes in ON_GPU_ALONE.values())],
    ids=[*SETTINGS, *ON_GPU_ALONE],
)
def test_masks_are_exact(make_trainer, changes, tmp_path):
    trainer = make_trainer({"use_cpu": not ON_GPU, "keep_candidates": True} | changes)
    trainer.train()
    assert trainer.model.device.type == DEVICE
    folders = [path.parent for path in (tmp_path / "run").rglob("masks.safetensors")]
    assert len(folders) == 1 + 2 * 4, "the final model; parents, candidates, soups of two phases"
    for folder in folders:
        Masks.load(folder / "masks.safetensors").check(T5ForConditionalGeneration.from_pretrained(folder))
    masks = trainer.masks
    total = sum(parameter.numel() for parameter in find_prunable(tiny_t5()).parameters.values())
    assert masks.num_kept == total - round(0.75 * total)
    masks.check(trainer.model)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(trainer.report["phases"][1]["soup"]["score"], rel=1e-3)


def test_masks_are_exact_under_flash_attention(make_trainer):
    """Rows of one length: the kernels of flash attention take no mask of the padding."""
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        attn_implementation="sdpa",
        pad_token_id=0,
    )
    rows = [{"input_ids": row, "labels": row} for row in torch.randint(2, 64, (24, 8)).tolist()]
    data = {"train_dataset": rows, "eval_dataset": rows[:8], "data_collator": default_data_collator}
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # An error where it cannot be used.
        trainer = make_trainer({"use_cpu": not ON_GPU, "bf16": True}, model=LlamaForCausalLM(config), **data)
        trainer.train()
    assert trainer.masks.sparsity() == pytest.approx(0.75, abs=1e-4)
    trainer.masks.check(trainer.model)


@pytest.mark.parametrize("kind", ["unstructured", "2:4", "neurons"])
def test_masks_do_not_depend_on_the_device(kind):
    sparsity, scope = 0.5, "global" if kind == "unstructured" else "uniform"
    masks = {}
    for device in {"cpu", DEVICE}:
        masks[device] = prune(tiny_t5().to(device), sparsity, pattern=kind, scope=scope).fingerprint()
    assert len(set(masks.values())) == 1


class Kill(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 5 and "phase-2/candidate-2" in args.output_dir:
            raise KeyboardInterrupt


def test_a_killed_run_ends_with_the_same_bytes(make_trainer, tmp_path):
    saving = EXACT | {"save_strategy": "steps", "save_steps": 2, "bf16": True}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    make_trainer({"output_dir": str(whole), **saving}).train()
    with pytest.raises(KeyboardInterrupt):
        make_trainer({"output_dir": str(cut), **saving}, callbacks=[Kill()]).train()
    make_trainer({"output_dir": str(cut), **saving}).train(resume_from_checkpoint=True)
    assert sha(cut) == sha(whole)


def sha(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def launch(folder: Path, processes: int, *changes: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    device = {} if ON_GPU else {"ACCELERATE_USE_CPU": "true"}
    arguments = [str(JOB), str(folder), f"use_cpu={str(not ON_GPU).lower()}", "full_determinism=true", *changes]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUBLAS_WORKSPACE_CONFIG": ":16:8"} | device
    return subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, timeout=240)


def test_two_processes_on_one_device_give_the_bytes_of_one(tmp_path):
    for processes in (1, 2):
        result = launch(tmp_path / str(processes), processes)
        assert result.returncode == 0, result.stderr[-3000:]
    assert sha(tmp_path / "1") == sha(tmp_path / "2")


@needs_gpu
def test_a_group_on_one_device_is_refused(tmp_path):
    processes = torch.cuda.device_count() + 1
    result = launch(tmp_path, processes, f"candidate_processes={processes}")
    assert result.returncode != 0
    assert "NCCL takes no device twice" in result.stderr


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are fewer than two GPUs")
@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_groups_of_two_devices(tmp_path, how):
    result = launch(tmp_path, 2, "candidate_processes=2", *(["fsdp=true"] if how == "fsdp" else []))
    assert result.returncode == 0, result.stderr[-3000:]
    Masks.load(tmp_path / "masks.safetensors").check(T5ForConditionalGeneration.from_pretrained(tmp_path))


def test_a_compact_file_is_loaded_straight_to_the_device(tmp_path):
    model = tiny_t5()
    masks = prune(model, 0.9)
    model.save_pretrained(tmp_path)
    masks.save(tmp_path / "masks.safetensors")
    pack(tmp_path, keep_dense=False)
    loaded = load(tmp_path, device_map=DEVICE)
    assert loaded.device.type == DEVICE
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name].cpu(), tensor)
    plain = T5ForConditionalGeneration.from_pretrained(tmp_path, variant="sparse", device_map=DEVICE)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), loaded.parameters(), strict=True))


@needs_gpu
def test_the_units_for_two_of_four_give_the_same_outputs(monkeypatch, tmp_path):
    """Of layers that are 2:4; where that is measured not to be faster, the dense layer gives them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = BertConfig(hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4)
    model = BertForSequenceClassification(config).eval().to("cuda", torch.bfloat16)
    with pytest.raises(ValueError, match="two of every four"):
        speed_up(model)
    prune(model, 0.5, pattern="2:4", scope="uniform")
    tokens = torch.arange(3, 131, device="cuda")[None]
    with torch.inference_mode():
        expected = model(input_ids=tokens).logits
        torch.testing.assert_close(speed_up(model)(input_ids=tokens).logits, expected, rtol=0.05, atol=0.05)
        monkeypatch.setattr(paths, "measure", lambda ways, *_: ("2:4", 2.0) if ways else (paths.DENSE, 1.0))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
        torch.testing.assert_close(speed_up(model)(input_ids=tokens).logits, expected, rtol=0.05, atol=0.05)
    taken = [way for module in model.modules() if hasattr(module, "fast") for way in module.fast.choices.values()]
    assert taken == ["2:4"] * 12
    with pytest.raises(ValueError, match="int8_head is for the CPU"):
        speed_up(model, int8_head=True)
    assert "2:4" in speed_table(model)


class Memory(TrainerCallback):
    """Bytes that are allocated when a candidate begins, and at the most while it is trained; copies add to the same lists."""

    def __init__(self):
        self.begins, self.peaks = [], []

    def __deepcopy__(self, memo):
        return self

    def on_train_begin(self, *args, **kwargs):
        self.begins.append(torch.cuda.memory_allocated())
        torch.cuda.reset_peak_memory_stats()

    def on_train_end(self, *args, **kwargs):
        self.peaks.append(torch.cuda.max_memory_allocated())


@needs_gpu
def test_memory_stays_flat_over_candidates(make_trainer):
    memory, rows = Memory(), reversal(24, lengths=(7, 8))
    make_trainer({"use_cpu": False, "num_candidates": 4}, callbacks=[memory], train_dataset=rows).train()
    for seen in (memory.begins, memory.peaks):
        assert len(seen) == 8
        assert max(seen[1:]) - min(seen[1:]) <= 1 << 16, f"bytes, from the second candidate on: {seen}"


@needs_gpu
def test_masks_are_exact_under_torch_compile(make_trainer):
    """Rows of one length: every other shape would be compiled anew."""
    rows = {"train_dataset": reversal(8, lengths=(7, 8)), "eval_dataset": reversal(4, seed=1, lengths=(7, 8))}
    trainer = make_trainer({"use_cpu": False, "torch_compile": True, "bf16": True, "num_phases": 1}, **rows)
    trainer.train()
    assert trainer.masks.sparsity() == pytest.approx(0.75, abs=1e-4)
    trainer.masks.check(trainer.model)
