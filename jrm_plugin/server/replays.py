"""Requests that are sent again are answered again, and computed once."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from jrm_plugin.server.errors import RequestError

KEPT_SECONDS = 300.0
MOST, MOST_BYTES = 4096, 64 * 2**20  # answers that are kept; the oldest go first


@dataclass
class _Answer:
    digest: bytes  # of the body
    task: asyncio.Task
    started: float
    waiting: int = 0  # requests
    size: int = 0  # bytes, once it is there


class Replays:
    """Answers by the key of their request, of the last minutes; only those that were given in full."""

    def __init__(self, on_replay: Callable[[], None]):
        self._answers: OrderedDict[str, _Answer] = OrderedDict()
        self._on_replay, self._bytes = on_replay, 0

    async def once(self, key: str, digest: bytes, compute: Callable[[], Awaitable[Any]]) -> Any:
        """What `compute` gives, or gave for the same key; it is cancelled when the last who waits for it has left.

        Raises:
            RequestError: the key had another body.
        """
        self._forget()
        answer = self._answers.get(key)
        if answer is None:
            task = asyncio.ensure_future(compute())
            answer = self._answers[key] = _Answer(digest, task, time.monotonic())
            task.add_done_callback(lambda task: self._keep(key, task))
        elif answer.digest != digest:
            raise RequestError("invalid", "this key belongs to another request; give each request its own.")
        else:
            self._on_replay()
        answer.waiting += 1
        try:
            return await asyncio.shield(answer.task)
        finally:
            answer.waiting -= 1
            if not answer.waiting and not answer.task.done():
                answer.task.cancel()
                self._drop(key, answer.task)

    def _keep(self, key: str, task: asyncio.Task) -> None:
        if task.cancelled() or task.exception() is not None:
            self._drop(key, task)
        elif key in self._answers and self._answers[key].task is task:
            size = len(getattr(task.result(), "body", b""))
            self._answers[key].size = size
            self._bytes += size

    def _forget(self) -> None:
        """Drops the oldest answers, until the others are few, small and young enough."""
        while self._answers:
            oldest = next(iter(self._answers.values()))
            if (
                len(self._answers) <= MOST
                and self._bytes <= MOST_BYTES
                and oldest.started > time.monotonic() - KEPT_SECONDS
            ):
                return
            self._answers.popitem(last=False)
            self._bytes -= oldest.size

    def _drop(self, key: str, task: asyncio.Task) -> None:
        if key in self._answers and self._answers[key].task is task:
            self._bytes -= self._answers.pop(key).size
