"""`/v1`: what is asked over HTTP is what the scorer says, each sample by itself; what is wrong has one JSON form."""

import argparse
import gc
import json

import numpy as np
import pytest
from pictures import encode
from PIL import Image
from scoring_server import assert_close, base64_of, fields_of

from jrm_plugin import Sample
from jrm_plugin.cli import serve
from jrm_plugin.records.images import load_image
from jrm_plugin.records.wire import CODES, critiques_from_json, sample_to_json, score_from_json


def test_samples_of_all_tasks_have_the_scores_that_the_scorer_gives_them(server, tiny, make_samples):
    samples = make_samples(12)
    results = server.post("/v1/score", json={"samples": [*map(sample_to_json, samples)]}).json()["results"]
    for result, score in zip(results, tiny.score(samples), strict=True):
        assert_close(result["score"], score)
        assert score_from_json(result).names == score.names


def test_a_row_of_a_table_and_the_parts_of_a_form_are_samples_too(server, tiny, make_samples):
    samples = [sample for sample in make_samples(10, seed=1) if sample.task != "response"]
    expected = tiny.score(samples)
    by_row = server.post("/v1/score", json={"samples": [*map(fields_of, samples)]}).json()["results"]
    files, rows = [], []
    for k, sample in enumerate(samples):
        names = [f"{k}-{n}" for n in range(len(sample.prompt_images) + 1)]
        images = (*sample.prompt_images, *sample.response_images)
        files += [(name, (name, encode(load_image(image)))) for name, image in zip(names, images, strict=True)]
        *sources, edited = [f"cid:{name}" for name in names]
        rows.append({"sources": sources, "prompt": sample.prompt_text, "edited_image": edited})
    form = {"request": json.dumps({"samples": rows})}
    by_form = server.post("/v1/score", data=form, files=files).json()["results"]
    for one, other, score in zip(by_row, by_form, expected, strict=True):
        assert_close(one["score"], score)
        assert_close(other["score"], score)


def test_an_image_is_opened_for_its_size_once_and_for_its_pixels_once(server, monkeypatch):
    random = np.random.default_rng(11)
    source, *edited = (base64_of(encode(random.integers(0, 256, (48, 48, 3), dtype=np.uint8))) for _ in range(5))
    opened, plain_open = [], Image.open
    monkeypatch.setattr(Image, "open", lambda *given, **options: opened.append(1) or plain_open(*given, **options))
    rows = [{"source": source, "instruction": "make it blue", "edited": image} for image in edited]
    results = server.post("/v1/score", json={"samples": rows}).json()["results"]
    assert all("score" in result for result in results)
    assert len(opened) == 2 * 5


def test_what_a_server_has_loaded_is_not_searched_for_garbage():
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    before = gc.get_freeze_count()
    try:
        scorer = serve._load(parser.parse_args(["--model", "jrm-tiny", "--device", "cpu"]))
        assert scorer.name and gc.get_freeze_count() > before
    finally:
        gc.unfreeze()


def test_a_bad_sample_fails_alone(server, tiny, make_samples):
    good = make_samples(1)[0]
    broken = base64_of(encode(load_image(good.response_images[0]))[:-20])
    rows = [
        {"instruction": "x", "edited": broken},
        sample_to_json(good),
        {"sorce": broken, "instruction": "x", "edited": broken},
        {"instruction": "x", "edited": "https://example.com/a.png"},
        {"instruction": "x", "edited": "file:/etc/passwd"},
        {"instruction": "x", "edited": "cid:nothing"},
        {"instruction": "x" * 40_000, "edited": base64_of(encode(load_image(good.response_images[0])))},
        7,
    ]
    results = server.post("/v1/score", json={"samples": rows}).json()["results"]
    assert_close(results.pop(1)["score"], tiny.score(good))
    assert {result["error"]["code"] for result in results} == {"bad_sample"}
    said = [result["error"]["message"] for result in results]
    for text, words in zip(
        said,
        ["damaged or cut off", "write 'source'", "--allow-urls", "--allow-paths", "no file", "40000", "a int"],
        strict=True,
    ):
        assert words in text


def test_candidates_are_ranked_and_those_that_cannot_be_scored_stand_apart(server, tiny, make_samples):
    source, *images = [sample.response_images[0] for sample in make_samples(12) if sample.task == "edit"][:5]
    samples = [Sample.edit(source, "make it blue", image) for image in images]
    places = tiny.rank(samples, dimension="visual_quality")
    candidates = [*map(base64_of, images), "AAAA"]
    request = {"source": base64_of(source), "instruction": "make it blue", "candidates": candidates}
    answer = server.post("/v1/rank", json=request | {"dimension": "visual_quality"}).json()
    assert [place["position"] for place in answer["ranking"]] == [place.position for place in places]
    for place, expected in zip(answer["ranking"], places, strict=True):
        assert_close(place["score"], expected.score)
    assert [failed["position"] for failed in answer["failed"]] == [len(images)]
    blocks = sample_to_json(samples[0])
    request = {"prompt": blocks["prompt"], "candidates": [sample_to_json(sample)["response"] for sample in samples]}
    by_blocks = server.post("/v1/rank", json=request).json()["ranking"]
    assert [place["position"] for place in by_blocks] == [place.position for place in tiny.rank(samples)]


def test_critiques_are_those_that_the_model_writes(server, tiny, make_samples):
    samples = make_samples(3)
    request = {"samples": [*map(sample_to_json, samples), 3], "max_new_tokens": 48}
    *results, bad = server.post("/v1/critique", json=request).json()["results"]
    assert [*map(critiques_from_json, results)] == tiny.critique(samples, max_new_tokens=48)
    assert bad["error"]["code"] == "bad_sample"
    one = server.post("/v1/critique", json=request | {"dimension": "visual_quality"}).json()["results"][0]
    assert [*one["critiques"]] == ["visual_quality"]
    drawn = request | {"temperature": 1.0, "seed": 3}
    assert server.post("/v1/critique", json=drawn).json() == server.post("/v1/critique", json=drawn).json()


def test_the_server_says_what_it_has(server, tiny):
    model = server.get("/v1/models").json()["models"][0]
    assert model["dimensions"] == tiny.dimensions and model["writes_critiques"] and model["overall_rule"] == "mean"
    assert server.get("/health").json()["status"] == "ok" and server.get("/ready").status_code == 200
    metrics = server.get("/metrics").text
    for name in ("jrm_queue_samples", "jrm_batch_samples_bucket", "jrm_request_seconds_bucket", "jrm_tokens_total"):
        assert f"\n{name}" in metrics
    assert 'jrm_image_features_total{cache="miss"}' in metrics and "jrm_errors_total" in metrics


def test_the_docs_name_every_route_and_load_nothing_from_elsewhere(server):
    schema, page = server.get("/openapi.json").json(), server.get("/docs").text
    assert {"/v1/score", "/v1/rank", "/v1/critique", "/v1/models", "/score", "/compute"} <= {*schema["paths"]}
    assert all(path in page for path in schema["paths"]) and "src=" not in page and "https://" not in page
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            example = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("example")
            if example:
                assert server.request(method, path, json=example).status_code == 200
    names = {*schema["components"]["schemas"]}
    for reference in json.dumps(schema).split('"#/components/schemas/')[1:]:
        assert reference.partition('"')[0] in names


@pytest.mark.parametrize(
    ("method", "path", "content", "code"),
    [
        ("GET", "/v2/score", b"", "not_found"),
        ("GET", "/v1/score", b"", "not_allowed"),
        ("POST", "/v1/score", b"no json", "bad_request"),
        ("POST", "/v1/score", b"[" * 100_000, "bad_request"),
        ("POST", "/v1/score", b"\xff\xfe", "bad_request"),
        ("POST", "/v1/score", b"[]", "invalid"),
        ("POST", "/v1/score", b'{"samples": 3}', "invalid"),
        ("POST", "/v1/score", b'{"samples": [], "more": 1}', "invalid"),
        ("POST", "/v1/score", json.dumps({"samples": [1] * 300}).encode(), "invalid"),
        ("POST", "/v1/rank", b'{"instruction": "x"}', "invalid"),
        ("POST", "/v1/rank", b'{"instruction": "x", "candidates": ["AAAA"], "dimension": "beauty"}', "invalid"),
        ("POST", "/v1/critique", b'{"samples": [], "dimension": "beauty"}', "invalid"),
        ("POST", "/v1/critique", b'{"samples": [], "temperature": NaN}', "invalid"),
        ("POST", "/v1/critique", b'{"samples": [], "max_new_tokens": 999999}', "invalid"),
        ("POST", "/score", b"{}", "invalid"),
        ("POST", "/compute", b"{}", "invalid"),
    ],
)
def test_what_is_wrong_has_one_form(server, method, path, content, code):
    response = server.request(method, path, content=content)
    error = response.json()["error"]
    assert (error["code"], response.status_code) == (code, CODES[code][0]), error
    assert error["message"].count("\n") == 0 and len(error["message"]) < 500


def test_a_form_without_json_or_with_two_parts_of_a_name_is_refused(server):
    assert server.post("/v1/score", files={"a": b"x"}).json()["error"]["code"] == "bad_request"
    twice = [("request", (None, b"{}")), ("request", (None, b"{}"))]
    assert server.post("/v1/score", files=twice).json()["error"]["code"] == "bad_request"
    headers = {"Content-Type": "multipart/form-data"}
    assert server.post("/v1/score", content=b"x", headers=headers).json()["error"]["code"] == "bad_request"
