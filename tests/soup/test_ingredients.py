"""Greedy and uniform selection: the literal trials, and the promise never to end below the best candidate."""

import random

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import T5Config, T5ForConditionalGeneration

from sms_hf.soup import GreedyTrial, average_checkpoints, greedy_soup, uniform_soup
from sms_hf.soup.ingredients import SOUP_METHODS, Pool, greedy_ingredients
from sms_hf.sparsity import Masks, prune

torch.set_num_threads(1)

TIE_SCORES = {"c1": 70.0, "c2": 71.0, "c3": 70.5, "c4": 69.0}
TIE_TABLE = {("c2", "c3"): 71.4, ("c2", "c3", "c1"): 71.4, ("c2", "c3", "c1", "c4"): 71.2, ("c2", "c3", "c4"): 71.5}
TIE_TRIALS = [
    (["c2"], 71.0, True),
    (["c2", "c3"], 71.4, True),
    (["c2", "c3", "c1"], 71.4, True),
    (["c2", "c3", "c1", "c4"], 71.2, False),
]
SCALARS = {"a": 0.8, "b": 1.3, "c": 0.5, "d": 2.0}


def quality(weight):
    return 100 - (weight - 1) ** 2


def folder_of(path, tensors):
    path.mkdir()
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return path


def scalar_folders(tmp_path):
    return {name: folder_of(tmp_path / name, {"w": torch.tensor([v])}) for name, v in SCALARS.items()}


def weight_of(folder):
    return load_file(folder / "model.safetensors")["w"].item()


# --- greedy_ingredients ---


def test_an_equal_score_is_accepted():
    chosen, trials = greedy_ingredients(Pool(TIE_SCORES, lambda names: TIE_TABLE[tuple(names)]))
    assert list(chosen) == ["c2", "c3", "c1"]
    assert trials == [GreedyTrial(*trial) for trial in TIE_TRIALS]


def test_a_loss_is_minimised():
    scores = {name: -score for name, score in TIE_SCORES.items()}
    chosen, trials = greedy_ingredients(Pool(scores, lambda names: -TIE_TABLE[tuple(names)], greater_is_better=False))
    assert list(chosen) == ["c2", "c3", "c1"]
    assert trials == [GreedyTrial(names, -score, accepted) for names, score, accepted in TIE_TRIALS]


def test_scalar_model():
    def evaluate(names):
        return quality(sum(SCALARS[name] for name in names) / len(names))

    chosen, trials = greedy_ingredients(Pool({name: quality(w) for name, w in SCALARS.items()}, evaluate))
    assert list(chosen) == ["a", "b"]
    assert [trial.ingredients for trial in trials] == [["a"], ["a", "b"], ["a", "b", "c"], ["a", "b", "d"]]
    assert [trial.score for trial in trials] == pytest.approx([99.96, 99.9975, 99.982222, 99.865556], abs=1e-6)
    assert [trial.accepted for trial in trials] == [True, True, False, False]


def test_equal_candidates_are_tried_in_the_order_given():
    chosen, trials = greedy_ingredients(Pool({"z": 1.0, "a": 1.0, "m": 2.0, "b": 1.0}, lambda names: 2.0))
    assert list(chosen) == ["m", "z", "a", "b"]
    losses, _ = greedy_ingredients(Pool({"z": 1.0, "a": 1.0, "m": 0.5}, lambda names: 0.5, greater_is_better=False))
    assert list(losses) == ["m", "z", "a"]
    assert len(trials) == 4


def test_one_candidate_is_the_soup_and_nothing_is_evaluated():
    def evaluate(names):
        raise AssertionError("not needed")

    assert greedy_ingredients(Pool({"only": 0.3}, evaluate)) == ({"only": 1.0}, [GreedyTrial(["only"], 0.3, True)])


def test_no_candidate_is_an_error():
    with pytest.raises(ValueError, match="A greedy soup needs at least one scored candidate, got none"):
        greedy_ingredients(Pool({}, lambda names: 0.0))


def test_a_soup_whose_score_is_not_a_number_is_rejected():
    chosen, trials = greedy_ingredients(Pool({"a": 1.0, "b": 0.5}, lambda names: float("nan")))
    assert list(chosen) == ["a"]
    assert trials[1].accepted is False


@pytest.mark.parametrize("greater_is_better", [True, False])
def test_a_candidate_whose_score_is_not_a_number_is_never_the_first(greater_is_better):
    nan = float("nan")
    chosen, _ = greedy_ingredients(Pool({"x": nan, "a": 1.0, "y": nan}, lambda names: nan, greater_is_better))
    assert list(chosen) == ["a"]


@pytest.mark.parametrize("greater_is_better", [True, False])
def test_never_worse_than_the_best_candidate(greater_is_better):
    generator = random.Random(0)
    best_of = max if greater_is_better else min
    for _ in range(200):
        scores = {f"c{i}": generator.choice([generator.random(), 0.5]) for i in range(generator.randint(1, 7))}
        evaluated = {}

        def evaluate(names, evaluated=evaluated):
            return evaluated.setdefault(tuple(names), generator.choice([generator.random(), 0.5]))

        chosen, trials = greedy_ingredients(Pool(scores, evaluate, greater_is_better))
        assert set(chosen.values()) == {1.0}
        names = list(chosen)
        final = evaluated[tuple(names)] if len(names) > 1 else scores[names[0]]
        assert best_of(final, best_of(scores.values())) == final
        assert len(evaluated) == len(scores) - 1
        assert [t for t in trials if t.accepted][-1] == GreedyTrial(names, final, True)
        assert sorted({name for trial in trials for name in trial.ingredients}) == sorted(scores)


def test_methods_by_name():
    assert list(SOUP_METHODS["greedy"](Pool(TIE_SCORES, lambda names: TIE_TABLE[tuple(names)], True))[0]) == [
        "c2",
        "c3",
        "c1",
    ]
    assert SOUP_METHODS["uniform"](Pool(TIE_SCORES, lambda names: 1 / 0, True)) == (
        dict.fromkeys(["c1", "c2", "c3", "c4"], 1.0),
        [],
    )
    assert sorted(SOUP_METHODS) == ["greedy", "learned", "learned-layers", "lottery-pools", "model-stock", "uniform"]


# --- folders ---


def test_greedy_soup_of_folders(tmp_path):
    folders = scalar_folders(tmp_path)
    scored = []

    def score(folder):
        scored.append(weight_of(folder))
        return quality(scored[-1])

    trials = greedy_soup(list(folders.values()), score, tmp_path / "soup")
    assert weight_of(tmp_path / "soup") == pytest.approx(1.05)
    assert trials[-3].ingredients == [str(folders["a"]), str(folders["b"])]
    assert [t.accepted for t in trials] == [True, True, False, False]
    assert scored == pytest.approx([0.8, 1.3, 0.5, 2.0, 1.05, 2.6 / 3, 4.1 / 3], abs=1e-6)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "c", "d", "soup"]


def test_greedy_soup_of_folders_by_a_loss(tmp_path):
    folders = scalar_folders(tmp_path)
    trials = greedy_soup(
        list(folders.values()), lambda f: (weight_of(f) - 1) ** 2, tmp_path / "soup", greater_is_better=False
    )
    assert weight_of(tmp_path / "soup") == pytest.approx(1.05)
    assert [t.score for t in trials] == pytest.approx([0.04, 0.0025, 0.017778, 0.134444], abs=1e-6)


def test_greedy_soup_of_one_kept_candidate_is_that_candidate(tmp_path):
    folders = [folder_of(tmp_path / str(w), {"w": torch.tensor([w])}) for w in (1.0, 5.0)]
    greedy_soup(folders, lambda folder: quality(weight_of(folder)), tmp_path / "soup")
    assert weight_of(tmp_path / "soup") == 1.0


@pytest.mark.parametrize("calls_before", [0, 4, 5])
def test_trial_folder_is_removed_when_score_raises(tmp_path, calls_before):
    folders = scalar_folders(tmp_path)
    calls = []

    def score(folder):
        calls.append(folder)
        if len(calls) > calls_before:
            raise RuntimeError("out of memory")
        return quality(weight_of(folder))

    with pytest.raises(RuntimeError, match="out of memory"):
        greedy_soup(list(folders.values()), score, tmp_path / "soup")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "c", "d"]


def test_uniform_soup_of_folders(tmp_path):
    assert uniform_soup(list(scalar_folders(tmp_path).values()), tmp_path / "soup") == tmp_path / "soup"
    assert weight_of(tmp_path / "soup") == pytest.approx(1.15)


# --- a real model ---


def sparse_t5_candidates(tmp_path, count=3):
    """A pruned parent, and `count` copies of it that were "retrained" by noise on the kept weights."""
    torch.manual_seed(0)
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2}
    parent = T5ForConditionalGeneration(T5Config(vocab_size=16, decoder_start_token_id=0, **sizes))
    masks = prune(parent, 0.75)
    dense = {name: p.detach().clone() for name, p in parent.named_parameters()}
    states, folders = [], []
    for index in range(count):
        with torch.no_grad():
            for name, parameter in parent.named_parameters():
                parameter.copy_(dense[name] + 0.1 * torch.randn(parameter.shape))
        masks.apply_(parent)
        states.append({name: p.detach().clone() for name, p in parent.named_parameters()})
        folders.append(tmp_path / f"candidate-{index}")
        parent.save_pretrained(folders[-1])
        masks.save(folders[-1] / "masks.safetensors")
    return masks, states, folders


def test_uniform_soup_of_a_t5_is_an_ordinary_sparse_model(tmp_path):
    masks, states, folders = sparse_t5_candidates(tmp_path)
    soup = T5ForConditionalGeneration.from_pretrained(uniform_soup(folders, tmp_path / "soup"))
    for name, parameter in soup.named_parameters():
        mean = sum(state[name].double() for state in states) / 3
        assert torch.equal(parameter, mean.float()), name
    masks.check(soup)
    assert Masks.load(tmp_path / "soup" / "masks.safetensors").fingerprint() == masks.fingerprint()
    assert prune(soup, 0.75).fingerprint() == masks.fingerprint()
    assert soup.lm_head.weight is soup.shared.weight


def test_greedy_soup_of_a_t5_keeps_the_sparsity_and_scores_at_least_the_best(tmp_path):
    masks, _, folders = sparse_t5_candidates(tmp_path)
    tokens = torch.arange(1, 13).reshape(2, 6)

    @torch.no_grad()
    def loss(folder):
        model = T5ForConditionalGeneration.from_pretrained(folder).eval()
        return model(input_ids=tokens, labels=tokens).loss.item()

    trials = greedy_soup(folders, loss, tmp_path / "soup", greater_is_better=False)
    assert len(trials) == 3
    assert loss(tmp_path / "soup") <= min(loss(folder) for folder in folders)
    accepted = [t for t in trials if t.accepted][-1]
    assert loss(tmp_path / "soup") == accepted.score
    masks.check(T5ForConditionalGeneration.from_pretrained(tmp_path / "soup"))


def test_soup_of_one_t5_is_that_t5(tmp_path):
    _, states, folders = sparse_t5_candidates(tmp_path, 1)
    soup = T5ForConditionalGeneration.from_pretrained(average_checkpoints(folders, tmp_path / "soup"))
    assert all(torch.equal(p, states[0][name]) for name, p in soup.named_parameters())
