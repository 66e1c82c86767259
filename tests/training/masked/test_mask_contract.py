"""
The promise of masks as properties: a pruned weight is exactly zero wherever anyone can see it, in any run.

A run is drawn at random (architecture, sizes, dtype, optimizer, clipping, accumulation, scope, pattern, schedule of saves)
and watched from inside: after every optimizer step, at every evaluation, in every file that it writes. What masks must
hold is counted here anew from the options, not asked of the code that chose them.
"""

import json
import tempfile
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from conftest import QUICK, reversal
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    TrainerCallback,
    ViTConfig,
    ViTForImageClassification,
)

from sms_hf import METHODS, MaskError, Masks, SparseSoupTrainer, SparseSoupTrainingArguments, find_prunable
from sms_hf.soup import average_checkpoints
from sms_hf.sparsity import find_groups
from sms_hf.training.run.merging import merge


def examples(count):
    """No shrinking: an example takes a second, and a failure names all that it was made of."""
    return settings(
        derandomize=True,
        max_examples=count,
        deadline=None,
        database=None,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=list(HealthCheck),
    )


# ---- What a run is drawn from ----------------------------------------------------------------------------------------

VOCABULARY = 32
HEADS = {"neurons", "heads"}


def t5(sizes):
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=VOCABULARY,
            d_model=sizes.width,
            d_kv=4,
            d_ff=2 * sizes.width,
            num_layers=sizes.layers,
            num_heads=sizes.heads,
            tie_word_embeddings=sizes.tied,
            feed_forward_proj="gated-gelu" if sizes.gated else "relu",
            decoder_start_token_id=0,
        )
    )


def gpt2(sizes):
    tokens = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    shape = {"n_embd": sizes.width, "n_layer": sizes.layers, "n_head": sizes.heads, "n_positions": 16}
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, tie_word_embeddings=sizes.tied, **shape, **tokens))


def decoder(sizes):
    tokens = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0, "vocab_size": VOCABULARY}
    shape = {"hidden_size": sizes.width, "intermediate_size": 2 * sizes.width, "num_hidden_layers": sizes.layers}
    heads = {
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.heads // 2 if sizes.gated else sizes.heads,
    }
    return {**tokens, **shape, **heads, "max_position_embeddings": 16, "tie_word_embeddings": sizes.tied}


def llama(sizes):
    return LlamaForCausalLM(LlamaConfig(**decoder(sizes)))


def mixtral(sizes):
    return MixtralForCausalLM(MixtralConfig(**decoder(sizes), num_local_experts=2, num_experts_per_tok=1))


def encoder(sizes):
    shape = {"hidden_size": sizes.width, "num_hidden_layers": sizes.layers, "num_attention_heads": sizes.heads}
    return {**shape, "intermediate_size": 2 * sizes.width, "num_labels": 3}


def bert(sizes):
    return BertForSequenceClassification(BertConfig(**encoder(sizes), vocab_size=VOCABULARY))


def vit(sizes):
    return ViTForImageClassification(ViTConfig(**encoder(sizes), image_size=4, patch_size=2, num_channels=1))


MODELS = {"t5": t5, "gpt2": gpt2, "bert": bert, "llama": llama, "vit": vit, "mixtral": mixtral}


class NoisySGD(torch.optim.SGD):
    """Moves every weight at every step, those without a gradient too, as Langevin dynamics do."""

    @torch.no_grad()
    def step(self, closure=None):
        loss = super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.add_(torch.randn_like(parameter), alpha=1e-3)
        return loss


OPTIMIZERS = {
    "adamw_torch": {"learning_rate": 3e-3},
    "sgd": {"learning_rate": 0.05, "optim_args": "momentum=0.9"},
    "adafactor": {"learning_rate": 3e-3},
    "rmsprop": {"learning_rate": 1e-3, "optim_args": "momentum=0.9"},
    "adamw_torch_fused": {"learning_rate": 3e-3},
    "adagrad": {"learning_rate": 1e-2},
    "noise": {"optim": "sgd"},
}
"""All with a weight decay of 0.1: what could move a zero is momentum, decay, or an update that asks no gradient."""

# Pattern, scope, final sparsity.
GOALS = [
    ("unstructured", "global", 0.8),
    ("unstructured", "uniform", 0.93),
    ("2:4", "uniform", 0.5),
    ("unstructured", "erk", 0.77),
    ("neurons", "uniform", 0.6),
    ("unstructured", "lamp", 0.5),
    ("heads", "uniform", 0.5),
    ("unstructured", "uniform+", 0.613),
]


@dataclass(frozen=True)
class Sizes:
    width: int = 16
    layers: int = 1
    heads: int = 2
    tied: bool = True
    gated: bool = False
    bf16: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Setting:
    """All that a run is made of."""

    method: str
    family: str = "t5"
    sizes: Sizes = field(default_factory=Sizes)
    optimizer: str = "adamw_torch"
    goal: tuple[str, str, float] = ("unstructured", "uniform", 0.75)
    options: dict = field(default_factory=dict)

    def model(self):
        with torch.random.fork_rng():
            torch.manual_seed(self.sizes.seed)
            model = MODELS[self.family](self.sizes)
        return model.to(torch.bfloat16) if self.sizes.bf16 else model

    def arguments(self, folder):
        pattern, scope, sparsity = self.goal
        fixed = {
            "output_dir": str(folder),
            "pruning_method": self.method,
            "pruning_pattern": pattern,
            "pruning_scope": scope,
            "target_sparsity": sparsity,
            "original_num_epochs": 3,  # Of BIMP.
            "optim": self.optimizer,
            "weight_decay": 0.1,
            "logging_steps": 1,
            "keep_candidates": True,
        }
        return SparseSoupTrainingArguments(**QUICK | fixed | OPTIMIZERS[self.optimizer] | self.options)


def rotated(values, turn):
    """The first example that hypothesis tries is the first of every list: each test begins elsewhere."""
    values = list(values)
    return st.sampled_from(values[turn % len(values) :] + values[: turn % len(values)])


@st.composite
def runs(draw, methods, turn=0, many=False):
    """Runs of some methods, of about a second each; `many`: also longer ones."""
    family = draw(rotated(MODELS, turn))
    # Stacked experts have no neurons of their own, and no N:M.
    goals = [g for g in GOALS if not (family == "mixtral" and g[0] in ("neurons", "2:4"))]
    saves = draw(st.sampled_from(["steps", "no"]))
    steps = draw(st.integers(2, 5 if many else 3))
    # A tenth of the training is no step at all where there are fewer than ten.
    interval = {"pruning_interval": 1.0} if turn % 2 else {}
    options = {
        "num_phases": draw(st.sampled_from([2, 1, 3] if many else [2, 1])),
        "num_candidates": 2,
        "max_steps": steps,
        "gradient_accumulation_steps": draw(rotated([2, 1, 3], turn)),
        "max_grad_norm": draw(rotated([0.1, 1.0, 0.0], turn)),
        "bf16": draw(rotated([False, True], turn // 2)),
        "label_smoothing_factor": draw(rotated([0.0, 0.1], turn // 4)),
        "soup_method": draw(rotated(["uniform", "greedy"], turn)),
        "save_strategy": saves,
        "save_steps": draw(st.integers(1, 2)),
        "eval_strategy": "steps" if saves == "steps" else "no",
        "eval_steps": 2,
        "seed": draw(st.integers(0, 99)),
    }
    method = draw(st.sampled_from(methods))
    if METHODS[method].prunes_while_training or method == "gmp-sms":
        options |= interval if options["num_phases"] > 1 else {}
    return Setting(
        method=method,
        family=family,
        sizes=Sizes(
            width=draw(rotated([16, 8, 24], turn)),
            layers=draw(st.integers(1, 2)),
            heads=draw(st.sampled_from([2, 4])),
            tied=draw(rotated([True, False], turn // 3)),
            gated=draw(rotated([False, True], turn)),
            bf16=draw(rotated([False, False, True], turn)),
            seed=draw(st.integers(0, 99)),
        ),
        optimizer=draw(rotated(OPTIMIZERS, turn + turn // len(OPTIMIZERS))),
        goal=draw(rotated(goals, turn)),
        options=options,
    )


def rows_of(family, count, seed=0):
    rows = reversal(count, seed=seed).to_list()
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(count, 1, 4, 4, generator=generator)
    return [
        {"tokens": [t % VOCABULARY for t in row["input_ids"]], "label": i % 3, "pixel_values": pixels[i], "of": family}
        for i, row in enumerate(rows)
    ]


def collate(rows):
    """Batches as each family wants them."""
    family, labels = rows[0]["of"], torch.tensor([row["label"] for row in rows])
    if family == "vit":
        return {"pixel_values": torch.stack([row["pixel_values"] for row in rows]), "labels": labels}
    width = max(len(row["tokens"]) for row in rows)
    ids = torch.tensor([row["tokens"] + [0] * (width - len(row["tokens"])) for row in rows])
    real = torch.tensor([[1] * len(row["tokens"]) + [0] * (width - len(row["tokens"])) for row in rows])
    batch = {"input_ids": ids, "attention_mask": real}
    if family == "bert":
        return {**batch, "labels": labels}
    targets = ids.masked_fill(real == 0, -100)
    if family == "t5":  # Label smoothing takes the labels away before the model could shift them.
        batch["decoder_input_ids"] = torch.nn.functional.pad(ids[:, :-1], (1, 0))
    return {**batch, "labels": targets}


# ---- What masks must hold, counted anew ------------------------------------------------------------------------------


def faults_of(model, masks, goal, sparsity):
    """What is wrong with masks of this sparsity, counted from the options; the first fault, or an empty string."""
    pattern, scope, _ = goal
    if pattern in HEADS:
        return _structured_faults(model, masks, pattern, sparsity)
    sizes = {name: weight.numel() for name, weight in find_prunable(model).parameters.items()}
    if list(masks) != list(sizes):
        return f"masks cover {list(masks)[:3]}..., prunable are {list(sizes)[:3]}..."
    if pattern == "2:4":
        for name, mask in masks.items():
            if mask.shape[_input_dim(model, name)] % 4 or sparsity == 0:
                wrong = int((~mask).sum())
            else:
                groups = mask.movedim(_input_dim(model, name), -1).unflatten(-1, (-1, 4)).sum(-1)
                wrong = int((groups != ceil(4 * (1 - sparsity) - 1e-9)).sum())
            if wrong:
                return f"{name}: {wrong} groups of four keep another number than {4 * (1 - sparsity):g}"
        return ""
    kept = {name: int(mask.sum()) for name, mask in masks.items()}
    if scope == "uniform":
        expected = {name: size - round(sparsity * size) for name, size in sizes.items()}
        return "" if kept == expected else f"kept {kept}, expected {expected}"
    total = sum(sizes.values())
    expected = total - round(sparsity * total)
    return "" if sum(kept.values()) == expected else f"kept {sum(kept.values())} of {total}, expected {expected}"


def _input_dim(model, name):
    return 0 if type(model.get_submodule(name.rpartition(".")[0])).__name__ == "Conv1D" else 1


def _structured_faults(model, masks, pattern, sparsity):
    groups = find_groups(model, pattern)
    if set(masks) != {member.parameter for group in groups for member in group.members}:
        return f"masks of {pattern} cover other parameters than their groups"
    for group in groups:
        kept = group.units - round(sparsity * group.units)
        rows = [group.gather(member, masks[member.parameter]) for member in group.members]
        alive = [row.any(1) for row in rows]
        if any(not torch.equal(row.all(1), row.any(1)) for row in rows):
            return f"{group.layer}: a unit is removed in part"
        if any(not torch.equal(one, alive[0]) for one in alive):
            return f"{group.layer}: its members lose different units"
        if int(alive[0].sum()) != kept:
            return f"{group.layer}: keeps {int(alive[0].sum())} of {group.units} {pattern}, expected {kept}"
    return ""


def revived(named, masks):
    """Pruned weights that are not zero: `tensor: count, first values`, or an empty string."""
    for name, mask in masks.items():
        values = named[name].detach().cpu()[~mask]
        if (values != 0).any():  # NaN, too.
            alive = values[values != 0]
            return (
                f"{name}: {alive.numel()} of {values.numel()} pruned weights are not zero, first {alive[:3].tolist()}"
            )
    return ""


def names_of(model):
    return dict(model.named_parameters(remove_duplicate=False))


# ---- The watch -------------------------------------------------------------------------------------------------------


class Ledger:
    """What a run was seen doing. Errors inside a candidate would only cost that candidate: they are noted, not raised."""

    def __init__(self, plan, setting):
        self.phases = {phase.number: phase for phase in plan}
        self.setting = setting
        self.faults: list[str] = []
        self.steps: dict[str, list[int]] = {}
        self.norms = self.checkpoints = self.evaluations = 0

    def note(self, where, fault):
        if fault:
            self.faults.append(f"{where}: {fault}")


class WatchedTrainer(SparseSoupTrainer):
    """Looks at the model after every optimizer step, at every evaluation, and at every checkpoint on disk."""

    ledger: ClassVar[Ledger]
    _expected_norm = None
    _before = None

    @property
    def where(self):
        folder = Path(str(self.args.output_dir))
        return f"{folder.parent.name}/{folder.name} step {self.state.global_step}"

    def training_step(self, model, inputs, *args, **kwargs):
        loss = super().training_step(model, inputs, *args, **kwargs)
        if self.accelerator.sync_gradients and self.masks is not None:
            phase = self.ledger.phases[int(Path(self.args.output_dir).parent.name.removeprefix("phase-"))]
            masks = {} if phase.feedback else self.masks  # Feedback: the dense weights are trained.
            total = 0.0
            for name, parameter in self.model.named_parameters():
                if parameter.grad is not None:
                    gradient = parameter.grad.double()
                    kept = gradient[masks[name]] if name in masks else gradient
                    total += float(kept.square().sum())
            self._expected_norm = total**0.5
        return loss

    def log(self, logs, *args, **kwargs):
        super().log(logs, *args, **kwargs)
        if "grad_norm" not in logs:
            return
        # Every optimizer step is logged; nothing has touched the weights since.
        folder = Path(self.args.output_dir)
        self.ledger.steps.setdefault(f"{folder.parent.name}/{folder.name}", []).append(self.state.global_step)
        self.ledger.note(f"{self.where}, after the step", revived(names_of(self.model), self.masks))
        self._check_norm(logs["grad_norm"])
        self._check_events(self.ledger.phases[int(folder.parent.name.removeprefix("phase-"))])

    def _check_norm(self, logged):
        close = 2e-2 if self.ledger.setting.sizes.bf16 else 1e-4
        self.ledger.norms += 1
        if not abs(logged - self._expected_norm) <= close * self._expected_norm + 1e-7:
            self.ledger.note(
                f"{self.where}, clipping", f"grad_norm {logged}, that of kept weights is {self._expected_norm}"
            )

    def _check_events(self, phase):
        """Masks that change while a candidate is trained: how many weights are kept after every step, and which."""
        step, last, goal = self.state.global_step, self.state.max_steps, self.ledger.setting.goal
        passed = [sparsity for fraction, sparsity in phase.events if round(fraction * last) <= step]
        sparsity = passed[-1] if passed else phase.sparsity
        if not phase.keeps_dense or passed:
            self.ledger.note(f"{self.where}, masks", faults_of(self.model, self.masks, goal, sparsity))
        if self._before is not None and not phase.feedback and not self.masks.is_within(self._before):
            self.ledger.note(f"{self.where}, masks", "a weight came back without feedback")
        self._before = self.masks

    def evaluate(self, *args, **kwargs):
        if self.masks is not None:
            self.ledger.evaluations += 1
            self.ledger.note(f"{self.where}, before evaluation", revived(names_of(self.model), self.masks))
        metrics = super().evaluate(*args, **kwargs)
        if self.masks is not None:
            self.ledger.note(f"{self.where}, after evaluation", revived(names_of(self.model), self.masks))
        return metrics

    def _save_checkpoint(self, model, trial):
        super()._save_checkpoint(model, trial)
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        written = Masks.load(folder / "masks.safetensors")
        self.ledger.checkpoints += 1
        self.ledger.note(f"{folder}", revived(load_file(folder / "model.safetensors"), written))
        if written.fingerprint() != self.masks.fingerprint():
            self.ledger.note(f"{folder}", "its masks are not those of the trainer")


def trainer_of(setting, folder, cls=WatchedTrainer, callbacks=None):
    args = setting.arguments(folder)
    # A class of its own: candidates are built by the class, and find the ledger there.
    watched = type("Watched", (cls,), {"ledger": Ledger(args.make_plan(), setting)})
    args.remove_unused_columns = False
    noise = {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.1}
    return watched(
        optimizer_cls_and_kwargs=(NoisySGD, noise) if setting.optimizer == "noise" else None,
        model=setting.model(),
        args=args,
        train_dataset=rows_of(setting.family, 20),
        eval_dataset=rows_of(setting.family, 6, seed=1),
        data_collator=collate,
        callbacks=callbacks,
    )


# ---- Every run -------------------------------------------------------------------------------------------------------


def check_run(setting):
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(setting, folder)
        ledger = trainer.ledger
        trainer.train()
        check_ledger(trainer, ledger)
        check_files(trainer, ledger, setting)
    assert not ledger.faults, "\n  ".join([f"{len(ledger.faults)} faults of {setting}:", *ledger.faults[:5]])


def check_ledger(trainer, ledger):
    """The watch saw every step of every candidate, and every candidate went through."""
    for phase in trainer.report["phases"]:
        for candidate in phase["candidates"]:
            where = f"phase-{phase['number']}/{candidate['name']}"
            assert candidate["failure"] is None, f"{where}: {candidate['failure']} {candidate.get('traceback')}"
            seen, steps = ledger.steps.get(where, []), candidate["steps"]
            ledger.note(where, "" if seen == [*range(1, steps + 1)] else f"saw steps {seen} of {steps}")


def check_files(trainer, ledger, setting):
    """What lies in the run directory: parents, candidates, soups, the final model."""
    root, model, plan = Path(trainer.args.output_dir), trainer.model, list(ledger.phases.values())
    masks_of: dict[tuple[int, str], Masks] = {}

    def look(number, name):
        folder = root / "_run" / f"phase-{number}" / name
        masks = Masks.load(folder / "masks.safetensors")
        ledger.note(f"{folder}", revived(load_file(folder / "model.safetensors"), masks))
        masks_of[number, name] = masks
        return masks

    for phase, record in zip(plan, trainer.report["phases"], strict=True):
        number, where = phase.number, f"phase {phase.number}"
        parent = record["parent"]["mask_fingerprint"]
        if not phase.own_parents and not phase.keeps_dense:
            masks = look(number, "parent")
            ledger.note(f"{where}, parent", faults_of(model, masks, setting.goal, phase.sparsity))
            if (masks.fingerprint(), masks.num_kept) != (parent, record["parent"]["num_kept"]):
                ledger.note(f"{where}, parent", "its masks are not those of its record")
        for candidate in record["candidates"] if not phase.keeps_dense else []:
            name = candidate["name"]
            masks = look(number, name)
            ledger.note(f"{where}, {name}", faults_of(model, masks, setting.goal, phase.final_sparsity))
            if masks.fingerprint() != candidate["mask_fingerprint"]:
                ledger.note(f"{where}, {name}", "its masks are not those of its record")
            shared = not phase.own_parents and not phase.events
            if shared and masks.fingerprint() != parent:
                ledger.note(f"{where}, {name}", "its masks are not those of the parent")
            before = masks_of.get((number - 1, name if phase.own_parents else "soup"))
            if before is not None and not masks.is_within(before):
                ledger.note(f"{where}, {name}", "its masks do not lie within those of the phase before")
        if phase.merge != "none" and not phase.keeps_dense:
            check_soup(phase, record, look(number, "soup"), masks_of, ledger, setting, model)
    check_final(root, trainer, masks_of[plan[-1].number, "soup"], ledger)


def check_soup(phase, record, masks, masks_of, ledger, setting, model):
    where = f"phase {phase.number}, soup"
    candidates = [masks_of[phase.number, c["name"]] for c in record["candidates"]]
    if phase.merge == "soup":
        ledger.note(where, "" if masks.fingerprint() == candidates[0].fingerprint() else "its masks are others")
    else:
        chosen = [masks_of[phase.number, name] for name in record["soup"]["ingredients"]]
        union = Masks({name: torch.stack([m[name] for m in chosen]).any(0) for name in masks})
        ledger.note(where, "" if masks.is_within(union) else "it holds weights that no candidate holds")
        if phase.merge == "average" and masks.fingerprint() != union.fingerprint():
            ledger.note(where, "its masks are not the union")
    if phase.merge != "average":
        ledger.note(where, faults_of(model, masks, setting.goal, phase.final_sparsity))
    if record["soup"]["sparsity"] != masks.sparsity():
        ledger.note(where, f"the report says {record['soup']['sparsity']}, its masks {masks.sparsity()}")


def check_final(root, trainer, soup, ledger):
    masks = Masks.load(root / "masks.safetensors")
    told = {
        "the last soup": soup.fingerprint(),
        "the trainer": trainer.masks.fingerprint(),
        "sparse_soup.json": json.loads((root / "sparse_soup.json").read_text("utf-8"))["mask_fingerprint"],
        "final.json": json.loads((root / "_run" / "final.json").read_text("utf-8"))["mask_fingerprint"],
    }
    for who, fingerprint in told.items():
        ledger.note("final", "" if fingerprint == masks.fingerprint() else f"masks.safetensors is not that of {who}")
    ledger.note("final, in memory", revived(names_of(trainer.model), masks))
    model = type(trainer.model).from_pretrained(root)  # Under the names of the final file, which may be others.
    ledger.note("final, read back", revived(names_of(model), masks))
    for name, weight in names_of(model).items():
        ledger.note("final, read back", "" if torch.equal(weight, names_of(trainer.model)[name]) else f"{name} differs")


@pytest.mark.parametrize("method", METHODS)
def test_masks_hold_in_every_run(method):
    @examples(1 if METHODS[method].averages and method != "sms" else 2)
    @given(setting=runs([method], list(METHODS).index(method)))
    def check(setting):
        check_run(setting)

    check()


@pytest.mark.long
@examples(400)
@given(setting=runs(list(METHODS), many=True))
def test_masks_hold_in_very_many_runs(setting):
    check_run(setting)


# ---- Resuming --------------------------------------------------------------------------------------------------------


class Interruption(BaseException):
    """The power goes."""


class Interrupts(TrainerCallback):
    """Ends the process after a step of one candidate, once."""

    after: ClassVar[tuple[str, int] | None] = None

    def on_step_end(self, args, state, control, **kwargs):
        if Interrupts.after == ("/".join(Path(args.output_dir).parts[-2:]), state.global_step):
            Interrupts.after = None
            raise Interruption


def places(setting):
    """(folder of a candidate, its steps), of every candidate that has more than one step."""
    with tempfile.TemporaryDirectory() as folder:
        args = setting.arguments(folder)
        plan = args.make_plan()
    found = [
        (f"phase-{p.number}/{c.name}", c.overrides.get("max_steps", args.max_steps)) for p in plan for c in p.candidates
    ]
    return [(where, steps) for where, steps in found if steps > 1]


def check_resume(setting, where, step):
    """A run that ends in a candidate's `step`, and goes on from the one before, against one that nothing disturbs."""
    with tempfile.TemporaryDirectory() as base:
        whole, parts = Path(base, "whole"), Path(base, "parts")
        trainer_of(setting, whole).train()
        Interrupts.after = (where, step)
        with pytest.raises(Interruption):
            trainer_of(setting, parts, callbacks=[Interrupts()]).train()
        resumed = trainer_of(setting, parts)
        resumed.train(resume_from_checkpoint=True)
        assert resumed.ledger.steps[where][0] == step, f"it did not go on from step {step - 1}: {setting}"
        faults = resumed.ledger.faults
        assert not faults, "\n  ".join([f"{len(faults)} faults of {setting}:", *faults[:5]])
        files = sorted(path.relative_to(whole) for path in whole.rglob("*.safetensors"))
        assert files == sorted(path.relative_to(parts) for path in parts.rglob("*.safetensors"))
        other = [f"{file}" for file in files if (whole / file).read_bytes() != (parts / file).read_bytes()]
        assert not other, f"{where}, resumed after step {step - 1}, differs in {other} with {setting}"


def resumable(setting, optimizer, **options):
    """The setting with a checkpoint after every step."""
    # Adafactor of bf16 weights: the test below.
    sizes = replace(setting.sizes, bf16=setting.sizes.bf16 and optimizer != "adafactor")
    saving = {"save_strategy": "steps", "save_steps": 1}
    return replace(setting, optimizer=optimizer, sizes=sizes, options={**setting.options, **saving, **options})


RESUMED = {
    "sms": ("phase-1/candidate-1", {"num_phases": 1, "max_steps": 3}),
    "gmp": ("phase-1/candidate-1", {"num_phases": 1, "max_steps": 6}),
    "dpf": ("phase-1/candidate-1", {"num_phases": 1, "max_steps": 6}),
    "imp-reprune": ("phase-2/candidate-2", {"num_phases": 2, "max_steps": 2}),
    "bimp-sms": ("phase-2/candidate-1", {"num_phases": 1, "max_steps": 6}),
    "dpf-sms": ("phase-2/candidate-2", {"num_phases": 2, "max_steps": 3, "pruning_interval": None}),
    "imp": ("phase-1/candidate-1", {"num_phases": 1, "max_steps": 3}),
}
"""Methods that share masks, change them, bring weights back, keep candidates apart, train before they prune, hand on dense
weights; one for each optimizer."""


@pytest.mark.parametrize(("optimizer", "method"), [*zip(OPTIMIZERS, RESUMED, strict=True)])
def test_a_resumed_candidate_is_the_uninterrupted_one_bit_for_bit(optimizer, method):
    where, options = RESUMED[method]

    @examples(1)
    @given(setting=runs([method], list(RESUMED).index(method)))
    def check(setting):
        setting = resumable(setting, optimizer, **options)
        check_resume(setting, where, dict(places(setting))[where])

    check()


def test_adafactor_of_bf16_weights_resumes_bit_for_bit():
    options = {"num_phases": 1, "num_candidates": 1, "max_steps": 8, "save_strategy": "steps", "save_steps": 1}
    setting = Setting("sms", sizes=Sizes(width=24, bf16=True), optimizer="adafactor", options=options)
    check_resume(setting, "phase-1/candidate-1", 3)


@pytest.mark.long
@examples(150)
@given(
    setting=runs([m for m in METHODS if m != "pruned"], many=True),
    optimizer=st.sampled_from(list(OPTIMIZERS)),
    which=st.integers(0, 10**6),
)
def test_very_many_resumed_candidates_are_the_uninterrupted_ones(setting, optimizer, which):
    setting = resumable(setting, optimizer)
    there = places(setting)
    assume(there)
    where, steps = there[which % len(there)]
    check_resume(setting, where, 2 + which % (steps - 1))


# ---- Tampering -------------------------------------------------------------------------------------------------------

TINY = Setting("sms", options={"num_phases": 1, "num_candidates": 2, "max_steps": 1})


@st.composite
def injuries(draw):
    """(position of the tensor, positions among its pruned weights, value)."""
    places = draw(st.sets(st.integers(0, 10**6), min_size=1, max_size=5))
    return draw(st.integers(0, 10**6)), sorted(places), draw(st.sampled_from([1e-45, -1e-30, 1.0]))


def injure(weight_of, masks, injury):
    """Revive pruned weights in place: what an error must say of them."""
    which, places, value = injury
    name = list(masks)[which % len(masks)]
    pruned = (~masks[name]).nonzero()
    chosen = sorted({place % len(pruned) for place in places})
    for place in chosen:
        weight_of(name)[tuple(pruned[place].tolist())] = value
    first = [tuple(pruned[place].tolist()) for place in chosen[:3]]
    return f"{name!r} must be exactly 0.0, but {len(chosen)} are not, first at {first}"


class Injures(TrainerCallback):
    """Revives pruned weights of one candidate after its last step, before it is saved."""

    injury: ClassVar = None
    expected: ClassVar[str] = ""

    @torch.no_grad()
    def on_train_end(self, args, state, control, model=None, **kwargs):
        if args.output_dir.endswith("candidate-2"):
            masks = Masks.load(Path(args.output_dir).parent / "parent" / "masks.safetensors")
            Injures.expected = injure(model.get_parameter, masks, Injures.injury)


@examples(3)
@given(injury=injuries())
def test_weights_revived_in_memory_are_an_error_that_names_them(injury):
    Injures.injury = injury
    with tempfile.TemporaryDirectory() as folder:
        with pytest.raises(MaskError) as raised:
            trainer_of(TINY, folder, callbacks=[Injures()]).train()
        assert Injures.expected in str(raised.value)
        assert not Path(folder, "model.safetensors").exists(), "there must be no final model"


def tampered_run(setting, tamper, says):
    """Somebody changes files of a candidate after it was scored, before it is averaged."""

    def tampered(bench, phase, folder, records):
        tamper(folder.root)
        return merge(bench, phase, folder, records)

    with tempfile.TemporaryDirectory() as folder:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sms_hf.training.run.soup_run.merge", tampered)
            with pytest.raises(MaskError) as raised:
                trainer_of(setting, folder).train()
        assert says() in str(raised.value)
        assert not Path(folder, "model.safetensors").exists(), "there must be no final model"


@examples(3)
@given(injury=injuries(), method=st.sampled_from(["greedy", "uniform"]), which=st.sampled_from([2, 1]))
def test_weights_revived_in_a_file_are_an_error_that_names_them(injury, method, which):
    expected = []

    def tamper(phase):
        folder = phase / f"candidate-{which}"
        weights = load_file(folder / "model.safetensors")
        expected.append(injure(weights.__getitem__, Masks.load(folder / "masks.safetensors"), injury))
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    tampered_run(replace(TINY, options={**TINY.options, "soup_method": method}), tamper, lambda: expected[0])


def another(masks, how, which):
    """Masks that differ in one weight more, one less, or one for another."""
    changed = {name: mask.clone() for name, mask in masks.items()}
    name = list(masks)[which % len(masks)]
    mask = changed[name].view(-1)
    gone, there = (~masks[name]).view(-1).nonzero(), masks[name].view(-1).nonzero()
    if how in ("one more", "a swap"):
        mask[gone[which % len(gone)]] = True
    if how in ("one less", "a swap"):
        mask[there[which % len(there)]] = False
    return Masks(changed)


@pytest.mark.parametrize("how", ["one more", "one less", "a swap"])
@pytest.mark.parametrize("method", ["uniform", "greedy"])
def test_masks_of_another_candidate_are_an_error(how, method):
    def tamper(phase):
        path = phase / "candidate-1" / "masks.safetensors"
        another(Masks.load(path), how, 7).save(path)

    setting = replace(TINY, options={**TINY.options, "soup_method": method})
    tampered_run(setting, tamper, lambda: "phase-1/candidate-1 must be those with fingerprint")


@pytest.mark.parametrize("count", [1, 2])
def test_masks_that_all_candidates_share_but_not_with_their_parent_are_an_error(count):
    """A denser mask fits the zeros: only the fingerprints in the records tell."""

    def tamper(phase):
        for path in phase.glob("candidate-*/masks.safetensors"):
            another(Masks.load(path), "one more", 7).save(path)

    tampered_run(replace(TINY, options={**TINY.options, "num_candidates": count}), tamper, lambda: "fingerprint")


@examples(10)
@given(injury=injuries())
def test_averaging_folders_says_which_weights_were_revived(injury):
    with tempfile.TemporaryDirectory() as base:
        model = TINY.model()
        masks = Masks({name: w.detach() > 0 for name, w in find_prunable(model).parameters.items()})
        masks.apply_(model)
        for name in ("a", "b"):
            model.save_pretrained(Path(base, name))
            masks.save(Path(base, name, "masks.safetensors"))
        weights = load_file(Path(base, "b", "model.safetensors"))
        expected = injure(weights.__getitem__, masks, injury)
        save_file(weights, Path(base, "b", "model.safetensors"), {"format": "pt"})
        with pytest.raises(MaskError) as raised:
            average_checkpoints([Path(base, "a"), Path(base, "b")], Path(base, "soup"))
        assert expected in str(raised.value)
        assert not Path(base, "soup", "model.safetensors").exists()
