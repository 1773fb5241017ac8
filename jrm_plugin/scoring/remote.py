"""A scorer whose model is on another machine, behind `jrm serve`; imports no torch."""

import asyncio
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, TypeAlias

from tqdm.auto import tqdm

from jrm_plugin.errors import JRMError
from jrm_plugin.records.calibration import Calibration
from jrm_plugin.records.critiques import Critique, UnparsedCritique
from jrm_plugin.records.samples import OVERALL, Sample, SampleLike, is_sample, to_sample
from jrm_plugin.records.wire import CRITIQUE, MODELS, SCORE, critiques_from_json, sample_to_json, score_from_json
from jrm_plugin.scoring.connection import Connection, awaited, wait_for
from jrm_plugin.scoring.protocol import Ranked, check_one_prompt, ranked

TOKEN_VARIABLE = "JRM_SERVER_TOKEN"

Critiques: TypeAlias = dict[str, Critique | UnparsedCritique]


def is_server(model: object) -> bool:
    """Whether a model's name is the address of a reward server."""
    return isinstance(model, str) and model.lower().startswith(("http://", "https://"))


class RewardClient:
    """A [`Scorer`] that asks a server (`jrm serve`): the same scores, dimensions and errors of samples as there.

    It may be used from several threads, event loops and forked children. Pickled, it is its settings.

    Args:
        url: of the server, `http://host:8000` or `https://…`, with the path before `/v1` where there is one.
        token: that the server wants; by default that of the variable `JRM_SERVER_TOKEN`, which is read where the client
            is made and is no part of its pickle.
        timeout: seconds in which the server is to answer a request.
        patience: seconds for which a request that was lost, or refused for now, is sent again. An address where no
            server was ever reached is given up after ten.
        concurrency: requests at once, of all threads together.
        samples_per_request: at most; the candidates of one prompt stand in one request, as far as there is room.

    Raises:
        JRMError: the address is none, or a number is not above 0.

    Example:
        >>> client = RewardClient("http://host:8000")
        >>> client.score([Sample.edit("cat.png", "make the cat blue", "blue-cat.png")])[0].mu["overall"]
        >>> (await client.score_async(samples))[0].mu["overall"]
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeout: float = 240.0,
        patience: float = 600.0,
        concurrency: int = 8,
        samples_per_request: int = 64,
    ):
        self._settings = dict(locals())
        del self._settings["self"]
        self.url = _checked(url)
        for name in ("timeout", "patience", "concurrency", "samples_per_request"):
            value = self._settings[name]
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 10**9:
                raise JRMError(f"{name} of a reward client must be above 0, not {value!r}.")
        token = os.environ.get(TOKEN_VARIABLE) if token is None else token
        self._server = Connection(self.url, token, timeout=timeout, patience=patience, concurrency=concurrency)
        self._samples_per_request = samples_per_request
        self._model: Mapping[str, Any] | None = None

    def __repr__(self) -> str:
        return f"RewardClient({self.url})"

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        return partial(type(self), **self._settings), ()

    def close(self) -> None:
        """Closes the connections; the next call opens others."""
        wait_for(self._server.close())

    # -- the model

    @property
    def dimensions(self) -> list[str]:
        """The dimensions of the server's model; asked for once."""
        return [*wait_for(self._known())["dimensions"]]

    @property
    def calibration(self) -> Calibration | None:
        """What `jrm calibrate` saved with the server's model, or None."""
        calibration = wait_for(self._known()).get("calibration")
        return None if calibration is None else Calibration.from_dict(calibration)

    @property
    def digest(self) -> bytes:
        """What tells the server's model from others: equal as long as it serves the same weights."""
        model = wait_for(self._known())
        names = ("name", "digest", "dimensions", "overall_rule")
        return hashlib.sha256(json.dumps({name: model.get(name) for name in names}).encode()).digest()

    async def _known(self) -> Mapping[str, Any]:
        if self._model is None:
            answer = await self._server.ask("GET", MODELS)
            models = answer.get("models")
            model = models[0] if isinstance(models, list) and models else None
            if not isinstance(model, dict) or not isinstance(model.get("dimensions"), list) or "name" not in model:
                raise JRMError(f"{self.url} answers, but not as a reward server of `jrm serve`; check the address.")
            self._model = model
        return self._model

    # -- scores

    def score(
        self,
        samples: SampleLike | Iterable[SampleLike],
        *,
        on_error: Literal["raise", "return"] = "raise",
        progress: bool = False,
    ) -> Any:
        """The score of each sample, in their order, as `RewardScorer.score` takes and gives them.

        Raises:
            JRMError: a sample cannot be scored (with `on_error="raise"`); either way, if the server cannot be asked.
        """
        return wait_for(self._asked(SCORE, samples, {}, on_error, progress))

    async def score_async(
        self,
        samples: SampleLike | Iterable[SampleLike],
        *,
        on_error: Literal["raise", "return"] = "raise",
        progress: bool = False,
    ) -> Any:
        """As `score`; cancelled, it takes back what the server has not begun."""
        return await awaited(self._asked(SCORE, samples, {}, on_error, progress))

    def rank(
        self, samples: Iterable[SampleLike], *, dimension: str = OVERALL, different_prompts: bool = False
    ) -> list[Ranked]:
        """The candidates of one prompt, best first, as `RewardScorer.rank`."""
        if dimension not in (OVERALL, *self.dimensions):
            raise JRMError(f"the model of {self.url} has no dimension {dimension!r}; it has {self.dimensions}.")
        candidates = [to_sample(sample) for sample in samples]
        if not different_prompts:
            check_one_prompt(candidates)
        return ranked(self.score(candidates), dimension)

    def critique(
        self,
        samples: SampleLike | Iterable[SampleLike],
        dimension: str | None = None,
        *,
        on_error: Literal["raise", "return"] = "raise",
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        progress: bool = False,
    ) -> Any:
        """What the server's model says of each sample, as `RewardScorer.critique`."""
        options = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p, "seed": seed}
        if dimension is not None:
            options["dimension"] = dimension
        return wait_for(self._asked(CRITIQUE, samples, options, on_error, progress))

    # -- requests

    async def _asked(self, path: str, samples: Any, options: dict[str, Any], on_error: str, progress: bool) -> Any:
        if on_error not in ("raise", "return"):
            raise JRMError(f"on_error must be 'raise' or 'return', got {on_error!r}.")
        if is_sample(samples):
            return (await self._asked(path, [samples], options, on_error, progress))[0]
        samples = await asyncio.to_thread(lambda: [_sample(sample) for sample in samples])
        results: dict[int, Any] = {k: sample for k, sample in enumerate(samples) if isinstance(sample, JRMError)}
        limit = (await self._known()).get("limits", {}).get("samples", self._samples_per_request)
        most = min(self._samples_per_request, limit)
        chunks = await asyncio.to_thread(lambda: [*_chunks(samples, most)])
        with tqdm(total=len(samples), desc="Scoring", unit="sample", disable=not progress) as bar:

            async def of_chunk(chunk: list[int]) -> None:
                async with self._server.free:
                    results.update(await self._answers(path, {k: samples[k] for k in chunk}, options))
                bar.update(len(chunk))

            tasks = [asyncio.create_task(of_chunk(chunk)) for chunk in chunks]
            try:
                await asyncio.gather(*tasks)
            except BaseException:
                for task in tasks:
                    task.cancel()
                raise
        for position in range(len(samples)):
            if on_error == "raise" and isinstance(error := results[position], JRMError):
                verb = "criticised" if path == CRITIQUE else "scored"
                raise JRMError(f"sample {position} cannot be {verb}: {error}") from error
        return [results[position] for position in range(len(samples))]

    async def _answers(self, path: str, samples: Mapping[int, Sample], options: dict[str, Any]) -> dict[int, Any]:
        """What the server says of some samples, or what is wrong with them."""
        encoded = await asyncio.to_thread(lambda: {k: _encoded(sample) for k, sample in samples.items()})
        most = (await self._known()).get("limits", {}).get("body_bytes", 2**62) - len(json.dumps(options)) - 64
        results: dict[int, Any] = {}
        bodies: list[list[int]] = []
        size = most  # of the last body: there is none
        for position, content in encoded.items():
            if isinstance(content, JRMError):
                results[position] = content
            elif len(content) > most:
                results[position] = JRMError(
                    f"it takes {len(content)} bytes to send, and the reward server {self.url} takes {most} at most; "
                    "make its images smaller."
                )
            else:
                size += len(content) + 1
                if size > most:
                    bodies.append([])
                    size = len(content)
                bodies[-1].append(position)
        begin = json.dumps({**options, "samples": []}).encode().removesuffix(b"]}")
        for body in bodies:
            answers = await self._one_request(path, begin + b",".join(encoded[k] for k in body) + b"]}", len(body))
            results.update(zip(body, answers, strict=True))
        return results

    async def _one_request(self, path: str, body: bytes, count: int) -> list[Any]:
        answer = await self._server.ask("POST", path, body)
        results, model = answer.get("results"), await self._known()
        if not isinstance(results, list) or len(results) != count or not all(isinstance(r, dict) for r in results):
            raise JRMError(f"{self.url} answers, but not as a reward server of `jrm serve`; check the address.")
        if answer.get("model") != model["name"]:
            raise JRMError(
                f"the reward server {self.url} had the model {model['name']} and now has {answer.get('model')}, whose "
                "scores are not to be mixed; begin again with one of them."
            )
        read = critiques_from_json if path == CRITIQUE else score_from_json
        return [read(result) for result in results]


def _checked(url: str) -> str:
    """The address, without a slash at its end."""
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise JRMError(f"{url!r} is no address of a reward server ({error}); write http://host:8000.") from error
    if not is_server(url) or not host or parts.query or parts.fragment:
        raise JRMError(f"{url!r} is no address of a reward server; write http://host:8000.")
    if parts.username is not None or parts.password is not None:
        raise JRMError(
            f"the address of the reward server on {host} holds a secret, which would stand in logs; leave it out, and "
            f"set the variable {TOKEN_VARIABLE}."
        )
    return url.rstrip("/")


def _sample(sample: Any) -> Sample | JRMError:
    try:
        return to_sample(sample)
    except JRMError as error:
        return error


def _encoded(sample: Sample) -> bytes | JRMError:
    try:
        return json.dumps(sample_to_json(sample)).encode()
    except JRMError as error:
        return error


def _chunks(samples: Sequence[Sample | JRMError], most: int) -> Iterator[list[int]]:
    """The positions of samples in lists of `most` at most; those of one prompt stand together, as far as they fit."""
    groups: dict[str, list[int]] = {}
    for position, sample in enumerate(samples):
        if isinstance(sample, Sample):
            try:
                key = sample.prompt_key()
            except JRMError:  # of a broken image; sending says what is wrong with it
                key = f"sample {position}"
            groups.setdefault(key, []).append(position)
    chunk: list[int] = []
    for group in groups.values():
        if chunk and len(chunk) + len(group) > most:
            yield chunk
            chunk = []
        chunk = chunk + group
        while len(chunk) > most:
            yield chunk[:most]
            chunk = chunk[most:]
    if chunk:
        yield chunk
