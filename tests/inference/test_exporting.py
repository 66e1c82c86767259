"""Models for CTranslate2: the same tokens there, smaller files, and one sentence for what cannot go."""

import json

import pytest
import torch
import transformers as tf
from test_vocabulary import bpe, marian, model_of, unigram, wordpiece

from sms_hf import export, pack, prune
from sms_hf.cli import main

ctranslate2 = pytest.importorskip("ctranslate2", reason="CTranslate2 is not installed")
SENTENCES = ["the cat sat on a mat", "two small dogs ran home", "nobody saw where those birds were going"]


def talkative(kind, tokenizer):
    """A model that writes something, which one that was just initialised does not."""
    model = model_of(kind, tokenizer)
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "embed_positions" not in name:  # Marian's are sines, which the engine knows.
                parameter.normal_(0, 0.3)
        if kind == "marian":
            model.get_input_embeddings().weight[-1] = 0  # The padding, with which a decoder starts.
    return model


@pytest.fixture(params=["t5", "gpt2", "marian"])
def case(request, tmp_path):
    tokenizer = {"t5": lambda: unigram()[0], "gpt2": lambda: bpe()[0], "marian": lambda: marian(tmp_path / "marian")}
    tokenizer = tokenizer[request.param]()
    return talkative(request.param, tokenizer), tokenizer


def test_the_same_tokens_and_a_quarter_of_the_bytes(case, tmp_path):
    model, tokenizer = case
    result = export(model, tmp_path / "out", tokenizer=tokenizer, sentences=SENTENCES)
    assert (tmp_path / "out/model.bin").is_file()
    assert result.comparison.count == 3
    assert result.comparison.same == 1.0
    assert result.comparison.bleu == pytest.approx(100)
    assert min(result.comparison.milliseconds) > 0
    assert 0.8 < result.num_bytes[1] / result.num_bytes[0] < 1.3
    assert "3 sentences, greedy: 100.0% with the tokens of the source" in str(result)
    small = export(model, tmp_path / "int8", tokenizer=tokenizer, quantization="int8")
    assert small.num_bytes[1] < 0.5 * result.num_bytes[1]
    assert str(small).endswith("not compared with the source: no sentences were given")
    # The folder is all that is needed there.
    again = (
        tf.AutoTokenizer.from_pretrained(tmp_path / "out")
        if not isinstance(tokenizer, tf.MarianTokenizer)
        else tokenizer
    )
    assert again(SENTENCES[0])["input_ids"] == tokenizer(SENTENCES[0])["input_ids"]


def test_a_sparse_folder_is_shrunken_first(tmp_path):
    tokenizer, _ = unigram()
    model = talkative("t5", tokenizer)
    masks = prune(model, 0.5, pattern="neurons", scope="uniform")
    model.save_pretrained(tmp_path / "sparse")
    tokenizer.save_pretrained(tmp_path / "sparse")
    masks.save(tmp_path / "sparse/masks.safetensors")
    pack(tmp_path / "sparse", keep_dense=False)
    result = export(tmp_path / "sparse", tmp_path / "out", sentences=SENTENCES)
    assert result.comparison.same == 1.0
    assert result.shrunken.startswith("d_ff: ")
    assert result.num_bytes[1] < result.num_bytes[0]
    assert f"removed before: {result.shrunken}" in str(result)


def test_what_cannot_be_exported(tmp_path, monkeypatch):
    tokenizer, _ = unigram()
    model = talkative("t5", tokenizer)
    out = tmp_path / "out"
    image = tf.ViTForImageClassification(
        tf.ViTConfig(
            image_size=8, patch_size=4, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=16
        )
    )
    with pytest.raises(ValueError, match="CTranslate2 cannot take this model: No conversion is registered for"):
        export(image, out, tokenizer=tokenizer)
    with pytest.raises(ValueError, match=r"quantization must be one of .*got 'int7'"):
        export(model, out, tokenizer=tokenizer, quantization="int7")
    with pytest.raises(ValueError, match="format must be one of"):
        export(model, out, tokenizer=tokenizer, format="onnx")
    with pytest.raises(ValueError, match="export needs the tokenizer of a model that is given itself"):
        export(model, out)
    words, _ = wordpiece()
    encoder = tf.BertModel(model_of("bert", words).config)
    with pytest.raises(
        ValueError, match="Expected no sentences for a BertModel, which writes nothing that could be compared"
    ):
        export(encoder, out, tokenizer=words, sentences=SENTENCES)
    assert not list(tmp_path.iterdir()), "nothing is left"
    (tmp_path / "used").mkdir()
    (tmp_path / "used/file").touch()
    with pytest.raises(ValueError, match="output must be a new or empty folder"):
        export(model, tmp_path / "used", tokenizer=tokenizer)


def test_an_export_that_says_something_else_is_not_written(tmp_path, monkeypatch):
    """Had the converter mixed up a weight."""
    from sms_hf.inference import exporting

    tokenizer, _ = unigram()
    model = talkative("t5", tokenizer)
    convert, compare = exporting.FORMATS["ctranslate2"]

    def other(source, output, quantization):
        broken = tf.T5ForConditionalGeneration.from_pretrained(source)
        with torch.no_grad():
            broken.shared.weight.normal_()
        broken.save_pretrained(source)
        convert(source, output, quantization)

    monkeypatch.setitem(exporting.FORMATS, "ctranslate2", (other, compare))
    with pytest.raises(ValueError, match=r"this model is not converted right\. Nothing was written"):
        export(model, tmp_path / "out", tokenizer=tokenizer, sentences=SENTENCES)
    assert not (tmp_path / "out").exists()


def test_without_the_engine(tmp_path, monkeypatch):
    import sys

    tokenizer, _ = unigram()
    monkeypatch.setitem(sys.modules, "ctranslate2.converters", None)
    with pytest.raises(ImportError, match=r"needs CTranslate2: pip install sms_hf\[ctranslate2\]"):
        export(talkative("t5", tokenizer), tmp_path / "out", tokenizer=tokenizer)


def test_the_export_command(tmp_path, capsys):
    tokenizer, _ = unigram()
    talkative("t5", tokenizer).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "texts").write_text("\n".join(SENTENCES))
    line = ["export", str(tmp_path / "model"), "--output", str(tmp_path / "out"), "--quantization", "int8"]
    assert main([*line, "--sentences", str(tmp_path / "texts")]) == 0
    printed = capsys.readouterr().out
    assert "bytes (" in printed
    assert "3 sentences, greedy: " in printed
    assert main([*line[:-3], str(tmp_path / "more"), "--sentences", str(tmp_path / "texts"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["folder"] == str(tmp_path / "more")
    assert facts["comparison"]["count"] == 3
    assert len(facts["comparison"]["milliseconds"]) == len(facts["num_bytes"]) == 2
    assert main(line) == 1
    assert "output must be a new or empty folder" in capsys.readouterr().err
