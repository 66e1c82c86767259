"""Model folders from one form to the other and back: same weights, right files, nothing lost when it breaks."""

import json

import pytest
import torch
from conftest import tiny_t5
from safetensors.torch import load_file
from transformers import T5ForConditionalGeneration

from sms_hf import MaskError, Masks, pack, prune, unpack
from sms_hf.compact import CompactFile, folders
from sms_hf.files.folder import CheckpointError

DENSE, COMPACT = "model.safetensors", "model.sparse.safetensors"


@pytest.fixture
def folder(tmp_path):
    """A pruned T5 as the trainer leaves it: weights, masks, configuration, something else beside."""
    model = tiny_t5()
    masks = prune(model, 0.9)
    model.save_pretrained(tmp_path / "model")
    masks.save(tmp_path / "model" / "masks.safetensors")
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    (tmp_path / "model" / "checkpoint-1").mkdir()
    return tmp_path / "model"


def names(folder):
    return {path.name for path in folder.iterdir()}


def config(folder):
    return json.loads((folder / "config.json").read_text())


def test_pack_in_place_puts_the_compact_form_beside(folder):
    before = (folder / DENSE).read_bytes()
    assert pack(folder) == folder
    assert names(folder) >= {DENSE, COMPACT}
    assert (folder / DENSE).read_bytes() == before
    assert (folder / COMPACT).stat().st_size < 0.4 * len(before)
    assert config(folder)["quantization_config"] == {"quant_method": "sms_hf", "dequantize": True}
    with CompactFile(folder / COMPACT) as file:
        assert file.masks().fingerprint() == Masks.load(folder / "masks.safetensors").fingerprint()
        assert file.model_type == "t5"


def test_pack_alone_and_unpack_again(folder, tmp_path):
    before, settings = load_file(folder / DENSE), config(folder)
    packed = pack(folder, tmp_path / "packed", keep_dense=False)
    assert names(packed) == {COMPACT, "config.json", "generation_config.json", "masks.safetensors", "tokenizer.json"}
    assert names(folder) >= {DENSE, "checkpoint-1"}, "the source stays as it was"
    again = unpack(packed, tmp_path / "again")
    assert names(again) == names(packed) - {COMPACT} | {DENSE}
    after = load_file(again / DENSE)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert config(again) == settings
    unpack(packed)
    assert names(packed) == names(again)


def test_entropy_coding_is_smaller(folder, tmp_path):
    plain, coded = pack(folder, tmp_path / "plain"), pack(folder, tmp_path / "coded", entropy_coded=True)
    assert (coded / COMPACT).stat().st_size < (plain / COMPACT).stat().st_size


def test_shards_are_packed_one_by_one(tmp_path):
    model = tiny_t5()
    prune(model, 0.9)
    model.save_pretrained(tmp_path / "model", max_shard_size="40KB")
    dense = {p.name for p in (tmp_path / "model").glob("model-*.safetensors")}
    assert len(dense) == 3
    packed = pack(tmp_path / "model", tmp_path / "packed", keep_dense=False)
    assert names(packed) == {
        "config.json",
        "generation_config.json",
        "model.safetensors.index.sparse.json",
        *(name.replace("model-", "model.sparse-") for name in dense),
    }
    index = json.loads((packed / "model.safetensors.index.sparse.json").read_text())["weight_map"]
    for name, file in index.items():
        assert name in load_file(packed / file)
    again = unpack(packed, tmp_path / "again")
    before, after = (T5ForConditionalGeneration.from_pretrained(f) for f in (tmp_path / "model", again))
    assert all(
        torch.equal(a, b) for a, b in zip(before.state_dict().values(), after.state_dict().values(), strict=True)
    )
    first = (tmp_path / "model" / "model.safetensors.index.json").read_text()
    assert json.loads((again / "model.safetensors.index.json").read_text()) == json.loads(first)


def test_a_stale_compact_form_never_wins(folder):
    """Where both are there, the dense form counts: it is what training writes."""
    pack(folder)
    model = tiny_t5(seed=1)
    Masks.load(folder / "masks.safetensors").apply_(model)
    model.save_pretrained(folder)
    expected = load_file(folder / DENSE)
    unpack(folder)
    assert all(torch.equal(weight, expected[name]) for name, weight in load_file(folder / DENSE).items())
    assert COMPACT not in names(folder)


def test_shards_of_an_earlier_form_do_not_stay(folder):
    """A whole file beside shards would win over them."""
    pack(folder)
    model = T5ForConditionalGeneration.from_pretrained(folder)
    (folder / DENSE).unlink()
    model.save_pretrained(folder, max_shard_size="40KB")
    pack(folder)
    assert COMPACT not in names(folder)
    assert len(list(folder.glob("model.sparse-*.safetensors"))) == 3
    model.save_pretrained(folder)
    pack(folder)
    assert COMPACT in names(folder)
    assert not list(folder.glob("model.sparse-*.safetensors"))
    assert folders.COMPACT_INDEX not in names(folder)


def test_nothing_half_written(folder, tmp_path, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}

    def full(*_args, **_kwargs):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(folders, "write_compact", full)
        with pytest.raises(OSError, match="No space"):
            pack(folder, tmp_path / "packed")
        with pytest.raises(OSError, match="No space"):
            pack(folder, keep_dense=False)
    assert not (tmp_path / "packed").exists()
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    pack(folder, tmp_path / "packed")
    assert COMPACT in names(tmp_path / "packed")


def test_what_cannot_be_packed_is_refused(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"Expected a model folder with config\.json"):
        pack(tmp_path / "empty")
    with pytest.raises(CheckpointError, match="must be a new or empty folder"):
        pack(folder, folder.parent)
    folder.rename(tmp_path / "x.partial")
    with pytest.raises(CheckpointError, match="another folder than the source"):
        pack(tmp_path / "x.partial", tmp_path / "x")
    (tmp_path / "x.partial").rename(folder)
    with pytest.raises(ValueError, match="sparse_format must be one of"):
        folders.convert(folder, "zip")
    quantized = config(folder) | {"quantization_config": {"quant_method": "gptq"}}
    (folder / "config.json").write_text(json.dumps(quantized))
    with pytest.raises(CheckpointError, match="says 'gptq'"):
        pack(folder, tmp_path / "quantized")


def test_weights_that_broke_their_masks_are_not_packed(folder):
    model = T5ForConditionalGeneration.from_pretrained(folder)
    model.encoder.block[0].layer[0].SelfAttention.q.weight.data += 1
    model.save_pretrained(folder)
    with pytest.raises(MaskError, match=r"SelfAttention\.q\.weight"):
        pack(folder)
    assert COMPACT not in names(folder)


@pytest.mark.parametrize("text", ["", "[1]", '{"weight_map": 3}', '{"weight_map": {"a": "../../secret"}}', "\xff"])
def test_a_damaged_index_is_named(folder, tmp_path, text):
    packed = pack(folder, tmp_path / "packed", keep_dense=False)
    (packed / COMPACT).unlink()
    (packed / "model.safetensors.index.sparse.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"index\.sparse\.json"):
        unpack(packed)


def test_an_index_that_names_missing_files_is_named(folder, tmp_path):
    packed = pack(folder, tmp_path / "packed", keep_dense=False)
    (packed / COMPACT).unlink()
    (packed / "model.safetensors.index.sparse.json").write_text('{"weight_map": {"a": "model.sparse-1.safetensors"}}')
    with pytest.raises(ValueError, match=r"not there: \['model.sparse-1.safetensors'\]"):
        unpack(packed)
