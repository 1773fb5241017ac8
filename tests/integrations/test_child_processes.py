"""Rewards go into child processes as their settings, and load there."""

import asyncio
import importlib
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("verl")

from jrm_plugin import JRMError, RewardScorer, load_scorer  # noqa: E402
from jrm_plugin.cli.grpo import JRMRewardArguments  # noqa: E402
from jrm_plugin.integrations.flow_grpo import jrm_score  # noqa: E402
from jrm_plugin.integrations.trl import JRMReward, jrm_rewards  # noqa: E402
from jrm_plugin.integrations.verl_omni import JRMNativeModel  # noqa: E402
from jrm_plugin.records.images import load_image  # noqa: E402

ROOT = Path(__file__).parents[2]
CALLERS = Path(__file__).parent / "callers"


@pytest.fixture
def paths(monkeypatch) -> list[str]:
    """Where the frameworks' stand-ins and the plug-in file lie."""
    folders = [str(CALLERS), str(ROOT / "examples" / "ms_swift")]
    for folder in folders:
        monkeypatch.syspath_prepend(folder)
    for name in [name for name in os.environ if name.startswith("JRM_")]:
        monkeypatch.delenv(name)
    return folders


def test_every_door_is_a_few_bytes_and_scores_in_a_child_process(tiny, group_of, paths, monkeypatch, tmp_path):
    monkeypatch.setenv("JRM_MODEL", "jrm-tiny")
    framework = importlib.import_module("flow_factory.rewards")
    adapter = importlib.import_module("jrm_plugin.integrations.flow_factory")
    plugin = importlib.import_module("jrm_rewards")
    doors = {
        "trl": jrm_rewards("jrm-tiny", device="cpu"),
        "flow_grpo": jrm_score("cpu", model="jrm-tiny"),
        "flow_factory": framework.load(adapter.JRMPointwise, model_path="jrm-tiny", dtype="float32"),
        "ms_swift": plugin.JRMReward(),
        "verl_omni": JRMNativeModel("jrm-tiny", "cpu"),
    }
    for name, door in doors.items():
        assert len(pickle.dumps(door)) < 10_000, name

    samples = group_of(5, 2)
    source, instruction = samples[0].prompt_images[0], samples[0].prompt_text
    edited = [np.array(load_image(sample.response_images[0])) for sample in samples]
    rows = {"instruction": [instruction] * 2, "source_image": [source] * 2, "edited_image": edited}
    talk = [[{"role": "user", "content": instruction}, {"role": "assistant", "content": ""}]] * 2
    pictures = [Image.fromarray(image) for image in edited]
    calls = {
        "trl": {"prompts": ["p"] * 2, "completions": [""] * 2, "completion_ids": [[], []], **rows},
        "flow_grpo": {"images": np.stack(edited), "prompts": [instruction] * 2, "metadata": [{}] * 2},
        "flow_factory": {
            "prompt": [instruction] * 2,
            "image": pictures,
            "condition_images": [[load_image(source)]] * 2,
        },
        "ms_swift": {"completions": [""] * 2, "messages": talk, **rows},
        "verl_omni": samples,
    }
    calls["flow_grpo"]["ref_images"] = [load_image(source)] * 2
    file = tmp_path / "rewards.pickle"
    file.write_bytes(pickle.dumps((doors, calls)))
    finished = subprocess.run(
        [sys.executable, CALLERS / "child.py", file],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
    answers = json.loads(finished.stdout.splitlines()[-1])
    scores = tiny.score(samples)
    overall = [score.mu["overall"] for score in scores]
    assert answers.pop("trl") == [pytest.approx([s.mu[name] for s in scores], abs=1e-5) for name in tiny.dimensions]
    assert {*answers} == {*doors} - {"trl"}
    for name, found in answers.items():
        assert found == pytest.approx(overall, abs=1e-5), name


def test_rewards_that_share_a_model_still_do_after_the_journey(paths):
    rewards = JRMRewardArguments(
        reward_model_path="jrm-tiny", reward_dimensions=["visual_quality", "overall"], reward_render="rendering.render",
        reward_floor=-5.0, reward_device="cpu",
    ).rewards("unused")  # fmt: skip
    content = pickle.dumps(rewards)
    assert len(content) < 10_000
    one, two = pickle.loads(content)
    assert one._shared is two._shared and [one.__name__, two.__name__] == ["jrm_visual_quality", "jrm_reward"]


def test_a_scorer_goes_as_what_it_was_loaded_by(tiny, group_of, monkeypatch):
    given = []
    load = RewardScorer.from_pretrained
    scorer = load_scorer("jrm-tiny", device="cpu", memory_budget=2**28)
    content = pickle.dumps(scorer)
    monkeypatch.setattr(RewardScorer, "from_pretrained", lambda **options: given.append(options) or load(**options))
    samples = group_of(5, 2)
    assert pickle.loads(content).score(samples) == scorer.score(samples)
    assert given[0]["memory_budget"] == 2**28 and given[0]["device"] == "cpu"


def test_a_model_in_memory_cannot_be_sent(make_scorer):
    with pytest.raises(JRMError, match="a scorer of a model in memory cannot be sent to another process; save"):
        pickle.dumps(JRMReward(make_scorer()))


def test_objectives_that_are_asked_side_by_side_cost_one_pass(tiny, group_of, paths, asked):
    """As TRL's AsyncGRPO asks them: in threads, at the same time, about the same lists."""
    child = importlib.import_module("child")
    (sample,) = group_of(5, 1)
    columns = {"instruction": [sample.prompt_text], "source_image": [sample.prompt_images[0]]}
    columns["edited_image"] = [sample.response_images[0]]
    arguments = {"prompts": ["p"], "completions": [""], "completion_ids": [[]], **columns}
    answers = asyncio.run(child.side_by_side(jrm_rewards(tiny), arguments))
    assert asked == [1]
    (score,) = tiny.score([sample])
    assert answers == [pytest.approx([score.mu[name]], abs=1e-5) for name in tiny.dimensions]
