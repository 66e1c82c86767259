"""A resumed run notices other data, and another model, whatever phase it is in."""

import random

import numpy as np
import pytest
import torch
from conftest import reversal, tiny_t5
from datasets import Dataset

from sms_hf.training.processes.stopping import Stopped
from sms_hf.training.run.fingerprints import SAMPLE, data_digest, weights_digest


def rows(count=100, **changes):
    return [{"input_ids": [i, i + 1], "labels": [changes.get(str(i), 0)]} for i in range(count)]


def test_equal_rows_have_equal_digests_whatever_holds_them():
    assert data_digest(rows()) == data_digest(Dataset.from_list(rows())) == data_digest(rows())
    assert data_digest(Dataset.from_list(rows()).with_format("torch")) == data_digest(rows())


@pytest.mark.parametrize("other", [rows(99), rows(**{"0": 1}), rows(**{"99": 1}), rows()[::-1]])
def test_other_rows_have_others(other):
    assert data_digest(other) != data_digest(rows())


def test_few_rows_are_all_looked_at():
    few = rows(SAMPLE)
    for number in range(SAMPLE):
        assert data_digest(rows(SAMPLE, **{str(number): 1})) != data_digest(few)


def test_arrays_images_and_parts():
    images = [{"pixels": np.arange(4) + i, "more": torch.tensor([i])} for i in range(3)]
    moved = [{"pixels": np.arange(4) + i + 1, "more": torch.tensor([i])} for i in range(3)]
    assert data_digest(images) != data_digest(moved)
    assert data_digest({"a": images, "b": moved}) != data_digest({"a": moved, "b": images})


class Augmented(list):
    def __getitem__(self, number):
        return {"x": super().__getitem__(number), "noise": random.random(), "more": float(torch.rand(1))}


def test_what_has_no_digest_is_not_compared():
    """Streams, rows that come out otherwise every time, and objects without bytes."""
    assert data_digest(iter(rows())) is None
    assert data_digest(None) is None
    assert data_digest([object()]) is None
    assert data_digest({"a": rows(), "b": iter(rows())}) is None


def test_a_look_moves_no_random_state():
    before = (random.getstate(), torch.get_rng_state())
    data_digest(Augmented(range(5)))
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


def test_weights_are_told_apart_by_one_bit():
    first, second = tiny_t5(), tiny_t5()
    assert weights_digest(first) == weights_digest(second)
    with torch.no_grad():
        second.shared.weight[0, 0] += 1e-6
    assert weights_digest(first) != weights_digest(second)


@pytest.mark.parametrize("until", ["phase-1/parent.json", "phase-1/phase.json", "final.json"])
@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"eval_dataset": reversal(10, seed=2)}, "data.eval_dataset"),
        ({"train_dataset": reversal(24, seed=3)}, "data.train_dataset"),
        ({"model": tiny_t5(seed=1)}, "model.weights"),
    ],
)
def test_a_resumed_run_is_of_the_same_data_and_weights(make_trainer, tmp_path, monkeypatch, until, other, says):
    """Of as many rows, and of the same shapes."""
    from sms_hf.training.run import soup_run

    written = soup_run.prune_parent

    def stop(bench, phase, folder, *args):
        record = written(bench, phase, folder, *args)
        if (folder.root.parent / until).is_file():
            raise Stopped(15)
        return record

    with monkeypatch.context() as patch:
        patch.setattr(soup_run, "prune_parent", stop)
        if until == "final.json":
            make_trainer().train()
        else:
            with pytest.raises(Stopped):
                make_trainer().train()
    assert (tmp_path / "run/_run" / until).is_file()
    with pytest.raises(ValueError, match=rf"got others: {says}: '\w+' -> '\w+'\. Resume with the same settings"):
        make_trainer(**other).train(resume_from_checkpoint=True)
    make_trainer().train(resume_from_checkpoint=True)
