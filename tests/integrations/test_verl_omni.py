"""verl-omni's two ways to JRM, called as verl-omni calls them, over a real pool of scorers.

verl-omni itself is not imported: it pulls diffusers and a GPU's libraries. The manager stands on verl's own base class,
which is the parent of verl-omni's managers too; batches and keyword calls are made here in the form that they have
there.
"""

import asyncio
import inspect
import io

import numpy as np
import pytest
import torch

pytest.importorskip("verl")

from omegaconf import OmegaConf  # noqa: E402
from PIL import Image  # noqa: E402
from verl import DataProto  # noqa: E402
from verl.trainer.ppo.reward import load_reward_manager  # noqa: E402

from jrm_plugin import JRMError, Sample  # noqa: E402
from jrm_plugin.integrations.verl_omni import JRMVisualRewardManager, compute_score_jrm  # noqa: E402

pytestmark = pytest.mark.usefixtures("ray_cluster")

SETTINGS = {"model_path": "jrm-tiny", "device": "cpu"}


def tensor(image: bytes, *, floats: bool = False) -> torch.Tensor:
    pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(image)).convert("RGB"))).permute(2, 0, 1)
    return pixels.float() / 255 if floats else pixels


def manager(**settings) -> JRMVisualRewardManager:
    """Found by path, as verl-omni's configs name a manager."""
    chosen = {"source": "importlib", "name": "JRMVisualRewardManager"}
    chosen["module"] = {"path": "pkg://jrm_plugin.integrations.verl_omni"}
    reward = {"reward_manager": chosen, "custom_reward_function": {"path": None}, "jrm": SETTINGS | settings}
    return load_reward_manager(OmegaConf.create({"reward": reward}), tokenizer=None)


def rows(samples: list[Sample], images: torch.Tensor) -> DataProto:
    prompts = np.empty(len(samples), dtype=object)
    for number, sample in enumerate(samples):
        (source,) = sample.prompt_images
        labelled = [
            {"type": "text", "text": "Picture 1: "},
            {"type": "image", "bytes": source, "image": Image.open(io.BytesIO(source))},
            {"type": "text", "text": sample.prompt_text},
        ]
        prompts[number] = [{"role": "system", "content": "Describe."}, {"role": "user", "content": labelled}]
    info = np.array([{"index": k, "image": "only-a-name.png"} for k in range(len(samples))], dtype=object)
    tensors = {"prompts": torch.ones(len(samples), 3, dtype=torch.long), "responses": images}
    return DataProto.from_dict(tensors, non_tensors={"raw_prompt": prompts, "extra_info": info})


@pytest.mark.parametrize("floats", [False, True])
def test_manager_scores_the_image_with_the_source_of_the_prompt(tiny, group_of, floats):
    samples = group_of(5, 4)
    data = rows(samples, torch.stack([tensor(s.response_images[0], floats=floats) for s in samples]))
    jrm = manager()

    async def each():
        return await asyncio.gather(*(jrm.run_single(data[k : k + 1]) for k in range(4)))

    answers, expected = asyncio.run(each()), tiny.score(samples)
    assert [a["reward_score"] for a in answers] == pytest.approx([s.reward() for s in expected], abs=1e-5)
    assert answers[2]["reward_extra_info"]["jrm_visual_quality_sigma"] == pytest.approx(
        expected[2].sigma["visual_quality"], abs=1e-5
    )
    scores = jrm.assemble_rm_scores(data, [a["reward_score"] for a in answers])
    assert scores.shape == (4, 1) and scores.dtype == torch.float32


def scored(sample: Sample, image: torch.Tensor, *, ground_truth: str = "not read", **rest) -> dict:
    """One call by keyword, from a worker's event loop."""
    extra_info = rest.pop("extra_info", {"source_image": sample.prompt_images[0], "instruction": sample.prompt_text})
    call = {"data_source": "edits", "solution_image": image, "ground_truth": ground_truth, "extra_info": extra_info}
    return asyncio.run(compute_score_jrm(**call, **SETTINGS, **rest))


def test_scorer_is_awaited_and_answers_with_its_extras(tiny, group_of):
    assert inspect.iscoroutinefunction(compute_score_jrm)
    (sample,) = group_of(6, 1)
    (expected,) = tiny.score([sample])
    image = tensor(sample.response_images[0])
    source = {"source_img": sample.prompt_images[0]}
    for answer in (
        scored(sample, image, reward_router_address=None, reward_model_tokenizer=None),
        scored(sample, image, extra_info=source, ground_truth=sample.prompt_text),
    ):
        assert answer["score"] == pytest.approx(expected.reward(), abs=1e-5)
        assert answer["jrm_overall_mu"] == pytest.approx(expected.mu["overall"], abs=1e-5)
        assert answer["jrm_mode"] == "mean"
    cautious = scored(sample, image, mode="lower_confidence_bound", k=2.0)
    assert cautious["score"] == pytest.approx(expected.reward("lower_confidence_bound", k=2.0), abs=1e-5)


def test_mistakes(group_of):
    (sample,) = group_of(6, 1)
    image = tensor(sample.response_images[0])
    with pytest.raises(JRMError, match="needs source_image .* in the dataset"):
        scored(sample, image, extra_info={"instruction": "paint"})
    with pytest.raises(JRMError, match="JRM scores one image .*; videos are not scored"):
        scored(sample, image[None])
    with pytest.raises(JRMError, match="responses: number 0 of the float tensor holds values outside of 0 to 1"):
        scored(sample, image.float())
    with pytest.raises(JRMError, match="must hold floats in .* or uint8, not torch.int64"):
        scored(sample, image.long())
    with pytest.raises(JRMError, match="reward.jrm has no key weigth"):
        scored(sample, image, weigth=1)
    missing = scored(sample, image, extra_info={"instruction": "paint"}, on_error="floor", floor=-9.0)
    assert (missing["score"], missing["jrm_unscorable"]) == (-9.0, 1.0)
