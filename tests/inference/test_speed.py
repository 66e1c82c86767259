"""Models that were sped up: the same outputs by every way, chosen by measurement, and nothing else about them is different."""

import copy
import pickle
import shutil
import threading

import pytest
import torch
import transformers as hf
from test_shrinking import BART, BERT, GPT2, LLAMA, T5, generated, outputs
from torch import nn
from transformers.pytorch_utils import Conv1D

from sms_hf import prune, speed_up
from sms_hf.speed import kernel, layers, paths, slow_down, speed_table

MODELS = {
    "t5": lambda: hf.T5ForConditionalGeneration(hf.T5Config(**T5)),
    "marian": lambda: hf.MarianMTModel(hf.MarianConfig(**BART)),
    "bert": lambda: hf.BertForSequenceClassification(hf.BertConfig(**BERT)),
    "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT2)),
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA)),
}
needs_compiler = pytest.mark.skipif(kernel.load_kernel() is None, reason="no C compiler (cc, gcc, clang)")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Measurements of the test's own, and layers of any size."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(layers, "SMALLEST", 0)
    return tmp_path / "cache" / "sms_hf"


@pytest.fixture
def always(monkeypatch):
    """Makes every layer take one way, where it goes."""

    def take(way):
        monkeypatch.setattr(paths, "measure", lambda ways, *_: (way, 2.0) if way in ways else (paths.DENSE, 1.0))

    return take


def build(name, dtype=torch.float32):
    torch.manual_seed(0)
    model = MODELS[name]().to(dtype).eval()
    prune(model, 0.6, scope="uniform")
    return model


def ways_of(model):
    return {way for module in model.modules() if hasattr(module, "fast") for way in module.fast.choices.values()}


# ---- The kernel --------------------------------------------------------------------------------------------------------


@needs_compiler
def test_a_product_by_hand():
    weight = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, -3.0]])
    rows = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    matrix = kernel.SparseMatrix(weight)
    assert matrix.multiply(rows, None).tolist() == [[4.0, 0.0, -8.0], [10.0, 0.0, -14.0]]
    assert matrix.multiply(rows[:1], torch.tensor([0.5, 1.0, 2.0])).tolist() == [[4.5, 1.0, -6.0]]


@needs_compiler
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("outputs", "columns"), [(1, 1), (17, 5), (64, 33), (130, 300), (7, 65536)])
def test_any_number_of_rows(outputs, columns, threads):
    generator = torch.Generator().manual_seed(outputs)
    weight = torch.randn(outputs, columns, generator=generator)
    weight[torch.rand(weight.shape, generator=generator) < 0.8] = 0
    bias = torch.randn(outputs, generator=generator)
    matrix, before = kernel.SparseMatrix(weight), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for count in (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 70):
            rows = torch.randn(count, columns, generator=generator)
            expected = rows.double() @ weight.double().t() + bias.double()
            torch.testing.assert_close(matrix.multiply(rows, bias).double(), expected, rtol=1e-4, atol=1e-3)
    finally:
        torch.set_num_threads(before)


@needs_compiler
def test_the_process_keeps_its_arithmetic():
    tiny = torch.tensor([1e-40])
    assert (tiny * torch.ones(1)).item() > 0  # A library linked with -ffast-math makes this 0.


# ---- Models ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["oneDNN", pytest.param("kernel", marks=needs_compiler), "CSR", "dense"])
@pytest.mark.parametrize("name", MODELS)
def test_every_way_gives_the_same_outputs(name, way, always, monkeypatch):
    if way == "CSR":
        monkeypatch.setattr(paths, "load_kernel", lambda: None)
    always(way)
    model = build(name)
    expected, tokens = outputs(model), generated(model) if model.can_generate() else None
    assert speed_up(model) is model
    torch.testing.assert_close(outputs(model), expected, rtol=1e-4, atol=1e-5)
    assert way in ways_of(model)
    if tokens is not None:
        assert torch.equal(generated(model), tokens)


@needs_compiler
@pytest.mark.parametrize("name", ["t5", "gpt2"])
def test_bfloat16(name, always):
    always("kernel")
    model = build(name, torch.bfloat16)
    expected = outputs(model)
    got = outputs(speed_up(model))
    assert got.dtype == torch.bfloat16
    assert "kernel" in ways_of(model)
    torch.testing.assert_close(got.float(), expected.float(), rtol=0.05, atol=0.05)


@needs_compiler
def test_weights_of_8_bits_by_hand():
    """The largest of each row is 127 steps from zero."""
    matrix = kernel.ByteMatrix(torch.tensor([[127.0, 3.4, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, -0.5]]))
    x = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 2.0]])
    assert matrix.multiply(x, None).tolist() == [[127.0, 0.0, 0.0], [3.0, 0.0, 0.0], [0.0, 0.0, -1.0]]
    assert matrix.multiply(x[:1], torch.tensor([1.0, 2.0, 3.0])).tolist() == [[128.0, 2.0, 3.0]]


@needs_compiler
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("outputs", "columns"), [(1, 1), (17, 5), (64, 33), (130, 300), (7, 4096)])
def test_any_number_of_rows_of_8_bits(outputs, columns, threads):
    generator = torch.Generator().manual_seed(outputs)
    weight, bias = torch.randn(outputs, columns, generator=generator), torch.randn(outputs, generator=generator)
    scale = weight.abs().amax(1, keepdim=True) / 127
    rounded, before = (weight / scale).round() * scale, torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for rows in (1, 2, 3, 4, 5, 8, 33):
            x = torch.randn(rows, columns, generator=generator)
            torch.testing.assert_close(
                kernel.ByteMatrix(weight).multiply(x, bias), x @ rounded.T + bias, rtol=1e-4, atol=1e-4
            )
    finally:
        torch.set_num_threads(before)


@needs_compiler
@pytest.mark.parametrize("name", ["t5", "marian", "gpt2", "llama"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_head_of_8_bits_where_it_is_asked_for(name, dtype, always, tmp_path):
    always("int8")
    model = build(name, dtype)
    expected, weights = outputs(model), copy.deepcopy(model.state_dict())
    speed_up(model, int8_head=True)
    found = outputs(copy.deepcopy(model))
    assert (found - expected).norm() < 0.02 * expected.norm()
    assert not torch.equal(found, expected)
    outputs(model)
    taken = [name for name, module in model.named_modules() if hasattr(module, "fast") and "int8" in ways_of(module)]
    assert taken == ["lm_head"], "and no other layer"
    assert all(torch.equal(weights[key], value) for key, value in model.state_dict().items())
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
    assert outputs(model).abs().max() == (model.final_logits_bias.abs().max() if name == "marian" else 0), "noticed"
    assert torch.equal(outputs(speed_up(build(name, dtype))), expected), "not unless it is asked for"


def test_a_head_that_is_not_there():
    model = build("bert")
    with pytest.raises(ValueError, match="map to a vocabulary, got BertForSequenceClassification"):
        speed_up(model, int8_head=True)
    assert not ways_of(model)
    assert not any(hasattr(module, "fast") for module in model.modules())


def test_back(always, tmp_path):
    always("oneDNN")
    model = build("t5")
    model.save_pretrained(tmp_path / "before")
    kinds = [type(module) for module in model.modules()]
    speed_up(model)
    outputs(model)
    model.save_pretrained(tmp_path / "fast")
    same = "model.safetensors", "config.json"
    assert all((tmp_path / "fast" / n).read_bytes() == (tmp_path / "before" / n).read_bytes() for n in same)
    assert isinstance(model.lm_head, nn.Linear)
    assert slow_down(model) is model
    assert [type(module) for module in model.modules()] == kinds
    assert not any(hasattr(module, "fast") for module in model.modules())
    model.train()
    model(input_ids=torch.tensor([[3, 4]]), labels=torch.tensor([[4, 1]])).loss.backward()
    pickle.loads(pickle.dumps(model.encoder.block[0].layer[0].SelfAttention.q))


def test_gradients_and_pickles_are_refused(always):
    always("oneDNN")
    model = speed_up(build("bert"))
    tokens = {"input_ids": torch.tensor([[3, 4]])}
    with pytest.raises(RuntimeError, match=r"its layers compute no gradients. Use torch.inference_mode\(\)"):
        model(**tokens)
    with torch.inference_mode():
        model(**tokens)
    with pytest.raises(TypeError, match=r"Call slow_down\(model\) first"):
        pickle.dumps(model)


def test_a_recording_is_of_the_ordinary_layer(always):
    always("oneDNN")
    layer = speed_up(nn.Linear(8, 8))
    rows = torch.ones(2, 8)
    with torch.no_grad():
        layer(rows)
        recorded = torch.export.export(layer, (rows,))
        assert [node.target for node in recorded.graph.nodes if node.op == "call_function"] == [
            torch.ops.aten.linear.default
        ]
        torch.testing.assert_close(
            recorded.module()(3 * rows), nn.functional.linear(3 * rows, layer.weight, layer.bias)
        )


def test_a_copy_and_threads(always):
    always("oneDNN")
    model = build("t5")
    expected = generated(model)
    outputs(speed_up(model))
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(generated(twin), expected)
    results = []
    fresh = copy.deepcopy(twin)
    pool = [threading.Thread(target=lambda: results.append(generated(fresh))) for _ in range(4)]
    for thread in pool:
        thread.start()
    for thread in pool:
        thread.join()
    assert len(results) == 4
    assert all(torch.equal(result, expected) for result in results)


@pytest.mark.parametrize("way", ["oneDNN", pytest.param("kernel", marks=needs_compiler)])
def test_changed_weights_are_noticed(way, always):
    always(way)
    model, other = build("bert"), build("bert")
    outputs(speed_up(model))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(-0.5)
    model.load_state_dict(other.state_dict())
    torch.testing.assert_close(outputs(model), outputs(other), rtol=1e-4, atol=1e-5)
    layer = next(module for module in model.modules() if type(module) in layers.FAST.values())
    rows = torch.randn(3, layer.in_features)
    with torch.no_grad():
        layer.weight = nn.Parameter(torch.ones_like(layer.weight))
        torch.testing.assert_close(
            layer(rows), nn.functional.linear(rows, layer.weight, layer.bias), rtol=1e-4, atol=1e-5
        )


# ---- Two of four -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[1, 2, 0, 0, 0, 3, 4, 0], [0, 0, 0, 0, 5, 0, 0, 6]], True),
        ([[1, 2, 0, 0], [3, 4, 5, 0]], False),
        ([[0, 0, 1, 2, 3, 4, 0, 0]], True),
        ([[1, 2, 3], [0, 0, 0]], False),
    ],
)
def test_two_of_four(rows, expected):
    assert paths.is_two_of_four(torch.tensor(rows)) is expected
    assert paths.is_two_of_four(torch.tensor(rows).t().contiguous().t()) is expected


def test_only_weights_of_two_of_four_are_packed_for_the_units_of_a_gpu(monkeypatch):
    packed = []
    monkeypatch.setattr(paths, "to_sparse_semi_structured", lambda weight: packed.append(weight) or weight)
    weight, rows, bias = (tensor.bfloat16() for tensor in (torch.eye(4), torch.ones(2, 4), torch.arange(4.0)))
    assert paths._semi_structured(weight)(rows, bias).tolist() == [[1, 2, 3, 4]] * 2
    assert paths._semi_structured(torch.ones(4, 4).bfloat16()) is None
    assert paths._semi_structured(weight.float()) is None, "the units round float32: not exact"
    assert packed == [weight]

    def refuse(weight):
        raise RuntimeError("Device capability is not supported")

    monkeypatch.setattr(paths, "to_sparse_semi_structured", refuse)
    assert paths._semi_structured(weight) is None


# ---- The choice --------------------------------------------------------------------------------------------------------


def test_what_is_not_faster_by_five_percent_stays_dense(monkeypatch):
    rows, weight = torch.zeros(2, 2), torch.zeros(2, 2)
    now = [0.0]
    costs = {"dense": 1.00, "one": 0.96, "two": 0.94}
    monkeypatch.setattr(paths.time, "perf_counter", lambda: now[0])

    def call(name):
        def run(*_):
            now[0] += costs[name]
            return rows

        return run

    monkeypatch.setattr(paths.nn.functional, "linear", call("dense"))
    assert paths.measure({"one": call("one")}, rows, weight, None) == ("dense", 1.0)
    assert paths.measure({"one": call("one"), "two": call("two")}, rows, weight, None) == (
        "two",
        pytest.approx(1 / 0.94, abs=1e-4),
    )


def test_measurements_are_kept_and_may_be_lost(cache, monkeypatch):
    calls = []

    def measured(ways, *_):
        calls.append(sorted(ways))
        return "oneDNN", 1.5

    monkeypatch.setattr(paths, "measure", measured)
    outputs(speed_up(build("bert")))
    first = len(calls)
    assert first
    outputs(speed_up(build("bert")))
    assert len(calls) == first  # Of the same shapes, rows and zeros.
    paths.Measurements._loaded.clear()  # As in a new process.
    outputs(speed_up(build("bert")))
    assert len(calls) == first
    for path in cache.glob("speed-*.json"):
        path.write_text("{ no json")
    paths.Measurements._loaded.clear()
    outputs(speed_up(build("bert")))
    assert len(calls) == 2 * first
    shutil.rmtree(cache)
    cache.write_text("no folder")
    paths.Measurements._loaded.clear()
    outputs(speed_up(build("bert")))
    assert len(calls) == 3 * first


def test_the_table(always, monkeypatch):
    always("oneDNN")
    monkeypatch.setattr(layers, "SMALLEST", 128)
    model = speed_up(build("bert"))
    assert speed_table(model).count("oneDNN") == 0
    outputs(model)
    lines = speed_table(model).splitlines()
    assert lines[0].split() == ["weight", "zeros", "rows", "way", "layers", "over", "dense"]
    # Two layers with a map from 8 to 16 and one back, each seen with eight tokens.
    assert [line.split() for line in lines[2:]] == [
        ["8x16", "60%", "up", "to", "8", "oneDNN", "2", "2.0x"],
        ["16x8", "60%", "up", "to", "8", "oneDNN", "2", "2.0x"],
    ]
    monkeypatch.setattr(layers, "load_kernel", lambda: None)
    assert speed_table(model).splitlines()[-1] == "No C compiler (cc, gcc, clang): no kernel for zeros."


@pytest.mark.parametrize("compiler", ["/nowhere/cc", "false"])
def test_without_a_compiler(compiler, monkeypatch):
    monkeypatch.setenv("CC", compiler)
    monkeypatch.setenv("PATH", "/nowhere" if compiler != "false" else "/usr/bin:/bin")
    kernel.load_kernel.cache_clear()
    try:
        assert kernel.load_kernel() is None
        model = build("bert")
        expected = outputs(model)
        torch.testing.assert_close(outputs(speed_up(model)), expected, rtol=1e-4, atol=1e-5)
        assert ways_of(model) <= {"dense", "oneDNN", "CSR"}
    finally:
        kernel.load_kernel.cache_clear()


def test_after_another_pruning_it_is_measured_anew(always):
    always("dense")
    model = speed_up(build("bert"))
    expected = outputs(model)
    assert ways_of(model) == {"dense"}
    always("oneDNN")
    paths.Measurements._loaded.clear()
    paths.Measurements.load().known.clear()
    torch.testing.assert_close(outputs(speed_up(model)), expected, rtol=1e-4, atol=1e-5)
    assert ways_of(model) == {"oneDNN"}
    assert not any(isinstance(module, layers.FastLinear) for module in slow_down(model).modules())


# ---- What stays as it is -----------------------------------------------------------------------------------------------


def test_other_layers_and_other_precisions_stay(always, monkeypatch):
    always("oneDNN")

    class Adapter(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(8, 8), Adapter(8, 8), nn.Linear(8, 8).double(), nn.Linear(2, 2), Conv1D(8, 8))
    monkeypatch.setattr(layers, "SMALLEST", 64)
    speed_up(model)
    assert [type(module) for module in model] == [layers.FastLinear, Adapter, nn.Linear, nn.Linear, layers.FastConv1D]
    with torch.no_grad():
        assert model[0](torch.zeros(0, 8)).shape == (0, 8)
        with torch.autocast("cpu", torch.bfloat16):
            assert model[0](torch.zeros(1, 8)).dtype == torch.bfloat16


def test_what_cannot_be_sped_up():
    with pytest.raises(ValueError, match="speed_up needs a model, got str"):
        speed_up("soup")
    with pytest.raises(ValueError, match=r"is for a CPU or a GPU, got a model on meta. Call model.cpu\(\) first"):
        speed_up(nn.Linear(8, 8, device="meta"))
    with pytest.raises(ValueError, match="is for a CPU or a GPU, got a model on cpu, meta"):
        speed_up(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8, device="meta")))
    quantized = build("bert")
    quantized.is_quantized = True
    with pytest.raises(ValueError, match="needs a model that is not quantized"):
        speed_up(quantized)
    assert not any(isinstance(module, layers.FastLinear) for module in quantized.modules())


def test_a_real_measurement():
    model = build("t5")
    expected = generated(model)
    assert torch.equal(generated(speed_up(model)), expected)
    assert ways_of(model) <= {paths.DENSE, *paths.PATHS["cpu"]}
