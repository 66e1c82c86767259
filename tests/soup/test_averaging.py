"""The streamed average: hand-computed means, bit-exact copies, and what must be refused."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from sms_hf.files.checkpoint import Checkpoint
from sms_hf.files.folder import CheckpointError
from sms_hf.soup import average_checkpoints, averaging
from sms_hf.sparsity import MaskError, Masks
from sms_hf.sparsity.pruning import select

torch.set_num_threads(1)

MASK = torch.tensor([[True, False, True, False], [False, True, True, True]])


def folder_of(path, tensors, masks=None):
    path.mkdir()
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    if masks is not None:
        Masks(masks).save(path / "masks.safetensors")
    return path


def sharded_folder_of(path, *shards):
    path.mkdir()
    weight_map = {}
    for number, tensors in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file(tensors, path / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, name)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path


def folders_of(tmp_path, *states, masks=None):
    return [folder_of(tmp_path / f"c{i}", state, masks) for i, state in enumerate(states)]


def averaged(folders, output, weights=None):
    assert average_checkpoints(folders, output, weights) == output
    return load_file(output / "model.safetensors")


def same_bits(a, b):
    as_bytes = [t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b)]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*as_bytes)


def random_state(seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"w": (5, 3), "bias": (7,), "scale": (), "cube": (2, 3, 2)}
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def sparse_state(seed):
    generator = torch.Generator().manual_seed(seed)
    return {"w": torch.randn(2, 4, generator=generator) * MASK, "bias": torch.randn(2, generator=generator)}


# --- numbers ---


def test_mean_of_two_by_hand(tmp_path):
    folders = folders_of(
        tmp_path,
        {"w": torch.tensor([[1.0, 2.0], [-3.0, 0.5]]), "b": torch.tensor([1.0])},
        {"w": torch.tensor([[3.0, -2.0], [-1.0, 0.25]]), "b": torch.tensor([4.0])},
    )
    soup = averaged(folders, tmp_path / "soup")
    assert soup["w"].tolist() == [[2.0, 0.0], [-2.0, 0.375]]
    assert soup["b"].tolist() == [2.5]
    assert set(soup) == {"w", "b"}


def test_weights_by_hand_are_divided_by_their_sum(tmp_path):
    folders = folders_of(tmp_path, *({"w": torch.tensor([x, 0.0])} for x in (1.0, 2.0, 6.0)))
    assert averaged(folders, tmp_path / "a", [0.25, 0.25, 0.5])["w"].tolist() == [3.75, 0.0]
    assert averaged(folders, tmp_path / "b", [1, 1, 2])["w"].tolist() == [3.75, 0.0]
    assert averaged(folders, tmp_path / "c", [0, 0, 5])["w"].tolist() == [6.0, 0.0]
    assert averaged(folders, tmp_path / "d", [2.0, -1.0, 0.0])["w"].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("weights", "shown"), [([1.0], r"\[1.0\]"), ([1, 1, 1], r"\[1, 1, 1\]"), ([1, -1], r"\[1, -1\]")]
)
def test_weights_of_another_number_or_with_sum_zero_are_an_error(tmp_path, weights, shown):
    folders = folders_of(tmp_path, {"w": torch.ones(2)}, {"w": torch.ones(2)})
    with pytest.raises(ValueError, match=rf"weights must hold 2 numbers with a sum other than 0.*got {shown}"):
        average_checkpoints(folders, tmp_path / "soup", weights)
    assert not (tmp_path / "soup").exists()


def test_no_folder_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="A soup needs at least one folder, got none"):
        average_checkpoints([], tmp_path / "soup")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("count", range(1, 8))
def test_average_of_copies_is_the_copy_bit_for_bit(tmp_path, dtype, count):
    state = random_state(count, dtype)
    state["extremes"] = torch.tensor([torch.finfo(dtype).max, torch.finfo(dtype).tiny, 0.1, 1 / 3]).to(dtype)
    state["denormal"] = torch.tensor([1], dtype=torch.int32 if dtype == torch.float32 else torch.int16).view(dtype)
    soup = averaged(folders_of(tmp_path, *[state] * count), tmp_path / "soup")
    assert soup.keys() == state.keys()
    for name in state:
        assert same_bits(soup[name], state[name]), name


def test_average_of_copies_keeps_negative_zeros(tmp_path):
    state = {"b": torch.tensor([-0.0, 0.0, 1.0])}
    soup = averaged(folders_of(tmp_path, state, state), tmp_path / "soup")
    assert same_bits(soup["b"], state["b"])


@pytest.mark.parametrize("weights", [[0.3, 0.3, 0.4], [1, 2, 4]])
def test_weighted_average_of_copies_is_the_copy(tmp_path, weights):
    state = random_state(0)
    soup = averaged(folders_of(tmp_path, state, state, state), tmp_path / "soup", weights)
    assert all(same_bits(soup[name], state[name]) for name in state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_order_of_the_folders_does_not_matter(tmp_path, dtype):
    folders = folders_of(tmp_path, *(random_state(seed, dtype) for seed in range(4)))
    forward = averaged(folders, tmp_path / "forward")
    for number, order in enumerate([(3, 2, 1, 0), (1, 3, 0, 2)]):
        other = averaged([folders[i] for i in order], tmp_path / f"other{number}")
        assert all(same_bits(forward[name], other[name]) for name in forward)


def test_sums_are_not_rounded_to_bfloat16_on_the_way(tmp_path):
    # 256 + 1 is 256 in bfloat16: a sum kept in bfloat16 would give 256 / 5 = 51.25 instead of 260 / 5 = 52.
    values = [256.0, 1.0, 1.0, 1.0, 1.0]
    folders = folders_of(tmp_path, *({"w": torch.tensor([v], dtype=torch.bfloat16)} for v in values))
    sequential = sum(torch.tensor([v], dtype=torch.bfloat16) for v in values) / 5
    assert sequential.item() == 51.25
    soup = averaged(folders, tmp_path / "soup")
    assert soup["w"].dtype == torch.bfloat16
    assert soup["w"].item() == 52.0


def test_sums_are_not_rounded_to_float16_on_the_way(tmp_path):
    # 60000 + 60000 overflows float16.
    folders = folders_of(tmp_path, *[{"w": torch.tensor([60000.0, -4.0], dtype=torch.float16)}] * 2)
    assert averaged(folders, tmp_path / "soup")["w"].tolist() == [60000.0, -4.0]


def test_sums_are_not_rounded_to_float32_on_the_way(tmp_path):
    # 2^24 + 1 is 2^24 in float32; the mean of the four is 2^22 + 1 only if both ones survive.
    values = [2.0**24, 1.0, 1.0, 2.0]
    folders = folders_of(tmp_path, *({"w": torch.tensor([v])} for v in values))
    assert averaged(folders, tmp_path / "soup")["w"].item() == 2.0**22 + 1.0


def test_float64_is_averaged_in_float64(tmp_path):
    folders = folders_of(tmp_path, *({"w": torch.tensor([1.0 + v], dtype=torch.float64)} for v in (2**-40, 2**-41)))
    soup = averaged(folders, tmp_path / "soup")
    assert soup["w"].dtype == torch.float64
    assert soup["w"].item() == 1.0 + 0.75 * 2**-40


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool])
def test_integer_tensors_come_from_the_first_folder(tmp_path, dtype):
    first, second = torch.tensor([[1, 0, 5]]).to(dtype), torch.tensor([[0, 1, 9]]).to(dtype)
    folders = folders_of(tmp_path, {"n": first, "w": torch.tensor([1.0])}, {"n": second, "w": torch.tensor([2.0])})
    soup = averaged(folders, tmp_path / "soup")
    assert same_bits(soup["n"], first)
    assert soup["w"].item() == 1.5


def test_tensors_of_several_dtypes_and_odd_sizes_in_one_file(tmp_path):
    state = {
        "a": torch.tensor([1, 2, 3], dtype=torch.int8),
        "b": torch.tensor([0.5, 1.5]),
        "c": torch.tensor([2.0], dtype=torch.bfloat16),
        "d": torch.tensor([True]),
        "e": torch.tensor([7.0], dtype=torch.float64),
        "f": torch.tensor(4),
    }
    soup = averaged(folders_of(tmp_path, state, state), tmp_path / "soup")
    assert soup.keys() == state.keys()
    assert all(same_bits(soup[name], state[name]) for name in state)


def test_scalars_and_empty_tensors(tmp_path):
    states = [
        {"scale": torch.tensor(s), "count": torch.tensor(int(s)), "none": torch.ones(0, 3), "flat": torch.ones(2, 0)}
        for s in (1.0, 4.0)
    ]
    soup = averaged(folders_of(tmp_path, *states), tmp_path / "soup")
    assert soup["scale"].shape == ()
    assert soup["scale"].item() == 2.5
    assert soup["count"].item() == 1
    assert soup["none"].shape == (0, 3)
    assert soup["flat"].shape == (2, 0)


@pytest.mark.parametrize("chunk", [1, 3, 4, 6, 7, 1 << 20])
def test_result_does_not_depend_on_the_size_of_the_pieces(tmp_path, monkeypatch, chunk):
    states = [{**random_state(seed), "long": torch.arange(13.0) * seed, "wide": torch.ones(1, 9)} for seed in (1, 2, 3)]
    monkeypatch.setattr(averaging, "CHUNK", chunk)
    soup = averaged(folders_of(tmp_path, *states), tmp_path / "soup")
    assert soup["long"].tolist() == [2.0 * i for i in range(13)]
    for name in states[0]:
        mean = sum(state[name].double() for state in states) / 3
        assert same_bits(soup[name], mean.float()), name


# --- folders ---


def test_sharded_folders_become_one_file(tmp_path):
    a = sharded_folder_of(tmp_path / "a", {"x": torch.tensor([1.0])}, {"n": torch.tensor(3), "y": torch.tensor([2.0])})
    b = folder_of(tmp_path / "b", {"x": torch.tensor([3.0]), "y": torch.tensor([6.0]), "n": torch.tensor(9)})
    for number, folders in enumerate([(a, b), (b, a), (a, a)]):
        soup = averaged(folders, tmp_path / f"soup{number}")
        assert soup["x"].item() == (1.0 if number == 2 else 2.0)
        assert soup["y"].item() == (2.0 if number == 2 else 4.0)
        assert soup["n"].item() == (9 if number == 1 else 3)
        assert [p.name for p in (tmp_path / f"soup{number}").iterdir()] == ["model.safetensors"]


def test_one_file_wins_over_an_index_beside_it(tmp_path):
    folder = sharded_folder_of(tmp_path / "a", {"x": torch.tensor([1.0])})
    save_file({"x": torch.tensor([5.0])}, folder / "model.safetensors")
    with Checkpoint(folder) as checkpoint:
        assert checkpoint.rows("x", 0, 1).item() == 5.0


def test_checkpoint_reads_names_shapes_dtypes_and_rows(tmp_path):
    state = {"w": torch.arange(6.0).reshape(3, 2).bfloat16(), "n": torch.tensor(4)}
    with Checkpoint(str(folder_of(tmp_path / "a", state))) as checkpoint:
        assert checkpoint.shapes == {"w": (3, 2), "n": ()}
        assert checkpoint.dtypes == {"w": "BF16", "n": "I64"}
        assert checkpoint.rows("w", 1, 3).tolist() == [[2.0, 3.0], [4.0, 5.0]]
        assert checkpoint.rows("w", 2, 9).tolist() == [[4.0, 5.0]]
        assert checkpoint.rows("n", 0, 1).item() == 4


def test_output_can_be_loaded_as_pytorch_safetensors(tmp_path):
    output = average_checkpoints(folders_of(tmp_path, random_state(0), random_state(1)), tmp_path / "deep" / "soup")
    with Checkpoint(output) as checkpoint:
        assert set(checkpoint.shapes) == {"w", "bias", "scale", "cube"}
    header = (output / "model.safetensors").read_bytes()
    length = int.from_bytes(header[:8], "little")
    assert length % 8 == 0
    assert json.loads(header[8 : 8 + length])["__metadata__"] == {"format": "pt"}


def test_paths_may_be_strings(tmp_path):
    folders = folders_of(tmp_path, {"w": torch.tensor([1.0])}, {"w": torch.tensor([2.0])})
    output = average_checkpoints([str(f) for f in folders], str(tmp_path / "soup"))
    assert output == tmp_path / "soup"
    assert load_file(output / "model.safetensors")["w"].item() == 1.5


def test_config_and_tokenizer_come_from_the_first_folder_and_nothing_else_does(tmp_path):
    folders = folders_of(tmp_path, {"w": torch.ones(1)}, {"w": torch.ones(1)})
    copied = ["config.json", "generation_config.json", "tokenizer.json", "vocab.json", "merges.txt", "vocab.txt"]
    copied += ["spiece.model", "source.spm", "target.spm", "chat_template.jinja"]
    for name in [
        *copied,
        "sparse_soup.json",
        "report.json",
        "optimizer.pt",
        "training_args.bin",
        "model.safetensors.index.json",
    ]:
        (folders[0] / name).write_bytes(b"first \x00\xff")
        (folders[1] / name).write_bytes(b"second")
    (folders[0] / "checkpoint-1").mkdir()
    average_checkpoints(folders, tmp_path / "soup")
    assert sorted(p.name for p in (tmp_path / "soup").iterdir()) == sorted([*copied, "model.safetensors"])
    for name in copied:
        assert (tmp_path / "soup" / name).read_bytes() == b"first \x00\xff"


def test_an_existing_output_is_replaced(tmp_path):
    folder_of(tmp_path / "soup", {"old": torch.ones(1)})
    folders = folders_of(tmp_path, {"w": torch.tensor([1.0])}, {"w": torch.tensor([2.0])})
    assert averaged(folders, tmp_path / "soup").keys() == {"w"}


def test_masks_of_an_earlier_soup_do_not_stay_beside_dense_weights(tmp_path):
    folder_of(tmp_path / "soup", {"w": torch.zeros(2, 4)}, {"w": MASK})
    average_checkpoints(folders_of(tmp_path, {"w": torch.ones(2, 4)}), tmp_path / "soup")
    assert not (tmp_path / "soup" / "masks.safetensors").exists()


@pytest.mark.parametrize("spelling", ["c0", "./c0", "soup/../c0"])
@pytest.mark.parametrize("absolute", [True, False])
def test_output_that_is_an_input_is_an_error_however_it_is_spelled(tmp_path, monkeypatch, spelling, absolute):
    folders = folders_of(tmp_path, {"w": torch.tensor([1.0])}, {"w": torch.tensor([3.0])})
    (tmp_path / "soup").mkdir()
    monkeypatch.chdir(tmp_path)
    output = f"{tmp_path}/{spelling}" if absolute else spelling
    with pytest.raises(ValueError, match="output must be a folder of its own, got"):
        average_checkpoints(folders, output)
    assert load_file(folders[0] / "model.safetensors")["w"].item() == 1.0


# --- folders that do not fit ---


def assert_nothing_readable(output):
    assert not (output / "model.safetensors").exists()
    with pytest.raises(CheckpointError):
        Checkpoint(output)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"a": torch.ones(2)}, r"'b' has shape \(2, 3\) in .*c0 and None in .*c1"),
        ({"a": torch.ones(2), "b": torch.ones(2, 3), "c": torch.ones(1)}, r"'c' has shape None in .* and \(1,\) in"),
        ({"a": torch.ones(2), "b": torch.ones(3, 2)}, r"'b' has shape \(2, 3\) in .* and \(3, 2\) in"),
        ({"a": torch.ones(2).bfloat16(), "b": torch.ones(2, 3)}, r"'a' has dtype F32 in .* and BF16 in"),
        ({"a": torch.ones(2).int(), "b": torch.ones(2, 3)}, r"'a' has dtype F32 in .* and I32 in"),
    ],
)
def test_other_names_shapes_or_dtypes_are_an_error(tmp_path, other, message):
    folders = folders_of(tmp_path, {"a": torch.ones(2), "b": torch.ones(2, 3)}, other)
    with pytest.raises(CheckpointError, match="All checkpoints of a soup must hold the same tensors, but " + message):
        average_checkpoints(folders, tmp_path / "soup")
    assert_nothing_readable(tmp_path / "soup")


def test_the_third_folder_is_compared_too(tmp_path):
    folders = folders_of(tmp_path, *({"a": torch.ones(n)} for n in (2, 2, 3)))
    with pytest.raises(CheckpointError, match=r"\(2,\) in .*c0 and \(3,\) in .*c2"):
        average_checkpoints(folders, tmp_path / "soup")


def test_unknown_dtypes_are_an_error(tmp_path):
    folders = folders_of(tmp_path, {"a": torch.ones(2).to(torch.float8_e4m3fn)})
    with pytest.raises(CheckpointError, match=r"Cannot average tensors of dtype \['F8_E4M3'\] in"):
        average_checkpoints(folders, tmp_path / "soup")
    assert_nothing_readable(tmp_path / "soup")


def test_a_folder_without_weights_is_an_error_that_lists_what_is_there(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"Expected model.safetensors or .* found \['config.json'\]"):
        Checkpoint(tmp_path / "empty")
    with pytest.raises(CheckpointError, match=r"found \[\]"):
        Checkpoint(tmp_path / "nowhere")


@pytest.mark.parametrize("content", [b"", b"not safetensors", None])
def test_damaged_weights_are_an_error(tmp_path, content):
    folders = folders_of(tmp_path, {"w": torch.ones(40)}, {"w": torch.ones(40)})
    path = folders[1] / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-3] if content is None else content)
    with pytest.raises(CheckpointError, match=r"The weights in .*c1 cannot be read"):
        average_checkpoints(folders, tmp_path / "soup")
    assert_nothing_readable(tmp_path / "soup")


def test_a_missing_shard_is_an_error(tmp_path):
    folder = sharded_folder_of(tmp_path / "a", {"x": torch.ones(1)}, {"y": torch.ones(1)})
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"names files that are not there: .*model-00002-of-00002.*Fetch them"):
        Checkpoint(folder)


# --- masks ---


def test_soup_of_sparse_candidates_keeps_zeros_and_masks(tmp_path):
    folders = folders_of(tmp_path, *(sparse_state(seed) for seed in range(3)), masks={"w": MASK})
    soup = averaged(folders, tmp_path / "soup")
    assert torch.equal(soup["w"] != 0, MASK)
    assert not torch.signbit(soup["w"][~MASK]).any()
    loaded = Masks.load(tmp_path / "soup" / "masks.safetensors")
    assert list(loaded) == ["w"]
    assert torch.equal(loaded["w"], MASK)


def test_soup_of_sparse_candidates_without_mask_files(tmp_path):
    soup = averaged(folders_of(tmp_path, sparse_state(0), sparse_state(1)), tmp_path / "soup")
    assert torch.equal(soup["w"] != 0, MASK)
    assert not (tmp_path / "soup" / "masks.safetensors").exists()


def test_differing_masks_are_an_error_that_names_folders_and_tensor(tmp_path):
    other = MASK.clone()
    other[0, 1] = True
    a = folder_of(tmp_path / "a", sparse_state(0), {"w": MASK})
    b = folder_of(tmp_path / "b", sparse_state(1), {"w": other})
    with pytest.raises(MaskError, match=r"must share one mask, but .*a and .*b differ at 'w'"):
        average_checkpoints([a, b], tmp_path / "soup")
    assert_nothing_readable(tmp_path / "soup")


def test_masks_of_other_tensors_are_differing_masks(tmp_path):
    a = folder_of(tmp_path / "a", sparse_state(0), {"w": MASK})
    b = folder_of(tmp_path / "b", sparse_state(1), {"w": MASK, "bias": torch.tensor([True, True])})
    with pytest.raises(MaskError, match="must share one mask"):
        average_checkpoints([a, b], tmp_path / "soup")


def test_masks_in_some_folders_only_are_an_error(tmp_path):
    a = folder_of(tmp_path / "a", sparse_state(0), {"w": MASK})
    b = folder_of(tmp_path / "b", sparse_state(1))
    for folders in ([a, b], [b, a]):
        with pytest.raises(MaskError, match=r"Expected masks.safetensors in every folder or in none, missing: .*b"):
            average_checkpoints(folders, tmp_path / "soup")
        assert_nothing_readable(tmp_path / "soup")


@pytest.mark.parametrize("leak", [1e-30, float("nan")])
@pytest.mark.parametrize("leaking", [0, 1])
def test_a_pruned_weight_that_is_not_zero_is_an_error(tmp_path, leaking, leak):
    states = [sparse_state(0), sparse_state(1)]
    states[leaking]["w"][1, 0] = leak
    folders = folders_of(tmp_path, *states, masks={"w": MASK})
    with pytest.raises(MaskError, match=r"'w' must be exactly 0.0, but 1 are not, first at \[\(1, 0\)\]"):
        average_checkpoints(folders, tmp_path / "soup")
    assert_nothing_readable(tmp_path / "soup")


def test_leaks_that_cancel_are_an_error_and_zeros_may_have_a_sign(tmp_path):
    states = [sparse_state(0), sparse_state(1)]
    for name in ("fine", "leak"):
        (tmp_path / name).mkdir()
    states[0]["w"][1, 0], states[1]["w"][1, 0] = -0.0, 0.0
    average_checkpoints(folders_of(tmp_path / "fine", *states, masks={"w": MASK}), tmp_path / "soup")
    states[0]["w"][1, 0], states[1]["w"][1, 0] = 1.0, -1.0
    with pytest.raises(MaskError, match=r"'w' must be exactly 0.0, but 1 are not"):
        average_checkpoints(folders_of(tmp_path / "leak", *states, masks={"w": MASK}), tmp_path / "other")


def test_place_of_a_leak_is_told_for_the_whole_tensor(tmp_path, monkeypatch):
    state = {"w": torch.zeros(6, 2)}
    state["w"][5, 1] = 1.0
    folders = folders_of(tmp_path, state, masks={"w": torch.zeros(6, 2, dtype=torch.bool)})
    monkeypatch.setattr(averaging, "CHUNK", 4)
    with pytest.raises(MaskError, match=r"1 are not, first at \[\(5, 1\)\]"):
        average_checkpoints(folders, tmp_path / "soup")


def test_leaks_that_cancel_are_found(tmp_path):
    states = [sparse_state(0), sparse_state(1)]
    states[0]["w"][0, 1], states[1]["w"][0, 1] = 1.0, -1.0
    with pytest.raises(MaskError, match=r"must be exactly 0\.0"):
        average_checkpoints(folders_of(tmp_path, *states, masks={"w": MASK}), tmp_path / "soup")


def test_other_zeros_without_mask_files_are_an_error(tmp_path):
    other = {**sparse_state(1), "w": sparse_state(1)["w"].flip(0)}
    folders = folders_of(tmp_path, sparse_state(0), other)
    with pytest.raises(MaskError, match=r"'w' is sparse, but its zeros differ between the folders at 6 places"):
        average_checkpoints(folders, tmp_path / "soup")
    assert_nothing_readable(tmp_path / "soup")


def test_a_dense_and_a_sparse_folder_are_an_error(tmp_path):
    folders = folders_of(tmp_path, {**sparse_state(0), "w": torch.ones(2, 4)}, sparse_state(1))
    with pytest.raises(MaskError, match="'w' is sparse, but its zeros differ between the folders at 3 places"):
        average_checkpoints(folders, tmp_path / "soup")


def test_other_zeros_are_found_across_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(averaging, "CHUNK", 10)
    state = {"w": torch.ones(50, 10)}
    state["w"][:25, 0] = 0.0
    other = {"w": state["w"].flip(0)}
    with pytest.raises(MaskError, match="differ between the folders at 50 places"):
        average_checkpoints(folders_of(tmp_path, state, other), tmp_path / "soup")


def test_a_few_zeros_that_differ_are_no_sparsity(tmp_path):
    state, other = {"w": torch.ones(20, 20)}, {"w": torch.ones(20, 20)}
    state["w"][0, :4] = 0.0  # 1 % of 400
    other["w"][5, 5] = 0.0
    soup = averaged(folders_of(tmp_path, state, other), tmp_path / "soup")
    assert int((soup["w"] == 0.5).sum()) == 5
    assert int((soup["w"] == 1.0).sum()) == 395


def test_zeros_of_vectors_may_differ(tmp_path):
    folders = folders_of(tmp_path, {"b": torch.tensor([0.0, 2.0])}, {"b": torch.tensor([4.0, 0.0])})
    assert averaged(folders, tmp_path / "soup")["b"].tolist() == [2.0, 1.0]


def test_dense_folders_without_masks_are_fine(tmp_path):
    folders = folders_of(tmp_path, random_state(0), random_state(1))
    soup = averaged(folders, tmp_path / "soup")
    assert torch.equal(soup["w"], ((random_state(0)["w"].double() + random_state(1)["w"].double()) / 2).float())
    assert not (tmp_path / "soup" / "masks.safetensors").exists()


def test_an_error_leaves_no_partial_file(tmp_path):
    states = [sparse_state(0), sparse_state(1)]
    states[1]["w"][1, 0] = 1.0
    with pytest.raises(MaskError):
        average_checkpoints(folders_of(tmp_path, *states, masks={"w": MASK}), tmp_path / "soup")
    assert not list((tmp_path / "soup").glob("*"))


def test_an_error_leaves_an_earlier_soup_whole(tmp_path):
    folder_of(tmp_path / "soup", {"w": torch.tensor([7.0])})
    states = [sparse_state(0), sparse_state(1)]
    states[1]["w"][1, 0] = 1.0
    with pytest.raises(MaskError):
        average_checkpoints(folders_of(tmp_path, *states, masks={"w": MASK}), tmp_path / "soup")
    assert load_file(tmp_path / "soup" / "model.safetensors")["w"].item() == 7.0


# ---- Runs of their own masks (IMP-AVG, IMP-RePrune) --------------------------------------------------------------------


def separate_runs(tmp_path):
    """The two models of the design's oracle, each with its own mask."""
    states = [torch.tensor([1.0, 0.0, 0.0, 0.4]), torch.tensor([0.8, 0.6, 0.0, 0.0])]
    return [folder_of(tmp_path / f"r{i}", {"w": w[None]}, {"w": w[None] != 0}) for i, w in enumerate(states)]


def test_an_average_of_separate_runs_is_as_dense_as_their_union_and_can_be_pruned_again(tmp_path):
    output = average_checkpoints(separate_runs(tmp_path), tmp_path / "out", union_of_masks=True)
    mean, union = load_file(output / "model.safetensors")["w"], Masks.load(output / "masks.safetensors")
    assert torch.allclose(mean, torch.tensor([[0.9, 0.3, 0.0, 0.2]]))
    assert union["w"].tolist() == [[True, True, False, True]]
    masks = select({"w": mean}, union, 0.5)
    assert (mean * masks["w"]).allclose(torch.tensor([[0.9, 0.3, 0.0, 0.0]]))
    assert int(masks["w"].sum()) == 2


def test_a_union_needs_masks_of_the_same_tensors(tmp_path):
    first, _ = separate_runs(tmp_path)
    other = folder_of(tmp_path / "other", {"v": torch.ones(1, 4)}, {"v": torch.ones(1, 4, dtype=torch.bool)})
    with pytest.raises((MaskError, CheckpointError), match=r"same tensors"):
        average_checkpoints([first, other], tmp_path / "out", union_of_masks=True)
