"""Requests to a reward server, sent again until they are answered; imports no torch.

All requests of a process run in one event loop, in a thread of its own, so that threads and other event loops may ask
side by side and share connections. A forked child has a loop of its own.
"""

import asyncio
import logging
import os
import random
import threading
import uuid
from collections.abc import Coroutine
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, TypeVar

from jrm_plugin.errors import JRMError, reason, shortened
from jrm_plugin.extras import require
from jrm_plugin.records.wire import CODES, REQUEST_KEY, RETRY_AFTER, TIMEOUT, error_in

if TYPE_CHECKING:
    import httpx
    import tenacity

logger = logging.getLogger(__name__)

FIRST_CONTACT = 10.0  # seconds in which a server must be found that was never reached: an address may be wrong
FAULTS = 3  # how often a request is sent that the server answers with a fault of its own
LONGEST_PAUSE = 60.0  # seconds, whatever the server wishes
_MAY_SUCCEED = {408, 425, 429, 500, 502, 503, 504}  # statuses of what stands between, a proxy

T = TypeVar("T")


class Connection:
    """To a server; settings as in [`RewardClient`]."""

    def __init__(self, url: str, token: str | None, *, timeout: float, patience: float, concurrency: int):
        require("httpx tenacity", f"the model {url}", install="jrm-plugin[client]")
        self.url, self._timeout, self._patience, self._concurrency = url, timeout, patience, concurrency
        self._headers = {TIMEOUT: f"{timeout:g}"} | ({"Authorization": f"Bearer {token}"} if token else {})
        self._reached = False
        self._opened: tuple[asyncio.AbstractEventLoop, httpx.AsyncClient, asyncio.Semaphore] | None = None

    def _open(self) -> "tuple[asyncio.AbstractEventLoop, httpx.AsyncClient, asyncio.Semaphore]":
        import httpx

        loop = asyncio.get_running_loop()
        if self._opened is None or self._opened[0] is not loop:
            _left_to_parent.append(self._opened)
            limits = httpx.Limits(max_connections=self._concurrency, max_keepalive_connections=self._concurrency)
            # the server is to answer in time; a little longer, so that its answer is there to be read
            timeout = httpx.Timeout(self._timeout + 5, connect=10.0, pool=None)
            client = httpx.AsyncClient(headers=self._headers, limits=limits, timeout=timeout)
            self._opened = loop, client, asyncio.Semaphore(self._concurrency)
        return self._opened

    @property
    def free(self) -> asyncio.Semaphore:
        """To be held while a request is made and sent: it bounds how many there are at once."""
        return self._open()[2]

    async def ask(self, method: str, path: str, body: bytes | None = None) -> Any:
        """The JSON that the server answers.

        A request that was lost, or refused for now, is sent again, after a pause that grows and has a random part, or
        that the server asks for; all times under one key, by which the server knows it.

        Raises:
            JRMError: the server cannot be reached, refuses the request, or is none of this kind.
        """
        import httpx
        import tenacity

        headers = {} if body is None else {REQUEST_KEY: uuid.uuid4().hex, "Content-Type": "application/json"}
        grows = tenacity.wait_random_exponential(multiplier=0.2, max=5.0)
        attempts = tenacity.AsyncRetrying(
            retry=self._again,
            wait=lambda state: grows(state) if (pause := _wished_pause(state)) is None else pause,
            stop=tenacity.stop_after_delay(self._patience),
            before_sleep=self._note,
            reraise=True,
        )
        try:
            return await attempts(self._once, method, path, body, headers)
        except httpx.HTTPError as error:
            raise JRMError(
                f"the reward server {self.url} does not answer ({reason(error)}); see whether it runs there, and "
                "whether the address is right."
            ) from error
        except _Refusal as error:
            raise JRMError(f"the reward server {self.url} {error}") from error

    async def _once(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> Any:
        response = await self._open()[1].request(method, self.url + path, content=body, headers=headers)
        self._reached = True
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if response.status_code == 200 and isinstance(answer, dict):
            return answer
        raise _Refusal(response, error_in(answer))

    def _again(self, state: "tenacity.RetryCallState") -> bool:
        """Whether a request is sent again, after what it came to."""
        import httpx

        error = state.outcome.exception() if state.outcome is not None else None
        if isinstance(error, _Refusal):
            return error.may_succeed and (error.status != 500 or state.attempt_number < FAULTS)
        if isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout)) and not self._reached:
            return (state.seconds_since_start or 0.0) < FIRST_CONTACT
        wrong_address = isinstance(error, (httpx.UnsupportedProtocol, httpx.LocalProtocolError))
        return isinstance(error, httpx.TransportError) and not wrong_address

    def _note(self, state: "tenacity.RetryCallState") -> None:
        error = state.outcome.exception() if state.outcome is not None else None
        level = logging.WARNING if state.attempt_number % 10 == 3 else logging.INFO
        logger.log(level, "The reward server %s: %s; it is asked again.", self.url, error and reason(error))

    async def close(self) -> None:
        if self._opened is not None and self._opened[0] is asyncio.get_running_loop():
            await self._opened[1].aclose()
        self._opened = None


class _Refusal(Exception):
    """An answer that is none: what it says, as the end of a sentence."""

    def __init__(self, response: "httpx.Response", said: tuple[str, str] | None):
        code, message = said or ("", "")
        self.status = response.status_code
        self.may_succeed = CODES[code][1] if code in CODES else self.status in _MAY_SUCCEED
        self.pause = _seconds(response.headers.get(RETRY_AFTER))
        if self.status == 401:
            message = "it wants a token; set the variable JRM_SERVER_TOKEN to that of its operator."
        elif not message:
            message = (
                f"{shortened(response.text[:200])}, which no reward server of `jrm serve` says; check the address."
            )
        super().__init__(f"answers {self.status}: {message}")


def _wished_pause(state: "tenacity.RetryCallState") -> float | None:
    """The pause that the server asks for, and a little more, so that not all come back at once."""
    error = state.outcome.exception() if state.outcome is not None else None
    pause = error.pause if isinstance(error, _Refusal) else None
    return None if pause is None else pause * random.uniform(1.0, 1.25)


def _seconds(retry_after: str | None) -> float | None:
    """What `Retry-After` asks for, a number of seconds or a date."""
    if retry_after is None:
        return None
    try:
        pause = float(retry_after)
    except ValueError:
        try:
            pause = (parsedate_to_datetime(retry_after) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
    return min(max(pause, 0.0), LONGEST_PAUSE) if pause == pause else None


# --- the event loop of the process ------------------------------------------------------------------------------------

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
# What a forked child must not touch, its sockets belong to the parent; what is kept here is not cleaned up.
_left_to_parent: list[Any] = []


def _after_fork() -> None:
    global _lock, _loop
    _left_to_parent.append(_loop)
    _lock, _loop = threading.Lock(), None


os.register_at_fork(after_in_child=_after_fork)


def _running() -> asyncio.AbstractEventLoop:
    global _loop
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="jrm-client", daemon=True).start()
        return _loop


def wait_for(work: Coroutine[Any, Any, T]) -> T:
    """Runs work in the process's event loop, from any thread, and waits for it; a caller who gives up ends it."""
    future = asyncio.run_coroutine_threadsafe(work, _running())
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


async def awaited(work: Coroutine[Any, Any, T]) -> T:
    """As `wait_for`, awaited in whichever event loop."""
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, _running()))
