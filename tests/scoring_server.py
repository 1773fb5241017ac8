"""Real servers of scores on this machine, in threads, and what is asked of them."""

import asyncio
import base64
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from pictures import encode

from jrm_plugin import RewardScore, Sample
from jrm_plugin.records.images import load_image
from jrm_plugin.scoring.protocol import Ranked, Scorer, ranked
from jrm_plugin.server.app import create_app
from jrm_plugin.server.settings import ServerSettings


@contextmanager
def serving_app(app: Any) -> Iterator[str]:
    """Serves an ASGI app in a thread while the block runs, at the address that it gives."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def serving(load: Callable[[], Scorer], **settings: Any) -> Iterator[httpx.Client]:
    """A server of scores while the block runs, and a client of it; `client.service` is what stands behind."""
    app = create_app(ServerSettings(**{"model": "jrm-tiny"} | settings), load)
    with serving_app(app) as url, httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
        client.service = app.state.service
        yield client


@contextmanager
def ready_server(scorer: Scorer, **settings: Any) -> Iterator[httpx.Client]:
    with serving(lambda: scorer, **settings) as client:
        eventually(lambda: client.get("/ready").status_code == 200)
        yield client


def eventually(condition: Callable[[], bool]) -> None:
    """Waits until it holds; a test that waits for what never comes ends by pytest's own means, or here."""
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it never came")


class Brightness:
    """A `Scorer` that is no checkpoint: the mean brightness of the response's image. It waits while it is `held`."""

    dimensions = ["brightness"]

    def __init__(self) -> None:
        self.go, self.batches = threading.Event(), []
        self.go.set()

    def score(self, samples, *, on_error="raise", progress=False) -> list[RewardScore]:
        self.batches.append([sample.prompt_text for sample in samples])
        self.go.wait()
        if any(sample.prompt_text == "no memory" for sample in samples):
            raise MemoryError
        means = [np.asarray(load_image(sample.response_images[0])).mean() for sample in samples]
        return [RewardScore({"brightness": mean}, {"brightness": 1.0}) for mean in means]

    def rank(self, samples, *, dimension="overall", different_prompts=False) -> list[Ranked]:
        return ranked(self.score(samples), dimension)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Nothing is computed while the block runs."""
        self.go.clear()
        try:
            yield
        finally:
            self.go.set()


def base64_of(image: Any) -> str:
    return base64.b64encode(image if isinstance(image, bytes) else encode(load_image(image))).decode()


def fields_of(sample: Sample) -> dict[str, Any]:
    """An edit or a generation as a row has it."""
    sources = [base64_of(image) for image in sample.prompt_images]
    return {"source": sources, "instruction": sample.prompt_text, "edited": base64_of(sample.response_images[0])}


def assert_close(record: dict, score: RewardScore) -> None:
    for name in ("mu", "sigma"):
        assert record[name] == pytest.approx(getattr(score, name), abs=1e-5)
