"""Calls that wait at the same time in an event loop, computed together."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any, NamedTuple

from jrm_plugin.errors import JRMError
from jrm_plugin.records.samples import Sample
from jrm_plugin.records.scores import RewardScore
from jrm_plugin.scoring.protocol import Scorer

Options = tuple[tuple[str, Any], ...]  # of a method of the scorer, by name: what is asked with others is another batch


class QueueFullError(Exception):
    """More samples wait than may."""


class Call(NamedTuple):
    """Samples that came together; calls with the same `prefix` share what comes before the response."""

    prefix: str
    samples: Sequence[Sample]
    size: int
    method: str
    options: Options
    arrived: float
    answer: asyncio.Future


class MicroBatches:
    """Computes what concurrent calls ask for in batches, in a thread of its own.

    While a batch is computed the next one gathers. A call whose caller has given up (its task was cancelled) before its
    batch began is not computed. Where a batch fails as a whole (no memory, a lost device), each of its calls is
    computed by itself, and raises what it raises then.

    Args:
        scorer: asked for one batch at a time.
        batch_window: seconds that a call waits for further ones before a batch is computed.
        max_batch: size of a batch at most, but for a call that is larger. A call's size is its number of samples, or
            what the caller says, such as tokens.
        max_waiting: samples that may wait, beside those that are computed, for callers that ask `check_room`; None: any
            number.
        observe: told the samples, the size and the seconds of each batch that was computed.

    Attributes:
        calls, samples, batches: how many were computed.
        waiting: samples that wait.
    """

    def __init__(
        self,
        scorer: Scorer,
        *,
        batch_window: float,
        max_batch: int,
        max_waiting: int | None = None,
        observe: Callable[[int, int, float], None] = lambda samples, size, seconds: None,
    ):
        self._scorer, self._batch_window, self._max_batch = scorer, batch_window, max_batch
        self._max_waiting, self._observe = max_waiting, observe
        self._calls: dict[int, Call] = {}  # that wait, by their number, in the order in which they came
        self._numbers = count()
        self._working: asyncio.Task | None = None
        self._thread = ThreadPoolExecutor(1)
        self.calls = self.samples = self.batches = self.waiting = 0

    def check_room(self, samples: int) -> None:
        """Raises [`QueueFullError`] where so many further samples may not wait; any number may if none does."""
        if self._max_waiting is not None and 0 < self.waiting > self._max_waiting - samples:
            raise QueueFullError(f"{self.waiting} samples wait, and {self._max_waiting} may.")

    def score(self, samples: Sequence[Sample], prefix: str) -> asyncio.Future[list[RewardScore | JRMError]]:
        """The score of each sample, or what is wrong with it."""
        return self.ask("score", samples, prefix)

    def ask(
        self,
        method: str,
        samples: Sequence[Sample],
        prefix: str,
        *,
        size: int | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> asyncio.Future[list[Any]]:
        """What the scorer's `score`, `critique`, … gives for each sample, or what is wrong with it.

        Cancelled before its batch began, the call is not computed.
        """
        answer: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        own = tuple(sorted((options or {}).items()))
        size = len(samples) if size is None else size
        number = next(self._numbers)
        self._calls[number] = Call(prefix, samples, size, method, own, time.monotonic(), answer)
        self.waiting += len(samples)
        answer.add_done_callback(lambda answer: self._take(number))  # of one that was cancelled
        if self._working is None or self._working.done():
            self._working = asyncio.create_task(self._work())
        return answer

    def close(self) -> None:
        """Ends the thread when it has computed what it was given."""
        self._thread.shutdown()

    async def _work(self) -> None:
        while self._calls:
            if sum(call.size for call in self._calls.values()) < self._max_batch:
                window = next(iter(self._calls.values())).arrived + self._batch_window - time.monotonic()
                await asyncio.sleep(max(window, 0))  # what has come meanwhile is taken in too
            if self._calls:
                await self._run(self._next_batch())

    async def _run(self, batch: Sequence[Call]) -> None:
        start = time.monotonic()
        try:
            answers = await asyncio.get_running_loop().run_in_executor(self._thread, self._compute, batch)
        except Exception as error:
            if len(batch) > 1:
                for call in batch:
                    await self._run([call])
            elif not batch[0].answer.done():
                batch[0].answer.set_exception(error)
            return
        for call, answer in zip(batch, answers, strict=True):
            if not call.answer.done():  # cancelled by its caller
                call.answer.set_result(answer)
        samples, size = sum(len(call.samples) for call in batch), sum(call.size for call in batch)
        self.calls += len(batch)
        self.samples += samples
        self.batches += 1
        self._observe(samples, size, time.monotonic() - start)

    def _take(self, number: int) -> None:
        if call := self._calls.pop(number, None):
            self.waiting -= len(call.samples)

    def _next_batch(self) -> list[Call]:
        """The call that has waited longest and all others of its prefix, then the next, up to `max_batch`."""
        first: dict[str, int] = {}
        for number, call in self._calls.items():
            first.setdefault(call.prefix, number)
        oldest = next(iter(self._calls.values()))
        alike = [n for n, call in self._calls.items() if (call.method, call.options) == (oldest.method, oldest.options)]
        batch: list[Call] = []
        size = 0
        for number in sorted(alike, key=lambda number: first[self._calls[number].prefix]):
            call = self._calls[number]
            if batch and size + call.size > self._max_batch:
                break
            batch.append(call)
            size += call.size
            self._take(number)
        return batch

    def _compute(self, batch: Sequence[Call]) -> list[list[Any]]:
        samples = [sample for call in batch for sample in call.samples]
        ask = getattr(self._scorer, batch[0].method)
        answers = iter(ask(samples, on_error="return", **dict(batch[0].options)))
        return [[next(answers) for _ in call.samples] for call in batch]
