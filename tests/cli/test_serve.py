"""`jrm serve`: it says where it listens, ends when it is told to with everything answered, or says why it does not."""

import json
import os
import re
import signal
import socket
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from pictures import png
from scoring_server import base64_of, eventually


def test_everything_that_was_taken_is_answered_before_it_ends(start_jrm, tmp_path):
    token = tmp_path / "token"
    token.write_text("a-long-secret\n")
    rows = [{"instruction": f"make {k} blue", "edited": base64_of(png(k))} for k in range(30)]
    body, count = json.dumps({"samples": rows}), 6
    server = start_jrm(
        *("serve", "--model", "jrm-tiny", "--port", 0, "--device", "cpu"),
        *("--token-file", token, "--batch-tokens", 64, "--ui"),
    )
    try:
        eventually(lambda: server.err.exists() and "Listening at" in server.err.read_text())
        url = re.search(r"http://[\w.:]+", server.err.read_text())[0]
        headers = {"Authorization": "Bearer a-long-secret"}
        with httpx.Client(base_url=url, headers=headers, timeout=120, trust_env=False) as client:
            assert client.get("/health").json()["status"] == "ok"
            assert client.get(re.search(rf"{url}(/ui)\n", server.err.read_text())[1]).status_code == 200
            eventually(lambda: client.get("/ready").status_code == 200)
            with ThreadPoolExecutor(count) as pool:
                calls = [pool.submit(client.post, "/v1/score", content=body) for _ in range(count)]
                taken = f"\njrm_body_bytes {float(count * len(body))}"
                eventually(lambda: taken in client.get("/metrics").text)
                os.kill(server.pid, signal.SIGTERM)
                answers = [call.result() for call in calls]
            scores = [[result["score"]["mu"]["overall"] for result in answer.json()["results"]] for answer in answers]
        assert [*map(len, scores)] == [len(rows)] * count
        for other in scores:
            assert other == pytest.approx(scores[0], abs=1e-5)
        assert server.wait().code == 0
        log = server.err.read_text()
        assert "a-long-secret" not in log and "make" not in log
    finally:
        if server._process.is_alive():
            os.kill(server.pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "no/such-folder/here", "--port", "0"], "no/such-folder/here"),
        (["--model", "jrm-tiny", "--port", "{busy}"], "choose another address"),
        (["--model", "jrm-tiny", "--replicas", "2"], "belong to --ray"),
        (["--model", "jrm-tiny", "--token-file", "none.txt"], "token file"),
        (["--model", "jrm-tiny", "--allow-paths", "none"], "is not there"),
    ],
)
def test_what_keeps_it_from_serving_is_one_sentence(arguments, words, jrm):
    with socket.create_server(("127.0.0.1", 0)) as busy:
        arguments = [argument.format(busy=busy.getsockname()[1]) for argument in arguments]
        finished = jrm("serve", *arguments)
    *_, last = finished.err.splitlines()
    assert finished.code == 2 and finished.out == "" and words in last and "Traceback" not in finished.err
