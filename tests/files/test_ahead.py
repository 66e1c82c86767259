"""Work that threads do ahead of whoever takes it."""

import threading

import pytest

from sms_hf.files.ahead import WORKERS, ahead


def test_results_come_in_order_and_few_wait():
    begun = []

    def work(item):
        begun.append(item)
        return item * item

    for item, result in enumerate(ahead(work, range(50))):
        assert result == item * item
        assert len(begun) <= item + 1 + WORKERS, "no more in memory than there are threads"
    assert sorted(begun) == list(range(50))


def test_the_first_error_comes_in_its_place_and_nothing_more_is_begun():
    begun = []

    def work(item):
        begun.append(item)
        if item == 3:
            raise OSError("the cat sat on the disk")
        return item

    found = ahead(work, range(1000))
    assert [next(found) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="cat"):
        next(found)
    assert max(begun) <= 3 + WORKERS


def test_whoever_stops_taking_leaves_no_thread_behind():
    before = threading.active_count()
    found = ahead(lambda item: item, range(1000))
    next(found)
    found.close()
    assert threading.active_count() == before
