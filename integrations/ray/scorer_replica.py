"""One scorer of a pool: a detached Ray actor that computes concurrent calls in batches."""

import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import ray

from jrm_plugin.errors import JRMError, as_jrm_error
from jrm_plugin.integrations.ray.settings import ScorerSettings
from jrm_plugin.records.calibration import Calibration
from jrm_plugin.records.samples import Sample
from jrm_plugin.records.scores import RewardScore
from jrm_plugin.scoring.loading import load_scorer
from jrm_plugin.scoring.micro_batches import MicroBatches
from jrm_plugin.scoring.protocol import Scorer


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
        self._scorer: Scorer | None = None
        self._failure: JRMError | None = None
        device = settings.device or ("cuda" if settings.num_gpus else "cpu")
        try:
            with as_jrm_error(f"the model {settings.model_path} cannot be loaded"):
                self._scorer = load_scorer(settings.model_path, device=device)
                self._batches = MicroBatches(
                    self._scorer, batch_window=settings.batch_window, max_batch=settings.max_batch
                )
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
        return await self._batches.score(samples, prefix)

    async def calibration(self) -> Calibration | None:
        if self._failure is not None:
            raise self._failure
        return getattr(self._scorer, "calibration", None)  # a scorer of another kind may have none

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
        batches = self._batches
        statistics = Statistics(
            calls=batches.calls, samples=batches.samples, batches=batches.batches, clients=len(self._clients)
        )
        # Only a `RewardScorer` has an engine, and only the one that shares prefixes keeps features of images.
        features = getattr(getattr(self._scorer, "engine", None), "features", None)
        if features is not None:
            statistics.image_hits, statistics.image_misses = features.hits, features.misses
        return statistics

    def _end_when_alone(self) -> None:
        while True:
            time.sleep(self._settings.lease / 4)
            last_heartbeat = max([self._started, *list(self._clients.values())])
            if time.monotonic() - last_heartbeat > self._settings.lease:
                ray.kill(self._itself)
