"""A few of the requests that `tests/fuzz/hostile_requests.py` makes by the thousand."""

import random

import httpx
from hostile_requests import good_json, others, pickles, run


def test_half_of_a_character_in_a_name_is_told_as_it_came(reward_server):
    request = b'{"requests": [{"history": [], "required_rewards": ["\\ud800"]}]}'
    answer = httpx.post(f"{reward_server}/score", content=request)
    assert answer.status_code == 200 and [*answer.json()["errors"][0]] == ["\ud800"]


def test_a_critique_of_overall_is_refused_since_there_is_none(reward_server):
    request = {"samples": good_json()["/v1/critique"]["samples"], "dimension": "overall"}
    answer = httpx.post(f"{reward_server}/v1/critique", json=request)
    assert answer.status_code == 422 and "no dimension 'overall'" in answer.json()["error"]["message"]


def test_no_hostile_request_ends_in_a_fault_of_the_server_or_runs_code(reward_server, tmp_path):
    rng = random.Random(0)
    with httpx.Client(base_url=reward_server, timeout=60, trust_env=False) as client:
        for requests, count in ((pickles(rng, 120, tmp_path / "run"), 120), (others(rng, 50), 50)):
            statuses, problems = run(client, requests)
            assert problems == [] and statuses.total() == count
            assert {status for _, status in statuses} <= {200, 400, 413, 422, 503}
        assert client.get("/ready").is_success
    assert not (tmp_path / "run").exists()
