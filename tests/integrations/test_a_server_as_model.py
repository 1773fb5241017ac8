"""Runs whose model is a server's address: the rewards are those of the model in the process."""

import asyncio
import importlib
import io
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from jrm_plugin import JRMError, Sample
from jrm_plugin.integrations.flow_grpo import jrm_score
from jrm_plugin.integrations.ray.settings import ScorerSettings
from jrm_plugin.integrations.trl import jrm_rewards
from jrm_plugin.scoring.remote import TOKEN_VARIABLE, RewardClient

CALLERS = Path(__file__).parent / "callers"
PLUG_INS = Path(__file__).parents[2] / "examples" / "ms_swift"


@pytest.fixture(autouse=True)
def variables(monkeypatch, reward_server):
    for name in [name for name in os.environ if name.startswith("JRM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("JRM_MODEL", reward_server)
    monkeypatch.setenv(TOKEN_VARIABLE, "a-token-that-this-server-does-not-ask-for")
    monkeypatch.syspath_prepend(str(CALLERS))
    monkeypatch.syspath_prepend(str(PLUG_INS))
    return monkeypatch


@pytest.fixture(scope="module")
def samples(group_of) -> list[Sample]:
    return [*group_of(5, 3), *group_of(6, 3)]


@pytest.fixture(scope="module")
def expected(tiny, samples) -> list[float]:
    return [score.mu["overall"] for score in tiny.score(samples)]


def pixels(image: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(image)).convert("RGB"))


def line(text: str, row: dict) -> Image.Image:
    """The source with a line whose place is the text's."""
    picture = np.array(row["source_image"])
    picture[:, sum(text.encode()) % picture.shape[1]] = 0
    return Image.fromarray(picture)


def test_grpo_of_trl_learns_from_a_server(tiny, reward_server, samples, policy_folder, tmp_path):
    """A real step, in which every reward that the trainer was given is compared with the model's own."""
    asked: list = []

    def spied(reward):
        def spy(**arguments):
            rewards = reward(**arguments)
            asked.append((reward.dimension, arguments, rewards))
            return rewards

        spy.__name__ = reward.__name__
        return spy

    rewards = jrm_rewards(reward_server, render=line, floor=-9.0)
    assert isinstance(rewards[0]._shared.judge.scorer, RewardClient)
    rows = [
        {"prompt": f"scene {k}", "instruction": samples[k].prompt_text, "source_image": Image.fromarray(pixels(source))}
        for k, source in ((0, samples[0].prompt_images[0]), (3, samples[3].prompt_images[0]))
    ]
    trainer = GRPOTrainer(
        AutoModelForCausalLM.from_pretrained(policy_folder),
        [*map(spied, rewards)],
        GRPOConfig(
            str(tmp_path), max_steps=1, per_device_train_batch_size=4, num_generations=2, max_completion_length=4,
            use_cpu=True, bf16=False, report_to="none", disable_tqdm=True, save_strategy="no",
            gradient_checkpointing=False, logging_steps=1, multi_objective_aggregation="normalize_then_sum",
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(policy_folder),
    )  # fmt: skip
    trainer.train()
    assert [dimension for dimension, _, _ in asked] == tiny.dimensions
    for dimension, given, earned in asked:
        made = [
            Sample.edit(source, instruction, line(text, {"source_image": source}))
            for source, instruction, text in zip(
                given["source_image"], given["instruction"], given["completions"], strict=True
            )
        ]
        assert earned == pytest.approx([score.mu[dimension] for score in tiny.score(made)], abs=1e-5)
    assert trainer.state.log_history[0]["jrm_reward/overall/mu"] != 0


def multi_score(device, weights: dict):
    """flow_grpo's, with the two lines that its users add: it weighs rewards and keeps each apart."""
    functions = {name: {"jrm": jrm_score}[name](device) for name in weights}

    def score(images, prompts, metadata, ref_images=None):
        details: dict = {}
        total = [0.0] * len(prompts)
        for name, weight in weights.items():
            details[name], _ = functions[name](images, prompts, metadata, ref_images)
            total = [sum_ + weight * value for sum_, value in zip(total, details[name], strict=True)]
        return details | {"avg": total}, {}

    return score


def test_multi_score_of_flow_grpo_asks_a_server(samples, expected):
    images = torch.from_numpy(np.stack([pixels(s.response_images[0]) for s in samples])).permute(0, 3, 1, 2) / 255
    sources = [Image.fromarray(pixels(s.prompt_images[0])) for s in samples]
    prompts = [s.prompt_text for s in samples]
    scores, _ = multi_score("cuda", {"jrm": 0.5})(images, prompts, [{}] * len(samples), sources)  # the server has a GPU
    assert scores["jrm"] == pytest.approx(expected, abs=1e-5)
    assert scores["avg"] == pytest.approx([value / 2 for value in expected], abs=1e-5)


def test_flow_factory_and_ms_swift_ask_a_server(reward_server, samples, expected):
    framework = importlib.import_module("flow_factory.rewards")
    adapter = importlib.import_module("jrm_plugin.integrations.flow_factory")
    reward = framework.load(adapter.JRMPointwise, model_path=reward_server)
    asked = [
        framework.Sample(
            prompt=s.prompt_text,
            image=torch.from_numpy(pixels(s.response_images[0])).permute(2, 0, 1) / 255,
            condition_images=[torch.from_numpy(pixels(s.prompt_images[0])).permute(2, 0, 1) / 255],
        )
        for s in samples
    ]
    assert framework.rewards_of(reward, asked).tolist() == pytest.approx(expected, abs=1e-5)

    rewards = importlib.import_module("swift.rewards")
    importlib.import_module("jrm_rewards")
    rows = [
        {
            "messages": [{"role": "user", "content": s.prompt_text}, {"role": "assistant", "content": ""}],
            "images": [{"bytes": s.prompt_images[0], "path": None}],
            "edited_image": s.response_images[0],
            "prompt_id": s.prompt_key(),
        }
        for s in samples
    ]
    found = rewards.rewards_of(["jrm"], rows, SimpleNamespace(global_step=0))[:, 0]
    assert found.tolist() == pytest.approx(expected, abs=1e-5)


def test_a_named_model_of_verl_omni_may_be_a_server(reward_server, samples, expected):
    pytest.importorskip("verl")
    native = importlib.import_module("jrm_plugin.integrations.verl_omni").JRMNativeModel(reward_server, "cuda:3")
    inferred = asyncio.run(native.infer(samples))
    assert [score.mu["overall"] for score in inferred.scores] == pytest.approx(expected, abs=1e-5)
    native.close()


def test_what_belongs_to_a_model_that_is_loaded_here_is_said(reward_server):
    for setting in ({"num_gpus": 0.5}, {"device": "cuda"}):
        with pytest.raises(JRMError, match="are of a model that is loaded here, and http://.* is a server's"):
            ScorerSettings(model_path=reward_server, **setting)
