"""A server in a process of its own: it listens, and stops when it is told to, with everything answered."""

import asyncio
import logging
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from jrm_plugin.errors import JRMError, reason
from jrm_plugin.server.page import PAGE
from jrm_plugin.server.service import ScoringService

logger = logging.getLogger("jrm_plugin.server")

IDLE_SECONDS = 75  # that a connection stays open; longer than proxies and clients keep theirs


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn would end the process by the signal, after its shutdown; here it ends with the exit code 0."""
        yield


def address_of(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(app: FastAPI, host: str, port: int) -> None:
    """Serves until SIGTERM or SIGINT; then answers every request that was read, and returns.

    A second signal does not wait.

    Raises:
        JRMError: the model cannot be loaded, or nothing can listen at the address.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        raise JRMError(f"nothing can listen at {host}:{port}: {reason(error)}; choose another address.") from None
    address = address_of(host, listening.getsockname()[1])
    logger.info("Listening at %s; the model is being loaded.", address)
    if app.state.service.settings.ui:
        logger.info("Its page is %s%s", address, PAGE)
    asyncio.run(_run(app, listening))


async def _run(app: FastAPI, listening: socket.socket) -> None:
    service: ScoringService = app.state.service
    config = uvicorn.Config(
        app,
        access_log=False,
        log_config=None,
        ws="none",
        server_header=False,
        timeout_keep_alive=IDLE_SECONDS,
    )
    server = _Server(config)

    def stop() -> None:
        server.force_exit = server.should_exit
        server.should_exit = service.stopping = True

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    serving = asyncio.create_task(server.serve([listening]))
    loaded = asyncio.create_task(service.loaded.wait())
    await asyncio.wait({serving, loaded}, return_when=asyncio.FIRST_COMPLETED)
    loaded.cancel()
    if service.failure is not None:
        server.should_exit = True
    elif service.scorer is not None:
        logger.info("Ready.")
    await serving
    if service.failure is not None:
        raise service.failure
