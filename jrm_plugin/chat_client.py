"""A model on a server that speaks OpenAI's protocol: what is shown to it, how it is asked, and what its answers took.

What a server does not answer (429, 5xx, no answer in time, a lost connection) the `openai` client asks again, after the
server's own Retry-After or with growing pauses. What an answer must hold is for those who ask.
"""

import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from statistics import fmean, median, quantiles
from typing import TYPE_CHECKING, Any, TypeVar

import json_repair
from PIL import Image, ImageOps

from jrm_plugin.errors import JRMError, reason, shortened
from jrm_plugin.extras import require
from jrm_plugin.records.images import ImageLike, load_image, to_data_url

if TYPE_CHECKING:
    from openai import DefaultHttpxClient

Q = TypeVar("Q")
T = TypeVar("T")

PREFIX = "openai:"  # before the name of a model, on the command line
REFUSED = (400, 413, 422)  # what a server says of one request; of others, that it cannot be used
_GO_ON = "see to the server, and the same command goes on."


class Refused(JRMError):
    """The server refuses this request, and would refuse it again."""


class Unusable(JRMError):
    """The server cannot be asked any more, by whatever question."""


class Unavailable(Unusable):
    """The server has not answered this request, however often it was sent."""


@dataclass(frozen=True)
class Answer:
    """What a model wrote.

    Attributes:
        text: empty where the server sends something else.
        cut_off: whether the server ended it because it became too long.
        prompt_tokens, completion_tokens: None where the server does not say.
        seconds: from the first try to the answer.
    """

    text: str
    cut_off: bool
    prompt_tokens: int | None
    completion_tokens: int | None
    seconds: float


class ChatClient:
    """A model on a server.

    Args:
        model: the server's name of it.
        base_url: of the server; by default OpenAI's own, or `OPENAI_BASE_URL`. The key is `OPENAI_API_KEY`.
        temperature: sent where it is given; else the server's own.
        body: further fields of each request, such as `{"max_tokens": 800}`.
        max_pixels: larger images are scaled down to this.
        concurrency: requests at once.
        requests_per_minute: no more are sent, those that are sent again included.
        timeout: seconds after which a request is given up and sent again.
        retries: of a request that the server does not answer.
        on_failure: called with what went wrong with each request, also where it is sent again.

    Raises:
        JRMError: the client is not installed, or there is no key where one is needed.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        temperature: float | None = None,
        body: Mapping[str, Any] | None = None,
        max_pixels: int | None = None,
        concurrency: int = 8,
        requests_per_minute: float | None = None,
        timeout: float = 120.0,
        retries: int = 6,
        on_failure: Callable[[str], None] = lambda reason: None,
    ):
        self.name = PREFIX + model
        require("openai", self.name, install="jrm-plugin[judges]")
        from openai import OpenAI, OpenAIError

        if not model:
            raise JRMError(f"{PREFIX} needs a model behind it, as in {PREFIX}gpt-5.")
        if concurrency < 1 or retries < 0 or not timeout > 0:
            raise JRMError(f"{self.name} needs a concurrency of at least 1, no negative retries, a timeout above 0.")
        if requests_per_minute is not None and not requests_per_minute > 0:
            raise JRMError(f"the requests a minute must be above 0, not {requests_per_minute}.")
        key = os.environ.get("OPENAI_API_KEY") or ("none" if base_url else None)  # local servers ask for none
        self.on_failure = on_failure
        self._turns = _Turns(60 / requests_per_minute if requests_per_minute else 0.0)
        try:
            http = _http_client(self._turns, lambda failure: self.on_failure(failure))
            self._client = OpenAI(
                base_url=base_url, api_key=key, max_retries=retries, timeout=timeout, http_client=http
            )
        except OpenAIError as error:
            raise JRMError(
                f"{self.name} cannot be asked ({reason(error)}): set OPENAI_API_KEY, or name its server."
            ) from error
        self.model, self.base_url, self.concurrency, self.max_pixels = model, base_url, concurrency, max_pixels
        self.options: dict[str, Any] = {} if temperature is None else {"temperature": temperature}
        if body:
            self.options["extra_body"] = dict(body)
        self._knows_schemas = True  # until it refuses one

    def picture(self, image: ImageLike) -> Image.Image:
        """An image as it is shown.

        Raises:
            JRMError: it cannot be read.
        """
        picture = load_image(image)
        if self.max_pixels and picture.width * picture.height > self.max_pixels:
            shrink = (self.max_pixels / (picture.width * picture.height)) ** 0.5
            size = max(1, int(picture.width * shrink)), max(1, int(picture.height * shrink))
            picture = ImageOps.contain(picture, size)
        return picture

    def shown(self, images: Sequence[ImageLike], name: str) -> Iterator[dict[str, Any]]:
        """Images as parts of a message, each behind its name; numbered where there are several."""
        for number, image in enumerate(images, 1):
            yield text_part(f"{name} {number}:" if len(images) > 1 else f"{name}:")
            yield {"type": "image_url", "image_url": {"url": to_data_url(self.picture(image))}}

    def ask(self, messages: Sequence[Mapping[str, Any]], schema: Mapping[str, Any] | None = None) -> Answer:
        """What the model answers.

        Args:
            messages: the conversation so far.
            schema: the JSON schema of the answer. A server that does not know schemas is asked without it.

        Raises:
            Refused: the server refuses this request.
            Unavailable: it does not answer it, after all retries.
            Unusable: it cannot be asked.
        """
        if schema is not None and self._knows_schemas:
            form = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}
            try:
                return self._ask(messages, response_format=form)
            except Refused:
                answer = self._ask(messages)  # where this is refused too, the schema was not the reason
                self._knows_schemas = False
                return answer
        return self._ask(messages)

    def _ask(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> Answer:
        from openai import APIConnectionError, APIStatusError, OpenAIError

        began = time.monotonic()
        create: Callable[..., Any] = self._client.chat.completions.create
        try:
            completion = create(model=self.model, messages=messages, **self.options, **options)
        except APIStatusError as error:
            said = f"{error.status_code}: {shortened(error.response.text)}"
            if error.status_code in REFUSED:
                raise Refused(f"the server refuses it with {said}") from error
            kind = Unavailable if error.status_code == 429 or error.status_code >= 500 else Unusable
            raise kind(f"{self.name} answers with {said}; {_GO_ON}") from error
        except APIConnectionError as error:  # also one that takes too long
            raise Unavailable(f"{self.name} does not answer: {reason(error)}; {_GO_ON}") from error
        except (OpenAIError, ValueError) as error:
            raise Unusable(f"{self.name} cannot be asked: {reason(error)}; {_GO_ON}") from error
        return _answer_of(completion, time.monotonic() - began)

    def each(self, questions: Iterable[Q], ask: Callable[[Q], T]) -> Iterator[tuple[int, T | JRMError]]:
        """Asks several questions at once, and gives which it was and what `ask` returned, as they come.

        What a question alone cannot be asked for, such as an image that cannot be read, stands in its place.

        Args:
            questions: taken as there is room for them.
            ask: called in threads.

        Raises:
            Unusable: one that `ask` raised, after those that were being asked.
        """
        waiting = enumerate(questions)
        pool = ThreadPoolExecutor(self.concurrency)
        pending: dict[Future[T], int] = {}
        failure: Unusable | None = None

        def submit(count: int) -> None:
            pending.update((pool.submit(ask, question), k) for k, question in islice(waiting, count))

        submit(2 * self.concurrency)
        try:
            while pending:
                done, _ = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    k = pending.pop(future)
                    try:
                        yield k, future.result()
                    except Unusable as error:
                        failure = error
                        for other in [other for other in pending if other.cancel()]:
                            del pending[other]
                    except JRMError as error:
                        yield k, error
                if failure is None:
                    submit(len(done))
            if failure is not None:
                raise failure
        finally:
            pool.shutdown(cancel_futures=True)


class _Turns:
    """Requests follow each other by at least `interval` seconds, in whichever threads they are sent."""

    def __init__(self, interval: float):
        self._interval, self._next, self._lock = interval, 0.0, threading.Lock()

    def wait(self) -> None:
        with self._lock:
            turn = max(time.monotonic(), self._next)
            self._next = turn + self._interval
        time.sleep(max(0.0, turn - time.monotonic()))


def _http_client(turns: _Turns, on_failure: Callable[[str], None]) -> "DefaultHttpxClient":
    """The client's own, in which each request waits for its turn and is counted if it fails."""
    from openai import DefaultHttpxClient

    class Client(DefaultHttpxClient):
        def send(self, request: Any, **options: Any) -> Any:
            turns.wait()
            try:
                response = super().send(request, **options)
            except Exception as error:
                on_failure("no answer in time" if "Timeout" in type(error).__name__ else "no connection")
                raise
            if response.status_code >= 400:
                on_failure(f"status {response.status_code}")
            return response

    return Client()


def text_part(text: str) -> dict[str, Any]:
    """A text as a part of a message."""
    return {"type": "text", "text": text}


def _answer_of(completion: Any, seconds: float) -> Answer:
    usage = getattr(completion, "usage", None)
    tokens = [getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens")]
    try:
        choice = completion.choices[0]
        text, cut_off = choice.message.content, choice.finish_reason == "length"
    except (AttributeError, IndexError, TypeError):
        text, cut_off = "", False
    if not isinstance(text, str):
        text = ""
    text = text.encode(errors="backslashreplace").decode()  # half a surrogate pair could be neither stored nor sent
    return Answer(text, cut_off, tokens[0], tokens[1], seconds)


# --- what is read out of an answer ------------------------------------------------------------------------------------


def without_thoughts(text: str) -> str:
    """What a reasoning model says after it has thought."""
    return re.sub(r"<think(?:ing)?>.*?(</think(?:ing)?>|$)", "", text, flags=re.DOTALL)


def object_with(text: str, key: str) -> Mapping[str, Any] | None:
    """The last JSON object of a text that has this key, repaired where it is broken; None where there is none."""
    begin = text.find("{")
    if begin < 0:
        return None
    try:
        content = json_repair.loads(text[begin:])
    except (ValueError, RecursionError):
        return None
    objects = content if isinstance(content, list) else [content]
    return next((o for o in reversed(objects) if isinstance(o, Mapping) and key in o), None)


# --- what answers took ------------------------------------------------------------------------------------------------


def summarize_usage(
    seconds: Sequence[float], tokens: Mapping[str, int], prices: tuple[float, float] | None
) -> dict[str, Any]:
    """Requests, latencies and tokens; and their cost, where `prices` of a million tokens in and out are given."""
    result: dict[str, Any] = {"requests": len(seconds), **tokens}
    if seconds:
        slow = quantiles(seconds, n=20)[-1] if len(seconds) > 1 else seconds[0]
        result |= {"seconds_mean": fmean(seconds), "seconds_median": median(seconds), "seconds_95_percent": slow}
    if prices is not None:
        result["cost"] = sum(price * count / 1e6 for price, count in zip(prices, tokens.values(), strict=True))
    return result
