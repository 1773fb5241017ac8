"""JRM inside verl's own reward loop: real reward workers, a real pool of scorers, real Ray."""

import asyncio
import io
import math
import os
import signal
import threading
import time

import numpy as np
import pytest
import rendering
import torch

pytest.importorskip("verl")

import ray  # noqa: E402
from hydra import compose, initialize_config_module  # noqa: E402
from PIL import Image  # noqa: E402
from verl import DataProto  # noqa: E402
from verl.experimental.reward_loop import RewardLoopManager  # noqa: E402

from jrm_plugin import Sample  # noqa: E402
from jrm_plugin.integrations.ray import ScorerPool, shared_pool  # noqa: E402
from jrm_plugin.integrations.verl.reward_manager import row_of  # noqa: E402
from jrm_plugin.integrations.verl.settings import settings_of  # noqa: E402
from jrm_plugin.modeling import built_in_folder  # noqa: E402

pytestmark = pytest.mark.usefixtures("ray_cluster")

FLOOR = -20.0


def make_config(workers: int, settings: dict):
    """verl's own config with JRM."""
    settings = {"model_path": "jrm-tiny", "device": "cpu"} | settings
    overrides = [f"reward.jrm.{name}={value}" for name, value in settings.items()]
    tokenizer = f"actor_rollout_ref.model.path={built_in_folder('jrm-tiny')}"
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", overrides=["reward=jrm", f"reward.num_workers={workers}", tokenizer, *overrides])


@pytest.fixture(scope="module")
def reward_loop():
    """`reward_loop(workers, **settings of reward.jrm)`: verl's manager of reward workers, and the pool they use."""
    running = {}

    def start(workers: int = 1, **settings) -> tuple[RewardLoopManager, ScorerPool]:
        asked = (workers, *settings.items())
        if asked not in running:
            for name in list(running):  # verl's workers have names, so that there is one set of them at a time
                end(running.pop(name)[0])
            config = make_config(workers, settings)
            running[asked] = RewardLoopManager(config), shared_pool(settings_of(config.reward.jrm).scorers())
        return running[asked]

    def end(manager: RewardLoopManager) -> None:
        for worker in manager.reward_loop_workers:
            ray.kill(worker)
        while any(one["name"].startswith("reward_loop") for one in ray.util.list_named_actors(all_namespaces=True)):
            time.sleep(0.1)

    yield start
    for manager, _ in running.values():
        end(manager)


def objects(values: list) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def batch_of(samples: list[Sample], *, texts: list[list[int]] | None = None, **columns: list) -> DataProto:
    """Rollouts as verl's agent loop hands them over: the source stands in the prompt, as bytes and as a picture."""
    count, length = len(samples), 4
    prompts = []
    for sample in samples:
        (source,) = sample.prompt_images
        image = {"type": "image", "bytes": source, "image": Image.open(io.BytesIO(source))}
        content = [image, {"type": "text", "text": sample.prompt_text}]
        prompts.append([{"role": "system", "content": "You edit."}, {"role": "user", "content": content}])
    texts = texts or [[7, 8, 9]] * count
    responses = torch.tensor([ids + [0] * (length - len(ids)) for ids in texts])
    mask = torch.tensor([[1, 1] + [1] * len(ids) + [0] * (length - len(ids)) for ids in texts])
    tensors = {"prompts": torch.ones(count, 2, dtype=torch.long), "responses": responses, "attention_mask": mask}
    rest = {"raw_prompt": prompts} | columns
    return DataProto.from_dict(tensors, non_tensors={name: objects(values) for name, values in rest.items()})


def edited(samples: list[Sample]) -> list[bytes]:
    return [sample.response_images[0] for sample in samples]


def assert_rewards(answer: DataProto, expected, mode: str = "mean") -> None:
    """The reward stands at the last token, and beside it what every dimension was given."""
    extra = answer.non_tensor_batch
    assert answer.batch["rm_scores"].count_nonzero(dim=1).max() == 1
    rewards = answer.batch["rm_scores"].sum(dim=1).tolist()
    assert rewards == pytest.approx([score.reward() for score in expected], abs=1e-5)
    for name in expected[0].mu:
        for value in ("mu", "sigma"):
            found = extra[f"jrm_{name}_{value}"]
            assert found == pytest.approx([getattr(score, value)[name] for score in expected], abs=1e-5)
    assert set(extra["jrm_mode"]) == {mode}
    assert not extra["jrm_render_error"].any() and not extra["jrm_unscorable"].any()
    assert set(answer.meta_info["reward_extra_keys"]) == set(extra)


def test_256_samples_of_4_workers_though_a_scorer_is_killed(reward_loop, tiny, group_of):
    samples = [sample for seed in range(16) for sample in group_of(seed, 16, size=96)]
    expected = tiny.score(samples)
    manager, pool = reward_loop(workers=4, replicas=2)
    data = batch_of(samples, edited_image=edited(samples))
    assert_rewards(manager.compute_rm_score(data), expected)
    done = asyncio.run(pool.statistics())
    assert sum(one.samples for one in done) == 256
    assert 256 / sum(one.batches for one in done) >= 8
    assert sum(one.image_misses for one in done) == 16 + 256  # a source is encoded once

    victim, before = done[0].pid, done[0].calls
    killed_with_open_calls = []

    def kill_in_the_middle():
        while (now := asyncio.run(pool.statistics())[0]).calls == before:
            time.sleep(0.01)
        killed_with_open_calls.append(now.calls - before)
        os.kill(victim, signal.SIGKILL)

    killer = threading.Thread(target=kill_in_the_middle)
    killer.start()
    answer = manager.compute_rm_score(data)
    killer.join()
    first = sum(one.calls for one in done[:1])  # of 256, so many were this replica's
    assert 0 < killed_with_open_calls[0] < first
    assert_rewards(answer, expected)
    assert victim not in {one.pid for one in asyncio.run(pool.statistics())}


def one_undecodable(samples: list[Sample]) -> DataProto:
    """The sixth image breaks off."""
    images = edited(samples)
    images[5] = images[5][:150]
    return batch_of(samples, edited_image=images)


def test_an_undecodable_image_ends_the_run(reward_loop, group_of):
    manager, _ = reward_loop(workers=4, replicas=2)
    with pytest.raises(ray.exceptions.RayTaskError, match="a rollout cannot be scored, and on_error is raise: .*image"):
        manager.compute_rm_score(one_undecodable(group_of(3, 8)))


def test_an_undecodable_image_earns_the_floor_if_asked_for(reward_loop, tiny, group_of):
    samples, good = group_of(3, 8), [0, 1, 2, 3, 4, 6, 7]
    manager, _ = reward_loop(on_error="floor", floor=FLOOR)
    answer = manager.compute_rm_score(one_undecodable(samples))
    extra, rewards = answer.non_tensor_batch, answer.batch["rm_scores"].sum(dim=1)
    expected = tiny.score([samples[k] for k in good])
    assert rewards[5] == FLOOR and rewards[good].tolist() == pytest.approx([s.reward() for s in expected], abs=1e-5)
    assert extra["jrm_unscorable"].tolist() == [float(k == 5) for k in range(8)]
    assert [math.isnan(value) for value in extra["jrm_overall_mu"]] == [k == 5 for k in range(8)]
    assert not extra["jrm_render_error"].any()


def test_rendered_text_and_the_win_over_the_source(reward_loop, tiny, group_of):
    """The policy's text is drawn by a function named in the config; a text that cannot be drawn earns the floor."""
    samples = group_of(4, 3)
    tokenizer = tiny.processor.tokenizer
    ids = [tokenizer(text, add_special_tokens=False).input_ids for text in ("a", "blue")] + [[]]
    assert all(len(row) <= 4 for row in ids)
    data = batch_of(samples, texts=ids, source_image=[sample.prompt_images[0] for sample in samples])
    data.batch["attention_mask"][2, 2] = 1  # verl puts the reward at the last token, so there is one: the padding
    data.batch["responses"][2, 0] = tokenizer.eos_token_id
    settings = {"render": "rendering.render", "mode": "win_probability"}
    answer = reward_loop(**settings)[0].compute_rm_score(data)
    drawn = [
        Sample.edit(s.prompt_images[0], s.prompt_text, rendering.render(t, {"source_image": s.prompt_images[0]}))
        for s, t in zip(samples, ("a", "blue"), strict=False)
    ]
    plain = Sample.edit(samples[0].prompt_images[0], samples[0].prompt_text, samples[0].prompt_images[0])
    *scores, source = tiny.score([*drawn, plain])
    expected = [score.reward("win_probability", against=source) for score in scores]
    rewards = answer.batch["rm_scores"].sum(dim=1).tolist()
    assert rewards[:2] == pytest.approx(expected, abs=1e-5) and rewards[2] == 0
    assert answer.non_tensor_batch["jrm_render_error"].tolist() == [0, 0, 1]


# --- rows -------------------------------------------------------------------------------------------------------------

MESSAGES = [
    {"role": "system", "content": "You edit."},
    {
        "role": "user",
        "content": [{"type": "image", "bytes": b"1", "image": "picture"}, {"type": "text", "text": "first"}],
    },
    {"role": "assistant", "content": "done"},
    {"role": "user", "content": [{"type": "text", "text": "make it "}, {"type": "text", "text": " blue"}]},
]


GO = {"raw_prompt": [{"role": "user", "content": "go"}]}
TWO = ["a.png", "b.png"]


@pytest.mark.parametrize(
    ("columns", "instruction", "sources"),
    [
        ({"raw_prompt": objects(MESSAGES)}, "make it\nblue", [b"1"]),
        ({"raw_prompt": MESSAGES, "extra_info": {"instruction": "paint"}}, "paint", [b"1"]),
        ({"raw_prompt": MESSAGES, "instruction": "draw", "extra_info": {"instruction": "paint"}}, "draw", [b"1"]),
        ({"raw_prompt": MESSAGES, "extra_info": {"source_images": TWO}}, "make it\nblue", TWO),
        (GO | {"multi_modal_data": {"image": ["p"]}}, "go", ["p"]),
        (GO | {"multi_modal_data": {"images": objects(TWO)}}, "go", TWO),
        (GO, "go", []),
        ({"raw_prompt": MESSAGES, "instruction": np.array("scalar", dtype=object)}, "scalar", [b"1"]),
    ],
)
def test_what_a_row_takes_from_verls_columns(columns, instruction, sources):
    row = row_of(columns)
    assert (row["instruction"], row["source_images"]) == (instruction, sources)
    assert [message["role"] for message in row["prompt"]] == [message["role"] for message in columns["raw_prompt"]]


def test_a_single_source_in_a_column_is_kept():
    row = row_of({"raw_prompt": MESSAGES, "source_image": "a.png"})
    assert row["source_image"] == "a.png" and "source_images" not in row
