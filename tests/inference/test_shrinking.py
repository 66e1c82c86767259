"""Compact models: the same outputs, fewer weights, and files that know nothing of sms_hf."""

import copy
import subprocess
import sys

import pytest
import torch
import transformers as hf
from torch import nn

from sms_hf import shrink
from sms_hf.inference import plan_shrinking
from sms_hf.sparsity import find_groups, prune

TEXT = {"vocab_size": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SIZES = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
T5 = {
    "vocab_size": 16,
    "d_model": 8,
    "d_kv": 3,
    "d_ff": 16,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}
BART = {
    **TEXT,
    "d_model": 8,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 12,
    "max_position_embeddings": 32,
    "decoder_start_token_id": 0,
    "forced_eos_token_id": None,
}
LLAMA = {**TEXT, **SIZES, "num_key_value_heads": 2, "head_dim": 6, "max_position_embeddings": 32}
BERT = {"vocab_size": 16, "max_position_embeddings": 16, **SIZES}
GPT2 = {
    "n_positions": 32,
    "n_embd": 8,
    "n_layer": 2,
    "n_head": 2,
    "vocab_size": 16,
    "bos_token_id": 0,
    "eos_token_id": 1,
}

ARCHITECTURES = {
    "t5": (lambda: hf.T5ForConditionalGeneration(hf.T5Config(**T5)), {"d_ff": 8}),
    "t5-gated": (
        lambda: hf.T5ForConditionalGeneration(
            hf.T5Config(**T5, num_decoder_layers=1, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
        ),
        {"d_ff": 8},
    ),
    "t5-encoder": (lambda: hf.T5EncoderModel(hf.T5Config(**T5)), {"d_ff": 8}),
    "marian": (lambda: hf.MarianMTModel(hf.MarianConfig(**BART)), {"encoder_ffn_dim": 8, "decoder_ffn_dim": 6}),
    "mbart": (
        lambda: hf.MBartForConditionalGeneration(hf.MBartConfig(**BART)),
        {"encoder_ffn_dim": 8, "decoder_ffn_dim": 6},
    ),
    "m2m100": (
        lambda: hf.M2M100ForConditionalGeneration(hf.M2M100Config(**BART)),
        {"encoder_ffn_dim": 8, "decoder_ffn_dim": 6},
    ),
    "bert": (lambda: hf.BertForSequenceClassification(hf.BertConfig(**BERT)), {"intermediate_size": 8}),
    "distilbert": (
        lambda: hf.DistilBertForMaskedLM(
            hf.DistilBertConfig(vocab_size=16, dim=8, hidden_dim=16, n_layers=2, n_heads=2, max_position_embeddings=16)
        ),
        {"hidden_dim": 8},
    ),
    "gpt2": (lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT2)), {"n_inner": 16}),
    "opt": (
        lambda: hf.OPTForCausalLM(
            hf.OPTConfig(
                **TEXT,
                hidden_size=8,
                word_embed_proj_dim=8,
                ffn_dim=16,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=32,
            )
        ),
        {"ffn_dim": 8},
    ),
    "llama": (lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA)), {"intermediate_size": 8}),
    "vit": (
        lambda: hf.ViTForImageClassification(hf.ViTConfig(image_size=8, patch_size=4, **SIZES)),
        {"intermediate_size": 8},
    ),
}
"""Name -> (model, its sizes without half of the neurons)."""

HALF_A_LLAMA = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 6}
HEADS = {
    "t5": (hf.T5ForConditionalGeneration, hf.T5Config, T5, {"num_heads": 2, "d_kv": 3}),
    "mt5": (hf.MT5ForConditionalGeneration, hf.MT5Config, T5, {"num_heads": 2, "d_kv": 3}),
    "umt5": (hf.UMT5ForConditionalGeneration, hf.UMT5Config, T5, {"num_heads": 2, "d_kv": 3}),
    "llama": (hf.LlamaForCausalLM, hf.LlamaConfig, LLAMA, HALF_A_LLAMA),
    "mistral": (hf.MistralForCausalLM, hf.MistralConfig, LLAMA, HALF_A_LLAMA),
    "qwen2": (hf.Qwen2ForCausalLM, hf.Qwen2Config, LLAMA, HALF_A_LLAMA),
    "qwen3": (hf.Qwen3ForCausalLM, hf.Qwen3Config, LLAMA, HALF_A_LLAMA),
    "gemma": (hf.GemmaForCausalLM, hf.GemmaConfig, LLAMA, HALF_A_LLAMA),
    "gemma2": (hf.Gemma2ForCausalLM, hf.Gemma2Config, LLAMA, HALF_A_LLAMA),
    "vit": (
        hf.ViTForImageClassification,
        hf.ViTConfig,
        {**SIZES, "image_size": 8, "patch_size": 4},
        {"num_attention_heads": 2, "head_dim": 2},
    ),
}
"""Type of model -> (class, configuration, its values, its sizes without half of the heads)."""


def randomise(model):
    """Every parameter random, biases and norms included: a mistake in any of them shows. Float64: differences do, too."""
    generator = torch.Generator().manual_seed(0)
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def build(name):
    torch.manual_seed(0)
    return randomise(ARCHITECTURES[name][0]())


def build_for_heads(model_type):
    cls, config, values, _ = HEADS[model_type]
    torch.manual_seed(0)
    return randomise(cls(config(**values)))


def inputs_of(model):
    if model.main_input_name == "pixel_values":
        return {"pixel_values": torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=model.dtype)}
    tokens = {
        "input_ids": torch.tensor([[3, 4, 5, 6], [7, 8, 9, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]),
    }
    if model.config.is_encoder_decoder and model.can_generate():
        tokens["decoder_input_ids"] = torch.tensor([[0, 5, 6], [0, 7, 8]])
    return tokens


@torch.no_grad()
def outputs(model):
    return model(**inputs_of(model))[0]


def generated(model):
    tokens = torch.tensor([[3, 4, 5, 6]])
    return model.generate(tokens, max_new_tokens=5, min_new_tokens=5, do_sample=False, num_beams=2, pad_token_id=0)


def assert_equal_outputs(small, model):
    torch.testing.assert_close(outputs(small), outputs(model), rtol=1e-10, atol=1e-10)


def reload(model, folder):
    """From disk with the stock class, and nothing missing, left over or of another size."""
    model.save_pretrained(folder)
    loaded, info = type(model).from_pretrained(folder, dtype=model.dtype, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return loaded


@torch.no_grad()
def kill(model, kind, units):
    """Set all members of these units to zero. `units`: part of a layer's name -> units."""
    for group in find_groups(model, kind):
        for part, gone in units.items():
            if part in group.layer:
                alive = torch.ones(group.units, dtype=torch.bool)
                alive[gone] = False
                for member in group.members:
                    parameter = model.get_parameter(member.parameter)
                    parameter *= group.spread(member, parameter.shape, alive)
    return model


def change_of(model, field):
    return next(change for change in plan_shrinking(model).changes if change.field == field)


# --- neurons ---


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_half_of_the_neurons(name, tmp_path):
    model = build(name)
    prune(model, 0.5, scope="uniform", pattern="neurons")
    before, config = copy.deepcopy(model.state_dict()), model.config.to_dict()
    small = shrink(model)
    assert model.config.to_dict() == config
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    sizes = small.config.to_dict()
    expected = ARCHITECTURES[name][1]
    assert {field: sizes[field] for field in expected} == expected
    assert {field for field in sizes if sizes[field] != config[field]} == set(expected)
    assert type(small) is type(model)
    assert_equal_outputs(small, model)
    # Not `model`: tables that no file holds are computed in another precision there.
    assert_equal_outputs(reload(small, tmp_path / "small"), reload(model, tmp_path / "model"))


def test_a_stock_installation_loads_it(tmp_path):
    model = build("t5")
    prune(model, 0.5, scope="uniform", pattern="neurons")
    small = shrink(model)
    small.save_pretrained(tmp_path)
    script = f"""
import sys, torch
from transformers import AutoModelForSeq2SeqLM
model = AutoModelForSeq2SeqLM.from_pretrained({str(tmp_path)!r}, dtype=torch.float64).eval()
tokens = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 0]])
logits = model(tokens, tokens != 0, decoder_input_ids=torch.tensor([[0, 5, 6], [0, 7, 8]])).logits
torch.save(logits.detach(), {str(tmp_path / "logits.pt")!r})
assert not any(name.startswith("sms_hf") for name in sys.modules)
print(model.config.d_ff, model.num_parameters())
"""
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    # Each of the 4 layers had 16 neurons with 8 weights into and 8 out of each, and has 8 of them.
    assert done.stdout.split() == ["8", str(model.num_parameters() - 4 * 8 * 16)]
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), outputs(model), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "removed"),
    [
        ("t5", 4 * 8 * (8 + 8)),
        ("t5-gated", 3 * 8 * (8 + 8 + 8)),
        ("marian", 2 * 8 * (8 + 1 + 8) + 2 * 6 * (8 + 1 + 8)),
        ("bert", 2 * 8 * (8 + 1 + 8)),
        ("gpt2", 2 * 16 * (8 + 1 + 8)),
        ("llama", 2 * 8 * (8 + 8 + 8)),
    ],
)
def test_numbers_of_parameters(name, removed):
    model = build(name)
    prune(model, 0.5, scope="uniform", pattern="neurons")
    before = model.num_parameters()
    assert plan_shrinking(model).num_parameters == (before, before - removed)
    assert shrink(model).num_parameters() == before - removed


@pytest.mark.parametrize("name", ["t5", "t5-gated", "marian", "gpt2", "llama"])
def test_generation(name):
    model = build(name)
    model.generation_config.repetition_penalty = 1.3
    prune(model, 0.5, scope="uniform", pattern="neurons")
    small = shrink(model)
    assert small.generation_config.to_dict() == model.generation_config.to_dict()
    assert small.generation_config is not model.generation_config
    assert torch.equal(generated(small), generated(model))


def test_layers_of_unequal_counts_lose_as_many_as_each_can_spare():
    model = kill(
        build("t5"), "neurons", {"encoder.block.0": [1, 3, 5], "encoder.block.1": [0, 15], "decoder": range(8)}
    )
    change = change_of(model, "d_ff")
    assert (change.units, change.kept) == (16, 14)
    assert list(change.dead.values()) == [3, 2, 8, 8]
    assert change.reason == "encoder.block.1.layer.1.DenseReluDense has 2 dead, and d_ff holds for all"
    small = shrink(model)
    kept = [n for n in range(16) if n not in (1, 3)]
    wi = "encoder.block.0.layer.1.DenseReluDense.wi.weight"
    assert torch.equal(small.get_parameter(wi), model.get_parameter(wi)[kept])
    assert small.encoder.block[0].layer[1].DenseReluDense.wi.out_features == 14
    assert_equal_outputs(small, model)


def test_encoder_and_decoder_of_a_marian_have_sizes_of_their_own():
    model = kill(build("marian"), "neurons", {"decoder": [0, 1]})
    small = shrink(model)
    assert (small.config.encoder_ffn_dim, small.config.decoder_ffn_dim) == (16, 10)
    assert_equal_outputs(small, model)


def test_a_layer_keeps_a_neuron():
    model = kill(build("bert"), "neurons", {"": range(16)})
    assert change_of(model, "intermediate_size").reason == "a layer keeps at least one"
    small = shrink(model)
    assert small.config.intermediate_size == 1
    assert_equal_outputs(small, model)


@pytest.mark.parametrize(
    ("name", "leaves", "alive"),
    [
        ("t5", ["wo.weight"], 15),
        ("t5", ["wi.weight"], 15),
        ("t5-gated", ["wi_0.weight"], 15),
        ("t5-gated", ["wi_1.weight"], 15),
        ("llama", ["gate_proj.weight"], 15),
        ("llama", ["up_proj.weight"], 15),
        ("bert", ["intermediate.dense.weight"], 16),  # Its bias makes it a constant.
        ("bert", ["intermediate.dense.weight", "intermediate.dense.bias"], 15),
    ],
)
def test_what_makes_a_neuron_dead(name, leaves, alive):
    model = build(name)
    with torch.no_grad():
        for group in find_groups(model, "neurons"):
            for member in group.members:
                if member.parameter.endswith(tuple(leaves)):
                    model.get_parameter(member.parameter).movedim(member.dim, 0)[5] = 0
    assert next(c.kept for c in plan_shrinking(model).changes if c.kind == "neurons") == alive
    if alive == 15:
        assert_equal_outputs(shrink(model), model)


@pytest.mark.parametrize(("activation", "alive"), [("sigmoid", 16), ("silu", 15), ("tanh", 15)])
def test_a_neuron_without_inputs_counts_if_its_activation_maps_zero_to_zero(activation, alive):
    model = randomise(hf.BertModel(hf.BertConfig(**BERT, hidden_act=activation)))
    with torch.no_grad():
        for layer in model.encoder.layer:
            layer.intermediate.dense.weight[3] = 0
            layer.intermediate.dense.bias[3] = 0
    assert change_of(model, "intermediate_size").kept == alive


def test_a_gate_that_is_open_without_inputs_is_alive():
    model = randomise(hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA, hidden_act="sigmoid")))
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.gate_proj.weight[3] = 0
    assert change_of(model, "intermediate_size").kept == 16
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.up_proj.weight[3] = 0
    assert change_of(model, "intermediate_size").kept == 15
    assert_equal_outputs(shrink(model), model)


# --- heads ---


@pytest.mark.parametrize("model_type", HEADS)
def test_half_of_the_heads(model_type, tmp_path):
    model = build_for_heads(model_type)
    expected = HEADS[model_type][3]
    kill(model, "heads", {"": [1] if "num_key_value_heads" in expected else [0, 2]})
    small = shrink(model)
    sizes = small.config.to_dict()
    assert {field: sizes[field] for field in expected} == expected
    assert_equal_outputs(small, model)
    # Not `model`: tables that no file holds are computed in another precision there.
    assert_equal_outputs(reload(small, tmp_path / "small"), reload(model, tmp_path / "model"))
    if model.can_generate():
        assert torch.equal(generated(small), generated(model))


def test_the_position_bias_of_a_t5_loses_the_same_heads():
    """Cross-attention has no position bias, and may lose others."""
    model = build("t5")
    units = {"encoder.block.0": [0, 1], "encoder.block.1": [1, 2], "decoder.block.0.layer.0": [3]}
    units |= {"decoder.block.1.layer.0": [2, 3], "decoder.block.0.layer.1": [0], "decoder.block.1.layer.1": [1]}
    kill(model, "heads", units)
    change = change_of(model, "num_heads")
    assert (change.units, change.kept) == (4, 3)
    assert "1 are dead in all the layers that share one position bias, such as encoder.block.0" in change.reason
    small = shrink(model)
    bias = "{}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    for stack, kept in (("encoder", [0, 2, 3]), ("decoder", [0, 1, 2])):
        before = model.get_parameter(bias.format(stack))
        assert torch.equal(small.get_parameter(bias.format(stack)), before[:, kept])
    cross = "decoder.block.1.layer.1.EncDecAttention.k.weight"
    assert torch.equal(small.get_parameter(cross), model.get_parameter(cross)[[0, 1, 2, 6, 7, 8, 9, 10, 11]])
    assert_equal_outputs(small, model)


def test_heads_of_a_t5_stay_where_no_one_is_dead_in_all_layers_of_a_stack():
    model = kill(build("t5"), "heads", {"block.0": [0], "block.1": [1]})
    change = change_of(model, "num_heads")
    assert change.kept == 4
    assert "0 are dead in all the layers that share one position bias" in change.reason
    with pytest.raises(ValueError, match="0 are dead in all the layers"):
        shrink(model)


def test_every_layer_of_a_umt5_has_a_position_bias():
    model = kill(build_for_heads("umt5"), "heads", {"block.0": [0], "block.1": [1]})
    small = shrink(model)
    assert small.config.num_heads == 3
    assert_equal_outputs(small, model)


def test_neurons_and_heads_at_once():
    model = build("llama")
    prune(model, 0.5, scope="uniform", pattern="neurons")
    prune(model, 0.5, scope="uniform", pattern="heads")
    small = shrink(model)
    # A layer loses 8 neurons of 8 + 8 + 8 weights, and of its 8 x 6 x (4 + 2 + 2 + 4) weights of attention half.
    assert small.num_parameters() == model.num_parameters() - 2 * (8 * 24 + 288)
    assert small.model.layers[0].self_attn.num_key_value_groups == 2
    assert_equal_outputs(small, model)


def test_a_head_without_values_is_dead():
    model = build_for_heads("qwen2")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.v_proj.weight[:6] = 0
    assert change_of(model, "num_attention_heads").kept == 2  # The bias is a value, too.
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.v_proj.bias[:6] = 0
    assert change_of(model, "num_attention_heads").kept == 1
    assert_equal_outputs(shrink(model), model)


def test_values_of_a_gpt2_are_the_last_part_of_its_fused_map():
    model = build("gpt2")
    with torch.no_grad():
        for block in model.transformer.h:
            block.attn.c_attn.weight[:, :4] = 0
            block.attn.c_attn.bias[:4] = 0
    assert list(change_of(model, "n_head").dead.values()) == [0, 0]
    with torch.no_grad():
        for block in model.transformer.h:
            block.attn.c_attn.weight[:, 20:] = 0
            block.attn.c_attn.bias[20:] = 0
    assert list(change_of(model, "n_head").dead.values()) == [1, 1]


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("bert", ["num_attention_heads"]),
        ("gpt2", ["n_head"]),
        ("marian", ["encoder_attention_heads", "decoder_attention_heads"]),
    ],
)
def test_heads_stay_where_the_configuration_does_not_hold_their_size(name, fields):
    model = build(name)
    prune(model, 0.5, scope="uniform", pattern="heads")
    changes = {c.field: c for c in plan_shrinking(model).changes if c.kind == "heads"}
    assert list(changes) == fields
    for change in changes.values():
        assert change.kept == change.units
        assert set(change.dead.values()) == {change.units // 2}
        assert f"a stock {name} cannot have fewer heads of the same size" in change.reason
    with pytest.raises(ValueError, match="cannot have fewer heads of the same size"):
        shrink(model)
    prune(model, 0.5, scope="uniform", pattern="neurons")
    assert_equal_outputs(shrink(model), model)


def test_as_many_heads_go_as_a_valid_configuration_allows():
    """4 of 8 heads: the hidden size is no multiple of 5."""
    config = hf.LlamaConfig(**LLAMA | {"num_attention_heads": 8, "num_key_value_heads": 8})
    model = kill(randomise(hf.LlamaForCausalLM(config)), "heads", {"": [0, 4, 6]})
    with pytest.raises(ValueError, match=r"hidden size \(8\) is not a multiple of the number of attention heads \(5\)"):
        shrink(model)
    kill(model, "heads", {"": [1, 5]})
    small = shrink(model)
    assert small.config.num_attention_heads == small.config.num_key_value_heads == 4
    assert_equal_outputs(small, model)


# --- what stays the same ---


def test_ties_training_mode_dtype_and_frozen_weights():
    model = kill(build("t5").to(torch.bfloat16).train(), "neurons", {"": [2]})
    model.encoder.requires_grad_(False)
    random_state = torch.get_rng_state()
    small = shrink(model)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert small.training
    assert {p.dtype for p in small.parameters()} == {torch.bfloat16}
    assert small.lm_head.weight is small.shared.weight is small.encoder.embed_tokens.weight
    assert [p.requires_grad for p in small.parameters()] == [p.requires_grad for p in model.parameters()]
    assert small.config._attn_implementation == model.config._attn_implementation
    storage = {p.data_ptr() for p in model.parameters()}
    assert not any(p.data_ptr() in storage for p in small.parameters())


def test_weights_in_another_precision_keep_it():
    model = kill(build("t5").to(torch.float32), "neurons", {"": [2]})
    model.encoder.block[0].layer[1].DenseReluDense.wo.to(torch.float64)
    assert shrink(model).encoder.block[0].layer[1].DenseReluDense.wo.weight.dtype == torch.float64


def test_an_embedding_that_grew():
    model = kill(build("t5"), "neurons", {"": [2]})
    model.resize_token_embeddings(20, mean_resizing=False)
    small = shrink(model)
    assert small.config.vocab_size == 20
    assert_equal_outputs(small, model)


def test_a_compact_model_can_be_trained_pruned_and_compacted_again():
    model = build("t5")
    for d_ff in (8, 4):
        prune(model, 0.5, scope="uniform", pattern="neurons")
        model = shrink(model)
        assert model.config.d_ff == d_ff
        loss = model(input_ids=torch.tensor([[3, 4]]), labels=torch.tensor([[5, 1]])).loss
        loss.backward()
        assert all(p.grad is not None for p in model.parameters())


# --- errors and reasons ---


def test_nothing_to_remove_is_an_error_that_says_what_to_do():
    message = (
        r"Expected neurons or heads that T5ForConditionalGeneration can lose, found none:\n"
        r"d_ff: 16 -> 16 neurons in each of 4 layers\n"
        r"num_heads: 4 -> 4 heads in each of 6 layers\n"
        r"Prune whole units, as many in every layer: pruning_pattern='neurons' and pruning_scope='uniform'\."
    )
    with pytest.raises(ValueError, match=message):
        shrink(build("t5"))


def test_one_dense_layer_holds_all_others():
    model = kill(build("bert"), "neurons", {"layer.1": [0, 1]})
    with pytest.raises(ValueError, match=r"bert.encoder.layer.0 has 0 dead, and intermediate_size holds for all"):
        shrink(model)


def test_other_objects_are_an_error():
    with pytest.raises(ValueError, match="needs a PreTrainedModel of transformers, got Linear"):
        shrink(nn.Linear(2, 2))


def test_a_model_without_units_is_an_error():
    config = hf.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic")
    with pytest.raises(ValueError, match="Expected feed-forward layers or attention heads in ResNetModel, found none"):
        plan_shrinking(hf.ResNetModel(config))


def test_sizes_that_are_no_single_number_stay():
    config = hf.SegformerConfig(
        num_encoder_blocks=1, depths=[1], sr_ratios=[1], hidden_sizes=[8], patch_sizes=[3], strides=[2],
        num_attention_heads=[2], mlp_ratios=[2], decoder_hidden_size=8,
    )  # fmt: skip
    model = hf.SegformerForSemanticSegmentation(config)
    prune(model, 0.5, scope="uniform", pattern="neurons")
    with pytest.raises(ValueError, match="SegformerConfig has no number in any of encoder_ffn_dim, "):
        shrink(model)


def test_a_model_that_no_stock_class_has_stays():
    model = build("t5")
    model.extra = nn.Linear(2, 2)
    kill(model, "neurons", {"": [0]})
    message = r"extra.weight would be \(2, 2\), but in a stock T5ForConditionalGeneration it is nothing"
    with pytest.raises(ValueError, match=message):
        shrink(model)


def test_tied_layers_stay():
    model = build("bert")
    first, second = model.bert.encoder.layer
    kill(model, "neurons", {"": [0]})
    second.intermediate.dense.weight = first.intermediate.dense.weight
    with pytest.raises(ValueError, match=r"layer.0.intermediate.dense.weight is tied to another parameter"):
        shrink(model)


def test_the_report():
    model = build("bert")
    prune(model, 0.5, scope="uniform", pattern="neurons")
    before = model.num_parameters()
    assert str(plan_shrinking(model)).splitlines() == [
        f"{before:,} -> {before - 272:,} parameters",
        "intermediate_size: 16 -> 8 neurons in each of 2 layers",
        "num_attention_heads: 4 -> 4 heads in each of 2 layers",
    ]
