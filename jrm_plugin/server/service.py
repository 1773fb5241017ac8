"""What stands behind the routes: the model, the queue before it, and how a request is read and answered."""

import asyncio
import hashlib
import hmac
import json
import logging
import math
import re
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from jrm_plugin.errors import JRMError, reason
from jrm_plugin.records.images import ImageLike, image_size
from jrm_plugin.records.samples import OVERALL, Sample
from jrm_plugin.records.wire import BAD_SAMPLE, REQUEST_KEY, TIMEOUT
from jrm_plugin.scoring.micro_batches import MicroBatches, QueueFullError
from jrm_plugin.scoring.protocol import Scorer
from jrm_plugin.server.errors import Answer, RequestError
from jrm_plugin.server.images import ImageOpener
from jrm_plugin.server.metrics import Metrics
from jrm_plugin.server.replays import Replays
from jrm_plugin.server.settings import ServerSettings

logger = logging.getLogger("jrm_plugin.server")

T = TypeVar("T")

READERS = 4  # threads that read what requests hold; with URLs, which they wait for, more
LONGEST_RETRY = 30  # seconds
CHARACTERS_PER_TOKEN = 4  # of a text, roughly: it is a batch's size that is measured by it
SHOWN_BYTES = 2**20  # of a request in the log, at most
_LONG_STRING = re.compile(r'"[^"\s]{200,}"?')  # an image; a text has spaces
JSON_PART = "request"  # of a multipart request: its JSON; the other parts are images


class Body(NamedTuple):
    """What a request brought: its bytes, or the files of a multipart request and its JSON."""

    content: bytes
    parts: Mapping[str, bytes]


class Asked(NamedTuple):
    """A sample that is to be scored, and what decides with which others."""

    sample: Sample
    prefix: str  # the digest of its prompt
    tokens: int  # about


class ScoringService:
    """A scorer that is loaded in the background, and what requests ask of it.

    Args:
        settings: limits and permissions.
        load: makes the scorer, in a thread.

    Attributes:
        scorer: None until it is loaded.
        failure: why it cannot be loaded.
    """

    def __init__(self, settings: ServerSettings, load: Callable[[], Scorer]):
        self.settings, self._load = settings, load
        self.scorer: Scorer | None = None
        self.failure: JRMError | None = None
        self.stopping = False
        self.loaded = asyncio.Event()  # or failed
        self.metrics = Metrics(lambda: self._batches.waiting if self._batches else 0, self._image_features)
        self._batches: MicroBatches | None = None
        self._replays = Replays(self.metrics.replays.inc)
        self._readers = ThreadPoolExecutor(READERS if settings.allow_urls is None else 8 * READERS)
        self._body_bytes = self._taken = self._answered = self._reading = 0
        self._seconds_per_sample = 0.1
        self._loading: asyncio.Task | None = None

    # -- life

    async def start(self) -> None:
        """Begins to load the model; returns at once."""
        self._loading = asyncio.create_task(self._load_model())

    async def stop(self) -> None:
        """Ends the threads, when what was asked has been answered."""
        self.stopping = True
        if self._loading is not None:
            await self._loading
        if self._batches is not None:
            self._batches.close()
        self._readers.shutdown()
        logger.info("Stopped: %d requests were taken and %d answered.", self._taken, self._answered)

    async def _load_model(self) -> None:
        try:
            scorer = await asyncio.to_thread(self._load)
        except Exception as error:
            self.failure = error if isinstance(error, JRMError) else JRMError(f"the model failed: {reason(error)}.")
            if not isinstance(error, JRMError):
                logger.exception("The model cannot be loaded.")
        else:
            self._batches = MicroBatches(
                scorer,
                batch_window=self.settings.batch_window,
                max_batch=self.settings.batch_tokens,
                max_waiting=self.settings.max_waiting,
                observe=self._observe,
            )
            self.scorer = scorer
        self.loaded.set()

    def _observe(self, samples: int, tokens: int, seconds: float) -> None:
        self.metrics.batch_samples.observe(samples)
        self.metrics.batch_seconds.observe(seconds)
        self.metrics.tokens.inc(tokens)
        self._seconds_per_sample += 0.1 * (seconds / samples - self._seconds_per_sample)

    def _image_features(self) -> tuple[int, int]:
        features = getattr(getattr(self.scorer, "engine", None), "features", None)
        return (0, 0) if features is None else (features.hits, features.misses)

    def check_ready(self) -> None:
        """A [`RequestError`] where no request is taken: the model is not loaded, or the server is stopping."""
        if self.failure is not None:
            raise RequestError("loading", f"the model cannot be loaded: {self.failure}", retry_after=LONGEST_RETRY)
        if self.stopping:
            raise RequestError("stopping", "the server is stopping; ask another, or this one later.", retry_after=5)
        if self.scorer is None:
            raise RequestError("loading", "the model is being loaded; ask again soon.", retry_after=2)

    # -- what a model is

    @property
    def loaded_scorer(self) -> Scorer:
        """The scorer, for a request that was taken when it was there."""
        assert self.scorer is not None
        return self.scorer

    def describe(self) -> dict[str, Any]:
        """The model, as `GET /v1/models` gives it."""
        scorer = self.loaded_scorer
        config = getattr(scorer, "config", None)
        calibration = getattr(scorer, "calibration", None)
        limits = {"samples": self.settings.max_samples, "body_bytes": self.settings.max_body_bytes}
        return {
            "name": self.settings.model,
            "digest": self.settings.digest,
            "dimensions": list(scorer.dimensions),
            "overall_rule": getattr(config, "overall_rule", "mean"),
            "writes_critiques": bool(getattr(scorer, "writes_critiques", False)),
            "calibration": None if calibration is None else calibration.to_dict(),
            "limits": limits,
        }

    def check_dimension(self, dimension: str, *, or_overall: bool) -> None:
        known = [*self.loaded_scorer.dimensions, *([OVERALL] if or_overall else [])]
        if dimension not in known:
            raise RequestError(
                "invalid", f"there is no dimension {dimension[:100]!r} here; there are {', '.join(known)}."
            )

    # -- samples

    async def read(
        self, function: Callable[[], tuple[T, Sequence[Sample | JRMError]]]
    ) -> tuple[T, list[Asked | JRMError]]:
        """What a function finds in a request, and its samples or what is wrong with them, each with its size.

        It takes its time in a thread, without the event loop waiting for it.

        Raises:
            RequestError: there are too many samples.
        """

        def read_and_measure() -> tuple[T, list[Asked | JRMError]]:
            found, samples = function()
            if len(samples) > self.settings.max_samples:
                raise RequestError(
                    "invalid",
                    f"a request may have {self.settings.max_samples} samples, not {len(samples)}; send several.",
                )
            return found, [self._measured(sample) for sample in samples]

        self._reading += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._readers, read_and_measure)
        finally:
            self._reading -= 1

    def _measured(self, sample: Sample | JRMError) -> Asked | JRMError:
        """A sample as it is to be asked for, or why it is not taken."""
        if isinstance(sample, JRMError):
            return sample
        settings = self.settings
        images, texts = sample.prompt_images + sample.response_images, sample.prompt_text + sample.response_text
        try:
            if len(images) > settings.max_images or len(texts) > settings.max_text:
                raise JRMError(
                    f"it has {len(images)} images and {len(texts)} characters; this server takes "
                    f"{settings.max_images} and {settings.max_text}."
                )
            tokens = len(texts) // CHARACTERS_PER_TOKEN + sum(map(self._image_tokens, images))
            return Asked(sample, sample.prompt_key(), max(tokens, 1))
        except JRMError as error:
            return error

    def _image_tokens(self, image: ImageLike) -> int:
        width, height = image_size(image)
        if width * height > self.settings.max_image_pixels:
            raise JRMError(
                f"an image of {width}x{height} has more pixels than the {self.settings.max_image_pixels} that this "
                "server takes; make it smaller."
            )
        processor = getattr(self.scorer, "processor", None)
        return processor.image_tokens(width, height) if processor is not None else width * height // 28**2

    async def score(self, samples: Sequence[Asked | JRMError]) -> list[Any]:
        """The score of each sample, or what is wrong with it."""
        return await self.ask("score", samples)

    async def ask(
        self,
        method: str,
        samples: Sequence[Asked | JRMError],
        *,
        options: Mapping[str, Any] | None = None,
        tokens_each: int = 0,
        alone: bool = False,
    ) -> list[Any]:
        """What a method of the scorer gives for each sample, or what is wrong with it.

        Args:
            method: `score` or `critique`.
            samples: of `read`; an error stays in its place.
            options: the method's own.
            tokens_each: how many are written for each sample.
            alone: whether the samples are a batch of their own, with no other request's.

        Raises:
            RequestError: too many samples wait.
        """
        assert self._batches is not None
        batches, fine = self._batches, [asked for asked in samples if isinstance(asked, Asked)]
        try:
            batches.check_room(len(fine))
            if alone:
                size = self.settings.batch_tokens
                whole = [sample for sample, _, _ in fine]
                answers = await batches.ask(method, whole, "", size=size, options=options) if fine else []
            else:
                calls = [
                    batches.ask(method, [sample], prefix, size=tokens + tokens_each, options=options)
                    for sample, prefix, tokens in fine
                ]
                answers = [answer for (answer,) in await _all(calls)]
        except QueueFullError as error:
            raise self.overloaded(str(error)) from None
        in_order = iter(answers)
        results = [asked if isinstance(asked, JRMError) else next(in_order) for asked in samples]
        failed = sum(isinstance(result, JRMError) for result in results)
        self.metrics.errors.labels(BAD_SAMPLE).inc(failed)
        self.metrics.samples.inc(len(results) - failed)
        return results

    def opener(self, body: Body) -> ImageOpener:
        """Opens the images that a request names."""
        return ImageOpener(self.settings, body.parts)

    def overloaded(self, why: str) -> RequestError:
        waiting = self._batches.waiting if self._batches is not None else 0
        seconds = math.ceil(waiting * self._seconds_per_sample)
        return RequestError("overloaded", f"{why} Ask again later.", retry_after=min(max(seconds, 1), LONGEST_RETRY))

    # -- requests

    async def answer(
        self, request: Request, respond: Callable[[Body], Awaitable[Any]], *, timeout: float | None = None
    ) -> Response:
        """Reads a request within its limits and answers it within its time, or says why not.

        Args:
            request: its route's.
            respond: gives the answer, as JSON or a `Response`; is cancelled when the client leaves or time is over.
            timeout: seconds, where this route's clients wait for less than others.
        """
        route, start = request.url.path, time.monotonic()
        self._taken += 1
        try:
            self.check_token(request)
            timeout = min(_wanted_timeout(request), timeout or math.inf, self.settings.timeout)
            try:
                async with asyncio.timeout(timeout) as deadline:
                    return await self._respond(request, respond)
            except TimeoutError:
                if not deadline.expired():
                    raise
                raise RequestError(
                    "late", f"there is no answer within {timeout:g} seconds; ask again, or for less."
                ) from None
        except RequestError as error:
            self.metrics.errors.labels(error.code).inc()
            return error.response()
        except ClientDisconnect:
            self._taken, self._answered = self._taken - 1, self._answered - 1  # nobody waits for its answer
            self.metrics.errors.labels("client_left").inc()
            return Response(status_code=499)  # which nobody reads
        except Exception as error:
            self.metrics.errors.labels("internal").inc()
            logger.error("%s failed: %s", route, self._in_full(error))
            return RequestError("internal", "the server failed at this request; its log says how.").response()
        finally:
            self._answered += 1
            self.metrics.requests.labels(route).observe(time.monotonic() - start)

    def check_token(self, request: Request) -> None:
        """A [`RequestError`] for a request that has not the operator's token; takes as long for any wrong one."""
        if self.settings.token is None:
            return
        given = request.headers.get("Authorization", "").encode()
        if not hmac.compare_digest(given, f"Bearer {self.settings.token}".encode()):
            raise RequestError("unauthorized", "this server wants a token: send it as Authorization: Bearer TOKEN.")

    async def _respond(self, request: Request, respond: Callable[[Body], Awaitable[Any]]) -> Response:
        self.check_ready()
        with self._room_for_bodies() as take:
            body, digest = await self._body(request, take)
            if self._batches is not None:
                try:
                    # What is being read will wait too: 503 comes before a request waits for its turn to be read.
                    self._batches.check_room(1 + self._reading)
                except QueueFullError as error:
                    raise self.overloaded(str(error)) from None
            if self.settings.log_requests:
                logger.info("%s %s", request.url.path, _in_short(body))
            key = request.headers.get(REQUEST_KEY)

            async def compute() -> Response:
                answer = await respond(body)
                return answer if isinstance(answer, Response) else Answer(answer)

            once = compute() if key is None else self._replays.once(f"{request.url.path} {key}", digest, compute)
            answering, leaving = asyncio.ensure_future(once), asyncio.ensure_future(_left(request))
            try:
                await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
                if not answering.done():
                    raise ClientDisconnect
                return answering.result()
            finally:
                answering.cancel()
                leaving.cancel()

    @contextmanager
    def _room_for_bodies(self) -> Any:
        """Counts bytes towards those of all requests; gives them back at the end."""
        taken = 0

        def take(count: int) -> None:
            nonlocal taken
            if self._body_bytes + count > self.settings.max_bodies_bytes:
                raise self.overloaded(f"The requests that wait have {self._body_bytes} bytes.")
            taken += count
            self._body_bytes += count
            self.metrics.body_bytes.set(self._body_bytes)

        try:
            yield take
        finally:
            self._body_bytes -= taken
            self.metrics.body_bytes.set(self._body_bytes)

    async def _body(self, request: Request, take: Callable[[int], None]) -> tuple[Body, bytes]:
        """What a request brings, and its digest."""
        limit, digest = self.settings.max_body_bytes, hashlib.sha256()
        too_large = RequestError("too_large", f"a request may have {limit} bytes; send fewer or smaller images.")
        length = request.headers.get("Content-Length", "")
        if length.isdecimal() and int(length) > limit:
            raise too_large

        async def chunks() -> AsyncIterator[bytes]:
            size = 0
            async for chunk in request.stream():
                size += len(chunk)
                if size > limit:
                    raise too_large
                take(len(chunk))
                digest.update(chunk)
                yield chunk

        kind = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind == "multipart/form-data":
            return await self._form(request, chunks()), digest.digest()
        content = bytearray()
        async for chunk in chunks():
            content += chunk
        return Body(bytes(content), {}), digest.digest()

    async def _form(self, request: Request, chunks: AsyncIterator[bytes]) -> Body:
        most = self.settings.max_samples * self.settings.max_images + 1
        parser = MultiPartParser(
            request.headers, chunks, max_files=most, max_fields=16, max_part_size=self.settings.max_body_bytes
        )
        try:
            form = await parser.parse()
        except (MultiPartException, KeyError, ValueError) as error:
            raise RequestError("bad_request", f"this is no multipart form: {reason(error)}.") from None
        parts: dict[str, bytes] = {}
        try:
            for name, value in form.multi_items():
                if name in parts:
                    raise RequestError("bad_request", f"the form has two parts {name[:100]!r}; name each its own way.")
                parts[name] = value.encode() if isinstance(value, str) else await value.read()
        finally:
            await form.close()
        if JSON_PART not in parts:
            raise RequestError("bad_request", f"a multipart request has its JSON in a part {JSON_PART!r}.")
        return Body(parts.pop(JSON_PART), parts)

    def _in_full(self, error: BaseException) -> str:
        """An error for the log: all of it, or without its message, which may quote the request."""
        if self.settings.log_requests:
            return "".join(traceback.format_exception(error))
        return "".join([*traceback.format_tb(error.__traceback__), type(error).__name__])


async def _all(calls: Sequence[asyncio.Future[T]]) -> list[T]:
    """What all give; where one raises, or this is cancelled, the others are cancelled."""
    try:
        return list(await asyncio.gather(*calls))
    finally:
        for call in calls:
            call.cancel()


async def _left(request: Request) -> None:
    """Returns when the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _wanted_timeout(request: Request) -> float:
    text = request.headers.get(TIMEOUT)
    if text is None:
        return math.inf
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise RequestError("bad_request", f"{TIMEOUT} must be seconds above 0, not {text[:40]!r}.")
    return seconds


def _in_short(body: Body) -> str:
    """A request for the log: its JSON without images."""
    text = _LONG_STRING.sub('"…"', body.content[:SHOWN_BYTES].decode(errors="replace"))
    return text if not body.parts else f"{text} and {len(body.parts)} parts"


def parsed_json(content: bytes) -> Any:
    """The JSON of a request.

    Raises:
        RequestError: it is none.
    """
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise RequestError("bad_request", f"the request is no JSON: {reason(error)}.") from None
