"""Models without some of their layers: what they compute, which layers go, and what is refused."""

import pytest
import torch
import transformers as hf
from conftest import collate, reversal, tiny_t5
from test_shrinking import (
    BART,
    BERT,
    GPT2,
    LLAMA,
    T5,
    TEXT,
    assert_equal_outputs,
    generated,
    outputs,
    randomise,
    reload,
)

from sms_hf import drop_layers, prune
from sms_hf.inference import choose_layers, depth
from sms_hf.inference.depth import _without, find_stacks

FOUR = {"num_hidden_layers": 4}
VIT = {"image_size": 8, "patch_size": 4, "hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 4}
OPT = {
    "hidden_size": 8,
    "word_embed_proj_dim": 8,
    "ffn_dim": 16,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
}
BOTH = {"encoder_layers": 4, "decoder_layers": 3}
TYPES = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]
MODELS = {
    "t5": lambda: hf.T5ForConditionalGeneration(hf.T5Config(**T5 | {"num_layers": 4, "num_decoder_layers": 3})),
    "marian": lambda: hf.MarianMTModel(hf.MarianConfig(**BART | BOTH)),
    "bart": lambda: hf.BartForConditionalGeneration(hf.BartConfig(**BART | BOTH)),
    "m2m100": lambda: hf.M2M100ForConditionalGeneration(hf.M2M100Config(**BART | BOTH)),
    "t5-encoder": lambda: hf.T5EncoderModel(hf.T5Config(**T5 | {"num_layers": 4})),
    "bert": lambda: hf.BertForSequenceClassification(hf.BertConfig(**BERT | FOUR)),
    "distilbert": lambda: hf.DistilBertForSequenceClassification(
        hf.DistilBertConfig(vocab_size=16, dim=8, hidden_dim=16, n_layers=4, n_heads=2, max_position_embeddings=16)
    ),
    "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT2 | {"n_layer": 4})),
    "opt": lambda: hf.OPTForCausalLM(hf.OPTConfig(**TEXT, **OPT, **FOUR)),
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA | FOUR)),
    "qwen2": lambda: hf.Qwen2ForCausalLM(
        hf.Qwen2Config(**LLAMA | FOUR, layer_types=TYPES, use_sliding_window=True, sliding_window=2)
    ),
    "vit": lambda: hf.ViTForImageClassification(hf.ViTConfig(**VIT | FOUR)),
}
PRE_NORM = {  # Stack -> the maps whose zeros make a layer useless.
    "t5": ("encoder", ("SelfAttention.o", "DenseReluDense.wo")),
    "gpt2": ("layers", ("attn.c_proj", "mlp.c_proj")),
    "llama": ("layers", ("self_attn.o_proj", "mlp.down_proj")),
    "vit": ("layers", ("attention.output.dense", "output.dense", "attention.o_proj", "mlp.fc2")),
}


def build(name):
    torch.manual_seed(0)
    return randomise(MODELS[name]())


def loss_of(model):
    """Calibration: how far the outputs are from some that are fixed."""
    for seed in (1, 2):
        got = outputs(model)
        yield (
            (got - torch.randn(got.shape, generator=torch.Generator().manual_seed(seed), dtype=got.dtype))
            .square()
            .mean()
        )


def mean_loss(model):
    return float(sum(loss_of(model)) / 2)


@pytest.mark.parametrize("name", MODELS)
def test_what_stays_computes_what_the_model_computes_without_the_others(name, tmp_path):
    model = build(name)
    stacks = find_stacks(model)
    keep = {"encoder": [1, 3], "decoder": [2]} if "encoder" in stacks else {"layers": [1, 3]}
    small = drop_layers(model, keep, loss_of)
    gone = [stack.layers[i] for key, stack in stacks.items() for i in range(len(stack.layers)) if i not in keep[key]]
    assert {key: len(stack.layers) for key, stack in find_stacks(small).items()} == {k: len(v) for k, v in keep.items()}
    with _without(gone):
        assert_equal_outputs(small, model)
        if model.can_generate():
            assert torch.equal(generated(small), generated(model))
    loaded = reload(small, tmp_path)
    for name, buffer in small.named_parameters():  # Tables that no file holds are computed.
        if name.endswith("embed_positions.weight"):
            loaded.get_parameter(name).data = buffer.data
    assert_equal_outputs(loaded, small)
    shared = {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in small.parameters()}
    assert not shared


def test_lists_of_the_configuration_follow_the_layers():
    small = drop_layers(build("qwen2"), {"layers": [0, 1, 3]})
    assert small.config.layer_types == ["full_attention", "sliding_attention", "sliding_attention"]
    assert small.config.num_hidden_layers == 3


@pytest.mark.parametrize("criterion", ["loss", "influence"])
@pytest.mark.parametrize("name", PRE_NORM)
def test_a_layer_that_does_nothing_goes_first(name, criterion):
    model = build(name)
    stack, maps = PRE_NORM[name]
    layers = find_stacks(model)[stack].layers
    useless = 2
    with torch.no_grad():
        for path, parameter in layers[useless].named_parameters():
            if path.rpartition(".")[0].endswith(maps):
                parameter.zero_()
    # Without it the model is the same, so with this loss it is the only layer that costs nothing.
    target = outputs(model)

    def calibration(model):
        yield (outputs(model) - target).square().mean()

    keep = {stack: 3} if name == "t5" else 3
    assert choose_layers(model, keep, calibration, criterion)[stack] == [0, 1, 3]
    assert_equal_outputs(drop_layers(model, keep, calibration, criterion), model)


def test_the_loss_decides_one_layer_after_the_other_over_all_stacks():
    model = build("marian")
    layers = {key: list(stack.layers) for key, stack in find_stacks(model).items()}
    stay = {"encoder": [0, 1, 2, 3], "decoder": [0, 1, 2]}
    gone = []
    for _ in range(3):  # By hand: two of the encoder, one of the decoder.
        losses = {}
        for key, at_least in (("encoder", 2), ("decoder", 2)):
            for i in stay[key] if len(stay[key]) > at_least else ():
                with _without([*gone, layers[key][i]]):
                    losses[key, i] = mean_loss(model)
        key, i = min(losses, key=losses.__getitem__)
        stay[key].remove(i)
        gone.append(layers[key][i])
    assert choose_layers(model, {"encoder": 2, "decoder": 2}, loss_of) == stay
    small = drop_layers(model, {"encoder": 2, "decoder": 2}, loss_of)
    assert (small.config.encoder_layers, small.config.decoder_layers) == (2, 2)
    with _without(gone):
        assert mean_loss(small) == pytest.approx(mean_loss(model), abs=1e-12)


def test_influence_is_one_minus_the_cosine_of_input_and_output():
    model = build("bert").train()
    seen = []

    def look(_, args, output):
        output = output[0] if isinstance(output, tuple) else output
        pair = torch.stack([args[0], output]).float().flatten(1, -2)
        norms = pair.square().sum(-1).sqrt()
        seen.append(float(1 - ((pair[0] * pair[1]).sum(-1) / norms.prod(0)).mean()))

    layers = find_stacks(model)["layers"].layers
    hooks = [layer.register_forward_hook(look) for layer in layers]
    model.eval()
    outputs(model)
    model.train()
    for hook in hooks:
        hook.remove()
    weakest = sorted(range(4), key=lambda i: seen[i])[:2]
    assert choose_layers(model, 2, loss_of, "influence")["layers"] == sorted(set(range(4)) - set(weakest))
    assert model.training


def test_what_is_not_named_stays_and_nothing_is_read_for_it():
    model = build("t5")
    small = drop_layers(model, {"decoder": [0, 1, 2], "encoder": 4})
    assert_equal_outputs(small, model)
    assert choose_layers(model, {"decoder": [1]}) == {"encoder": [0, 1, 2, 3], "decoder": [1]}


def test_ties_dtype_frozen_weights_zeros_and_modes_stay():
    model = build("t5").to(torch.bfloat16).train()
    masks = prune(model, 0.5)
    model.shared.weight.requires_grad_(False)
    small = drop_layers(model, {"encoder": [0, 3], "decoder": 3})
    assert small.dtype == torch.bfloat16
    assert small.training
    assert small.lm_head.weight is small.shared.weight
    assert not small.shared.weight.requires_grad
    name = "encoder.block.{}.layer.0.SelfAttention.q.weight"
    assert torch.equal(small.get_parameter(name.format(1)) != 0, masks[name.format(3)])


def test_a_soup_of_a_less_deep_model(make_trainer, tmp_path):
    batches = [collate(reversal(8).to_list())]
    deep = hf.T5Config(**tiny_t5().config.to_dict() | {"num_decoder_layers": 3})
    torch.manual_seed(0)
    small = drop_layers(
        hf.T5ForConditionalGeneration(deep), {"decoder": 2}, lambda model: (model(**batch).loss for batch in batches)
    )
    assert small.config.num_decoder_layers == 2
    trainer = make_trainer({"num_phases": 1}, model=small)
    trainer.train()
    soup = hf.T5ForConditionalGeneration.from_pretrained(trainer.args.output_dir)
    assert soup.config.num_decoder_layers == len(soup.decoder.block) == 2
    assert trainer.report["phases"][-1]["soup"]["sparsity"] == 0.75


@pytest.mark.parametrize(
    ("name", "keep", "says"),
    [
        ("t5", 2, r"has the stacks encoder, decoder: expected keep=\{'decoder': 2\} or the like, got keep=2"),
        ("t5", {"decodr": 2}, r"keep must be one of \['encoder', 'decoder'\], got 'decodr'. Did you mean 'decoder'"),
        ("t5", {"decoder": 4}, r"keep must lie between 1 and 3 for 'decoder', got 4"),
        ("t5", {"decoder": 0}, r"keep must lie between 1 and 3 for 'decoder', got 0"),
        ("t5", {"decoder": [2, 1]}, r"by positions from 0 to 2, ascending, got \[2, 1\]"),
        ("t5", {"decoder": []}, r"by positions from 0 to 2, ascending, got \[\]"),
        ("bert", {"layers": [0, 4]}, r"by positions from 0 to 3, ascending, got \[0, 4\]"),
        ("bert", 2, r"Expected calibration batches to choose the layers that stay, got none"),
    ],
)
def test_what_cannot_be_kept(name, keep, says):
    with pytest.raises(ValueError, match=says):
        drop_layers(build(name), keep)


def test_other_objects_and_models_whose_layers_depend_on_their_place_are_refused():
    with pytest.raises(ValueError, match="needs a PreTrainedModel of transformers, got Linear"):
        drop_layers(torch.nn.Linear(2, 2), 1)
    with pytest.raises(ValueError, match="Expected a stack of layers in ResNetModel"):
        drop_layers(hf.ResNetModel(hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1])), 1)
    inverse = hf.GPT2LMHeadModel(hf.GPT2Config(**GPT2 | {"n_layer": 4}, scale_attn_by_inverse_layer_idx=True))
    with pytest.raises(ValueError, match="divides by the position of each layer"):
        drop_layers(inverse, {"layers": [0, 1]})
    with pytest.raises(ValueError, match="criterion must be one of"):
        drop_layers(build("bert"), 2, loss_of, "magnitude")
    with pytest.raises(ValueError, match="Expected at least one calibration batch, got none"):
        drop_layers(build("bert"), 2, lambda model: iter(()))


def test_a_model_that_no_stock_class_has_is_refused():
    model = build("t5")
    model.extra = torch.nn.Linear(2, 2)
    with pytest.raises(
        ValueError, match=r"cannot lose these layers: extra.weight would be \(2, 2\), but in a stock .* it is nothing"
    ):
        drop_layers(model, {"decoder": [1]})


def test_a_smaller_model_that_computes_something_else_is_refused(monkeypatch):
    model = build("llama")
    renaming = depth._renaming
    monkeypatch.setattr(
        depth, "_renaming", lambda stacks, _: renaming(stacks, {"layers": [3, 2]})
    )  # The wrong way round.
    with pytest.raises(
        ValueError, match=r"Expected the loss of LlamaForCausalLM without these layers, .*, from the smaller"
    ):
        drop_layers(model, {"layers": [2, 3]}, loss_of)
