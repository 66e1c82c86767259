"""TRL, PEFT, sentence-transformers and Weights & Biases as people use them: the real packages, small models."""

import copy
import glob
import re
import sys
from pathlib import Path
from types import ModuleType

import datasets
import peft
import pytest
import torch
import trl
from conftest import QUICK, collate, reversal, tiny_t5
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    T5ForConditionalGeneration,
    Trainer,
    TrainerCallback,
)

import sms_hf
from sms_hf import MaskedTrainerMixin, Masks, SparseSoupArguments, SparseSoupMixin, find_prunable, prune
from sms_hf.demo import demo_language_model, demo_sentences, demo_word_tokenizer
from sms_hf.training import merge_lora
from sms_hf.training.masked.adapters import add_adapters, lora_layers, masked_delta

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    # What TRL and PEFT ask for under the older of two names.
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing.* is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
    pytest.mark.filterwarnings("ignore::UserWarning:trl"),
]

GUIDE = (Path(__file__).parents[2] / "docs" / "guides" / "lora.md").read_text(encoding="utf-8")
CLASSES = next(block for block in re.findall(r"```python\n(.*?)```", GUIDE, flags=re.S) if "SFTTrainer" in block)
ONE_PHASE = {k: v for k, v in QUICK.items() if k != "dataloader_pin_memory"} | {
    "target_sparsity": 0.5,
    "pruning_scope": "uniform",
    "num_phases": 1,
    "num_candidates": 2,
    "num_train_epochs": 1,
    "soup_method": "uniform",
    "keep_candidates": True,
    "bf16": False,
    "dataloader_pin_memory": False,
}
LORA = {"r": 2, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]}


@pytest.fixture(scope="module")
def sentences():
    return demo_sentences(24, 4, 4)


@pytest.fixture(scope="module")
def tokenizer(sentences):
    return demo_word_tokenizer(sentences["train"]["text"])


@pytest.fixture
def llama(tokenizer):
    return demo_language_model(tokenizer, "llama")


@pytest.fixture(scope="module")
def soup_sft():
    """The classes of the guide, as they stand there."""
    module = ModuleType("readme")
    sys.modules["readme"] = module  # Trainer pickles its arguments.
    exec(compile(CLASSES, "lora.md", "exec"), vars(module))
    yield vars(module)
    del sys.modules["readme"]


def sft(soup_sft, llama, tokenizer, sentences, output_dir, **changes):
    args = soup_sft["SoupSFTConfig"](output_dir=str(output_dir), max_length=24, **ONE_PHASE)
    data = {"train_dataset": sentences["train"], "eval_dataset": sentences["validation"]}
    return soup_sft["SoupSFT"](model=llama, args=args, processing_class=tokenizer, **data, **changes)


def candidates(folder) -> list[dict[str, torch.Tensor]]:
    return [load_file(path) for path in sorted(glob.glob(f"{folder}/_run/phase-1/candidate-*/model.safetensors"))]


def check_soup(folder) -> None:
    """The soup is the average of its two candidates, in float64, and as sparse as both."""
    soup, (first, second) = load_file(folder / "model.safetensors"), candidates(folder)
    masks = Masks.load(folder / "masks.safetensors")
    for name, tensor in soup.items():
        average = ((first[name].double() + second[name].double()) / 2).float()
        assert torch.equal(tensor, average), name
        if name in masks:
            assert not tensor[~masks[name]].any()
            assert not first[name][~masks[name]].any()
    assert any(not torch.equal(first[name], second[name]) for name in masks), "their seeds differ"


def test_sft(soup_sft, llama, tokenizer, sentences, tmp_path):
    trainer = sft(soup_sft, llama, tokenizer, sentences, tmp_path)
    trainer.train()
    check_soup(tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).num_parameters() == llama.num_parameters()


class SoupDPO(SparseSoupMixin, trl.DPOTrainer):
    pass


class SoupDPOConfig(SparseSoupArguments, trl.DPOConfig):
    pass


def test_dpo(llama, tokenizer, sentences, tmp_path):
    halves = [text.split(" ", 2) for text in sentences["train"]["text"][:8]]
    rows = [{"prompt": f"{a} {b}", "chosen": f" {c}", "rejected": f" {c[::-1]}"} for a, b, c in halves]
    data = datasets.Dataset.from_list(rows)
    args = SoupDPOConfig(output_dir=str(tmp_path), max_length=24, **ONE_PHASE)
    trainer = SoupDPO(
        llama, copy.deepcopy(llama), args, train_dataset=data, eval_dataset=data, processing_class=tokenizer
    )
    trainer.train()
    check_soup(tmp_path)


# ---- LoRA --------------------------------------------------------------------------------------------------------------


def test_lora_matrices_are_not_prunable(llama):
    model = peft.get_peft_model(llama, peft.LoraConfig(**LORA))
    with pytest.raises(ValueError, match="are frozen"):
        find_prunable(model)
    prunable = find_prunable(model.requires_grad_(True))
    assert prunable.parameters
    assert not any("lora" in name for name in prunable.parameters)


def one_layer() -> tuple[nn.Module, Masks]:
    """A base of `[[1, 0], [3, 4]]`, of which the zero is pruned."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    model[0].weight.data = torch.tensor([[1.0, 0.0], [3.0, 4.0]])
    return model, Masks({"0.weight": torch.tensor([[True, False], [True, True]])})


def adapted(a: list[float], b: list[float]) -> tuple[nn.Module, Masks]:
    base, masks = one_layer()
    model = add_adapters(base, peft.LoraConfig(r=1, lora_alpha=2, target_modules=["0"]), masks, seed=0)
    ((_, layer),) = lora_layers(model)
    layer.lora_A["default"].weight.data = torch.tensor([a])
    layer.lora_B["default"].weight.data = torch.tensor([[b[0]], [b[1]]])
    return model, masks


def test_merging_by_hand():
    """`s = 2`, `B A = [[1], [2]] [[5, 7]] = [[5, 7], [10, 14]]`; the pruned place stays zero."""
    model, masks = adapted([5.0, 7.0], [1.0, 2.0])
    x = torch.tensor([[1.0, 10.0]])
    # [1 + 10, 0] and [3 + 20, 4 + 28], times x.
    assert model(x).tolist() == [[11.0, 343.0]]
    base = merge_lora(model, masks)
    assert base[0].weight.tolist() == [[11.0, 0.0], [23.0, 32.0]]
    assert base(x).tolist() == [[11.0, 343.0]], "what was trained is what was merged"


def test_the_average_is_of_products_and_not_of_factors():
    """`B1 A1 = [[1, 1], [0, 0]]`, `B2 A2 = [[0, 0], [2, 2]]`: half of each, not the product of halves."""
    merged = [merge_lora(*adapted(a, b))[0].weight for a, b in (([1.0, 1.0], [1.0, 0.0]), ([2.0, 2.0], [0.0, 1.0]))]
    products = (merged[0] + merged[1]) / 2 - torch.tensor([[1.0, 0.0], [3.0, 4.0]])
    assert products.tolist() == [[1.0, 0.0], [2.0, 2.0]], "s = 2, and the pruned place"
    factors, masks = adapted([1.5, 1.5], [0.5, 0.5])
    assert (merge_lora(factors, masks)[0].weight - torch.tensor([[1.0, 0.0], [3.0, 4.0]])).tolist() == [
        [1.5, 0.0],
        [1.5, 1.5],
    ]


def test_gradients_do_not_see_what_is_pruned():
    model, masks = adapted([5.0, 7.0], [1.0, 2.0])
    ((_, layer),) = lora_layers(model)
    model(torch.tensor([[0.0, 1.0]]))[0, 0].backward()
    assert not layer.lora_B["default"].weight.grad.any(), "the only weight on this way is pruned"
    assert masked_delta(layer, masks["0.weight"])[0, 1] == 0


def test_conv1d_of_gpt2_holds_its_weights_the_other_way_round():
    torch.manual_seed(0)
    tokens = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    base = GPT2LMHeadModel(GPT2Config(vocab_size=16, n_embd=8, n_layer=1, n_head=2, n_positions=8, **tokens)).eval()
    masks = prune(base, 0.5, scope="uniform")
    config = peft.LoraConfig(r=2, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)
    model = add_adapters(base, config, masks, seed=0).eval()
    for _, layer in lora_layers(model):
        nn.init.normal_(layer.lora_B["default"].weight)
    ids = torch.arange(6)[None]
    with torch.no_grad():
        before = model(input_ids=ids).logits
        after = merge_lora(model, masks)(input_ids=ids).logits
    assert torch.allclose(before, after, atol=1e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_candidates_of_a_t5_are_adapters_on_one_base(make_args, tmp_path, dropout):
    """All candidates differ from their parent by a masked product of rank 2, where LoRA was asked for, and nowhere else."""
    config = peft.LoraConfig(r=2, target_modules=["q", "wo"], lora_dropout=dropout)
    settings = {k: v for k, v in ONE_PHASE.items() if k not in QUICK} | {"learning_rate": 0.05, "keep_candidates": True}
    model = peft.get_peft_model(tiny_t5(), config)
    trainer = sms_hf.SparseSoupTrainer(
        model=model,
        args=make_args(**settings),
        train_dataset=reversal(24),
        eval_dataset=reversal(10, seed=1),
        data_collator=collate,
    )
    assert isinstance(trainer.model, T5ForConditionalGeneration)
    base = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.train()
    folder = tmp_path / "run"
    check_soup(folder)
    masks = Masks.load(folder / "masks.safetensors")
    for state in candidates(folder):
        for name, tensor in state.items():
            parent = base[name] * masks[name] if name in masks else base[name]
            change = tensor - parent
            assert not change[~masks[name]].any() if name in masks else not change.any()
            if name.rpartition(".")[0].rpartition(".")[2] not in ("q", "wo"):
                assert not change.any(), name
            else:
                assert change.any(), name
    assert not any("lora" in name for name in load_file(folder / "model.safetensors"))


class Kill(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 5 and args.output_dir.endswith("candidate-2"):
            raise KeyboardInterrupt


def test_a_killed_run_with_adapters_ends_with_the_same_bytes(make_args, tmp_path):
    def run(name, resume=False, callbacks=None):
        config = peft.LoraConfig(r=2, target_modules=["q", "wo"])
        settings = {"output_dir": str(tmp_path / name), "num_phases": 2, "save_strategy": "steps", "save_steps": 2}
        trainer = sms_hf.SparseSoupTrainer(
            model=peft.get_peft_model(tiny_t5(), config),
            args=make_args(**settings),
            train_dataset=reversal(24),
            eval_dataset=reversal(10, seed=1),
            data_collator=collate,
            callbacks=callbacks,
        )
        trainer.train(resume_from_checkpoint=resume)

    run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("cut", callbacks=[Kill()])
    checkpoint = tmp_path / "cut/_run/phase-1/candidate-2/checkpoint-4"
    assert (checkpoint / "adapter_model.safetensors").is_file()
    run("cut", resume=True)
    whole, cut = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_sft_with_a_peft_config(soup_sft, llama, tokenizer, sentences, tmp_path):
    config = peft.LoraConfig(task_type="CAUSAL_LM", **LORA)
    trainer = sft(soup_sft, llama, tokenizer, sentences, tmp_path, peft_config=config)
    trainer.train()
    check_soup(tmp_path)
    assert not any("lora" in name for name in load_file(tmp_path / "model.safetensors"))


def test_the_masked_mixin_holds_the_zeros_of_a_base(tmp_path):
    class Masked(MaskedTrainerMixin, Trainer):
        pass

    base = tiny_t5()
    masks = prune(base, 0.5)
    model = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q", "wo"]))
    args = sms_hf.SparseSoupTrainingArguments(str(tmp_path), num_train_epochs=1, **QUICK)
    trainer = Masked(model, args, train_dataset=reversal(8), data_collator=collate)
    assert not trainer.model_accepts_loss_kwargs, "the base is a T5"
    trainer.masks = masks
    trainer.train()
    merged = merge_lora(trainer.model, masks)
    masks.check(merged)
    assert isinstance(merged, T5ForConditionalGeneration)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (peft.IA3Config(target_modules=["q"], feedforward_modules=[]), "need LoRA, got IA3"),
        (peft.LoraConfig(target_modules=["q"], use_dora=True), "need no use_dora, got it"),
        (peft.LoraConfig(target_modules=["q"], bias="all"), "need bias='none', got all"),
        (
            peft.LoraConfig(target_modules=["q"], modules_to_save=["lm_head"]),
            r"need no modules_to_save, got \['lm_head'\]",
        ),
        (peft.LoraConfig(target_modules=["q"], init_lora_weights="pissa"), "need init_lora_weights of .*, got pissa"),
        (peft.LoraConfig(target_modules=["q"], init_lora_weights=False), "init_lora_weights|whose product is not zero"),
    ],
    ids=["IA3", "DoRA", "bias", "modules_to_save", "pissa", "random B"],
)
def test_adapters_that_cannot_be_merged_with_the_zeros_are_refused(make_trainer, config, words):
    with pytest.raises(ValueError, match=words):
        make_trainer(model=peft.get_peft_model(tiny_t5(), config))


@pytest.mark.parametrize("changes", [{"pruning_method": "gmp"}, {"pruning_method": "dpf-sms"}])
def test_methods_whose_masks_move_are_refused_with_adapters(make_trainer, changes):
    with pytest.raises(ValueError, match="Adapters need a base and masks that stay as they are"):
        make_trainer(changes, model=peft.get_peft_model(tiny_t5(), peft.LoraConfig(target_modules=["q"])))


@pytest.mark.parametrize("changes", [{"retrained": "biases-and-norms"}, {"shared_fraction": 0.5}])
def test_adapters_are_all_that_their_candidates_train(make_trainer, changes):
    with pytest.raises(
        ValueError, match=r"expected retrained='all', no shared_fraction and averaging_rounds=1, got .* Leave them out"
    ):
        make_trainer(changes, model=peft.get_peft_model(tiny_t5(), peft.LoraConfig(target_modules=["q"])))


# ---- Others ------------------------------------------------------------------------------------------------------------


def test_sentence_transformers_is_refused_before_anything_runs(tmp_path):
    import sentence_transformers as st
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    class SoupST(SparseSoupMixin, st.SentenceTransformerTrainer):
        pass

    class SoupSTArguments(SparseSoupArguments, st.SentenceTransformerTrainingArguments):
        pass

    words = demo_word_tokenizer(["a b"]).backend_tokenizer
    model = st.SentenceTransformer(modules=[StaticEmbedding(words, embedding_dim=4)])
    rows = datasets.Dataset.from_dict({"anchor": ["a", "b"], "positive": ["b", "a"]})
    args = SoupSTArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    with pytest.raises(
        ValueError, match=r"got .*Trainer, which writes folders of its own form for a SentenceTransformer"
    ):
        SoupST(model=model, args=args, train_dataset=rows, eval_dataset=rows)
