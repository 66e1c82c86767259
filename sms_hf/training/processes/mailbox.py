"""Messages of all processes of a launch to the main one."""

import json
from collections.abc import Iterator
from typing import Any

from .store import Processes


class Mailbox:
    """
    Messages to the main process, of each process in the order in which it sent them.

    Args:
        processes ([`Processes`]): Of the launch.
        scope (`str`): Of these messages, and of no others of the launch.
    """

    def __init__(self, processes: Processes, scope: str):
        self._processes, self._scope, self._sent = processes, scope, 0
        self._collected = [0] * processes.world_size

    def send(self, message: Any) -> None:
        """Send a JSON value."""
        self._processes.store.set(self._key(self._processes.rank, self._sent), json.dumps(message))
        self._sent += 1

    def collect(self) -> Iterator[Any]:
        """What has come since the last time; waits for nothing."""
        store = self._processes.store
        for rank in range(self._processes.world_size):
            while store.check([key := self._key(rank, self._collected[rank])]):
                yield json.loads(store.get(key))
                store.delete_key(key)
                self._collected[rank] += 1

    def _key(self, rank: int, number: int) -> str:
        return f"mail/{self._scope}/{rank}/{number}"
