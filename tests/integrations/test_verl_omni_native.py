"""A JRM as a named model of verl-omni: made, asked and closed as its 0.3 does, and as it asks functions without one.

verl-omni itself is not imported: it pulls diffusers and a GPU's libraries. `Executor` and `rewards_of` do what its
executor of native models and its multi-reward manager do, written anew after their public behaviour.
"""

import asyncio
import importlib
import inspect
from shutil import copytree

import numpy as np
import pytest
import torch

pytest.importorskip("verl")

from fastapi import FastAPI, Request  # noqa: E402
from fastapi.responses import JSONResponse  # noqa: E402
from scoring_server import serving_app  # noqa: E402

from jrm_plugin import JRMError, Sample  # noqa: E402
from jrm_plugin.integrations import verl_omni  # noqa: E402
from jrm_plugin.integrations.verl_omni import JRMNativeModel, compute_score_jrm  # noqa: E402
from jrm_plugin.model.calibration_file import write_calibration  # noqa: E402
from jrm_plugin.model.checkpoint import built_in_folder  # noqa: E402
from jrm_plugin.records.calibration import Calibration  # noqa: E402
from jrm_plugin.records.images import load_image  # noqa: E402
from jrm_plugin.records.wire import sample_from_json  # noqa: E402


class Executor:
    """Owns a model between `wake_up` and `sleep`, and is the handle that a reward function gets."""

    def __init__(self, model: str, model_path: str, **kwargs):
        self._model, self._path, self._kwargs, self.model = model, model_path, kwargs, None

    def wake_up(self) -> None:
        module, name = self._model.rsplit(":", 1)
        given = {"model_path": self._path, "device": torch.device("cpu")} | self._kwargs
        self.model = getattr(importlib.import_module(module), name)(**given)

    async def infer(self, *args, **kwargs):
        infer = self.model.infer
        result = infer(*args, **kwargs) if inspect.iscoroutinefunction(infer) else asyncio.to_thread(infer, *args)
        return await result

    async def sleep(self) -> None:
        model, self.model = self.model, None
        await asyncio.to_thread(model.close)


MODEL = "jrm_plugin.integrations.verl_omni:JRMNativeModel"


@pytest.fixture
def executor():
    executor = Executor(MODEL, "jrm-tiny", dtype="float32", max_batch=64)
    executor.wake_up()
    yield executor
    if executor.model is not None:
        asyncio.run(executor.sleep())


async def rewards_of(executor: Executor | None, samples: list[Sample], **entry) -> list[dict]:
    """What the reward function tells of each rollout; all are under way at once."""
    signature = inspect.signature(compute_score_jrm)
    assert any(p.kind == p.VAR_KEYWORD for p in signature.parameters.values())  # so nothing is left out by its name

    def call(sample: Sample):
        pixels = np.array(load_image(sample.response_images[0])) if sample.response_images else np.zeros((8, 8, 3))
        given = {"data_source": "edits", "solution_image": torch.from_numpy(pixels).permute(2, 0, 1)}
        given |= {"ground_truth": sample.prompt_text}
        given["extra_info"] = {"num_turns": None, "rollout_reward_scores": {}}
        if sample.prompt_images:
            given["extra_info"]["source_image"] = sample.prompt_images[0]
        return compute_score_jrm(**given, **entry, **({} if executor is None else {"reward_model": executor}))

    return await asyncio.gather(*map(call, samples))


def test_a_batch_is_scored_by_the_named_model_in_micro_batches(tiny, group_of, executor, asked):
    samples = [*group_of(5, 4), *group_of(6, 4)]
    found = asyncio.run(rewards_of(executor, samples, mode="lower_confidence_bound", k=2.0))
    assert asked == [8]
    expected = tiny.score(samples)
    assert [each["score"] for each in found] == pytest.approx(
        [score.reward("lower_confidence_bound", k=2.0) for score in expected], abs=1e-5
    )
    for each, score in zip(found, expected, strict=True):
        for name in tiny.dimensions:
            assert each[f"jrm_{name}_mu"] == pytest.approx(score.mu[name], abs=1e-5)


def test_the_model_is_closed_between_steps_and_made_again(tiny, group_of, executor):
    samples = group_of(5, 2)
    expected = [score.mu["overall"] for score in tiny.score(samples)]
    for _ in range(2):
        found = asyncio.run(rewards_of(executor, samples))
        assert [each["score"] for each in found] == pytest.approx(expected, abs=1e-5)
        model = executor.model
        asyncio.run(executor.sleep())
        with pytest.raises(JRMError, match="this reward model was closed"):
            asyncio.run(model.infer(samples))
        executor.wake_up()


def test_bad_rollouts_have_the_same_keys_and_only_finite_numbers(group_of, executor):
    (good,) = group_of(5, 1)
    bad = Sample.generation(good.prompt_text, good.response_images[0])  # without a source
    found = asyncio.run(rewards_of(executor, [good, bad], on_error="floor", floor=-9.0))
    assert found[0].keys() == found[1].keys()
    assert (found[1]["score"], found[1]["jrm_unscorable"]) == (-9.0, 1.0)
    numbers = [value for each in found for value in each.values() if not isinstance(value, str)]
    assert np.isfinite(numbers).all()


def test_guards_are_told_of_each_rollout(group_of, tmp_path):
    copytree(built_in_folder("jrm-tiny"), tmp_path, dirs_exist_ok=True)
    write_calibration(tmp_path, Calibration({}, {"visual_quality": {0.95: 1e-6}}), {})
    executor = Executor(MODEL, str(tmp_path))
    executor.wake_up()
    (edit,) = group_of(5, 1)
    copy = Sample.edit(edit.prompt_images[0], edit.prompt_text, edit.prompt_images[0])
    bad = Sample.generation(edit.prompt_text, edit.response_images[0])
    found = asyncio.run(
        rewards_of(
            executor, [edit, copy, bad], unedited="floor", on_error="floor", floor=-9.0, dimension="visual_quality"
        )
    )
    assert [each["jrm_unedited"] for each in found] == [0.0, 1.0, 0.0]
    assert [each["jrm_visual_quality_sigma_above"] for each in found] == [1.0, 1.0, 0.0]
    assert found[1]["score"] == found[1]["jrm_overall"] == -9.0 != found[1]["jrm_overall_mu"]
    assert found[0].keys() == found[2].keys()
    asyncio.run(executor.sleep())


def test_settings_of_a_pool_have_no_place_beside_a_named_model(group_of, executor):
    with pytest.raises(JRMError, match="whose model is one of reward.models has no key model_path; its keys are task"):
        asyncio.run(rewards_of(executor, group_of(5, 1), model_path="jrm-tiny"))
    with pytest.raises(JRMError, match="mode win_rate compares the candidates of a group"):
        asyncio.run(rewards_of(executor, group_of(5, 1), mode="win_rate"))


def test_without_a_named_model_the_pool_scores(group_of, monkeypatch):
    """The way of earlier versions; what they hand over of a reward model of theirs is passed over."""
    told = {}

    async def keyword_score(rollout, name, settings, scorers):
        told.update(settings=settings, scorers=scorers)
        return {"score": 0.0}

    monkeypatch.setattr(verl_omni, "keyword_score", keyword_score)
    theirs = {"reward_router_address": "a:1", "reward_model_tokenizer": None, "model_name": "x", "sampling_params": {}}
    asyncio.run(rewards_of(None, group_of(5, 1), model_path="jrm-tiny", **theirs))
    assert told == {"settings": {"model_path": "jrm-tiny"}, "scorers": None}


def test_wrong_options_are_one_sentence():
    with pytest.raises(JRMError, match="dtype must be float32, bfloat16, float16 or left out, not 'int8'"):
        JRMNativeModel("jrm-tiny", "cpu", dtype="int8")
    with pytest.raises(JRMError, match="no/such/model"):
        JRMNativeModel("no/such/model", "cpu")


def test_an_engine_of_verl_omni_is_asked_by_the_plug_ins_form(tiny, group_of):
    """The router passes on to vLLM; here what answers is `RewardScorer`, in the form of the plug-in `jrm`."""
    app = FastAPI()

    @app.post("/pooling")
    async def pooling(request: Request) -> JSONResponse:
        body = await request.json()
        assert body["model"] == "jrm-tiny"
        scores = tiny.score([sample_from_json(record) for record in body["data"]["samples"]], on_error="return")
        if any(isinstance(score, JRMError) for score in scores):
            return JSONResponse({"error": "no"}, 500)
        return JSONResponse({"data": {"scores": [score.to_dict() for score in scores]}})

    samples = group_of(5, 3)
    with serving_app(app) as url:
        engine = {"reward_router_address": url.removeprefix("http://"), "model_name": "jrm-tiny"}
        found = asyncio.run(rewards_of(None, samples, **engine))
        assert [each["score"] for each in found] == pytest.approx(
            [score.mu["overall"] for score in tiny.score(samples)], abs=1e-5
        )
        hopeless = Sample.edit(samples[0].prompt_images[0], "x" * 100_000, samples[0].response_images[0])
        with pytest.raises(JRMError, match="answers 500"):
            asyncio.run(rewards_of(None, [hopeless], **engine))
