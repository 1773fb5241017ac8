"""UniRL's and Flow-Factory's forms: what their clients send, and what they make of the answers."""

import io
import math

import pytest
from PIL import Image
from scoring_server import base64_of, ready_server

from jrm_plugin import RewardScore, Sample
from jrm_plugin.records.images import load_image


def jpeg(image) -> bytes:
    """As UniRL's client encodes images by default."""
    buffer = io.BytesIO()
    load_image(image).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def samples(make_samples) -> list[Sample]:
    """One edit and one generation, of JPEG files."""
    edit = next(sample for sample in make_samples(12) if sample.task == "edit" and len(sample.prompt_images) == 1)
    source, edited = map(jpeg, (edit.prompt_images[0], edit.response_images[0]))
    return [Sample.edit(source, "make it blue", edited), Sample.generation("a red square", edited)]


def unirl_request(sample: Sample, wanted: list[str]) -> dict:
    images = (*sample.prompt_images, *sample.response_images)
    history = [{"text": sample.prompt_text, "image_b64": base64_of(image)} for image in images]
    return {"history": history, "required_rewards": wanted, "metadata": None}


def test_unirl_finds_its_rewards_in_health_and_takes_the_first_number(server, tiny, samples):
    rewards = server.get("/health").json()
    wanted = ["jrm", "jrm_instruction_following", "jrm_visual_quality"]
    assert rewards["status"] == "ok" and {*wanted} <= {*rewards["rewards"]}
    answer = server.post("/score", json={"requests": [unirl_request(sample, wanted) for sample in samples]}).json()
    assert answer["errors"] == [{}, {}] and [[*result] for result in answer["results"]] == [wanted] * 2
    for result, score in zip(answer["results"], tiny.score(samples), strict=True):
        assert [*result["jrm"]] == rewards["rewards"]["jrm"] == ["overall", *tiny.dimensions]
        assert next(iter(result["jrm"].values())) == pytest.approx(score.mu["overall"], abs=1e-5)
        assert sum(result["jrm"].values()) / 3 == pytest.approx(score.mu["overall"], abs=1e-5)  # the reduction `mean`
        for name in tiny.dimensions:
            assert [*result[f"jrm_{name}"].values()] == [pytest.approx(score.mu[name], abs=1e-5)]
        assert all(math.isfinite(number) for numbers in result.values() for number in numbers.values())


def test_unirl_is_told_of_each_image_and_reward_that_fails(server, samples):
    good, broken, video, path, three, unknown = (unirl_request(samples[0], ["jrm"]) for _ in range(6))
    broken["history"][0]["image_b64"] = "AAAA"
    video["history"] = [{"text": "x", "video_b64": "AAAA"}]
    path["history"] = [{"text": "x", "image_b64": "file:/etc/passwd"}]
    three["history"] = good["history"] * 2
    unknown["required_rewards"] = ["jrm", "beauty"]
    answer = server.post("/score", json={"requests": [good, broken, video, path, three, unknown]}).json()
    assert [[*result] for result in answer["results"]] == [["jrm"], [], [], [], [], ["jrm"]]
    assert [[*errors] for errors in answer["errors"]] == [[], ["jrm"], ["jrm"], ["jrm"], ["jrm"], ["beauty"]]
    assert server.post("/score", json={"requests": [{"history": []}]}).status_code == 422


def test_flow_factory_has_a_number_for_each_image(server, tiny, samples):
    edit, generation = samples
    request = {
        "prompt": [sample.prompt_text for sample in samples],
        "image": [base64_of(sample.response_images[0]) for sample in samples],
        "condition_images": [[base64_of(edit.prompt_images[0])], None],
        "video": None,
    }
    expected = [pytest.approx(score.mu["overall"], abs=1e-5) for score in tiny.score(samples)]
    assert server.post("/compute", json=request).json() == {"rewards": expected}
    without = request | {"condition_images": None}
    as_generation = Sample.generation(edit.prompt_text, edit.response_images[0])
    assert server.post("/compute", json=without).json()["rewards"] == [
        pytest.approx(tiny.score(as_generation).mu["overall"], abs=1e-5),
        expected[1],
    ]
    assert server.get("/health").is_success


def test_flow_factory_is_told_which_image_has_no_number(server, samples):
    image = base64_of(samples[0].response_images[0])
    for request in (
        {"prompt": ["x", "x"], "image": [image, "AAAA"]},
        {"prompt": ["x", "x"], "image": [image, None]},
        {"prompt": ["x", None], "image": [image, image]},
        {"prompt": ["x"], "image": [image, image]},
        {"prompt": ["x"], "image": [image], "condition_images": [[3]]},
        {"prompt": ["x"], "image": [image], "video": ["AAAA"]},
        {"prompt": "x", "image": image},
    ):
        answer = server.post("/compute", json=request)
        assert answer.status_code == 422 and "error" in answer.json() and "rewards" not in answer.json()
    assert "sample 1" in server.post("/compute", json={"prompt": ["x"] * 2, "image": [image, "AAAA"]}).text


def test_a_scorer_of_another_kind_is_served_as_well(brightness):
    white = base64_of(Image.new("RGB", (8, 8), "white"))
    with ready_server(brightness, model="light") as client:
        assert client.get("/health").json()["rewards"] == {
            "jrm": ["overall", "brightness"],
            "jrm_brightness": ["brightness"],
        }
        assert client.post("/compute", json={"prompt": ["x"], "image": [white]}).json() == {"rewards": [255.0]}
        result = client.post("/v1/score", json={"samples": [{"instruction": "x", "edited": white}]}).json()
        assert RewardScore.from_dict(result["results"][0]["score"]).mu["brightness"] == 255.0
        assert client.post("/v1/critique", json={"samples": []}).status_code == 422
        assert client.get("/v1/models").json()["models"][0]["writes_critiques"] is False
