"""What the processes of test_groups.py do: `torchrun group_work.py <what> <folder>`; every process writes `<rank>.json`."""

import atexit
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from accelerate import DistributedType, PartialState
from accelerate.utils import FullyShardedDataParallelPlugin
from conftest import QUICK, collate, reversal, tiny_t5
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel, Seq2SeqTrainer, Seq2SeqTrainingArguments, TrainerCallback

from sms_hf.sparsity.masks import MaskError, Masks, is_sharded, local
from sms_hf.sparsity.pruning import prune
from sms_hf.training.masked.candidate import CandidateMixin, Retraining
from sms_hf.training.masked.gradual import GradualPruning
from sms_hf.training.masked.masked_trainer import MaskedTrainerMixin
from sms_hf.training.masked.teaching import Teacher
from sms_hf.training.processes.groups import Group, agree, training_group, wait_for_group
from sms_hf.training.processes.sharding import plain_model
from sms_hf.training.run_directory import last_checkpoint

FIXED, VARIED = (6, 7), (3, 8)
SPARSITY = 0.75


class MaskedTrainer(MaskedTrainerMixin, Seq2SeqTrainer):
    pass


class ShardingTrainer(MaskedTrainer):
    """Accelerate takes DDP for FSDP on a CPU, although torch can shard there: tell it what GPUs would have told it."""

    def create_accelerator_and_postprocess(self):
        super().create_accelerator_and_postprocess()
        state = self.accelerator.state
        state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        state.fsdp_plugin = FullyShardedDataParallelPlugin(**self.args.fsdp_plugin_args)
        self.is_fsdp_enabled = True


class Nobody:
    """Of the processes of a launch: who is told that this one lives."""

    def beat(self, *what):
        pass


class TaughtTrainer(CandidateMixin, Seq2SeqTrainer):
    """A candidate that is asked for the answers and the states of another model."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        vars(self.args).update(processes=Nobody(), retrain_schedule=None)
        torch.manual_seed(1)
        other = GPT2LMHeadModel(self.model.config).eval().requires_grad_(False)
        self.retraining = Retraining(teacher=Teacher(0.5, 2.0, 0.1, model=other))


class Watch(TrainerCallback):
    """Checks the zeros after every step, and notes what tells ranks and runs apart."""

    def __init__(self):
        self.trainer, self.norms, self.sums, self.sharded = None, [], [], 0

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        self.sharded = sum(is_sharded(p) for p in model.parameters())

    def on_step_end(self, args, state, control, model, **kwargs):
        self.trainer.masks.check(model)
        self.sums.append(sum(float(local(p.detach()).double().sum()) for p in model.parameters()))

    def on_log(self, args, state, control, logs, **kwargs):
        if "grad_norm" in logs:
            self.norms.append(float(logs["grad_norm"]))


def arguments(folder, **changes):
    settings = {"output_dir": str(folder), "num_train_epochs": 2, "logging_steps": 1, "lr_scheduler_type": "linear"}
    return Seq2SeqTrainingArguments(**QUICK | settings | changes)


def count(prediction):
    """A metric that sees rows that are counted twice."""
    labels = torch.as_tensor(prediction.label_ids)
    return {"rows": len(labels), "tokens": int(labels.clamp(min=0).sum())}


def tiny_gpt2(dropout):
    """Its loss divides by the number of targets in the whole batch, on whichever process they are."""
    torch.manual_seed(0)
    drop = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=32, n_embd=32, n_layer=1, n_head=2, **drop))


def next_tokens(rows):
    """The sources of the reversal task as texts."""
    return collate([{**row, "labels": row["input_ids"]} for row in rows])


def build(folder, dropout=0.0, lengths=FIXED, rows=24, gradual=None, cls=MaskedTrainer, causal=False, **changes):
    """A trainer of a pruned model, watched."""
    model, watch = tiny_gpt2(dropout) if causal else tiny_t5(dropout=dropout), Watch()
    masks = prune(model, 0.0 if gradual else SPARSITY)
    trainer = cls(
        model=model,
        args=arguments(folder, **changes),
        train_dataset=reversal(rows, lengths=lengths),
        eval_dataset=reversal(7, seed=1),
        data_collator=next_tokens if causal else collate,
        compute_metrics=count,
        callbacks=[watch],
    )
    trainer.masks, watch.trainer = masks, trainer
    if gradual is not None:
        feedback = gradual == "dpf"
        events = [(0.0, 0.3), (0.5, SPARSITY)]
        trainer.prune_while_training(GradualPruning(events, feedback, lambda m, s, w: prune(m, s, within=w)))
    return trainer, watch


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def train(group, name, folder, resume=False, **options):
    """Train in a group; the leader writes the plain weights to `<folder>/<name>.safetensors`."""
    with training_group(group, name, cpu=True):
        trainer, watch = build(folder / options.pop("into", name), **options)
        checkpoint = agree(lambda: last_checkpoint(Path(trainer.args.output_dir))) if resume else None
        trainer.train(resume_from_checkpoint=checkpoint)
        evaluated = trainer.evaluate() if not resume else {}
        plain = plain_model(trainer.model, tiny_t5, keep=group.is_leader)
    notes = {"norms": watch.norms, "sums": watch.sums, "sharded": watch.sharded, "resumed": checkpoint}
    notes |= {k: evaluated.get(f"eval_{k}") for k in ("loss", "rows", "tokens")}
    notes |= {"fingerprint": trainer.masks.fingerprint(), "best": trainer.state.best_metric}
    assert not torch.distributed.is_initialized()
    if plain is not None:
        assert "DTensor" not in {type(p.data).__name__ for p in plain.parameters()}
        trainer.model = trainer.model_wrapped = plain
        trainer.end_pruning()
        trainer.masks.check(plain)
        save_file(weights(plain), folder / f"{name}.safetensors")
        trainer.save_named(folder / f"{name}-saved")  # Alone again, as in a run of one process.
        assert Masks.load(folder / f"{name}-saved" / "masks.safetensors").fingerprint() == trainer.masks.fingerprint()
    return notes


CHECKPOINTS = {"save_strategy": "steps", "save_steps": 2, "dropout": 0.1}
BEST = {
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "load_best_model_at_end": True,
    "per_device_eval_batch_size": 2,
}


def ddp(group, folder):
    half = {"per_device_train_batch_size": 2}
    yield "halves", train(group, "halves", folder, **half)
    yield "whole", train(group, "whole", folder, **half, **CHECKPOINTS)
    yield "resumed", resumed(group, "whole", folder, **half, **CHECKPOINTS)
    yield "best", train(group, "best", folder, **half, **BEST, lengths=VARIED, predict_with_generate=True)
    yield "causal", train(group, "causal", folder, **half, lengths=VARIED, causal=True)
    yield "taught", train(group, "taught", folder, **half, lengths=VARIED, causal=True, cls=TaughtTrainer)
    for method in ("gmp", "dpf"):
        yield method, train(group, method, folder, **half, gradual=method)


def resumed(group, name, folder, **options):
    """Forget what came after the second step, and go on from there."""
    last = max((folder / name).glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    keep = folder / name / "checkpoint-2"
    with training_group(group, f"{name}-forget", cpu=True):
        wait_for_group()
        if group.is_leader:
            for path in (folder / name).glob("checkpoint-*"):
                if path != keep:
                    path.rename(path.with_name(f"old-{path.name}"))
            # A run that was killed while it wrote: not to be taken.
            (folder / name / last.name).mkdir()
            (folder / name / last.name / "trainer_state.json").write_text('{"global_step": 99}')
        wait_for_group()
    return train(group, f"{name}-resumed", folder, resume=True, into=name, **options)


def fsdp(group, folder):
    shard = {"cls": ShardingTrainer, "fsdp": True, "fsdp_config": {"transformer_layer_cls_to_wrap": ["T5Block"]}}
    half = {"per_device_train_batch_size": 2}
    yield "halves", train(group, "halves", folder, **half, **shard)
    yield "whole", train(group, "whole", folder, **half, **shard, **CHECKPOINTS)
    yield "resumed", resumed(group, "whole", folder, **half, **shard, **CHECKPOINTS)
    yield "best", train(group, "best", folder, **half, **shard, **BEST, lengths=VARIED, predict_with_generate=True)
    with training_group(group, "refused", cpu=True):
        for what, options in {"silent": shard | {"cls": MaskedTrainer}, "gradual": shard | {"gradual": "gmp"}}.items():
            try:
                build(folder / "refused", **options)
            except ValueError as error:
                yield what, str(error)
    with training_group(group, "uneven", cpu=True):
        yield "uneven", uneven()


def uneven():
    """Five rows on two processes, and masks that are checked on shares."""
    from torch.distributed.fsdp import fully_shard

    model = torch.nn.Linear(3, 5)
    fully_shard(model)
    masks = Masks({"weight": torch.arange(15).reshape(5, 3) % 2 == 0})
    with torch.no_grad():
        local(model.weight).fill_(float("nan"))
    masks.apply_(model)
    kept = int(local(model.weight).isnan().sum())
    masks.check(model) if not kept else None
    with torch.no_grad():
        local(model.weight).fill_(1.0)
    try:
        masks.check(model)
        return "not seen"
    except MaskError as error:
        return [kept, str(error)]


def candidates(group, folder):
    def work(number):
        half = {"per_device_train_batch_size": 2, "num_train_epochs": 1 + number % 2}
        train(group, f"candidate-{number}", folder, **half, seed=number)

    group.processes.fan_out("candidates", range(3), work, group.size)
    yield "done", True


def failing(group, folder):
    with training_group(group, "failing", cpu=True):
        trainer, watch = build(folder / "failing")
        if group.rank == 1:
            watch.on_pre_optimizer_step = None  # Not callable: this process fails in the middle of training.
        trainer.train()
    yield "done", True


def main(what, folder):
    from sms_hf.training.processes.groups import make_group
    from sms_hf.training.processes.launch import join_processes

    torch.set_num_threads(1)
    processes = join_processes()
    arguments(folder)  # As in a run: every process was alone before.
    group: Group = make_group(processes, 2)
    for name, notes in globals()[what](group, folder):
        with (folder / f"{processes.rank}.jsonl").open("a") as file:
            file.write(json.dumps([name, notes]) + "\n")
    time.sleep(0.5)  # As in a run, no process ends right after an operation that others took part in.
    atexit._run_exitfuncs()  # What Python does next, to see which threads are left then.
    threads = [name.read_text().strip() for name in Path("/proc/self/task").glob("*/comm")]
    (folder / f"{processes.rank}.threads").write_text("\n".join(sorted(threads)))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
