"""The same app behind Ray Serve: replicas on many machines, replaced where one dies, behind one address."""

import logging
import signal
import threading
from collections.abc import Callable
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve

from jrm_plugin.errors import JRMError, reason
from jrm_plugin.scoring.protocol import Scorer
from jrm_plugin.server.app import create_app
from jrm_plugin.server.page import PAGE
from jrm_plugin.server.running import address_of
from jrm_plugin.server.service import ScoringService
from jrm_plugin.server.settings import ServerSettings

logger = logging.getLogger("jrm_plugin.server")

NAME = "jrm"
_services: list[ScoringService] = []  # of this replica


def deployment(
    settings: ServerSettings, load: Callable[[], Scorer], *, replicas: int, gpus_per_replica: float
) -> serve.Application:
    """The app as a deployment of Ray Serve; each replica loads the model before it is asked.

    Args:
        settings: limits and permissions, of each replica.
        load: makes the scorer; it is sent to the replicas.
        replicas: how many.
        gpus_per_replica: a share of a GPU is a fraction.
    """

    def build() -> FastAPI:
        app = create_app(settings, load, wait_for_model=True)
        _services.append(app.state.service)
        return app

    class Replica:
        def check_health(self) -> None:
            """Ray Serve replaces a replica of which this raises."""
            if _services and _services[0].failure is not None:
                raise _services[0].failure

    return serve.deployment(
        serve.ingress(build)(Replica),
        name=NAME,
        num_replicas=replicas,
        max_ongoing_requests=settings.max_waiting,  # the replica's own queue is what limits
        ray_actor_options={"num_cpus": 1, "num_gpus": gpus_per_replica},
        graceful_shutdown_timeout_s=settings.timeout + 5,
        max_constructor_retry_count=1,
    ).bind()


def run(
    settings: ServerSettings,
    load: Callable[[], Scorer],
    *,
    host: str,
    port: int,
    replicas: int,
    gpus_per_replica: float | None,
) -> None:
    """Serves on a Ray cluster, that of `RAY_ADDRESS` or a new one, until SIGTERM or SIGINT.

    Then no further request is taken, and replicas end when they have answered theirs.

    Raises:
        JRMError: there are too few GPUs, or the replicas do not start.
    """
    if not ray.is_initialized():
        ray.init(log_to_driver=False, logging_level=logging.WARNING)
    ending = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):  # after Ray has set its own, which would end the process at once
        signal.signal(number, lambda *_: ending.set())
    there = ray.cluster_resources().get("GPU", 0)
    gpus = float(there > 0) if gpus_per_replica is None else gpus_per_replica
    if gpus * replicas > there:
        raise JRMError(
            f"{replicas} replicas with {gpus:g} GPUs each are asked for, and the Ray cluster has {there:g}; lower "
            "--replicas or --gpus-per-replica (0 scores on CPU)."
        )
    options: dict[str, Any] = {"host": host, "port": port, "request_timeout_s": settings.timeout + 5}
    serve.start(http_options=options)
    app = deployment(settings, load, replicas=replicas, gpus_per_replica=gpus)
    try:
        serve.run(app, name=NAME, route_prefix="/")
    except RuntimeError as error:
        serve.shutdown()
        raise JRMError(f"the replicas do not start: {reason(error)}; see Ray's logs.") from None
    logger.info("Ready: %d replicas at %s.", replicas, address_of(host, port))
    if settings.ui:
        logger.info("Their page is %s%s", address_of(host, port), PAGE)
    ending.wait()
    serve.delete(NAME)
    serve.shutdown()
