"""Flow-Factory's rewards, asked as a step of it asks them: `callers/flow_factory` stands for the framework."""

import importlib
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from jrm_plugin import JRMError, Sample, group_rewards

CALLERS = Path(__file__).parent / "callers"
ENTRY = {"name": "jrm", "dtype": "float32", "model_path": "jrm-tiny"}


@pytest.fixture(scope="module")
def framework():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(CALLERS))
        yield importlib.import_module("flow_factory.rewards")


@pytest.fixture(scope="module")
def adapter(framework):
    return importlib.import_module("jrm_plugin.integrations.flow_factory")


def tensor(image: bytes) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(io.BytesIO(image)).convert("RGB"))).permute(2, 0, 1) / 255


@pytest.fixture
def step(framework, group_of):
    """Two groups of three edits, in mixed order, as the policy's samples and as ours."""
    ours = [*group_of(5, 3), *group_of(6, 3)]
    order = [0, 3, 1, 4, 5, 2]
    samples = [
        framework.Sample(
            prompt=ours[k].prompt_text,
            image=tensor(ours[k].response_images[0]),
            condition_images=[tensor(image) for image in ours[k].prompt_images],
            unique_id=k // 3,
        )
        for k in order
    ]
    return samples, [ours[k] for k in order]


@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize("batch_size", [16, 4])
def test_pointwise_rewards_are_the_scorers_own(tiny, framework, adapter, step, workers, batch_size):
    samples, ours = step
    model = framework.load(adapter.JRMPointwise, **ENTRY, batch_size=batch_size, mode="entropic", beta=2.0)
    assert model.required_fields == ("prompt", "image", "condition_images")
    expected = [score.reward("entropic", beta=2.0) for score in tiny.score(ours)]
    assert framework.rewards_of(model, samples, workers=workers).tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("workers", [0, 2])
def test_groupwise_rewards_compare_the_samples_of_a_group(tiny, framework, adapter, step, workers):
    samples, ours = step
    model = framework.load(adapter.JRMGroupwise, **ENTRY, mode="win_rate")
    found = framework.rewards_of(model, samples, workers=workers).tolist()
    scores = tiny.score(ours)
    for group in (0, 1):
        numbers = [k for k, sample in enumerate(samples) if sample.unique_id == group]
        expected = group_rewards([scores[k] for k in numbers], "win_rate")
        assert [found[k] for k in numbers] == pytest.approx(expected, abs=1e-5)


def test_rewards_of_several_dimensions_cost_one_pass(tiny, framework, adapter, step, asked):
    samples, ours = step
    adapter._scorer.cache_clear()
    rewards = {
        name: framework.load(adapter.JRMPointwise, **ENTRY, dimension=name, weight=0.5) for name in tiny.dimensions
    }
    found = {name: framework.rewards_of(model, samples).tolist() for name, model in rewards.items()}
    assert asked == [6]
    for name, values in found.items():
        assert values == pytest.approx([each.mu[name] for each in tiny.score(ours)], abs=1e-5)


def test_generation_needs_no_source_and_metrics_come_beside_the_rewards(tiny, framework, adapter, step):
    samples, _ = step
    model = framework.load(adapter.JRMPointwise, **ENTRY, task="generation")
    assert model.required_fields == ("prompt", "image")
    picture = Image.new("RGB", (48, 48), "red")
    output = model(prompt=["a red square"], image=[picture])
    (score,) = tiny.score([Sample.generation("a red square", picture)])
    assert output.rewards.dtype == torch.float32
    assert output.rewards.tolist() == pytest.approx([score.mu["overall"]], abs=1e-5)
    assert output.extra_info["overall/mu"] == pytest.approx(score.mu["overall"], abs=1e-5)


def test_what_cannot_be_scored_raises_or_earns_the_floor(framework, adapter):
    pictures = [Image.new("RGB", (48, 48)), b"no image"]
    arguments = {"prompt": ["x", "y"], "image": pictures, "condition_images": [[pictures[0]]] * 2}
    with pytest.raises(JRMError, match="sample 1 cannot be scored"):
        framework.load(adapter.JRMPointwise, **ENTRY)(**arguments)
    output = framework.load(adapter.JRMPointwise, **ENTRY, on_error="floor", floor=-9.0)(**arguments)
    assert output.rewards[1] == -9.0 and output.rewards.isfinite().all()
    assert output.extra_info["unscorable"] == 0.5


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"model_path": None}, "the reward jrm has no model_path"),
        ({"weigth": 1}, "the reward jrm has no key weigth; JRM's are task"),
        ({"render": "a.b"}, "has no key render"),
        ({"mode": "win_rate"}, "JRMPointwise sees samples one by one; JRMGroupwise sees a group"),
        ({"undecided": "equal"}, "JRMPointwise sees samples one by one"),
        ({"on_error": "leave_out"}, "Flow-Factory needs a number for every sample"),
        ({"task": "response", "floor": 0.0}, "the task response scores texts"),
        ({"dimension": "beauty"}, "has no dimension 'beauty'"),
    ],
)
def test_wrong_settings_are_one_sentence(framework, adapter, entry, message):
    with pytest.raises(JRMError, match=message):
        framework.load(adapter.JRMPointwise, **ENTRY | entry)


def test_videos_and_missing_sources_are_refused(framework, adapter):
    model = framework.load(adapter.JRMPointwise, **ENTRY)
    with pytest.raises(JRMError, match="JRM scores images, and was given videos"):
        model(prompt=["x"], video=[[Image.new("RGB", (8, 8))]])
    with pytest.raises(JRMError, match="a sample has no condition_images; or write task: generation"):
        model(prompt=["x"], image=[Image.new("RGB", (8, 8))])
