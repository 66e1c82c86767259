"""`from_pretrained` and `load`: the same weights from either form, in real models; loud where they cannot be."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import transformers
from accelerate.utils.modeling import get_state_dict_offloaded_model
from conftest import tiny_t5
from safetensors.torch import load_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MarianConfig,
    MarianMTModel,
    MixtralConfig,
    MixtralForCausalLM,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from sms_hf import load, pack, prune
from sms_hf.compact import CompactError
from sms_hf.compact.compact_file import MASK
from sms_hf.compact.quantizer import Unpack
from sms_hf.files.folder import CheckpointError
from sms_hf.speed import layers
from sms_hf.speed.layers import FastLinear

DECODER = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
BERT = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
MARIAN = {"vocab_size": 64, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "pad_token_id": 0}
MARIAN |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
MARIAN |= {"decoder_start_token_id": 0, "eos_token_id": 1, "forced_eos_token_id": 1}
VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}

MODELS = {
    "t5": tiny_t5,
    "marian": lambda: MarianMTModel(MarianConfig(**MARIAN)),
    "bert": lambda: BertForMaskedLM(BertConfig(**BERT)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2)
    ),
    "vit, other names in the file": lambda: ViTForImageClassification(ViTConfig(**VIT, image_size=8, patch_size=2)),
    "mixtral, experts fused on loading": lambda: MixtralForCausalLM(MixtralConfig(**DECODER, num_local_experts=4)),
    "gpt-oss, experts stacked in the file": lambda: GptOssForCausalLM(
        GptOssConfig(**DECODER, num_local_experts=4, head_dim=8)
    ),
}
if hasattr(transformers, "HrmTextConfig"):  # The oldest version that is supported has no model of this kind.
    MODELS["hrm, matrices split on loading"] = lambda: transformers.HrmTextForCausalLM(
        transformers.HrmTextConfig(**DECODER, H_cycles=1, L_cycles=1)
    )


def packed(model, folder, keep_dense=True, entropy_coded=False, **options):
    prune(model, 0.9)
    model.save_pretrained(folder, **options)
    return pack(folder, keep_dense=keep_dense, entropy_coded=entropy_coded)


def assert_equal(model, expected, dtype=None):
    found, expected = model.state_dict(), expected.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        cast = tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor
        assert torch.equal(found[name], cast), name


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("form", ["sparse", "entropy coded", None])
@pytest.mark.parametrize("options", [{}, {"dtype": torch.bfloat16}, {"device_map": "cpu"}], ids=["", "dtype", "device"])
def test_from_pretrained_gives_the_same_weights(tmp_path, name, form, options):
    model = MODELS[name]()
    folder = packed(model, tmp_path, entropy_coded=form == "entropy coded")
    variant = "sparse" if form else None
    loaded, info = type(model).from_pretrained(folder, variant=variant, output_loading_info=True, **options)
    assert_equal(loaded, model, options.get("dtype"))
    assert not any(info.values())
    assert not hasattr(loaded.config, "quantization_config"), "an ordinary model"
    assert not getattr(loaded, "hf_quantizer", None)


@pytest.mark.parametrize(
    ("name", "layers"), [("bert", "bert.encoder.layer"), ("mixtral, experts fused on loading", "model.layers")]
)
def test_layers_on_the_disk_hold_the_same_weights(tmp_path, name, layers):
    model = MODELS[name]()
    folder = packed(model, tmp_path / "model")
    where = {
        module: "cpu" for module, _ in model.named_modules() if layers not in module and not layers.startswith(module)
    }
    where |= {f"{layers}.0": "disk", f"{layers}.1": "cpu"}
    loaded = type(model).from_pretrained(folder, variant="sparse", device_map=where, offload_folder=tmp_path / "disk")
    assert list((tmp_path / "disk").glob(f"{layers}.0.*"))
    found, expected = get_state_dict_offloaded_model(loaded), model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("name", MODELS)
def test_saving_again_writes_what_was_there(tmp_path, name):
    model = MODELS[name]()
    folder = packed(model, tmp_path / "model")
    type(model).from_pretrained(folder, variant="sparse").save_pretrained(tmp_path / "again")
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "again" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert "quantization_config" not in (tmp_path / "again" / "config.json").read_text()


@pytest.mark.parametrize("name", ["t5", "mixtral, experts fused on loading"])
def test_shards(tmp_path, name):
    model = MODELS[name]()
    folder = packed(model, tmp_path, keep_dense=False, max_shard_size="40KB")
    assert len(list(folder.glob("model.sparse-*.safetensors"))) > 1
    assert_equal(load(folder), model)


def test_load_takes_the_form_that_is_there(tmp_path):
    model = tiny_t5()
    both = packed(model, tmp_path / "both")
    alone = pack(both, tmp_path / "alone", keep_dense=False)
    dense = tmp_path / "dense"
    model.save_pretrained(dense)
    for folder in (both, alone, dense):
        for prefer in ("compact", "dense"):
            loaded = load(folder, prefer)
            assert type(loaded) is T5ForConditionalGeneration
            assert_equal(loaded, model)
            assert loaded.generation_config.decoder_start_token_id == 0
            loaded.save_pretrained(tmp_path / "again")
            assert "quantization_config" not in (tmp_path / "again" / "config.json").read_text()


def test_straight_to_fast(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(layers, "SMALLEST", 0)
    model = tiny_t5().eval()
    both = packed(model, tmp_path / "both")
    tokens = {"inputs": torch.tensor([[3, 4, 5]]), "max_new_tokens": 4, "do_sample": False}
    for prefer in ("compact", "dense"):
        loaded = load(both, prefer, fast=True)
        assert isinstance(loaded.encoder.block[0].layer[1].DenseReluDense.wi, FastLinear)
        assert not loaded.training
        assert torch.equal(loaded.generate(**tokens), model.generate(**tokens))
        loaded.save_pretrained(tmp_path / prefer)
        assert_equal(T5ForConditionalGeneration.from_pretrained(tmp_path / prefer), model)


def test_a_part_of_a_model(tmp_path):
    model = tiny_t5()
    folder = packed(model, tmp_path, keep_dense=False)
    assert_equal(load(folder, model_class=T5EncoderModel).encoder, model.encoder)


def test_a_new_head_is_from_pretraineds_business_not_loads(tmp_path):
    folder = packed(BertForMaskedLM(BertConfig(**BERT)), tmp_path, keep_dense=False)
    model, info = BertForSequenceClassification.from_pretrained(folder, variant="sparse", output_loading_info=True)
    assert {"classifier.weight", "classifier.bias"} <= info["missing_keys"]
    assert model.bert.encoder.layer[0].intermediate.dense.weight.eq(0).float().mean() > 0.5
    with pytest.raises(CheckpointError, match=r"missing: bert\.pooler"):
        load(folder, model_class=BertForSequenceClassification)


def test_another_architecture_is_refused(tmp_path):
    folder = packed(tiny_t5(), tmp_path, keep_dense=False)
    with pytest.raises(CompactError, match="type 't5', got BertModel"):
        BertModel.from_pretrained(folder, variant="sparse")


def test_layers_that_the_file_does_not_hold_are_refused(tmp_path):
    folder = packed(tiny_t5(), tmp_path, keep_dense=False)
    config = T5Config.from_pretrained(folder)
    config.num_decoder_layers = 2
    with pytest.raises(CompactError, match=r"no decoder\.block\.1.* its model has other layers"):
        T5ForConditionalGeneration.from_pretrained(folder, config=config, variant="sparse")


def test_other_shapes_are_refused(tmp_path):
    folder = packed(tiny_t5(), tmp_path, keep_dense=False)
    config = T5Config.from_pretrained(folder)
    config.d_ff = 128
    # Newer transformers find it, for older ones the reader does.
    with pytest.raises(
        (RuntimeError, CompactError), match=r"ignore_mismatched_sizes|holds .*wi.weight of shape \(64, 32\)"
    ):
        T5ForConditionalGeneration.from_pretrained(folder, config=config, variant="sparse")


def test_a_damaged_file_is_refused_before_anything_is_read(tmp_path):
    folder = packed(tiny_t5(), tmp_path, keep_dense=False)
    path = folder / "model.sparse.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    for attempt in (load, lambda f: T5ForConditionalGeneration.from_pretrained(f, variant="sparse")):
        with pytest.raises(CompactError, match=r"model\.sparse\.safetensors: The file does not match its checksum"):
            attempt(folder)


def test_what_load_does_not_know_is_said(tmp_path):
    folder = packed(tiny_t5(), tmp_path, keep_dense=False)
    with pytest.raises(ValueError, match="prefer must be one of"):
        load(folder, prefer="sparse")
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace("T5ForConditionalGeneration", "MyT5"))
    with pytest.raises(CheckpointError, match=r"got 'MyT5'\. Pass model_class"):
        load(folder)


STOCK = """
import sys, torch
from transformers import T5ForConditionalGeneration as T5
from transformers.utils import logging
logging.set_verbosity_error()
both, alone = sys.argv[1:]
print("dense", float(sum(p.detach().double().abs().sum() for p in T5.from_pretrained(both).parameters())))
for folder, variant in ((both, "sparse"), (alone, "sparse"), (alone, None)):
    try:
        T5.from_pretrained(folder, variant=variant)
        print("loaded")
    except Exception as error:
        print(type(error).__name__, str(error)[:90])
"""


def test_stock_transformers_is_right_or_loud_and_never_random(tmp_path):
    """Without sms_hf: the dense form loads, the compact one is an error, asked for or not."""
    model = tiny_t5()
    both = packed(model, tmp_path / "both")
    alone = pack(both, tmp_path / "alone", keep_dense=False)
    done = subprocess.run([sys.executable, "-c", STOCK, both, alone], capture_output=True, text=True, cwd=tmp_path)
    lines = done.stdout.strip().splitlines()
    assert len(lines) == 4, done.stderr
    assert float(lines[0].split()[1]) == float(sum(p.detach().double().abs().sum() for p in model.parameters()))
    assert lines[1].startswith("RuntimeError You set `ignore_mismatched_sizes` to `False`")
    assert lines[2].startswith("RuntimeError You set `ignore_mismatched_sizes` to `False`")
    assert lines[3].startswith("OSError Error no file named model.safetensors")


PARALLEL = """
import sms_hf, torch, sys
from transformers import LlamaForCausalLM
for form in (None, "sparse"):
    model = LlamaForCausalLM.from_pretrained(sys.argv[1], tp_plan="auto", variant=form)
    weight = model.model.layers[0].mlp.up_proj.weight
    local = weight.to_local() if hasattr(weight, "to_local") else weight  # Before transformers 5.16.
    assert tuple(local.shape) == (32, 32), "half of the rows"
    print("loaded", form, flush=True)
"""


def test_packed_tensors_are_not_cut_by_tensor_parallelism(tmp_path):
    packed(LlamaForCausalLM(LlamaConfig(**DECODER)), tmp_path)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--no-python"]
    command += [sys.executable, "-c", PARALLEL, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode != 0
    assert "loaded None" in done.stdout
    assert "loaded sparse" not in done.stdout
    # The launcher may end the process that says why before it has.
    cut, tensors = SimpleNamespace(_tp_size=2), {"weight$": [torch.ones(3)], f"weight{MASK}$": [torch.ones(3)]}
    with pytest.raises(CompactError, match="expected no tensor parallelism, which cuts packed tensors"):
        Unpack(SimpleNamespace()).convert(tensors, [], [], model=cut, missing_keys=set())


@pytest.mark.parametrize("form", ["compact", "dense"])
@pytest.mark.parametrize("cut", [0, 20, -30])
def test_weights_that_are_cut_are_named(tmp_path, form, cut):
    """Not a bare SafetensorError."""
    model = tiny_t5()
    prune(model, 0.8)
    model.save_pretrained(tmp_path)
    pack(tmp_path)
    path = tmp_path / ("model.sparse.safetensors" if form == "compact" else "model.safetensors")
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises((CompactError, CheckpointError), match=str(tmp_path)):
        load(tmp_path, prefer=form)
