"""Processes that meet, exchange values, hang and vanish: here as threads with one store."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist

from sms_hf.training.processes import store
from sms_hf.training.processes.launch import meet
from sms_hf.training.processes.store import ProcessError, Processes


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    monkeypatch.setattr(store, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(store, "BEAT_SECONDS", 0.0)


def met(launch, world_size, patience=10.0):
    with ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(lambda rank: meet(launch, rank, world_size, patience), range(world_size)))


def test_processes_meet_and_meet_anew_after_a_restart():
    launch = dist.HashStore()
    first = met(launch, 3)
    assert [(p.rank, p.world_size, p.session, p.joins) for p in first] == [(rank, 3, 1, 3) for rank in range(3)]
    first[0].publish("phase", 1)
    assert first[2].receive("phase") == 1
    assert first[1].take("next") == 0
    second = met(launch, 2)
    assert [(p.session, p.joins) for p in second] == [(2, 5)] * 2, "of a smaller world, after a machine went away"
    assert not second[0].store.check(["value/phase"]), "nothing of the first session is left"
    assert second[0].take("next") == 0
    for process in first:
        with pytest.raises(ProcessError, match="started another process again"):
            process.beat()


def test_who_is_dead_is_waited_for():
    """The store still holds the ticket of a process that died; only its successor may be met."""
    launch = dist.HashStore()
    met(launch, 2)
    with pytest.raises(RuntimeError, match=r"Expected 2 processes to meet within 0 s, but \[1\] did not come"):
        meet(launch, 0, 2, patience=0.3)
    with pytest.raises(RuntimeError, match="process 1 was not met by process 0"):
        meet(launch, 1, 2, patience=0.3)
    assert [p.session for p in met(launch, 2)] == [3, 3]


def test_a_launch_remembers_the_folder_that_it_worked_in(tmp_path):
    launch = dist.HashStore()
    first = met(launch, 1)[0]
    assert not first.was_at(tmp_path)
    assert not first.was_at(tmp_path), "a second train() in one session is no restart"
    assert met(launch, 1)[0].was_at(tmp_path)


def pair(timeout=60.0):
    store = dist.HashStore()
    return [Processes(rank, 2, store, store, timeout=timeout) for rank in (0, 1)]


def test_a_silent_process_is_named_with_what_it_did():
    main, other = pair(timeout=0.2)
    other.beat("at candidate-3 of phase 2")
    with pytest.raises(
        ProcessError, match=r"Process 1 of 2 \(pid \d+ on .*no sign for 0 s while it was at candidate-3 of phase 2"
    ):
        main.receive("done")


def test_a_slow_process_is_waited_for():
    main, other = pair(timeout=0.3)

    def work():
        for _ in range(10):
            other.beat("averaging")
            time.sleep(0.1)
        other.publish("done", 7)

    thread = threading.Thread(target=work)
    thread.start()
    assert main.receive("done") == 7
    thread.join()


def test_a_failure_reaches_those_that_wait():
    main, other = pair()
    other.fail(ValueError("the cat sat on the keyboard"))
    with pytest.raises(ProcessError, match="Process 1 of 2 failed: ValueError: the cat sat on the keyboard"):
        main.receive("done")


def test_signs_are_at_most_one_a_second(monkeypatch):
    monkeypatch.setattr(store, "BEAT_SECONDS", 1.0)
    main = pair()[0]
    for _ in range(1000):
        main.beat("training")
    assert json.loads(main.store.get("beat/0"))["beats"] == 1


def test_a_run_inside_a_launch_gives_signs_for_it():
    main = pair()[0]
    Processes(outer=main).beat("at candidate-1 of phase 1")
    assert json.loads(main.store.get("beat/0"))["doing"] == "at candidate-1 of phase 1"


@pytest.mark.parametrize(("world_size", "group_size"), [(1, 1), (3, 1), (2, 2), (4, 2)])
def test_every_item_is_done_once_by_one_group(world_size, group_size):
    store, done = dist.HashStore(), []

    def run(rank):
        process = Processes(rank, world_size, store, store)
        process.fan_out("candidates", ["a", "b", "c", "d", "e"], lambda item: done.append((item, rank)), group_size)

    with ThreadPoolExecutor(world_size) as pool:
        list(pool.map(run, range(world_size)))
    for item in "abcde":
        ranks = sorted(rank for i, rank in done if i == item)
        assert len(ranks) == group_size
        assert ranks[0] % group_size == 0
        assert ranks == list(range(ranks[0], ranks[0] + group_size)), "neighbours"


def test_a_folder_that_is_not_shared_is_noticed(tmp_path):
    main, other = pair()
    with ThreadPoolExecutor(2) as pool:
        mine = pool.submit(main.check_shared, "probe", tmp_path / "here")
        theirs = pool.submit(other.check_shared, "probe", tmp_path / "there", 0.1)
        with pytest.raises(ValueError, match="Put output_dir on a file system that all machines share"):
            theirs.result()
        other.fail(ValueError("not shared"))
        with pytest.raises(ProcessError, match="not shared"):
            mine.result()
    assert list((tmp_path / "here").iterdir()) == []
    main, other = pair()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda process: process.check_shared("probe", tmp_path / "here"), (main, other)))
