"""A `map` that works ahead in threads: copying, hashing and coding of large arrays let go of Python's lock."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

WORKERS = min(4, os.cpu_count() or 1)


def ahead(work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """
    Results in the order of the items, at most `WORKERS` of them waiting to be taken.

    The first error is raised where its result would come, and nothing more is begun.
    """
    with ThreadPoolExecutor(WORKERS) as threads:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                if len(waiting) == WORKERS:
                    yield waiting.popleft().result()
                waiting.append(threads.submit(work, item))
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
