"""The client's side of a pool of scorers: finds or makes the replicas, sends samples, replaces what died."""

import asyncio
import atexit
import hashlib
import logging
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import ray
from ray.exceptions import RayActorError, RayTaskError

from jrm_plugin.errors import JRMError
from jrm_plugin.integrations.ray.scorer_replica import ScorerReplica, Statistics
from jrm_plugin.integrations.ray.settings import ScorerSettings
from jrm_plugin.records.calibration import Calibration
from jrm_plugin.records.samples import Sample
from jrm_plugin.records.scores import RewardScore

logger = logging.getLogger(__name__)

NAMESPACE = "jrm"
# How often a call is sent: where its replica died, it goes to the successor after 0.1, 0.2, 0.4 … seconds.
ATTEMPTS = 7
# Seconds after which a warning says that a replica still waits for its place on the cluster or for its model.
PATIENCE = 30.0
# A framework's worker may have set it to choose a GPU for itself; inherited, it would put every replica on that GPU.
GPU_VARIABLES = {"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": ""}


class ScorerPool:
    """Replicas of one scorer on the run's Ray cluster, found by name, so that every process of the run has the same.

    The replicas are detached actors: they outlive the worker that made them. They do not outlive the run for long: a
    replica ends itself when the last process has closed the pool. Ray may also end a run's workers before they can
    close it; so every process sends heartbeats, and a replica that got none for the time of the lease ends itself. A
    replica that died is replaced, and the calls that it had not answered are sent again.

    Args:
        settings: of the pool; processes with equal settings in one Ray job share one.

    Raises:
        JRMError: the cluster has fewer GPUs than the replicas ask for.
    """

    def __init__(self, settings: ScorerSettings):
        self.settings = settings
        available = ray.cluster_resources().get("GPU", 0)
        if settings.num_gpus * settings.replicas > available:
            raise JRMError(
                f"{settings.section} ask for {settings.replicas} replicas with {settings.num_gpus} GPUs each, and the "
                f"Ray cluster has {available:g}; lower num_gpus or replicas (num_gpus: 0 scores on CPU)."
            )
        self._node = _node()
        digest = hashlib.sha256(repr(settings).encode()).hexdigest()[:12]
        self._name = f"scorer-{ray.get_runtime_context().get_job_id()}-{digest}"
        self._client = uuid.uuid4().hex
        # a semaphore belongs to the event loop that first waits for it
        self._slots: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()
        self._lock = threading.Lock()
        self._members = [self._member(index) for index in range(settings.replicas)]
        self._closed = threading.Event()
        threading.Thread(target=self._heartbeat, daemon=True).start()
        atexit.register(self.close)

    async def score(self, samples: Sequence[Sample]) -> list[RewardScore | JRMError]:
        """The score of each sample, or what is wrong with it; all go to one replica, with others of the same prompt.

        Raises:
            JRMError: the model cannot be loaded.
            RayActorError: the replica died and so did each of its successors.
        """
        prefix = samples[0].prompt_key()
        with self._lock:
            slots = self._slots.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(self.settings.max_in_flight))
        async with slots:
            return await self._ask(int(prefix, 16), lambda replica: replica.score.remote(prefix, samples))

    async def dimensions(self) -> list[str]:
        """The model's dimensions.

        Raises:
            JRMError: the model cannot be loaded.
        """
        return await self._ask(0, lambda replica: replica.join.remote(self._client))

    async def calibration(self) -> Calibration | None:
        """The model's calibration, where it has one."""
        return await self._ask(0, lambda replica: replica.calibration.remote())

    async def statistics(self) -> list[Statistics]:
        """What each replica has done since it was made."""
        return [
            await self._ask(number, lambda replica: replica.statistics.remote()) for number in range(len(self._members))
        ]

    def close(self) -> None:
        """Leaves the pool; the replicas end when the last process has left."""
        if self._closed.is_set():
            return
        self._closed.set()
        if self.is_on_the_cluster():
            leaving = [member.replica.leave.remote(self._client) for member in self._members]
            ray.wait(leaving, num_returns=len(leaving), timeout=1)

    def is_on_the_cluster(self) -> bool:
        """Whether the cluster that this process is on now, if any, is that of the replicas."""
        return _node() == self._node

    # -- replicas

    def _member(self, index: int) -> "_Member":
        settings = self.settings
        replica = (
            ray.remote(ScorerReplica)
            .options(
                name=f"{self._name}-{index}",
                namespace=NAMESPACE,
                lifetime="detached",
                get_if_exists=True,
                num_cpus=settings.num_cpus,
                num_gpus=settings.num_gpus,
                max_concurrency=100_000,  # the clients' max_in_flight is what limits
                runtime_env={"env_vars": GPU_VARIABLES} if settings.num_gpus else None,
            )
            .remote(settings)
        )
        return _Member(replica, replica.join.remote(self._client))

    def _replace(self, index: int, dead: "_Member") -> None:
        with self._lock:
            if self._members[index] is dead and not self._closed.is_set():
                logger.warning("Replica %d of the JRM scorers died; another takes its place.", index)
                self._members[index] = self._member(index)

    async def _ask(self, number: int, call: Callable[[Any], ray.ObjectRef]) -> Any:
        index = number % len(self._members)
        for attempt in range(ATTEMPTS):
            member = self._members[index]
            try:
                return await call(member.replica)
            except RayTaskError as error:
                raise error.cause if isinstance(error.cause, JRMError) else error from None
            except RayActorError:
                if attempt == ATTEMPTS - 1:
                    raise
                self._replace(index, member)
                await asyncio.sleep(0.1 * 2**attempt)

    def _heartbeat(self) -> None:
        """Shows the replicas again and again that this process is alive, and replaces those that are not."""
        while not self._closed.wait(min(self.settings.lease / 4, PATIENCE)):
            if not self.is_on_the_cluster():  # the replicas ended with it, and to ask for them would start another
                return
            for index, member in enumerate(self._members):
                try:
                    self._check(index, member)
                except Exception as error:  # Ray is shutting down or has ended; a call would raise what is wrong
                    logger.debug("Replica %d could not be asked: %s", index, error)

    def _check(self, index: int, member: "_Member") -> None:
        ready, _ = ray.wait([member.pending_join], timeout=0)
        if ready:
            try:
                ray.get(member.pending_join)
            except RayTaskError:
                pass  # the model cannot be loaded; every call raises that
            except RayActorError:
                return self._replace(index, member)
            member.joined, member.last_answer = True, time.monotonic()
            member.pending_join = member.replica.join.remote(self._client)
        elif time.monotonic() - member.last_answer > max(self.settings.lease, PATIENCE):
            if member.joined:  # it has started, and answers no more
                ray.kill(member.replica)
                return self._replace(index, member)
            member.last_answer = time.monotonic()
            free = {name: amount for name, amount in ray.available_resources().items() if name in ("CPU", "GPU")}
            logger.warning(
                "Replica %d of the JRM scorers is not ready: it loads its model, or waits for %g CPUs and %g GPUs, and "
                "the cluster has %s free. A trainer that holds every GPU leaves none.",
                index,
                self.settings.num_cpus,
                self.settings.num_gpus,
                free,
            )


@dataclass(eq=False)
class _Member:
    """A replica as this process knows it; the answer to `pending_join` shows that it is alive."""

    replica: Any
    pending_join: ray.ObjectRef
    joined: bool = False
    last_answer: float = field(default_factory=time.monotonic)


def _node() -> str | None:
    """The node of a Ray cluster that this process is on; another one after `ray.shutdown()` and `ray.init()`."""
    return ray.get_runtime_context().get_node_id() if ray.is_initialized() else None


_pools: dict[ScorerSettings, ScorerPool] = {}


def shared_pool(settings: ScorerSettings) -> ScorerPool:
    """The one pool with these settings in this process, on the cluster that it is on now."""
    pool = _pools.get(settings)
    if pool is None or not pool.is_on_the_cluster():
        pool = _pools[settings] = ScorerPool(settings)
    return pool
