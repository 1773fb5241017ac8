"""Calls that wait at the same time in an event loop, computed together."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from jrm_plugin.errors import JRMError
from jrm_plugin.records.samples import Sample
from jrm_plugin.records.scores import RewardScore
from jrm_plugin.scoring.protocol import Scorer


class Call(NamedTuple):
    """Samples that came together; calls with the same `prefix` share what comes before the response."""

    prefix: str
    samples: Sequence[Sample]
    answer: asyncio.Future


class MicroBatches:
    """Computes what concurrent calls ask for in batches, in a thread of its own.

    Args:
        scorer: asked for one batch at a time.
        batch_window: seconds that are waited for further calls before a batch is computed.
        max_batch: samples of a batch at most, but for a call that has more.

    Attributes:
        calls, samples, batches: how many were computed.
    """

    def __init__(self, scorer: Scorer, *, batch_window: float, max_batch: int):
        self._scorer, self._batch_window, self._max_batch = scorer, batch_window, max_batch
        self._waiting: list[Call] = []
        self._working: asyncio.Task | None = None
        self._thread = ThreadPoolExecutor(1)
        self.calls = self.samples = self.batches = 0

    async def score(self, samples: Sequence[Sample], prefix: str) -> list[RewardScore | JRMError]:
        """The score of each sample, or what is wrong with it."""
        call = Call(prefix, samples, asyncio.get_running_loop().create_future())
        self._waiting.append(call)
        if self._working is None or self._working.done():
            self._working = asyncio.create_task(self._work())
        return await call.answer

    def close(self) -> None:
        """Ends the thread when it has computed what it was given."""
        self._thread.shutdown()

    async def _work(self) -> None:
        while self._waiting:
            if sum(len(call.samples) for call in self._waiting) < self._max_batch:
                await asyncio.sleep(self._batch_window)
            batch = self._next_batch()
            samples = [sample for call in batch for sample in call.samples]
            try:
                scores = iter(await asyncio.get_running_loop().run_in_executor(self._thread, self._compute, samples))
            except Exception as error:  # of no single sample (no memory, a lost device): the whole batch raises it
                for call in batch:
                    if not call.answer.done():
                        call.answer.set_exception(error)
                continue
            for call in batch:
                answer = [next(scores) for _ in call.samples]
                if not call.answer.done():  # cancelled by its caller
                    call.answer.set_result(answer)
            self.calls += len(batch)
            self.samples += len(samples)
            self.batches += 1

    def _next_batch(self) -> list[Call]:
        """The call that has waited longest and all others of its prefix, then the next, up to `max_batch` samples."""
        first: dict[str, int] = {}
        for place, call in enumerate(self._waiting):
            first.setdefault(call.prefix, place)
        ordered = sorted(self._waiting, key=lambda call: first[call.prefix])
        batch, size = [], 0
        for call in ordered:
            if batch and size + len(call.samples) > self._max_batch:
                break
            batch.append(call)
            size += len(call.samples)
        self._waiting = ordered[len(batch) :]
        return batch

    def _compute(self, samples: Sequence[Sample]) -> list[RewardScore | JRMError]:
        return self._scorer.score(samples, on_error="return")
