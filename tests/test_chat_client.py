"""A model on a server: what is sent, when, and what of its failures is seen."""

import time
from collections import Counter

import pytest
from judge_server import serving

from jrm_plugin.chat_client import ChatClient, Refused, Unavailable, Unusable, object_with
from jrm_plugin.errors import JRMError

HELLO = [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]
SCHEMA = {"type": "object", "properties": {"reasoning": {"type": "string"}}}


def client(server, **options) -> ChatClient:
    return ChatClient("m", base_url=server.url, **options)


def test_an_answer_has_what_it_took():
    with serving(lambda request: "hi") as server:
        answer = client(server, temperature=0.5, body={"max_tokens": 7}).ask(HELLO)
    assert (answer.text, answer.cut_off, answer.prompt_tokens, answer.completion_tokens) == ("hi", False, 100, 10)
    assert server.requests[0]["temperature"] == 0.5 and server.requests[0]["max_tokens"] == 7


def test_a_schema_goes_to_a_server_that_knows_schemas():
    with serving(lambda request: "{}") as server:
        client(server).ask(HELLO, SCHEMA)
    assert server.requests[0]["response_format"]["json_schema"]["schema"] == SCHEMA


def test_a_server_that_refuses_schemas_is_asked_without_them_from_then_on():
    def reply(request):
        return (400, {}, "unknown field response_format") if "response_format" in request else "{}"

    with serving(reply) as server:
        asking = client(server)
        assert [asking.ask(HELLO, SCHEMA).text for _ in range(2)] == ["{}", "{}"]
    assert ["response_format" in request for request in server.requests] == [True, False, False]


def test_a_request_that_is_refused_for_another_reason_says_nothing_of_schemas():
    refusals = iter([(400, {}, "too long"), (400, {}, "too long")])
    with serving(lambda request: next(refusals, "{}")) as server:
        asking = client(server)
        with pytest.raises(Refused, match="too long"):
            asking.ask(HELLO, SCHEMA)
        asking.ask(HELLO, SCHEMA)
    assert "response_format" in server.requests[-1]


def test_each_failure_is_seen_also_where_the_request_is_sent_again():
    replies = iter([(429, {"retry-after-ms": "1"}, ""), (500, {"retry-after-ms": "1"}, ""), (200, {"X-Drop": "1"}, "")])
    failures = Counter()
    with serving(lambda request: next(replies, "ok")) as server:
        assert client(server, on_failure=lambda why: failures.update([why])).ask(HELLO).text == "ok"
    assert failures == {"status 429": 1, "status 500": 1, "no connection": 1}


def test_the_servers_own_wait_is_kept():
    arrivals = []

    def reply(request):
        arrivals.append(time.monotonic())
        return (429, {"Retry-After": "1"}, "") if len(arrivals) == 1 else "ok"

    with serving(reply) as server:
        client(server).ask(HELLO)
    assert arrivals[1] - arrivals[0] >= 1.0


def test_no_more_requests_are_sent_in_a_minute_than_wanted():
    began = time.monotonic()
    with serving(lambda request: "ok") as server:
        asking = client(server, requests_per_minute=600)
        assert len(list(asking.each(range(4), lambda question: asking.ask(HELLO)))) == 4
    assert time.monotonic() - began >= 3 * 0.1


def test_what_a_question_cannot_be_asked_for_stands_in_its_place_and_a_server_that_is_gone_ends_all():
    def ask(question: int) -> int:
        if question == 3:
            raise JRMError("no such image")
        if question == 6:
            raise Unusable("gone")
        return question

    taken = []
    with serving(lambda request: "ok") as server:
        results = client(server, concurrency=1).each((taken.append(k) or k for k in range(10**6)), ask)
        with pytest.raises(Unusable, match="gone"):
            done = []
            for k, result in results:
                done.append((k, str(result)))
    assert (3, "no such image") in done and {(k, str(k)) for k in (0, 1, 2, 4, 5)} <= {*done}
    assert len(taken) < 20  # questions are made as there is room for them


def test_what_a_server_does_not_answer_is_told_from_one_that_cannot_be_used():
    for status, kind in ((500, Unavailable), (429, Unavailable), (401, Unusable), (404, Unusable)):
        with serving(lambda request, status=status: (status, {}, "no")) as server, pytest.raises(Unusable) as caught:
            client(server, retries=0).ask(HELLO)
        assert type(caught.value) is kind, status
    with pytest.raises(Unavailable, match="the same command goes on"):
        ChatClient("m", base_url="http://127.0.0.1:9/v1", retries=0).ask(HELLO)


@pytest.mark.parametrize(
    "options", [{"concurrency": 0}, {"timeout": 0.0}, {"retries": -1}, {"requests_per_minute": 0.0}]
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(JRMError):
        ChatClient("m", base_url="http://127.0.0.1:9/v1", **options)


def test_the_last_object_with_a_key_is_found_in_other_text():
    assert object_with('I think {"a": 1} and then {"reasoning": "x", "b": [1, 2', "reasoning") == {
        "reasoning": "x",
        "b": [1, 2],
    }
    assert object_with("no object", "reasoning") is None
