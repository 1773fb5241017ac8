"""JRM inside verl's own reward loop: real reward workers, a real pool of scorers, real Ray."""

import asyncio
import io
import json
import os
import signal
import threading
from collections.abc import Iterator

import foreign_peers
import numpy as np
import pytest
import rendering
import torch

pytest.importorskip("verl")

import ray  # noqa: E402
from hydra import compose, initialize_config_module  # noqa: E402
from omegaconf import open_dict  # noqa: E402
from PIL import Image  # noqa: E402
from verl import DataProto  # noqa: E402
from verl.experimental.reward_loop import RewardLoopManager  # noqa: E402
from verl.trainer.ppo.ray_trainer import compute_advantage  # noqa: E402
from verl.trainer.ppo.reward import load_reward_manager  # noqa: E402
from verl.utils import hf_tokenizer  # noqa: E402

from jrm_plugin import JRMError, RewardScorer, Sample  # noqa: E402
from jrm_plugin.integrations.ray import ScorerPool, shared_pool  # noqa: E402
from jrm_plugin.integrations.verl.reward_manager import row_of  # noqa: E402
from jrm_plugin.integrations.verl.settings import settings_of  # noqa: E402
from jrm_plugin.model.checkpoint import built_in_folder  # noqa: E402
from jrm_plugin.model.foreign.conversion import convert  # noqa: E402

pytestmark = pytest.mark.usefixtures("ray_cluster")

FLOOR = -20.0


def make_config(workers: int = 1, **settings):
    """verl's own config with JRM; `settings` are keys of `reward.jrm`."""
    settings = {"model_path": "jrm-tiny", "device": "cpu"} | settings
    overrides = [f"reward.jrm.{name}={value}" for name, value in settings.items()]
    tokenizer = f"actor_rollout_ref.model.path={built_in_folder('jrm-tiny')}"
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", overrides=["reward=jrm", f"reward.num_workers={workers}", tokenizer, *overrides])


@pytest.fixture(scope="module")
def reward_loop() -> Iterator[tuple[RewardLoopManager, ScorerPool]]:
    """verl's manager with four reward workers, and the pool that they use."""
    config = make_config(workers=4, replicas=2)
    manager = RewardLoopManager(config)
    yield manager, shared_pool(settings_of(config.reward.jrm).scorers())
    for worker in manager.reward_loop_workers:
        ray.kill(worker)


def rewards_of(data: DataProto, **settings) -> list[dict]:
    """What a reward worker's manager answers for each row, all asked for at once; it runs in this process."""
    manager = load_reward_manager(make_config(**settings), hf_tokenizer(built_in_folder("jrm-tiny")))

    async def each():
        return await asyncio.gather(*(manager.run_single(data[k : k + 1]) for k in range(len(data))))

    return asyncio.run(each())


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
    assert not extra["jrm_invalid_answer"].any() and not extra["jrm_unscorable"].any()
    assert set(answer.meta_info["reward_extra_keys"]) == set(extra)


def test_256_samples_of_4_workers_though_a_scorer_is_killed(reward_loop, tiny, group_of):
    samples = [sample for seed in range(16) for sample in group_of(seed, 16, size=96)]
    expected = tiny.score(samples)
    manager, pool = reward_loop
    data = batch_of(samples, edited_image=edited(samples))
    assert_rewards(manager.compute_rm_score(data), expected)
    done = asyncio.run(pool.statistics())
    assert sum(one.samples for one in done) == 256
    assert 256 / sum(one.batches for one in done) >= 8
    assert sum(one.image_misses for one in done) == 16 + 256  # a source is encoded once

    victim = done[0].pid
    os.kill(victim, signal.SIGSTOP)  # so that none of its calls is answered before it dies
    killer = threading.Timer(2, os.kill, (victim, signal.SIGKILL))
    killer.start()
    answer = manager.compute_rm_score(data)
    killer.join()
    assert_rewards(answer, expected)
    assert victim not in {one.pid for one in asyncio.run(pool.statistics())}


def one_undecodable(samples: list[Sample]) -> DataProto:
    """The sixth image breaks off."""
    images = edited(samples)
    images[5] = images[5][:150]
    return batch_of(samples, edited_image=images)


def test_an_undecodable_image_ends_the_run(reward_loop, group_of):
    manager, _ = reward_loop
    with pytest.raises(ray.exceptions.RayTaskError, match="a rollout cannot be scored: .*image"):
        manager.compute_rm_score(one_undecodable(group_of(3, 8)))


def test_an_undecodable_image_earns_the_floor_if_asked_for(tiny, group_of):
    samples, good = group_of(3, 8), [0, 1, 2, 3, 4, 6, 7]
    answers = rewards_of(one_undecodable(samples), on_error="floor", floor=FLOOR)
    rewards, extra = [a["reward_score"] for a in answers], [a["reward_extra_info"] for a in answers]
    expected = tiny.score([samples[k] for k in good])
    assert rewards[5] == FLOOR
    assert [rewards[k] for k in good] == pytest.approx([s.reward() for s in expected], abs=1e-5)
    assert [one["jrm_unscorable"] for one in extra] == [float(k == 5) for k in range(8)]
    assert (extra[5]["jrm_overall_mu"], extra[5]["jrm_overall_sigma"]) == (FLOOR, 0)  # no NaN, which means would spread
    assert not any(one["jrm_invalid_answer"] for one in extra)
    assert {frozenset(one) for one in extra} == {frozenset(extra[0])}  # verl takes the keys from the first row


def test_rendered_text_and_the_win_over_the_source(tiny, group_of):
    """The policy's text is drawn by a function named in the config; a text that cannot be drawn earns the floor."""
    samples = group_of(4, 3)
    tokenizer = tiny.processor.tokenizer
    texts = ["a", "blue", ""]
    ids = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    sources = [sample.prompt_images[0] for sample in samples]
    data = batch_of(samples, texts=ids, source_image=sources)
    answers = rewards_of(data, render="rendering.render", mode="win_over_source")
    drawn = [
        Sample.edit(source, sample.prompt_text, rendering.render(text, {"source_image": source}))
        for sample, source, text in zip(samples[:2], sources, texts, strict=False)
    ]
    *scores, source = tiny.score([*drawn, Sample.edit(sources[0], samples[0].prompt_text, sources[0])])
    expected = [score.reward("win_probability", against=source) for score in scores]
    assert [a["reward_score"] for a in answers] == pytest.approx([*expected, 0], abs=1e-5)
    assert [a["reward_extra_info"]["jrm_invalid_answer"] for a in answers] == [0, 0, 1]


def test_a_dimension_is_the_reward_and_rollouts_are_kept(tiny, group_of, tmp_path):
    samples = group_of(8, 4)
    images = edited(samples)
    images[1] = b"no image"
    kept = {"save_images": 2, "save_folder": str(tmp_path / "kept")}
    floor = {"on_error": "floor", "floor": FLOOR}
    data = batch_of(samples, edited_image=images, global_steps=[7] * 4, uid=["a", "a", "b", "b"])
    answers = rewards_of(data, dimension="visual_quality", **kept, **floor)
    good = [0, 2, 3]
    expected = dict(zip(good, tiny.score([samples[k] for k in good]), strict=True))
    for k, answer in enumerate(answers):
        wanted = expected[k].mu["visual_quality"] if k in good else FLOOR
        assert answer["reward_score"] == pytest.approx(wanted, abs=1e-5)
    (file,) = (tmp_path / "kept").glob("*/metadata.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(lines) == 2  # of the three that were scored, in whichever order that was
    for line in lines:
        (k,) = [k for k in good if line["mu_overall"] == pytest.approx(expected[k].mu["overall"], abs=1e-5)]
        assert line["reward"] == answers[k]["reward_score"]
        assert (line["step"], line["uid"], line["instruction"]) == (7, "aabb"[k], samples[k].prompt_text)
        with Image.open(file.with_name(line["file_name"])) as image:
            assert np.array_equal(image, Image.open(io.BytesIO(images[k])))
    with pytest.raises(JRMError, match="the reward model has no dimension 'beauty'; take instruction_following, vis"):
        rewards_of(data, dimension="beauty")


# --- a reward for each dimension --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["mean", "lower_confidence_bound", "entropic", "win_over_source"])
def test_gdpo_by_configuration_alone_whatever_cannot_be_scored(tiny, group_of, mode):
    """verl's own GDPO on our keys, with invalid and unscorable rollouts among two groups, against numpy."""
    groups = [group_of(9, 4), group_of(10, 4)]
    samples = [sample for group in groups for sample in group]
    texts = ["a", "blue", "", "red circle", "", "green", "a", "blue"]
    ids = [tiny.processor.tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    sources = [sample.prompt_images[0] for sample in samples]
    sources[6] = b"no image"
    data = batch_of(samples, texts=ids, source_image=sources)
    answers = rewards_of(data, render="rendering.render", mode=mode, k=0.5, beta=2.0, on_error="floor", floor=FLOOR)
    extra = {
        name: np.array([a["reward_extra_info"][name] for a in answers]) for name in answers[0]["reward_extra_info"]
    }
    assert extra["jrm_invalid_answer"].tolist() == [0, 0, 1, 0, 1, 0, 0, 0]
    assert extra["jrm_unscorable"].tolist() == [0, 0, 0, 0, 0, 0, 1, 0]
    assert all(np.isfinite(values).all() for name, values in extra.items() if name != "jrm_mode")
    assert extra["jrm_overall"].tolist() == [a["reward_score"] for a in answers]
    for k in (0, 1, 3, 5, 7):
        picture = rendering.render(texts[k], {"source_image": sources[k]})
        edits = [Sample.edit(sources[k], samples[k].prompt_text, image) for image in (picture, sources[k])]
        edit, unedited = tiny.score(edits)
        for name in edit.mu:
            wanted = {
                "mean": edit.mu[name],
                "lower_confidence_bound": edit.mu[name] - 0.5 * edit.sigma[name],
                "entropic": edit.mu[name] - edit.sigma[name] ** 2 / 4,
                "win_over_source": edit.reward("win_probability", dimension=name, against=unedited),
            }[mode]
            assert extra[f"jrm_{name}"][k] == pytest.approx(wanted, abs=1e-4)

    keys, weights = ["jrm_instruction_following", "jrm_visual_quality"], [1.0, 0.5]
    config = make_config()
    with open_dict(config):
        config.algorithm.adv_estimator = "gdpo"
        config.algorithm.gdpo_reward_keys, config.algorithm.gdpo_reward_weights = keys, weights
    mask, uid = data.batch["attention_mask"][:, 2:], np.repeat(["one", "two"], 4)
    data = DataProto.from_dict(
        {**data.batch, "response_mask": mask, "token_level_rewards": torch.zeros(8, 4)},
        non_tensors={"uid": uid, **extra},
    )
    found = compute_advantage(data, config.algorithm.adv_estimator, config=config.algorithm).batch["advantages"]
    rewards = np.stack([extra[key] for key in keys], axis=1).reshape(2, 4, 2)
    normal = (rewards - rewards.mean(axis=1, keepdims=True)) / (rewards.std(axis=1, ddof=1, keepdims=True) + 1e-6)
    total = np.repeat((normal @ weights).reshape(8, 1), 4, axis=1)
    tokens = total[mask.bool().numpy()]  # verl whitens over the tokens of the batch
    expected = (total - tokens.mean()) / np.sqrt(tokens.var(ddof=1) + 1e-8) * mask.numpy()
    assert np.isfinite(found.numpy()).all() and found.abs().max() > 0.5
    assert found.numpy() == pytest.approx(expected, abs=1e-3)


# --- one of several rewards -------------------------------------------------------------------------------------------


def test_function_for_one_of_several_rewards_beside_verls_own_manager(tiny, group_of):
    """`custom_reward_function` with verl's manager `naive`: by itself, and inside a function of the user's."""
    samples = group_of(6, 3)
    with initialize_config_module("verl.trainer.config", version_base=None):
        tokenizer = f"actor_rollout_ref.model.path={built_in_folder('jrm-tiny')}"
        config = compose("ppo_trainer", overrides=[tokenizer])
    texts = ["a", "blue", ""]
    ids = [tiny.processor.tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    extra = [{"instruction": s.prompt_text, "source_image": s.prompt_images[0], "index": 3} for s in samples]
    tables = {"data_source": ["edits"] * 3, "reward_model": [{"ground_truth": "not read"}] * 3, "extra_info": extra}
    data = batch_of(samples, texts=ids, **tables)
    with open_dict(config):
        given = {"model_path": "jrm-tiny", "device": "cpu", "render": "rendering.render", "floor": FLOOR}
        config.reward.custom_reward_function.reward_kwargs = given

    def rewards(path: str, name: str) -> list[dict]:
        config.reward.custom_reward_function.path, config.reward.custom_reward_function.name = path, name

        async def each():  # verl's manager belongs to the event loop in which it is made
            manager = load_reward_manager(config, hf_tokenizer(built_in_folder("jrm-tiny")))
            return await asyncio.gather(*(manager.run_single(data[k : k + 1]) for k in range(3)))

        return asyncio.run(each())

    drawn = [
        Sample.edit(one["source_image"], one["instruction"], rendering.render(text, one))
        for one, text in zip(extra[:2], texts, strict=False)
    ]
    expected = [*(score.reward() for score in tiny.score(drawn)), FLOOR]
    alone = rewards("pkg://jrm_plugin.integrations.verl", "compute_score_jrm")
    assert [one["reward_score"] for one in alone] == pytest.approx(expected, abs=1e-5)
    assert [one["reward_extra_info"]["jrm_invalid_answer"] for one in alone] == [0, 0, 1]
    both = rewards("pkg://rendering", "jrm_and_brevity")
    assert [one["reward_score"] for one in both] == pytest.approx(
        [value - len(text) for value, text in zip(expected, texts, strict=True)], abs=1e-5
    )
    assert both[0]["reward_extra_info"]["brevity"] == -1


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


def test_a_converted_checkpoint_rewards(backbone_folder, group_of, tmp_path):
    """An EditReward checkpoint, through the pool: the scores of its own replica."""
    peer = foreign_peers.make_peer("editreward", "qwen2_5_vl", backbone_folder("qwen2_5_vl"), tmp_path)
    convert(peer.write(tmp_path / "theirs"), tmp_path / "ours", base=str(peer.base), prompts=peer.prompts)
    samples = group_of(5, 4)
    answers = rewards_of(batch_of(samples, edited_image=edited(samples)), model_path=str(tmp_path / "ours"))
    expected = RewardScorer.from_pretrained(tmp_path / "ours", device="cpu").score(samples)
    rewards = [answer["reward_score"] for answer in answers]
    assert rewards == pytest.approx([score.reward() for score in expected], abs=1e-5)
    assert len(set(rewards)) == len(rewards)


def test_a_server_scores_as_the_model_itself(tiny, group_of, reward_server):
    samples = [*group_of(31, 3), *group_of(32, 2)]
    data = batch_of(samples, edited_image=edited(samples))
    answers = rewards_of(data, model_path=reward_server, device="null")
    expected = [score.mu["overall"] for score in tiny.score(samples)]
    assert [answer["reward_score"] for answer in answers] == pytest.approx(expected, abs=1e-5)
