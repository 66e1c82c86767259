"""The card: what the Hub reads from it, what owners wrote stays, and nothing from user data breaks out of its place."""

import pytest
import yaml
from huggingface_hub import ModelCard

from sms_hf.hub.lineage import make_lineage
from sms_hf.hub.model_card import BEGIN, END, make_card, merge_cards
from sms_hf.sparsity.masks import Masks


def candidate(name, score, **overrides):
    record = {
        "name": name,
        "overrides": overrides,
        "steps": 5,
        "epochs": 1.0,
        "score": score,
        "metrics": {"bleu": score},
    }
    return record | {"failure": None, "seconds": 3.0}


def report(**overrides):
    parent = {
        "sparsity": 0.75,
        "model_sparsity": 0.3,
        "mask_fingerprint": "ab" * 32,
        "sparsity_per_tensor": {"w": 0.75},
    }
    soup = {"ingredients": ["candidate-1"], "score": 31.5, "metrics": {"bleu": 31.5}, "trials": [], "sparsity": 0.75}
    phase = {
        "number": 1,
        "parent": parent,
        "candidates": [
            candidate("candidate-1", 31.25, **{"seed": 1, **overrides}),
            candidate("candidate-2", 30.0, seed=2),
        ],
        "mean_score": 30.625,
        "best_score": 31.25,
        "soup": {**soup, "sparsity_per_tensor": {"w": 0.75}},
    }
    settings = {
        "arguments": {"pruning_method": "sms", "num_train_epochs": 1.0, "original_schedule": "/home/me/log"},
        "plan": [{"number": 1}],
        "model": {"class": "MarianMTModel", "num_parameters": 40},
        "num_examples": {"train_dataset": 1000, "eval_dataset": None},
        "versions": {"sms_hf": "0.1.0"},
    }
    return {"metric": "bleu", "settings": settings, "dense": {"bleu": 33.0}, "phases": [phase]}


@pytest.fixture
def masks():
    import torch

    kept = torch.zeros(4, 4, dtype=torch.bool)
    kept[0] = True
    return Masks({"w": kept})


def lineage(masks, parent="user/base", revision="c0ffee", test=None, **overrides):
    return make_lineage(report(**overrides), masks, parent, revision, test)


def card(masks, *args, **kwargs):
    return make_card(
        lineage(masks, *args, **kwargs), "user/soup", {"model.safetensors": 1_500_000}, language=["en", "de"]
    )


def test_lineage_says_where_a_model_comes_from(masks, tmp_path):
    found = lineage(masks, test={"phase-1/soup": 30.5})
    assert found["parent"] == {"name": "user/base", "revision": "c0ffee"}
    assert (found["sparsity"], found["model_sparsity"]) == (0.75, 12 / 40)
    assert found["mask_fingerprint"] == masks.fingerprint()
    assert found["sparsity_per_tensor"] == {"w": 0.75}
    assert found["test"] == {"phase-1/soup": 30.5}
    assert [c["overrides"] for c in found["phases"][0]["candidates"]] == [{"seed": 1}, {"seed": 2}]


def test_what_test_scores_are_worth_goes_along(masks):
    compared = {"model": "phase-1/soup", "against": "dense", "difference": -2.5, "interval": [-4.0, -1.0]}
    found = make_lineage(report(), masks, test={"phase-1/soup": 30.5}, comparisons=[compared])
    assert found["comparisons"] == [compared]
    (line,) = [line for line in make_card(found, "user/soup", {}).splitlines() if "against" in line]
    assert line == (
        "On the test set (paired bootstrap over its rows): soup against dense: -2.50 bleu, 95 % interval -4.00 to -1.00: "
        "more than noise."
    )
    assert "comparisons" not in lineage(masks), "where nothing is known, nothing is written"


def test_lineage_names_no_folder_of_the_machine(masks, tmp_path):
    found = lineage(masks, parent=str(tmp_path))
    assert found["parent"] == {"name": None, "revision": None}
    assert str(tmp_path) not in str(found)
    assert "/home/me" not in str(found)


def test_metadata_that_the_hub_renders(masks):
    data = ModelCard(card(masks, test={"phase-1/soup": 30.5})).data
    assert data.base_model == "user/base"
    assert data.to_dict()["base_model_relation"] == "finetune"
    assert data.pipeline_tag == "translation"
    assert data.language == ["en", "de"]
    assert {"sparse", "model-soup", "pruned"} <= set(data.tags)
    scores = {result.dataset_split: (result.metric_type, result.metric_value) for result in data.eval_results}
    assert scores == {"validation": ("bleu", 31.5), "test": ("bleu", 30.5)}


def test_text_holds_what_a_reader_needs(masks):
    text = card(masks, test={"phase-1/soup": 30.5})
    assert "**75 % of its prunable weights removed**" in text
    assert "30 % are zero" in text
    assert "[user/base](https://huggingface.co/user/base)" in text
    assert 'AutoModelForSeq2SeqLM.from_pretrained("user/soup")' in text
    assert "`model.safetensors` | 1.50 MB" in text
    assert "soup (candidate 1)" in text
    assert "30.50" in text
    assert "sms_hf.load" not in text, "there is no compact file"


def test_what_the_owner_wrote_stays(masks):
    old = card(masks)
    data, body = yaml.safe_load(old.split("---\n")[1]), old.split("---\n", 2)[2]
    data |= {"license": "mit", "tags": [*data["tags"], "mine"], "language": ["fr"]}
    edited = f"---\n{yaml.safe_dump(data)}---\n# Read me first\n\n{body}\nOwner's last words.\n"
    new = make_card(lineage(masks), "user/soup", {"model.safetensors": 7_000_000})
    merged = merge_cards(new, edited)
    assert "# Read me first" in merged.split(BEGIN)[0]
    assert merged.split(END)[1].strip() == "Owner's last words."
    assert "7.00 MB" in merged
    assert "1.50 MB" not in merged
    assert merged.count(BEGIN) == merged.count(END) == 1
    found = ModelCard(merged).data
    assert (found.license, found.language) == ("mit", ["fr"])
    assert found.tags.count("sparse") == 1
    assert "mine" in found.tags
    assert merge_cards(new, merged) == merged, "again and again"
    assert ModelCard(merge_cards(card(masks), edited, chosen=["language"])).data.language == ["en", "de"]


def test_a_card_that_is_all_the_owners_gets_ours_below(masks):
    merged = merge_cards(
        card(masks), "---\nlicense: mit\nmodel-index:\n- name: other\n  results: []\n---\n# Mine\n\nText.\n"
    )
    assert merged.index("# Mine") < merged.index(BEGIN)
    index = ModelCard(merged, ignore_metadata_errors=True).data.to_dict()
    assert index["license"] == "mit"


def test_new_scores_replace_old_ones(masks):
    merged = merge_cards(card(masks, test={"phase-1/soup": 30.5}), card(masks, test={"phase-1/soup": 11.0}))
    assert [r.metric_value for r in ModelCard(merged).data.eval_results] == [31.5, 30.5]


@pytest.mark.parametrize(
    "hostile", ["<script>alert(1)</script>", "a | b\n# heading", "`x` [y](http://z)", END, "![](http://z)"]
)
def test_user_data_cannot_leave_its_place(masks, hostile):
    plain, found = card(masks), card(masks, note=hostile, parent=hostile)
    for mark in ("<script", "](http://z)", "\n# heading", "![]"):
        assert mark not in found
    assert found.count(END) == 1
    row = next(line for line in found.splitlines() if "candidate-1" in line and "phase-1" in line)
    assert row.count("|") == next(line for line in plain.splitlines() if "candidate-1" in line).count("|")


@pytest.mark.parametrize(
    ("ingredients", "candidates", "fingerprints", "words"),
    [
        (1, 2, "aa", "in one phase and retrained: the best of 2 candidates; averaging did not help\n"),
        (2, 2, "aa", "in one phase and averaged from 2 retrained copies that share one mask\n"),
        (2, 2, "ab", "in one phase and averaged from 2 retrained copies\n"),
        (1, 1, "a", "in one phase and retrained\n"),
        (0, 2, "aa", "in one phase and retrained\n"),
    ],
)
def test_only_an_average_is_called_one(masks, ingredients, candidates, fingerprints, words):
    found = lineage(masks)
    phase = found["phases"][0]
    phase["candidates"] = [
        c | {"mask_fingerprint": f} for c, f in zip(phase["candidates"][:candidates], fingerprints, strict=True)
    ]
    names = [c["name"] for c in phase["candidates"]]
    phase["soup"] = phase["soup"] | {"ingredients": names[:ingredients]} if ingredients else None
    assert words in make_card(found, "user/soup", {})


def test_a_local_card_loads_from_where_the_model_lies(masks):
    text = make_card(lineage(masks), "demo", {"model.safetensors": 1}, load_from="runs/demo", language="de")
    assert 'from_pretrained("runs/demo")' in text
    assert "# demo" in text
