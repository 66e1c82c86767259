"""One process for itself in the middle of a launch."""

import pytest

from sms_hf.training.processes import launch
from sms_hf.training.processes.launch import join_processes, single_process
from sms_hf.training.processes.store import Processes


@pytest.fixture
def second_of_two(monkeypatch):
    both = Processes(rank=1, world_size=2)
    monkeypatch.setattr(launch, "_joined", both)
    return both


def test_inside_there_is_one_process_and_outside_the_launch(second_of_two, make_args):
    with single_process() as alone:
        args = make_args(push_to_hub=True)
        assert join_processes() is alone is args.processes
        assert (alone.rank, alone.world_size) == (0, 1)
        assert args.push_to_hub, "what only the main process does"
    assert join_processes() is second_of_two is args.processes


def test_each_is_new_and_a_failure_stays_inside(second_of_two):
    def fail():
        with single_process() as alone:
            assert alone.take("number") == 0
            alone.fail(RuntimeError("the cat sat on the keyboard"))
            raise RuntimeError("the cat sat on the keyboard")

    for _ in range(2):
        with pytest.raises(RuntimeError):
            fail()
        assert join_processes() is second_of_two
    assert not second_of_two.store.check(["value/failed"])
    assert second_of_two.take("number") == 0


def test_a_counter_and_a_value_may_share_a_name():
    """As two calls of evaluate_run on one trainer: the counter of process 0, and what the first call published."""
    processes = Processes()
    assert processes.take("evaluate-0") == 0
    processes.publish("evaluate-0", {"loss": 1.0})
    assert processes.take("evaluate-0") == 1
    assert processes.receive("evaluate-0") == {"loss": 1.0}
