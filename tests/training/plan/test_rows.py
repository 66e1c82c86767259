"""Which rows a candidate sees."""

import pytest
from conftest import reversal

from sms_hf.training.plan.rows import CANDIDATE_DATA, bootstrap, rows_of_candidate, shard


def test_shards_are_disjoint_and_cover_all_rows():
    shards = [shard(position, 3, 10, seed=1) for position in range(3)]
    assert [len(rows) for rows in shards] == [10, 10, 10], "an epoch stays as long"
    sets = [set(rows) for rows in shards]
    assert [len(rows) for rows in sets] == [4, 3, 3]
    assert set.union(*sets) == set(range(10))
    assert sum(map(len, sets)) == 10
    assert {rows.count(row) for rows in shards for row in set(rows)} <= {2, 3, 4}
    assert shards == [shard(position, 3, 10, seed=1) for position in range(3)]
    assert shards[0] != shard(0, 3, 10, seed=2)


def test_fewer_rows_than_candidates():
    assert [shard(position, 3, 2, seed=0) for position in range(3)][2] == []


def test_a_bootstrap_draws_with_replacement():
    rows = [bootstrap(position, 2, 1000, seed=0) for position in range(2)]
    assert rows[0] != rows[1]
    assert all(len(r) == 1000 and min(r) >= 0 and max(r) < 1000 for r in rows)
    assert all(600 < len(set(r)) < 665 for r in rows)  # 1 - 1/e of them: 632.


@pytest.mark.parametrize("kind", CANDIDATE_DATA)
def test_data_of_a_candidate(kind):
    data = reversal(12)
    assert rows_of_candidate(data, kind, 0, 1, seed=0) is data, "one that is alone sees everything"
    own = rows_of_candidate(data, kind, 1, 3, seed=0)
    assert len(own) == 12
    assert (own is data) == (kind == "all")
    if kind == "shards":
        assert len({tuple(own[i]["input_ids"]) for i in range(12)}) == 4


def test_every_candidate_is_trained_on_its_shard(make_trainer):
    seen = {}

    def note(features):
        rows = [tuple(int(token) for token in feature["input_ids"]) for feature in features]
        seen.setdefault(current[0], set()).update(rows)
        return collate(features)

    from conftest import collate
    from transformers import TrainerCallback

    current = ["outside"]

    class Who(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            current[0] = args.output_dir[-11:]

        def on_train_end(self, args, state, control, **kwargs):
            current[0] = "outside"

    trainer = make_trainer({"candidate_data": "shards", "num_phases": 1}, data_collator=note, callbacks=[Who()])
    trainer.train()
    first, second = seen["candidate-1"], seen["candidate-2"]
    assert not first & second
    assert len(first | second) == len({tuple(map(int, row["input_ids"])) for row in trainer.train_dataset})
