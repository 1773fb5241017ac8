"""One scorer of a pool: a detached Ray actor that computes concurrent calls in batches."""

import asyncio
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import ray

from jrm_plugin.errors import JRMError, as_jrm_error
from jrm_plugin.integrations.ray.settings import ScorerSettings
from jrm_plugin.records.samples import Sample
from jrm_plugin.records.scores import RewardScore
from jrm_plugin.scoring.loading import load_scorer
from jrm_plugin.scoring.protocol import Scorer


class Call(NamedTuple):
    """Samples that came together; calls with the same `prefix` share what comes before the response."""

    prefix: str
    samples: Sequence[Sample]
    answer: asyncio.Future


@dataclass
class Statistics:
    """What a replica has done: calls that it answered, and images whose features it had already or had to compute."""

    pid: int = field(default_factory=os.getpid)
    calls: int = 0
    samples: int = 0
    batches: int = 0
    clients: int = 0
    image_hits: int = 0
    image_misses: int = 0


class ScorerReplica:
    """Loads the model when it is made; ends itself when the last client has left or no heartbeat came for the lease."""

    def __init__(self, settings: ScorerSettings):
        self._settings = settings
        self._statistics = Statistics()
        self._waiting: list[Call] = []
        self._working: asyncio.Task | None = None
        self._thread = ThreadPoolExecutor(1)  # the model computes one batch at a time
        self._scorer: Scorer | None = None
        self._failure: JRMError | None = None
        device = settings.device or ("cuda" if settings.num_gpus else "cpu")
        try:
            with as_jrm_error(f"the model {settings.model_path} cannot be loaded"):
                self._scorer = load_scorer(settings.model_path, device=device)
        except JRMError as error:  # raised by every call; a constructor that fails gives callers a traceback only
            self._failure = error
        self._clients: dict[str, float] = {}  # time of each client's last heartbeat
        self._started = time.monotonic()
        self._itself = ray.get_runtime_context().current_actor
        threading.Thread(target=self._end_when_alone, daemon=True).start()

    # -- calls

    async def score(self, prefix: str, samples: Sequence[Sample]) -> list[RewardScore | JRMError]:
        """The score of each sample, or what is wrong with it.

        Raises:
            JRMError: the model could not be loaded.
        """
        if self._failure is not None:
            raise self._failure
        call = Call(prefix, samples, asyncio.get_running_loop().create_future())
        self._waiting.append(call)
        if self._working is None or self._working.done():
            self._working = asyncio.create_task(self._work())
        return await call.answer

    async def _work(self) -> None:
        while self._waiting:
            if sum(len(call.samples) for call in self._waiting) < self._settings.max_batch:
                await asyncio.sleep(self._settings.batch_window)
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
            self._statistics.calls += len(batch)
            self._statistics.samples += len(samples)
            self._statistics.batches += 1

    def _next_batch(self) -> list[Call]:
        """The call that has waited longest and all others of its prefix, then the next, up to `max_batch` samples."""
        first = {}
        for place, call in enumerate(self._waiting):
            first.setdefault(call.prefix, place)
        ordered = sorted(self._waiting, key=lambda call: first[call.prefix])
        batch, size = [], 0
        for call in ordered:
            if batch and size + len(call.samples) > self._settings.max_batch:
                break
            batch.append(call)
            size += len(call.samples)
        self._waiting = ordered[len(batch) :]
        return batch

    def _compute(self, samples: Sequence[Sample]) -> list[RewardScore | JRMError]:
        return self._scorer.score(samples, on_error="return")

    # -- life

    async def join(self, client: str) -> list[str]:
        """The dimensions of the model. It is the heartbeat of `client`, which counts as a user until its lease ends.

        Raises:
            JRMError: the model could not be loaded.
        """
        self._clients[client] = time.monotonic()
        if self._failure is not None:
            raise self._failure
        return self._scorer.dimensions

    async def leave(self, client: str) -> None:
        self._clients.pop(client, None)
        if not self._clients:
            ray.actor.exit_actor()

    async def statistics(self) -> Statistics:
        self._statistics.clients = len(self._clients)
        # Only a `RewardScorer` has an engine, and only the one that shares prefixes keeps features of images.
        features = getattr(getattr(self._scorer, "engine", None), "features", None)
        if features is not None:
            self._statistics.image_hits, self._statistics.image_misses = features.hits, features.misses
        return self._statistics

    def _end_when_alone(self) -> None:
        while True:
            time.sleep(self._settings.lease / 4)
            last_heartbeat = max([self._started, *list(self._clients.values())])
            if time.monotonic() - last_heartbeat > self._settings.lease:
                ray.kill(self._itself)
