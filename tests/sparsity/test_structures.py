"""Neurons, heads and filters of real architectures: which there are, and that a masked one is a missing one."""

import pytest
import torch
import transformers as hf
from torch import nn
from torch.nn.utils.prune import ln_structured
from toys import Attention, FeedForward, assert_unchanged, filters, num_zeros, snapshot

from sms_hf.sparsity import Group, Masks, Member, find_groups, prune

torch.set_num_threads(1)

TEXT = {"vocab_size": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SIZES = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4}
T5 = {"vocab_size": 16, "d_model": 8, "d_kv": 3, "d_ff": 16, "num_layers": 1, "num_heads": 4}
BART = {
    **TEXT,
    "d_model": 8,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 12,
    "max_position_embeddings": 16,
    "decoder_start_token_id": 0,
}
GPT2 = {"n_positions": 16, "n_embd": 8, "n_layer": 1, "n_head": 2}
LLAMA = {**TEXT, **SIZES, "num_key_value_heads": 2, "head_dim": 6, "max_position_embeddings": 16}
SEGFORMER = {
    "num_encoder_blocks": 2,
    "depths": [1, 1],
    "sr_ratios": [2, 1],
    "hidden_sizes": [8, 8],
    "patch_sizes": [3, 3],
    "strides": [2, 2],
    "num_attention_heads": [2, 4],
    "mlp_ratios": [2, 2],
    "decoder_hidden_size": 8,
}
ENCODER_DECODER = {"layer.0.SelfAttention": 4, "layer.1.EncDecAttention": 4}

ARCHITECTURES = {
    "t5": (
        lambda: hf.T5ForConditionalGeneration(hf.T5Config(**T5)),
        {"encoder.block.0.layer.1.DenseReluDense": 16, "decoder.block.0.layer.2.DenseReluDense": 16},
        {"encoder.block.0.layer.0.SelfAttention": 4} | {f"decoder.block.0.{k}": n for k, n in ENCODER_DECODER.items()},
    ),
    "t5-gated": (
        lambda: hf.T5ForConditionalGeneration(hf.T5Config(**T5, feed_forward_proj="gated-gelu")),
        {"encoder.block.0.layer.1.DenseReluDense": 16, "decoder.block.0.layer.2.DenseReluDense": 16},
        {"encoder.block.0.layer.0.SelfAttention": 4} | {f"decoder.block.0.{k}": n for k, n in ENCODER_DECODER.items()},
    ),
    "bert": (
        lambda: hf.BertForSequenceClassification(hf.BertConfig(vocab_size=16, max_position_embeddings=16, **SIZES)),
        {"bert.encoder.layer.0": 16},
        {"bert.encoder.layer.0.attention": 4},
    ),
    "distilbert": (
        lambda: hf.DistilBertForMaskedLM(
            hf.DistilBertConfig(vocab_size=16, dim=8, hidden_dim=16, n_layers=1, n_heads=2, max_position_embeddings=16)
        ),
        {"distilbert.transformer.layer.0.ffn": 16},
        {"distilbert.transformer.layer.0.attention": 2},
    ),
    "gpt2": (
        lambda: hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=16, bos_token_id=0, eos_token_id=1, **GPT2)),
        {"transformer.h.0.mlp": 32},
        {"transformer.h.0.attn": 2},
    ),
    "llama": (
        lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA)),
        {"model.layers.0.mlp": 16},
        {"model.layers.0.self_attn": 2},
    ),
    "qwen2": (
        lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**LLAMA)),
        {"model.layers.0.mlp": 16},
        {"model.layers.0.self_attn": 2},
    ),
    "marian": (
        lambda: hf.MarianMTModel(hf.MarianConfig(**BART)),
        {"model.encoder.layers.0": 16, "model.decoder.layers.0": 12},
        {
            "model.encoder.layers.0.self_attn": 4,
            "model.decoder.layers.0.self_attn": 2,
            "model.decoder.layers.0.encoder_attn": 2,
        },
    ),
    "mbart": (
        lambda: hf.MBartForConditionalGeneration(hf.MBartConfig(**BART)),
        {"model.encoder.layers.0": 16, "model.decoder.layers.0": 12},
        {
            "model.encoder.layers.0.self_attn": 4,
            "model.decoder.layers.0.self_attn": 2,
            "model.decoder.layers.0.encoder_attn": 2,
        },
    ),
    "m2m100": (
        lambda: hf.M2M100ForConditionalGeneration(hf.M2M100Config(**BART)),
        {"model.encoder.layers.0": 16, "model.decoder.layers.0": 12},
        {
            "model.encoder.layers.0.self_attn": 4,
            "model.decoder.layers.0.self_attn": 2,
            "model.decoder.layers.0.encoder_attn": 2,
        },
    ),
    "opt": (
        lambda: hf.OPTForCausalLM(
            hf.OPTConfig(
                **TEXT,
                hidden_size=8,
                word_embed_proj_dim=8,
                ffn_dim=16,
                num_hidden_layers=1,
                num_attention_heads=4,
                max_position_embeddings=16,
            )
        ),
        {"model.decoder.layers.0": 16},
        {"model.decoder.layers.0.self_attn": 4},
    ),
    "vit": (
        lambda: hf.ViTForImageClassification(hf.ViTConfig(image_size=8, patch_size=4, **SIZES)),
        {"vit.layers.0.mlp": 16},
        {"vit.layers.0.attention": 4},
    ),
    "segformer": (
        lambda: hf.SegformerForSemanticSegmentation(hf.SegformerConfig(**SEGFORMER)),
        {"segformer.stages.0.blocks.0.mlp": 16, "segformer.stages.1.blocks.0.mlp": 16},
        {"segformer.stages.0.blocks.0.attention": 2, "segformer.stages.1.blocks.0.attention": 4},
    ),
}
"""Name -> (model, layers of neurons, layers of heads)."""
OUTPUTS = ("wo", "o", "output.dense", "c_proj", "down_proj", "o_proj", "fc2", "out_proj", "lin2", "out_lin")


@pytest.fixture(params=ARCHITECTURES)
def name(request):
    return request.param


def build(name):
    """Every parameter random, biases and norms included: a mistake in any of them shows."""
    torch.manual_seed(0)
    model = ARCHITECTURES[name][0]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape)
    return model


def forward(model):
    if model.main_input_name == "pixel_values":
        return model(torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))).logits
    tokens = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 10]])
    decoder = {"decoder_input_ids": torch.tensor([[0, 5, 6], [0, 7, 8]])} if model.config.is_encoder_decoder else {}
    return model(tokens, **decoder).logits


def removed_units(group, masks):
    """Units of which nothing is left; all others must be whole."""
    shares = [group.gather(m, masks[m.parameter]).float() for m in group.members]
    for share in shares:
        assert torch.equal(share.amin(1), share.amax(1))
        assert torch.equal(share[:, 0], shares[0][:, 0])
    return (shares[0][:, 0] == 0).nonzero().flatten().tolist()


def output_map(model, layer):
    modules = dict(model.named_modules())
    return next(modules[f"{layer}.{o}"] for o in OUTPUTS if f"{layer}.{o}" in modules)


# --- architectures ---


@pytest.mark.parametrize("kind", ["neurons", "heads"])
def test_layers_and_their_units(name, kind):
    expected = ARCHITECTURES[name][1 if kind == "neurons" else 2]
    groups = find_groups(build(name), kind)
    assert {group.layer: group.units for group in groups} == expected
    assert all(group.kind == kind for group in groups)


@pytest.mark.parametrize("kind", ["neurons", "heads"])
@pytest.mark.parametrize("criterion", ["magnitude", "random"])
def test_every_layer_loses_the_exact_count_and_nothing_else_changes(name, kind, criterion):
    model = build(name)
    before, groups = snapshot(model), find_groups(model, kind)
    masks = prune(model, 0.5, scope="uniform", criterion=criterion, pattern=kind)
    assert list(masks) == [member.parameter for group in groups for member in group.members]
    for group in groups:
        assert len(removed_units(group, masks)) == group.units // 2
    for parameter_name, parameter in model.named_parameters():
        keep = masks.get(parameter_name, torch.ones_like(parameter, dtype=torch.bool))
        assert torch.equal(parameter, before[parameter_name] * keep)


@pytest.mark.parametrize("kind", ["neurons", "heads"])
@torch.no_grad()
def test_a_masked_unit_is_a_missing_unit(name, kind):
    """The same output as that of the dense model whose neurons or heads are cut off where they leave the layer."""
    dense, masked = build(name), build(name)
    masks = prune(masked, 0.5, scope="uniform", pattern=kind)
    for group in find_groups(dense, kind):
        gone = removed_units(group, masks)
        assert gone

        def cut(module, args, gone=gone, units=group.units):
            features = args[0].clone().unflatten(-1, (units, -1))
            features[..., gone, :] = 0
            return (features.flatten(-2),)

        output_map(dense, group.layer).register_forward_pre_hook(cut)
    torch.testing.assert_close(forward(masked), forward(dense))
    assert not torch.allclose(forward(masked), forward(build(name)), atol=1e-3)


@torch.no_grad()
def test_masked_neurons_of_a_t5_equal_a_smaller_layer():
    dense, masked = build("t5-gated"), build("t5-gated")
    masks = prune(masked, 0.75, scope="uniform", pattern="neurons")
    for layer in (dense.encoder.block[0].layer[1], dense.decoder.block[0].layer[2]):
        layer_name = next(n for n, m in dense.named_modules() if m is layer.DenseReluDense)
        alive = masks[f"{layer_name}.wi_0.weight"].all(1)
        assert int(alive.sum()) == 4
        for leaf in ("wi_0", "wi_1"):
            linear = getattr(layer.DenseReluDense, leaf)
            linear.weight = nn.Parameter(linear.weight[alive])
        layer.DenseReluDense.wo.weight = nn.Parameter(layer.DenseReluDense.wo.weight[:, alive])
    torch.testing.assert_close(forward(masked), forward(dense))


def test_members_of_a_gpt2():
    assert find_groups(build("gpt2"), "heads") == [
        Group(
            "heads",
            "transformer.h.0.attn",
            2,
            (
                Member("transformer.h.0.attn.c_attn.weight", 1, parts=3),
                Member("transformer.h.0.attn.c_attn.bias", 0, parts=3),
                Member("transformer.h.0.attn.c_proj.weight", 0),
            ),
        )
    ]


def test_units_of_a_fused_parameter_and_of_grouped_queries():
    assert Member("c_attn.weight", 1, parts=3).index(12, 2).tolist() == [[0, 1, 4, 5, 8, 9], [2, 3, 6, 7, 10, 11]]
    members = {m.parameter.split(".")[-2]: m for m in find_groups(build("llama"), "heads")[0].members}
    assert members["q_proj"].index(24, 2)[1].tolist() == list(range(12, 24))
    assert members["k_proj"].index(12, 2)[1].tolist() == list(range(6, 12))


def test_attention_of_a_gpt2_to_an_encoder():
    torch.manual_seed(0)
    config = hf.GPT2Config(vocab_size=16, bos_token_id=0, eos_token_id=1, add_cross_attention=True, **GPT2)
    model = hf.GPT2LMHeadModel(config)
    groups = {g.layer.rpartition(".")[2]: g for g in find_groups(model, "heads")}
    assert list(groups) == ["attn", "crossattention"]
    assert [(m.parameter.split(".")[-2], m.parts) for m in groups["crossattention"].members] == [
        ("q_attn", 1),
        ("q_attn", 1),
        ("c_attn", 2),
        ("c_attn", 2),
        ("c_proj", 1),
    ]


# --- filters ---


def test_filters_agree_with_ln_structured():
    torch.manual_seed(0)
    config = hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    model = hf.ResNetForImageClassification(config)
    before = snapshot(model)
    masks = prune(model, 0.5, scope="uniform", pattern="filters")
    convolutions = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    assert list(masks) == [f"{name}.weight" for name in convolutions]
    for name, module in convolutions.items():
        module.weight.data = before[f"{name}.weight"]
        ln_structured(module, "weight", 0.5, n=2, dim=0)
        assert torch.equal(module.weight_mask.bool(), masks[f"{name}.weight"])


def test_convolutions_outside_of_the_base_model_on_request():
    model = build("segformer")
    assert not any(g.layer.startswith("decode_head") for g in find_groups(model, "filters"))
    assert [g.layer for g in find_groups(model, "filters", ["classifier"])] == ["decode_head.classifier"]


# --- choice of layers ---


@pytest.mark.parametrize(
    ("targets", "excluded", "expected"),
    [
        (None, r"encoder\..*", ["decoder.block.0.layer.2.DenseReluDense"]),
        (r"encoder\..*", None, ["encoder.block.0.layer.1.DenseReluDense"]),
        (r"encoder\..*wi|encoder\..*wo", None, ["encoder.block.0.layer.1.DenseReluDense"]),
        (["layer.2.DenseReluDense"], None, ["decoder.block.0.layer.2.DenseReluDense"]),
        (["wi", "wo"], ["layer.2.DenseReluDense.wo"], ["encoder.block.0.layer.1.DenseReluDense"]),
        ("all-linear", ["layer.2.DenseReluDense"], ["encoder.block.0.layer.1.DenseReluDense"]),
    ],
)
def test_target_and_exclude_modules(targets, excluded, expected):
    model = build("t5")
    assert [g.layer for g in find_groups(model, "neurons", targets, excluded)] == expected
    masks = prune(model, 0.5, scope="uniform", pattern="neurons", target_modules=targets, exclude_modules=excluded)
    assert list(masks) == [f"{expected[0]}.{leaf}.weight" for leaf in ("wi", "wo")]


@pytest.mark.parametrize(
    ("kind", "targets", "message"),
    [
        (
            "filters",
            None,
            r"Expected filters to prune in T5ForConditionalGeneration, found none .* Looked for nn.Conv1d",
        ),
        ("neurons", ["wi"], r"Expected neurons .* target_modules=\['wi'\], .*modules that hold wi_0/wi_1/wo, wi/wo,"),
        ("heads", ["nowhere"], r"Expected heads .* Looked for modules that hold q/k/v/o, "),
        ("heads", "(", r"target_modules must be a list of module names or one regular expression, got '\('"),
    ],
)
def test_no_layer_is_an_error_that_says_what_was_looked_for(kind, targets, message):
    with pytest.raises(ValueError, match=message):
        prune(build("t5"), 0.5, scope="uniform", pattern=kind, target_modules=targets)


def test_frozen_and_tied_layers_are_left_out():
    model = build("t5")
    model.encoder.requires_grad_(False)
    assert [g.layer for g in find_groups(model, "neurons")] == ["decoder.block.0.layer.2.DenseReluDense"]
    model = nn.ModuleDict({"a": FeedForward(), "b": FeedForward(), "c": FeedForward()})
    model["b"].wi.weight = model["a"].wi.weight
    assert [g.layer for g in find_groups(model, "neurons")] == ["c"]


# --- phases, errors ---


@pytest.mark.parametrize("kind", ["neurons", "heads"])
@pytest.mark.parametrize("named", [True, False])
def test_phases_nest(kind, named):
    model, masks = build("t5"), None
    for sparsity, share in ((0.25, 4), (0.5, 2), (0.5, 2)):
        earlier = masks
        masks = prune(model, sparsity, scope="uniform", pattern=kind, within=earlier if named else None)
        for group in find_groups(model, kind):
            assert len(removed_units(group, masks)) == group.units // share
        assert earlier is None or masks.is_within(earlier)
        if named:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.normal_()  # retraining
    assert masks.fingerprint() == earlier.fingerprint()


def test_dead_units_stay_removed_whatever_they_hold():
    model = FeedForward()
    masks = prune(model, 1 / 3, scope="uniform", pattern="neurons")
    with torch.no_grad():
        model.wi.weight[1] = float("nan")
    second = prune(model, 2 / 3, scope="uniform", pattern="neurons", within=masks)
    assert second["wi.bias"].tolist() == [False, False, True]
    assert model.wi.weight.flatten().tolist() == [0, 0, 5]


def test_equal_units_lose_the_lower_index():
    model = FeedForward()
    with torch.no_grad():
        model.wi.weight.fill_(1.0)
        model.wo.weight.fill_(-1.0)
    assert prune(model, 2 / 3, scope="uniform", pattern="neurons")["wi.bias"].tolist() == [False, False, True]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    model = FeedForward().to(dtype)
    assert prune(model, 1 / 3, scope="uniform", pattern="neurons")["wi.bias"].tolist() == [True, False, True]
    assert model.wi.weight.dtype == dtype


def test_random_units_depend_on_the_seed_alone():
    def print_of(seed, scale):
        model = build("marian")
        with torch.no_grad():
            model.model.encoder.layers[0].fc1.weight *= scale
        return prune(model, 0.5, scope="uniform", criterion="random", pattern="neurons", seed=seed).fingerprint()

    assert print_of(0, 1) == print_of(0, 5)
    assert len({print_of(seed, 1) for seed in range(3)}) == 3


def test_a_layer_that_would_lose_all_is_an_error():
    model = Attention()
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"sparsity=0.9 would remove all 2 heads of ''"):
        prune(model, 0.9, scope="uniform", pattern="heads")
    assert_unchanged(model, before)


def test_a_layer_that_is_sparser_is_an_error():
    model = FeedForward()
    prune(model, 2 / 3, scope="uniform", pattern="neurons")
    with pytest.raises(ValueError, match=r"'' already is 66.6667% sparse \(2 of 3 neurons are zero\)"):
        prune(model, 1 / 3, scope="uniform", pattern="neurons")


def test_masks_of_another_pattern_are_an_error():
    model = FeedForward()
    before = snapshot(model)
    unstructured = Masks(
        {n: torch.ones_like(p, dtype=torch.bool) for n, p in model.named_parameters() if "weight" in n}
    )
    with pytest.raises(ValueError, match=r"masks of the 3 prunable tensors .* got 2 others"):
        prune(model, 1 / 3, scope="uniform", pattern="neurons", within=unstructured)
    parts = {n: torch.ones_like(before[n], dtype=torch.bool) for n in ("wi.weight", "wi.bias", "wo.weight")}
    parts["wi.weight"][2] = False
    with pytest.raises(ValueError, match="must hold masks of whole neurons, got masks that remove parts of them"):
        prune(model, 1 / 3, scope="uniform", pattern="neurons", within=Masks(parts))
    assert_unchanged(model, before)


@pytest.mark.parametrize("criterion", ["magnitude", "random"])
def test_broken_weights_are_an_error(criterion):
    model = filters()
    with torch.no_grad():
        model[0].weight[1] = float("inf")
    with pytest.raises(ValueError, match="'0' holds NaN or infinite weights"):
        prune(model, 1 / 3, scope="uniform", criterion=criterion, pattern="filters")


def test_sparsity_zero_keeps_everything():
    masks = prune(build("bert"), 0.0, scope="uniform", pattern="heads")
    assert num_zeros(masks) == 0
