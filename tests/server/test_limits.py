"""Too much, too late, too often and without a token: the answer says which, and the server goes on."""

import asyncio
import http.client
import json
import select
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from pictures import png
from scoring_server import base64_of, eventually, ready_server, serving

from jrm_plugin import JRMError
from jrm_plugin.server import replays, v1
from jrm_plugin.server.settings import ServerSettings

ROW = {"instruction": "make it blue", "edited": base64_of(png(1))}


def row(text: str) -> dict:
    return ROW | {"instruction": text}


def score(client: httpx.Client, *texts: str, **headers: str) -> httpx.Response:
    return client.post("/v1/score", json={"samples": [*map(row, texts)]}, headers=headers)


def waiting(client: httpx.Client) -> int:
    return client.service._batches.waiting


def code(response: httpx.Response) -> str:
    return response.json()["error"]["code"]


def test_a_body_that_is_too_large_is_refused_with_and_without_its_length(brightness):
    with ready_server(brightness, max_body_bytes=10_000) as client:
        large = b"{" + b" " * 20_000
        assert client.post("/v1/score", content=large).status_code == 413
        assert code(client.post("/v1/score", content=iter([large[:9000], large]))) == "too_large"
        assert client.post("/v1/score", files={"request": large}).status_code == 413
        assert score(client, "fine").status_code == 200
        assert client.service._body_bytes == 0


@pytest.mark.parametrize(
    ("settings", "status"),
    [({"max_body_bytes": 10_000}, 413), ({"max_bodies_bytes": 10_000}, 503), ({"token": "eight-or-more"}, 401)],
)
@pytest.mark.parametrize("length", [3_000_000, None])
def test_a_client_that_still_sends_is_told_why_and_may_ask_again(brightness, settings, status, length):
    """A connection that the server closes with something unread is reset, and the answer is lost on its way."""
    with ready_server(brightness, **settings) as client:
        connection = http.client.HTTPConnection(client.base_url.host, client.base_url.port, timeout=60)
        for _ in range(2):
            connection.putrequest("POST", "/v1/score")
            connection.putheader(*(("Transfer-Encoding", "chunked") if length is None else ("Content-Length", length)))
            connection.endheaders()
            first, rest = b"{" + b" " * 19_999, b" " * 2_980_000
            connection.send(first if length else b"%x\r\n%b\r\n" % (len(first), first))
            select.select([connection.sock], [], [], 60)  # it has answered
            connection.send(rest if length else b"%x\r\n%b\r\n0\r\n\r\n" % (len(rest), rest))
            response = connection.getresponse()
            assert (response.status, response.will_close) == (status, False)
            assert json.loads(response.read())["error"]["code"] in ("too_large", "overloaded", "unauthorized")
        connection.request("GET", "/health")
        assert connection.getresponse().status == 200
        connection.close()


def test_requests_that_are_too_many_bytes_together_are_asked_to_come_later(brightness):
    with ready_server(brightness, max_bodies_bytes=2000) as client, ThreadPoolExecutor() as pool:
        with brightness.held():
            first = pool.submit(score, client, "x" * 1200)
            eventually(lambda: brightness.batches)
            second = score(client, "y" * 1200)
            assert second.status_code == 503 and int(second.headers["Retry-After"]) >= 1
        assert first.result().status_code == 200 and score(client, "y" * 1200).status_code == 200


def test_limits_of_a_sample_are_its_own_error(brightness):
    with ready_server(brightness, max_image_pixels=100, max_images=2, max_text=20) as client:
        edited = base64_of(png(1, size=8))
        rows = [
            {"instruction": "fine", "edited": edited},
            {"instruction": "large", "edited": base64_of(png(1, size=16))},
            {"instruction": "x" * 21, "edited": edited},
            {"instruction": "many", "edited": edited, "source": [edited, edited]},
        ]
        results = client.post("/v1/score", json={"samples": rows}).json()["results"]
        assert ["score" in result for result in results] == [True, False, False, False]
        assert "16x16" in results[1]["error"]["message"]


def test_a_full_queue_asks_to_come_later_and_answers_those_that_wait(brightness):
    with ready_server(brightness, max_waiting=4, batch_tokens=1) as client, ThreadPoolExecutor(8) as pool:
        with brightness.held():
            first = [pool.submit(score, client, "computed")]
            eventually(lambda: brightness.batches)
            first += [pool.submit(score, client, "a", "b") for _ in range(2)]
            eventually(lambda: waiting(client) == 4)
            refused = score(client, "c")
            assert (refused.status_code, code(refused)) == (503, "overloaded") and refused.headers["Retry-After"]
            assert 'jrm_errors_total{code="overloaded"} 1.0' in client.get("/metrics").text
            assert "jrm_queue_samples 4.0" in client.get("/metrics").text
        assert [call.result().status_code for call in first] == [200] * 3
        assert score(client, "c").status_code == 200


def test_what_is_being_read_counts_for_the_queue(brightness, monkeypatch):
    """Otherwise a request waits for its turn to be read, only to be told that the queue is full."""
    reading, go_on, read = threading.Event(), threading.Event(), v1.sample_from_json

    def slow(record, open_image):
        if record["instruction"] == "slow":
            reading.set()
            go_on.wait(30)
        return read(record, open_image)

    monkeypatch.setattr(v1, "sample_from_json", slow)
    with ready_server(brightness, max_waiting=2, batch_tokens=1) as client, ThreadPoolExecutor(8) as pool:
        with brightness.held():
            first = [pool.submit(score, client, "computed")]
            eventually(lambda: brightness.batches)
            first.append(pool.submit(score, client, "a"))
            eventually(lambda: waiting(client) == 1)
            first.append(pool.submit(score, client, "slow"))
            assert reading.wait(30)
            assert code(score(client, "c")) == "overloaded"
            go_on.set()
        assert [call.result().status_code for call in first] == [200] * 3


def test_a_late_answer_is_an_error_and_what_was_not_begun_is_not_computed(brightness):
    with ready_server(brightness, batch_tokens=1) as client, ThreadPoolExecutor() as pool:
        with brightness.held():
            first = pool.submit(score, client, "computed")
            eventually(lambda: brightness.batches)
            late = score(client, "late", **{"X-Request-Timeout": "0.2"})
            assert (late.status_code, code(late)) == (504, "late")
            eventually(lambda: waiting(client) == 0)
        assert first.result().status_code == 200 and brightness.batches == [["computed"]]
        assert code(score(client, "x", **{"X-Request-Timeout": "-1"})) == "bad_request"


def test_a_client_that_leaves_takes_what_was_not_begun_with_it(brightness):
    with ready_server(brightness, batch_tokens=1) as client, ThreadPoolExecutor() as pool:
        with brightness.held():
            first = pool.submit(score, client, "computed")
            eventually(lambda: brightness.batches)
            with pytest.raises(httpx.ReadTimeout):
                client.post("/v1/score", json={"samples": [row("left"), row("left too")]}, timeout=0.3)
            eventually(lambda: waiting(client) == 0)
        first.result()
        assert score(client, "next").status_code == 200 and brightness.batches == [["computed"], ["next"]]


def test_a_request_that_is_sent_again_is_computed_once(brightness):
    with ready_server(brightness, batch_tokens=1) as client, ThreadPoolExecutor() as pool:
        key = {"Idempotency-Key": "one"}
        with brightness.held():
            calls = [pool.submit(score, client, "same", **key) for _ in range(3)]
            eventually(lambda: brightness.batches)
            eventually(lambda: "jrm_replays_total 2.0" in client.get("/metrics").text)
        answers = [call.result().json() for call in calls] + [score(client, "same", **key).json()]
        assert answers == answers[:1] * 4 and brightness.batches == [["same"]]
        assert code(score(client, "other", **key)) == "invalid"
        assert "score" in score(client, "same", **{"Idempotency-Key": "two"}).json()["results"][0]
        assert brightness.batches == [["same"], ["same"]]


def test_answers_are_kept_for_repeats_within_a_bound_of_bytes(brightness, monkeypatch):
    monkeypatch.setattr(replays, "MOST_BYTES", 500)
    with ready_server(brightness) as client:
        for key in "abcdef":
            score(client, "same", **{"Idempotency-Key": key})
        kept = client.service._replays
        assert 0 < kept._bytes <= 500 + 200 and len(kept._answers) < 6
        before = len(brightness.batches)
        score(client, "same", **{"Idempotency-Key": "f"})
        score(client, "same", **{"Idempotency-Key": "a"})
        assert len(brightness.batches) == before + 1


def test_a_retry_of_what_failed_is_computed_again(brightness):
    with ready_server(brightness, batch_tokens=1) as client, ThreadPoolExecutor() as pool:
        key = {"Idempotency-Key": "one"}
        with brightness.held():
            pool.submit(score, client, "computed")
            eventually(lambda: brightness.batches)
            assert code(score(client, "late", **key, **{"X-Request-Timeout": "0.2"})) == "late"
        assert "score" in score(client, "late", **key).json()["results"][0]


def test_what_makes_a_batch_fail_fails_alone_and_is_not_quoted_in_the_log(brightness, caplog):
    with ready_server(brightness) as client, ThreadPoolExecutor(8) as pool:
        with brightness.held():
            first = pool.submit(score, client, "first")
            eventually(lambda: brightness.batches)
            calls = [pool.submit(score, client, text) for text in ("good", "no memory", "fine")]
            eventually(lambda: waiting(client) == 3)
        assert [call.result().status_code for call in calls] == [200, 500, 200] and first.result().status_code == 200
        assert "MemoryError" in caplog.text and "no memory" not in caplog.text


def test_samples_of_one_prompt_are_computed_together(brightness):
    with ready_server(brightness, batch_tokens=6) as client, ThreadPoolExecutor(8) as pool:
        with brightness.held():
            calls = [pool.submit(score, client, "first")]
            eventually(lambda: brightness.batches)
            for text in ("aaaa", "bbbb", "aaaa"):  # each two tokens, one of them the image's
                calls.append(pool.submit(score, client, text, text[:1] + "ccc"))
                eventually(lambda: waiting(client) == 2 * (len(calls) - 1))
        assert all(call.result().status_code == 200 for call in calls)
        assert brightness.batches[1][:2] == ["aaaa", "aaaa"]


def test_without_the_token_only_health_and_readiness_are_told(brightness):
    with ready_server(brightness, token="a-long-secret") as client:
        assert client.get("/health").status_code == client.get("/ready").status_code == 200
        for wrong in ({}, {"Authorization": "Bearer a-long-secreu"}, {"Authorization": "a-long-secret"}):
            for path in ("/v1/models", "/metrics"):
                assert client.get(path, headers=wrong).status_code == 401
            for path in ("/v1/score", "/v1/rank", "/v1/critique", "/score", "/compute"):
                assert code(client.post(path, json={}, headers=wrong)) == "unauthorized"
        assert score(client, "x", Authorization="Bearer a-long-secret").status_code == 200
        assert "a-long-secret" not in repr(client.service.settings)


def test_while_the_model_is_loaded_health_is_told_and_nothing_is_scored(brightness):
    go = threading.Event()

    def load():
        go.wait()
        return brightness

    with serving(load) as client:
        eventually(lambda: client.get("/health").json() == {"status": "ok", "rewards": {}})
        for response in (client.get("/ready"), client.get("/v1/models"), score(client, "x")):
            assert (response.status_code, code(response)) == (503, "loading") and response.headers["Retry-After"]
        go.set()
        eventually(lambda: client.get("/ready").status_code == 200)
        assert score(client, "x").status_code == 200


def test_a_model_that_cannot_be_loaded_is_said(brightness):
    def load():
        raise JRMError("there is no such model.")

    with serving(load) as client:
        eventually(lambda: "no such model" in client.get("/ready").text)
        assert client.get("/ready").status_code == 503


def test_settings_out_of_their_range_are_refused(tmp_path):
    for wrong in (
        {"max_samples": 0},
        {"timeout": -1.0},
        {"token": "short"},
        {"allow_urls": "some"},
        {"allow_paths": tmp_path / "none"},
    ):
        with pytest.raises(JRMError):
            ServerSettings("jrm-tiny", **wrong)


def test_the_event_loop_answers_while_large_requests_are_read(server):
    """Ten requests with an image of some megabytes each, and `/health` in between."""
    large = base64_of(png(1)) + " " * 4_000_000

    async def calls() -> list[int]:
        async with httpx.AsyncClient(base_url=str(server.base_url), timeout=60, trust_env=False) as client:
            rows = [{"instruction": "x", "edited": large}]
            posts = [client.post("/v1/score", json={"samples": rows}) for _ in range(10)]
            answers = await asyncio.gather(*posts, *(client.get("/health") for _ in range(10)))
            return [answer.status_code for answer in answers]

    assert asyncio.run(calls()) == [200] * 20
