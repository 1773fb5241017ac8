"""A server's model as a scorer: what it says, what it sends, and what it does when the server does not answer."""

import asyncio
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from scoring_server import serving_app
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from jrm_plugin import JRMError, RewardScore, Sample, Scorer, load_scorer
from jrm_plugin.client import RewardClient
from jrm_plugin.records.wire import MODELS, REQUEST_KEY, SCORE, TIMEOUT
from jrm_plugin.scoring.loading import model_calibration, model_digest
from jrm_plugin.scoring.remote import TOKEN_VARIABLE


def close(scores, others) -> bool:
    """Whether scores are equal but for the last digits, which depend on what a sample was computed with."""
    return all(
        abs(getattr(score, kind)[name] - getattr(other, kind)[name]) < 1e-5
        for score, other in zip(scores, others, strict=True)
        for name in score.names
        for kind in ("mu", "sigma")
    )


@pytest.fixture(scope="module")
def client(reward_server) -> RewardClient:
    return RewardClient(reward_server)


@pytest.fixture(scope="module")
def samples(make_samples) -> list[Sample]:
    return make_samples(12)


@pytest.fixture(scope="module")
def scores(tiny, samples) -> list[RewardScore]:
    return tiny.score(samples)


# --- as the model itself ----------------------------------------------------------------------------------------------


def test_it_is_a_scorer_with_the_scores_of_its_server(client, tiny, samples, scores):
    assert isinstance(client, Scorer) and client.dimensions == tiny.dimensions and client.calibration is None
    assert close(client.score(samples), scores)
    assert close([client.score(samples[0])], scores[:1])
    assert client.score([]) == [] and client.score(iter(samples[:1])) == client.score(samples[:1])
    group = [Sample.edit(samples[0].prompt_images, "make it red", sample.response_images[0]) for sample in samples[:2]]
    assert [place.position for place in client.rank(group)] == [place.position for place in tiny.rank(group)]


def test_critiques_come_as_they_were_written(client, tiny, samples):
    assert client.critique(samples[:3], max_new_tokens=8) == tiny.critique(samples[:3], max_new_tokens=8)
    (one,) = client.critique(samples[:1], "visual_quality", max_new_tokens=8)
    assert [*one] == ["visual_quality"]


def test_images_of_every_kind_are_sent(client, tiny, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (24, 24, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    picture.save(tmp_path / "a.png")
    forms = [pixels, picture, tmp_path / "a.png", (tmp_path / "a.png").read_bytes()]
    edits = [Sample.edit(form, "make it blue", form) for form in forms]
    assert close(client.score(edits), tiny.score(edits))


def test_the_error_of_a_sample_stands_in_its_place(client, samples, tmp_path):
    broken = [samples[0], ("a",), Sample.generation("a cat", b"no image"), Sample.generation("a", tmp_path / "a.png")]
    first, *errors = client.score(broken, on_error="return")
    assert isinstance(first, RewardScore) and all(isinstance(error, JRMError) for error in errors)
    for error, said in zip(errors, ("tuple", "not an image", "No such file"), strict=True):
        assert said in str(error)
    with pytest.raises(JRMError, match="sample 1 cannot be scored: a sample must be"):
        client.score(broken)
    with pytest.raises(JRMError, match="on_error must be"):
        client.score(samples, on_error="ignore")
    with pytest.raises(JRMError, match="no dimension 'taste'"):
        client.rank(samples, dimension="taste")
    with pytest.raises(JRMError, match="only scores of one prompt compare"):
        client.rank(samples)


def test_threads_event_loops_pickles_and_forked_children_share_a_client(client, samples, scores):
    with ThreadPoolExecutor(4) as pool:
        assert all(close(answer, scores) for answer in pool.map(client.score, [samples] * 4))

    async def side_by_side() -> list:
        return await asyncio.gather(*(client.score_async(samples[:4]) for _ in range(3)))

    assert all(close(answer, scores[:4]) for answer in asyncio.run(side_by_side()))
    sent = pickle.dumps(client)
    assert len(sent) < 1000 and close(pickle.loads(sent).score(samples[:2]), scores[:2])
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if close(client.score(samples[:4]), scores[:4]) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert close(client.score(samples[:4]), scores[:4])  # the parent's connections are as they were


def test_a_client_and_a_score_import_no_torch(reward_server):
    code = f"""
import sys
from jrm_plugin.client import RewardClient
from jrm_plugin import Sample, load_scorer
from PIL import Image
image = Image.new("RGB", (32, 32))
print(RewardClient({reward_server!r}).score(Sample.edit(image, "make it red", image)).mu["overall"])
print(load_scorer({reward_server!r}).dimensions, "torch" in sys.modules, "transformers" in sys.modules)
"""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert finished.stdout.endswith("False False\n"), finished.stderr


def test_a_server_is_a_model_by_its_address(reward_server, samples):
    scorer = load_scorer(reward_server, device="cpu")
    assert isinstance(scorer, RewardClient) and repr(scorer) == f"RewardClient({reward_server})"
    assert model_calibration(reward_server) is None
    assert model_digest(reward_server) == model_digest(reward_server + "/") != model_digest("jrm-tiny")
    with pytest.raises(JRMError, match="is loaded by its server, which max_pixels must be given to"):
        load_scorer(reward_server, max_pixels=4096)


def test_another_model_at_the_same_address_has_another_digest():
    server = Server(lambda *_: None)
    with serving_app(server.app) as url:
        digests = {model_digest(url)}
        for name, value in (("digest", "abc"), ("digest", "abd"), ("name", "n"), ("overall_rule", "min")):
            server.model[name] = value
            digests.add(model_digest(url))
        server.model["calibration"] = {"temperature": {"a": 2.0}, "sigma_quantiles": {}}
        assert model_digest(url) in digests  # scores do not change with it
        assert model_calibration(url).temperature == {"a": 2.0}
    assert len(digests) == 5


# --- what is sent, and how it is sent again ---------------------------------------------------------------------------


class Server:
    """A server that answers as it is told, and keeps what it was asked; `samples` at most in a request."""

    def __init__(self, reply: Callable[[Request, int], Response | None], samples: int = 256, body_bytes: int = 2**26):
        self.reply, self.requests, self.lock = reply, [], threading.Lock()
        limits = {"samples": samples, "body_bytes": body_bytes}
        self.model = {"name": "m", "dimensions": ["a"], "calibration": None, "limits": limits}
        self.app = Starlette(
            routes=[Route(MODELS, self.models), Route(SCORE, self.score, methods=["POST"])],
        )

    async def models(self, request: Request) -> Response:
        return JSONResponse({"models": [self.model]})

    async def score(self, request: Request) -> Response:
        body = await request.json()
        with self.lock:
            self.requests.append((dict(request.headers), body))
            number = len(self.requests)
        texts = [sample["response"][-1]["text"] for sample in body["samples"]]
        results = [{"score": {"mu": {"a": float(text)}, "sigma": {"a": 1.0}}} for text in texts]
        return self.reply(request, number) or JSONResponse({"model": "m", "results": results})


def texts(*numbers: int, prompt: str = "how many?") -> list[Sample]:
    return [Sample.text_response(None, prompt, str(number)) for number in numbers]


def numbers(scores) -> list[float]:
    return [score.mu["a"] for score in scores]


def failure(status: int, code: str, **headers: str) -> Response:
    return JSONResponse({"error": {"code": code, "message": "not now."}}, status, headers)


def test_candidates_of_one_prompt_stand_in_one_request_and_all_come_back_in_their_order():
    server = Server(lambda *_: None, samples=4)
    mixed = [sample for n, prompt in enumerate("abcabcac") for sample in texts(n, prompt=prompt)]
    with serving_app(server.app) as url:
        assert numbers(RewardClient(url).score(mixed)) == [*range(8)]
    sizes = [len(body["samples"]) for _, body in server.requests]
    assert sorted(sizes) == [2, 3, 3]
    prompts = [{sample["prompt"][0]["text"] for sample in body["samples"]} for _, body in server.requests]
    assert all(len(prompt) == 1 for prompt in prompts)


def test_a_request_is_no_larger_than_the_server_takes():
    server = Server(lambda *_: None, body_bytes=1000)
    with serving_app(server.app) as url:
        client = RewardClient(url)
        assert numbers(client.score(texts(*range(12)))) == [*range(12)]
        assert len(server.requests) > 1
        assert all(int(headers["content-length"]) <= 1000 for headers, _ in server.requests)
        (error,) = client.score([Sample.text_response(None, "x" * 2000, "1")], on_error="return")
    assert "takes 2" in str(error) and "at most" in str(error)


def test_what_is_refused_for_now_is_asked_again_under_the_same_key():
    came: list[float] = []

    def reply(request: Request, number: int) -> Response | None:
        came.append(time.monotonic())
        if number == 2 and came[1] - came[0] < 0.2:
            return failure(422, "invalid")  # it did not wait as long as it was asked to
        busy = failure(503, "overloaded", **{"Retry-After": "0.2"})
        return {1: busy, 2: failure(504, "late"), 3: Response("bad gateway", 502)}.get(number)

    server = Server(reply)
    with serving_app(server.app) as url:
        assert numbers(RewardClient(url, token="a-secret").score(texts(7))) == [7]
    keys = {headers[REQUEST_KEY.lower()] for headers, _ in server.requests}
    assert len(server.requests) == 4 and len(keys) == 1
    headers = server.requests[0][0]
    assert headers["authorization"] == "Bearer a-secret" and float(headers[TIMEOUT.lower()]) == 240


@pytest.mark.parametrize(
    ("reply", "tries", "said"),
    [
        (lambda *_: failure(422, "invalid"), 1, "answers 422: not now."),
        (lambda *_: failure(401, "unauthorized"), 1, "set the variable JRM_SERVER_TOKEN"),
        (lambda *_: failure(500, "internal"), 3, "answers 500: not now."),
        (lambda *_: Response("<html>", 200), 1, "no reward server of `jrm serve`"),
        (lambda *_: JSONResponse({"model": "m", "results": []}), 1, "not as a reward server"),
        (lambda *_: JSONResponse({"model": "n", "results": [{}]}), 1, "had the model m and now has n"),
        (lambda *_: JSONResponse({"model": "m", "results": [{"score": {"mu": {}, "sigma": {}}}]}), 1, "mu and sigma"),
    ],
)
def test_what_no_repetition_mends_is_one_sentence_that_names_the_server(reply, tries, said):
    server = Server(reply)
    with serving_app(server.app) as url, pytest.raises(JRMError) as raised:
        RewardClient(url).score(texts(1), on_error="return")
    assert said in str(raised.value) and len(server.requests) == tries
    assert url in str(raised.value) or "mu and sigma" in said


def test_a_server_that_is_restarted_is_waited_for_and_one_that_was_never_there_is_not(monkeypatch):
    server = Server(lambda *_: None)
    with serving_app(server.app) as url:
        client = RewardClient(url)
        assert client.dimensions == ["a"]
    answer: list = []
    asking = threading.Thread(target=lambda: answer.extend(client.score(texts(3))))
    asking.start()
    asking.join(0.3)
    assert asking.is_alive()
    import uvicorn

    again = uvicorn.Server(uvicorn.Config(server.app, port=int(url.rpartition(":")[2]), log_config=None, ws="none"))
    running = threading.Thread(target=again.run, daemon=True)
    running.start()
    asking.join(20)
    again.should_exit = True
    running.join(10)
    assert numbers(answer) == [3]
    monkeypatch.setattr("jrm_plugin.scoring.connection.FIRST_CONTACT", 0.2)
    with pytest.raises(JRMError, match=r"http://127.0.0.1:1 does not answer .* see whether it runs there"):
        RewardClient("http://127.0.0.1:1").score(texts(1))


def test_no_more_requests_than_allowed_are_open_at_once():
    open_now, most, lock = [0], [0], threading.Lock()

    class Slow(Server):
        async def score(self, request: Request) -> Response:
            with lock:
                open_now[0] += 1
                most[0] = max(most[0], open_now[0])
            await asyncio.sleep(0.05)
            with lock:
                open_now[0] -= 1
            return await super().score(request)

    server = Slow(lambda *_: None)
    with serving_app(server.app) as url:
        client = RewardClient(url, concurrency=2, samples_per_request=1)
        with ThreadPoolExecutor(3) as pool:
            answers = [*pool.map(lambda k: numbers(client.score(texts(k, k + 1))), range(3))]
    assert answers == [[0, 1], [1, 2], [2, 3]] and most == [2]


def test_a_caller_who_gives_up_ends_the_request():
    left = threading.Event()

    class Waiting(Server):
        async def score(self, request: Request) -> Response:
            await request.body()
            while not await request.is_disconnected():
                await asyncio.sleep(0.01)
            left.set()
            return Response()

    server = Waiting(lambda *_: None)
    with serving_app(server.app) as url:

        async def give_up() -> None:
            await asyncio.wait_for(RewardClient(url).score_async(texts(1)), 0.3)

        with pytest.raises(TimeoutError):
            asyncio.run(give_up())
        assert left.wait(5)


@pytest.mark.parametrize("url", ["http://", "https:///v1", "http://host:port", "http://host/?a=1", "http://[::1"])
def test_what_is_no_address_is_refused(url):
    with pytest.raises(JRMError, match="is no address of a reward server"):
        load_scorer(url)


def test_a_secret_stays_out_of_addresses_and_pickles(monkeypatch):
    with pytest.raises(JRMError, match="JRM_SERVER_TOKEN") as raised:
        RewardClient("http://name:hunter2@host:8000")
    assert "hunter2" not in str(raised.value)
    monkeypatch.setenv(TOKEN_VARIABLE, "a-secret")
    assert b"a-secret" not in pickle.dumps(RewardClient("http://host:8000"))
    assert b"given" in pickle.dumps(RewardClient("http://host:8000", token="given"))
    with pytest.raises(JRMError, match="patience of a reward client must be above 0"):
        RewardClient("http://host:8000", patience=0)
