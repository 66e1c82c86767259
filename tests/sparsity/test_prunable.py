"""Which weights of which architecture may be pruned, and the reasons for all others."""

import re

import pytest
import torch
import transformers as hf
from torch import nn

from sms_hf.sparsity import find_prunable

torch.set_num_threads(1)

NO_MATRIX = "no weight of a linear map"
ROUTER = "router of experts (never pruned: it decides which of them compute)"
HEAD = "task head (name it in target_modules to prune it)"
PROTECTED = "one of router, pooler (name it in target_modules to prune it)"
OUTPUT = "output embedding"

TEXT = {"vocab_size": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SIZES = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
DECODER = {**TEXT, **SIZES, "num_key_value_heads": 2, "max_position_embeddings": 16}
T5 = {"vocab_size": 16, "d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2}
BART = {
    **TEXT,
    "d_model": 8,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "max_position_embeddings": 16,
}


def t5():
    return hf.T5ForConditionalGeneration(hf.T5Config(**T5))


def t5_gated_untied():
    """Like a v1.1 checkpoint after `from_pretrained`: gated, with an output matrix of its own."""
    model = hf.T5ForConditionalGeneration(hf.T5Config(**T5, feed_forward_proj="gated-gelu"))
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    return model


def marian():
    return hf.MarianMTModel(hf.MarianConfig(**BART, decoder_start_token_id=0))


def mbart():
    return hf.MBartForConditionalGeneration(hf.MBartConfig(**BART))


def m2m100():
    return hf.M2M100ForConditionalGeneration(hf.M2M100Config(**BART))


def bert_config():
    return hf.BertConfig(vocab_size=16, max_position_embeddings=16, **SIZES)


def bert_mlm():
    return hf.BertForMaskedLM(bert_config())


def bert_classifier():
    return hf.BertForSequenceClassification(bert_config())


def gpt2():
    config = hf.GPT2Config(vocab_size=16, n_positions=16, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=1)
    return hf.GPT2LMHeadModel(config)


def llama():
    return hf.LlamaForCausalLM(hf.LlamaConfig(**DECODER))


def vit():
    return hf.ViTForImageClassification(hf.ViTConfig(image_size=8, patch_size=4, **SIZES))


def resnet():
    config = hf.ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic")
    return hf.ResNetForImageClassification(config)


def mixtral():
    return hf.MixtralForCausalLM(hf.MixtralConfig(**DECODER, num_local_experts=2))


def qwen3_moe():
    config = hf.Qwen3MoeConfig(**DECODER, num_experts=2, num_experts_per_tok=1, moe_intermediate_size=4, head_dim=4)
    return hf.Qwen3MoeForCausalLM(config)


def segformer():
    config = hf.SegformerConfig(
        num_encoder_blocks=1,
        depths=[1],
        sr_ratios=[2],
        hidden_sizes=[8],
        patch_sizes=[3],
        strides=[2],
        num_attention_heads=[2],
        mlp_ratios=[2],
        decoder_hidden_size=8,
    )
    return hf.SegformerForSemanticSegmentation(config)


def switch():
    config = hf.SwitchTransformersConfig(**T5, num_sparse_encoder_layers=1, num_sparse_decoder_layers=1, num_experts=2)
    return hf.SwitchTransformersForConditionalGeneration(config)


T5_ATTENTION = (
    "encoder.block.0.layer.0.SelfAttention.{q,k,v,o}.weight",
    "decoder.block.0.layer.0.SelfAttention.{q,k,v,o}.weight",
    "decoder.block.0.layer.1.EncDecAttention.{q,k,v,o}.weight",
)
BART_LAYERS = (
    "model.encoder.layers.0.self_attn.{k_proj,v_proj,q_proj,out_proj}.weight",
    "model.encoder.layers.0.{fc1,fc2}.weight",
    "model.decoder.layers.0.self_attn.{k_proj,v_proj,q_proj,out_proj}.weight",
    "model.decoder.layers.0.encoder_attn.{k_proj,v_proj,q_proj,out_proj}.weight",
    "model.decoder.layers.0.{fc1,fc2}.weight",
)
BERT_LAYER = (
    "bert.encoder.layer.0.attention.self.{query,key,value}.weight",
    "bert.encoder.layer.0.attention.output.dense.weight",
    "bert.encoder.layer.0.{intermediate,output}.dense.weight",
)
LLAMA_ATTENTION = "model.layers.0.self_attn.{q_proj,k_proj,v_proj,o_proj}.weight"
EXPERTS = "model.layers.0.mlp.experts.{gate_up_proj,down_proj}"

PRUNABLE = {
    t5: (
        *T5_ATTENTION,
        "encoder.block.0.layer.1.DenseReluDense.{wi,wo}.weight",
        "decoder.block.0.layer.2.DenseReluDense.{wi,wo}.weight",
    ),
    t5_gated_untied: (
        *T5_ATTENTION,
        "encoder.block.0.layer.1.DenseReluDense.{wi_0,wi_1,wo}.weight",
        "decoder.block.0.layer.2.DenseReluDense.{wi_0,wi_1,wo}.weight",
    ),
    marian: BART_LAYERS,
    mbart: BART_LAYERS,
    m2m100: BART_LAYERS,
    bert_mlm: BERT_LAYER,
    bert_classifier: BERT_LAYER,
    gpt2: ("transformer.h.0.attn.{c_attn,c_proj}.weight", "transformer.h.0.mlp.{c_fc,c_proj}.weight"),
    llama: (LLAMA_ATTENTION, "model.layers.0.mlp.{gate_proj,up_proj,down_proj}.weight"),
    vit: ("vit.layers.0.attention.{q_proj,k_proj,v_proj,o_proj}.weight", "vit.layers.0.mlp.{fc1,fc2}.weight"),
    mixtral: (LLAMA_ATTENTION, EXPERTS),
    qwen3_moe: (LLAMA_ATTENTION, EXPERTS),
    segformer: (
        "segformer.stages.0.blocks.0.attention.{q_proj,k_proj,v_proj,o_proj}.weight",
        "segformer.stages.0.blocks.0.mlp.{fc1,fc2}.weight",
    ),
    switch: (
        *T5_ATTENTION,
        "encoder.block.0.layer.1.mlp.experts.expert_0.{wi,wo}.weight",
        "encoder.block.0.layer.1.mlp.experts.expert_1.{wi,wo}.weight",
        "decoder.block.0.layer.2.mlp.experts.expert_0.{wi,wo}.weight",
        "decoder.block.0.layer.2.mlp.experts.expert_1.{wi,wo}.weight",
    ),
}

# Every matrix that is left out, with its reason; all else that is skipped is no matrix.
LEFT_OUT = {
    t5: {"lm_head.weight": OUTPUT},
    t5_gated_untied: {"lm_head.weight": OUTPUT},
    marian: {"lm_head.weight": OUTPUT},
    mbart: {"lm_head.weight": OUTPUT},
    m2m100: {"lm_head.weight": OUTPUT},
    bert_mlm: {"cls.predictions.decoder.weight": OUTPUT, "cls.predictions.transform.dense.weight": HEAD},
    bert_classifier: {"bert.pooler.dense.weight": PROTECTED, "classifier.weight": HEAD},
    gpt2: {"lm_head.weight": OUTPUT},
    llama: {"lm_head.weight": OUTPUT},
    vit: {"classifier.weight": HEAD},
    mixtral: {"lm_head.weight": OUTPUT, "model.layers.0.mlp.gate.weight": ROUTER},
    qwen3_moe: {"lm_head.weight": OUTPUT, "model.layers.0.mlp.gate.weight": ROUTER},
    segformer: {"decode_head.linear_projections.0.proj.weight": HEAD},
    switch: {
        "lm_head.weight": OUTPUT,
        "encoder.block.0.layer.1.mlp.router.classifier.weight": PROTECTED,
        "decoder.block.0.layer.2.mlp.router.classifier.weight": PROTECTED,
    },
}


def expand(*patterns):
    """`a.{b,c}.d` -> `a.b.d`, `a.c.d`."""
    names = set()
    for pattern in patterns:
        group = re.search(r"\{(.*)\}", pattern)
        names |= {pattern.replace(group[0], part) for part in group[1].split(",")} if group else {pattern}
    return names


@pytest.mark.parametrize("build", PRUNABLE, ids=lambda build: build.__name__)
def test_exact_set_per_architecture(build):
    model = build()
    prunable = find_prunable(model)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    assert set(prunable.parameters) == expand(*PRUNABLE[build])
    assert {n: reason for n, reason in prunable.skipped.items() if reason != NO_MATRIX} == LEFT_OUT[build]
    assert set(prunable.parameters).isdisjoint(prunable.skipped)
    assert {*prunable.parameters, *prunable.skipped} >= dict(model.named_parameters()).keys()
    for name, parameter in prunable.parameters.items():
        assert parameter is parameters[name]
    assert list(prunable.parameters) == [n for n in parameters if n in prunable.parameters]


@pytest.mark.parametrize("build", PRUNABLE, ids=lambda build: build.__name__)
def test_each_tensor_once_and_none_that_is_tied(build):
    model = build()
    chosen = [id(p) for p in find_prunable(model).parameters.values()]
    every = [id(p) for _, p in model.named_parameters(remove_duplicate=False)]
    assert all(every.count(i) == 1 for i in chosen)


def test_number_of_weights_and_the_printed_list():
    prunable = find_prunable(gpt2())
    assert prunable.num_weights == 8 * 24 + 8 * 8 + 8 * 32 + 32 * 8
    lines = str(prunable).splitlines()
    assert lines[0] == "4 prunable tensors, 768 weights"
    assert "transformer.h.0.attn.c_attn.weight  (8, 24)  prunable" in lines
    assert "lm_head.weight  skipped: output embedding" in lines


@pytest.mark.parametrize(("build", "shape"), [(mixtral, (2, 32, 8)), (qwen3_moe, (2, 8, 8))])
def test_experts_are_one_stacked_parameter_and_the_router_is_none_of_them(build, shape):
    prunable = find_prunable(build())
    assert tuple(prunable.parameters["model.layers.0.mlp.experts.gate_up_proj"].shape) == shape
    assert prunable.skipped["model.layers.0.mlp.gate.weight"] == ROUTER


def test_tables_embeddings_norms_and_biases_are_no_linear_maps():
    skipped = find_prunable(marian()).skipped
    for name in (
        "model.shared.weight",
        "model.encoder.embed_positions.weight",
        "model.encoder.layers.0.fc1.bias",
        "model.encoder.layers.0.final_layer_norm.weight",
    ):
        assert skipped[name] == NO_MATRIX
    t5_skipped = find_prunable(t5()).skipped
    assert t5_skipped["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] == NO_MATRIX


def test_base_model_alone_is_all_body():
    prunable = find_prunable(hf.BertModel(bert_config()))
    assert set(prunable.parameters) == {name.removeprefix("bert.") for name in expand(*BERT_LAYER)}
    assert prunable.skipped["pooler.dense.weight"] == PROTECTED


# --- asking for more or less ---


@pytest.mark.parametrize("notation", [["q", "v"], r".*\.(q|v)"])
def test_target_modules_as_list_or_regular_expression(notation):
    prunable = find_prunable(t5(), notation)
    assert set(prunable.parameters) == {name.replace("{q,k,v,o}", part) for name in T5_ATTENTION for part in "qv"}
    assert prunable.skipped["encoder.block.0.layer.0.SelfAttention.k.weight"] == "not in target_modules"
    assert prunable.skipped["shared.weight"] == NO_MATRIX


def test_all_linear_stands_for_the_default_choice():
    assert list(find_prunable(bert_classifier(), "all-linear").parameters) == list(
        find_prunable(bert_classifier()).parameters
    )


@pytest.mark.parametrize("notation", ["SelfAttention", "q", r"\.q", "encoder"])
def test_a_string_must_match_the_whole_module_name(notation):
    with pytest.raises(ValueError, match="Expected at least one prunable weight in T5ForConditionalGeneration"):
        find_prunable(t5(), notation)


def test_a_list_matches_whole_parts_of_a_name():
    model = nn.ModuleDict({"q": nn.Linear(2, 2), "eq": nn.Linear(2, 2), "deep": nn.ModuleDict({"q": nn.Linear(2, 2)})})
    assert list(find_prunable(model, ["q"]).parameters) == ["q.weight", "deep.q.weight"]
    assert list(find_prunable(model, ["deep.q"]).parameters) == ["deep.q.weight"]
    assert list(find_prunable(model, exclude_modules=["q"]).parameters) == ["eq.weight"]


@pytest.mark.parametrize("notation", [["wi", "wo"], r".*DenseReluDense\..*"])
def test_exclude_modules_in_both_notations(notation):
    prunable = find_prunable(t5(), exclude_modules=notation)
    assert set(prunable.parameters) == expand(*T5_ATTENTION)
    assert prunable.skipped["decoder.block.0.layer.2.DenseReluDense.wo.weight"] == "in exclude_modules"


def test_exclude_modules_wins_over_target_modules():
    prunable = find_prunable(t5(), ["q", "k"], r"decoder\..*")
    assert set(prunable.parameters) == expand("encoder.block.0.layer.0.SelfAttention.{q,k}.weight")


def test_exclude_modules_narrows_all_linear():
    prunable = find_prunable(gpt2(), "all-linear", ["c_proj"])
    assert set(prunable.parameters) == {"transformer.h.0.attn.c_attn.weight", "transformer.h.0.mlp.c_fc.weight"}


def test_heads_routers_and_poolers_on_request():
    assert list(find_prunable(bert_classifier(), ["pooler.dense", "classifier"]).parameters) == [
        "bert.pooler.dense.weight",
        "classifier.weight",
    ]
    assert set(find_prunable(switch(), r".*router.classifier").parameters) == expand(
        "encoder.block.0.layer.1.mlp.router.classifier.weight", "decoder.block.0.layer.2.mlp.router.classifier.weight"
    )


@pytest.mark.parametrize(
    ("build", "name"), [(llama, "lm_head"), (t5_gated_untied, "lm_head"), (t5, "shared"), (mixtral, "gate")]
)
def test_output_embeddings_and_tables_not_even_on_request(build, name):
    with pytest.raises(ValueError, match="Expected at least one prunable weight"):
        find_prunable(build(), [name])


def test_a_convolutional_network_has_nothing_by_default():
    with pytest.raises(ValueError, match="Expected at least one prunable weight") as error:
        find_prunable(resnet())
    assert str(error.value) == (
        "Expected at least one prunable weight in ResNetForImageClassification, found none with target_modules=None, "
        "exclude_modules=None. Its linear maps are ['classifier.1']: name some of them in target_modules."
    )


def test_convolutions_on_request():
    stages = "resnet.encoder.stages"
    expected = [
        "resnet.embedder.embedder.convolution.weight",
        f"{stages}.0.layers.0.layer.0.convolution.weight",
        f"{stages}.0.layers.0.layer.1.convolution.weight",
        f"{stages}.1.layers.0.shortcut.convolution.weight",
        f"{stages}.1.layers.0.layer.0.convolution.weight",
        f"{stages}.1.layers.0.layer.1.convolution.weight",
    ]
    model = resnet()
    assert list(find_prunable(model, ["convolution"]).parameters) == expected
    assert list(find_prunable(model, r"resnet\..*").parameters) == expected
    assert list(find_prunable(model, ["convolution"], r"resnet\.embedder\..*").parameters) == expected[1:]


@pytest.mark.parametrize("convolution", [nn.Conv1d, nn.Conv2d, nn.Conv3d])
def test_convolutions_of_any_dimension_on_request_alone(convolution):
    model = nn.ModuleDict({"conv": convolution(2, 2, 3), "linear": nn.Linear(2, 2)})
    assert list(find_prunable(model).parameters) == ["linear.weight"]
    assert find_prunable(model).skipped["conv.weight"] == NO_MATRIX
    assert list(find_prunable(model, ["conv", "linear"]).parameters) == ["conv.weight", "linear.weight"]


# --- ties, frozen parameters, plain modules ---


def test_frozen_parameters_are_left_out_even_on_request():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].weight.requires_grad_(False)
    for targets in (None, ["0", "1"]):
        prunable = find_prunable(model, targets)
        assert list(prunable.parameters) == ["1.weight"]
        assert prunable.skipped["0.weight"] == "frozen (requires_grad is False)"


def test_a_frozen_encoder_leaves_the_decoder():
    model = t5()
    model.encoder.requires_grad_(False)
    assert {name.split(".")[0] for name in find_prunable(model).parameters} == {"decoder"}


@pytest.mark.parametrize("targets", [None, ["a", "b", "c"]])
def test_tied_weights_are_left_out_under_all_their_names(targets):
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2), "c": nn.Linear(2, 2)})
    model["b"].weight = model["a"].weight
    prunable = find_prunable(model, targets)
    assert list(prunable.parameters) == ["c.weight"]
    assert prunable.skipped["a.weight"] == prunable.skipped["b.weight"] == "tied to another parameter"


def test_a_linear_map_tied_to_an_embedding_is_left_out():
    model = nn.ModuleDict({"embed": nn.Embedding(4, 2), "out": nn.Linear(2, 4), "body": nn.Linear(2, 2)})
    model["out"].weight = model["embed"].weight
    assert list(find_prunable(model).parameters) == ["body.weight"]


def test_a_module_under_two_names_is_left_out():
    shared = nn.Linear(2, 2)
    model = nn.ModuleDict({"first": shared, "second": shared, "other": nn.Linear(2, 2)})
    assert list(find_prunable(model).parameters) == ["other.weight"]


def test_a_plain_module_has_no_head_and_no_base_model():
    model = nn.Sequential(nn.Embedding(4, 2), nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Sequential(nn.Linear(2, 1)))
    prunable = find_prunable(model)
    assert list(prunable.parameters) == ["1.weight", "3.0.weight"]
    assert set(prunable.skipped) == {"0.weight", "1.bias", "2.weight", "2.bias", "3.0.bias"}
    assert set(prunable.skipped.values()) == {NO_MATRIX}


def test_a_single_linear_map_is_a_model():
    assert list(find_prunable(nn.Linear(2, 2)).parameters) == ["weight"]


def test_subclasses_of_linear_are_linear_maps():
    class Scaled(nn.Linear):
        pass

    assert list(find_prunable(nn.Sequential(Scaled(2, 2))).parameters) == ["0.weight"]


def test_nothing_to_prune_says_what_there_is():
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(9)))
    with pytest.raises(ValueError, match="Expected at least one prunable weight") as error:
        find_prunable(model, ["query"], ["x"])
    assert str(error.value) == (
        "Expected at least one prunable weight in Sequential, found none with target_modules=['query'], "
        "exclude_modules=['x']. Its linear maps are ['0', '1', '2', '3', '4', '5', '6', '7'] ...: "
        "name some of them in target_modules."
    )


def test_a_model_without_linear_maps_has_nothing():
    with pytest.raises(ValueError, match=r"found none with target_modules=None.*Its linear maps are \[\]"):
        find_prunable(nn.Embedding(3, 2))


@pytest.mark.parametrize("option", ["target_modules", "exclude_modules"])
def test_a_broken_regular_expression_is_named(option):
    with pytest.raises(
        ValueError, match=rf"{option} must be a list of module names or one regular expression, got '\("
    ):
        find_prunable(torch.nn.Linear(2, 2), **{option: "("})
