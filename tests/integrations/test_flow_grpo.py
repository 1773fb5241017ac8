"""JRM as a reward function of flow_grpo, called as its `multi_score` calls one."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from jrm_plugin import JRMError, RewardScorer, Sample
from jrm_plugin.integrations import flow_grpo
from jrm_plugin.integrations.flow_grpo import jrm_score
from jrm_plugin.synthetic.shape_edits import draw_edit


@pytest.fixture(scope="module")
def batch() -> dict:
    """Two candidates of each of three scenes, in mixed order, with each image's own source and instruction."""
    rng = np.random.default_rng(5)
    outcomes = [("none", "clean"), ("wrong_object", "blur")]
    edits = [draw_edit(rng, heldout=True, outcomes=outcomes) for _ in range(3)]
    order = [(0, 0), (2, 1), (1, 0), (0, 1), (1, 1), (2, 0)]
    return {
        "images": np.stack([edits[e].candidates[c].image for e, c in order]),
        "prompts": tuple(edits[e].instruction for e, _ in order),
        "ref_images": [Image.fromarray(edits[e].source) for e, _ in order],
    }


@pytest.fixture(scope="module")
def expected(tiny, batch) -> list:
    """Each image's score, computed alone."""
    triples = zip(batch["ref_images"], batch["prompts"], batch["images"], strict=True)
    return [tiny.score([Sample.edit(*each)])[0] for each in triples]


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in [name for name in os.environ if name.startswith("JRM_")]:
        monkeypatch.delenv(name)


def tensor(images: np.ndarray) -> torch.Tensor:
    """As diffusers returns images with `output_type="pt"`."""
    return torch.from_numpy(images).permute(0, 3, 1, 2) / 255


METADATA = [{"tag": "edit"}] * 6


@pytest.mark.parametrize(
    "form",
    [
        lambda images: images,
        lambda images: images.astype(np.float32) / 255,
        tensor,
        lambda images: tensor(images).half(),
        lambda images: torch.from_numpy(images).permute(0, 3, 1, 2),
        lambda images: [Image.fromarray(image) for image in images],
    ],
    ids=["uint8 array", "float array", "float tensor", "half tensor", "uint8 tensor", "PIL"],
)
def test_scores_are_the_scorers_own_in_every_form_and_in_order(tiny, batch, expected, form):
    reward = jrm_score("cpu", model=tiny)
    scores, details = reward(form(batch["images"]), batch["prompts"], METADATA, batch["ref_images"])
    assert details == {}
    assert scores == pytest.approx([score.mu["overall"] for score in expected], abs=1e-5)
    assert len({round(score, 3) for score in scores}) == 6


def test_source_images_in_every_place(tiny, batch, expected, tmp_path, monkeypatch):
    mu = [score.mu["overall"] for score in expected]
    reward = jrm_score("cpu", model=tiny)
    sources = np.stack([np.array(image) for image in batch["ref_images"]])
    for given in (sources, tensor(sources), [[image] for image in batch["ref_images"]]):
        assert reward(batch["images"], batch["prompts"], METADATA, given)[0] == pytest.approx(mu, abs=1e-5)

    rows = [{"image": f"generated/{number}.png"} for number in range(6)]
    (tmp_path / "generated").mkdir()
    for row, image in zip(rows, batch["ref_images"], strict=True):
        image.save(tmp_path / row["image"])
    found, _ = jrm_score("cpu", model=tiny, image_folder=tmp_path)(batch["images"], batch["prompts"], rows)
    assert found == pytest.approx(mu, abs=1e-5)
    monkeypatch.chdir(tmp_path)
    assert reward(batch["images"], batch["prompts"], rows)[0] == found
    held = [{"image": image} for image in batch["ref_images"]]
    assert reward(batch["images"], batch["prompts"], held)[0] == pytest.approx(mu, abs=1e-5)


def test_an_edit_of_two_sources(tiny, batch):
    pair = batch["ref_images"][:2]
    found, _ = jrm_score("cpu", model=tiny)(batch["images"][:1], batch["prompts"][:1], [{}], [pair])
    alone = tiny.score([Sample.edit(pair, batch["prompts"][0], batch["images"][0])])[0]
    assert found == pytest.approx([alone.mu["overall"]], abs=1e-5)


def test_generation_needs_no_source(tiny, batch):
    found, _ = jrm_score("cpu", model=tiny, task="generation")(tensor(batch["images"]), batch["prompts"], METADATA)
    pairs = zip(batch["prompts"], batch["images"], strict=True)
    alone = [tiny.score([Sample.generation(*each)])[0].mu["overall"] for each in pairs]
    assert found == pytest.approx(alone, abs=1e-5)


def test_any_scorer_may_stand_in_for_a_checkpoint(brightness):
    grey = np.stack([np.full((4, 4, 3), value, np.uint8) for value in (3, 7)])
    assert jrm_score("cpu", model=brightness, task="generation")(grey, ["a", "b"], [{}, {}]) == ([3.0, 7.0], {})


def test_lower_confidence_bound(tiny, batch, expected):
    reward = jrm_score("cpu", model=tiny, mode="lower_confidence_bound", k=2.0)
    found, _ = reward(batch["images"], batch["prompts"], METADATA, batch["ref_images"])
    assert found == pytest.approx([score.mu["overall"] - 2 * score.sigma["overall"] for score in expected], abs=1e-5)


def test_win_over_source(tiny, batch, expected):
    found, _ = jrm_score("cpu", model=tiny, mode="win_over_source")(
        batch["images"], batch["prompts"], METADATA, batch["ref_images"]
    )
    pairs = zip(batch["ref_images"], batch["prompts"], strict=True)
    unedited = [tiny.score([Sample.edit(source, prompt, source)])[0] for source, prompt in pairs]
    wins = [s.reward("win_probability", against=u) for s, u in zip(expected, unedited, strict=True)]
    assert found == pytest.approx(wins, abs=1e-5)


def test_made_with_the_device_alone_and_shared_by_training_and_evaluation(batch, expected, monkeypatch):
    # flow_grpo tells by this whether a reward takes the device, and gives nothing else.
    assert "device" in jrm_score.__code__.co_varnames
    monkeypatch.setenv("JRM_MODEL", "jrm-tiny")
    monkeypatch.setenv("JRM_MODE", "lower_confidence_bound")
    monkeypatch.setenv("JRM_TASK", "")
    loaded = []
    monkeypatch.setattr(
        RewardScorer,
        "from_pretrained",
        lambda *a, _load=RewardScorer.from_pretrained, **b: loaded.append(a) or _load(*a, **b),
    )
    flow_grpo._scorer.cache_clear()
    training, evaluation = (jrm_score(torch.device("cpu")) for _ in range(2))
    flow_grpo._scorer.cache_clear()
    assert loaded == [("jrm-tiny",)]
    arguments = (tensor(batch["images"]), batch["prompts"], METADATA, batch["ref_images"])
    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(reward, *arguments) for reward in (training, evaluation) * 4]
        found = [call.result()[0] for call in calls]
    bound = [score.mu["overall"] - score.sigma["overall"] for score in expected]
    assert all(scores == pytest.approx(bound, abs=1e-5) for scores in found)


def test_arguments_go_before_variables(tiny, batch, expected, monkeypatch):
    monkeypatch.setenv("JRM_MODEL", "no/such/model")
    monkeypatch.setenv("JRM_TASK", "generation")
    reward = jrm_score("cpu", model=tiny, task="edit")
    found, _ = reward(batch["images"][:1], batch["prompts"][:1], [{}], batch["ref_images"][:1])
    assert found == pytest.approx([expected[0].mu["overall"]], abs=1e-5)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"model": None}, "no reward model is named: set the variable JRM_MODEL"),
        ({"model": "no/such/model/anywhere"}, "no/such/model/anywhere"),
        ({"task": "video"}, "must be edit, generation or response, not 'video'"),
        ({"task": "response"}, "flow_grpo makes images"),
        ({"mode": "median"}, "unknown reward mode 'median'"),
        (
            {"mode": "win_rate"},
            "and flow_grpo spreads the images .*; use mean, lower_confidence_bound, entropic or",
        ),
        ({"mode": "lower_confidence_bound", "k": -1.0}, "must be at least 0"),
        ({"mode": "entropic", "beta": -1.0}, "beta of an entropic reward must be above 0"),
        ({"dimension": "beauty"}, "the reward model has no dimension 'beauty'"),
    ],
)
def test_wrong_settings_are_one_sentence(tiny, arguments, message):
    with pytest.raises(JRMError, match=message):
        jrm_score("cpu", **{"model": tiny} | arguments)


def test_an_unknown_variable_is_named(monkeypatch):
    monkeypatch.setenv("JRM_MODLE", "x")
    with pytest.raises(JRMError, match="JRM_MODLE means nothing to jrm_score; it reads JRM_MODEL"):
        jrm_score("cpu")


GREEN = np.full((2, 8, 8, 3), (0, 255, 0), np.uint8)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"images": GREEN[0]}, r"an array of images must have the shape \[N, H, W, 3\], not \[8, 8, 3\]"),
        (
            {"images": tensor(GREEN)[:, :1]},
            r"a tensor of images must have the shape \[N, 3, H, W\], not \[2, 1, 8, 8\]",
        ),
        ({"images": tensor(GREEN)[None]}, r"not \[1, 2, 3, 8, 8\]"),
        ({"images": tensor(GREEN).int()}, "floats in .0, 1. or uint8, not torch.int32"),
        ({"images": tensor(GREEN) * torch.tensor([1, 255]).view(2, 1, 1, 1)}, "images: number 1 of the float tensor"),
        ({"images": tensor(GREEN) * float("nan")}, "images: number 0 of the float tensor .* or NaN"),
        ({"images": GREEN.astype(np.int64)}, "image 0 cannot be scored: .*not int64"),
        ({"images": [Image.fromarray(GREEN[0]), None]}, "image 1 cannot be scored: .*not nothing"),
        ({"prompts": ["a"]}, "gave 2 images and 1 prompts"),
        ({"prompts": ["a", ""]}, "image 1 cannot be scored: the instruction is empty"),
        ({"ref_images": [Image.fromarray(GREEN[0])]}, "gave 2 images and 1 ref_images"),
        ({"ref_images": tensor(GREEN)[:, :, 0]}, "a tensor of ref_images must have the shape"),
        ({"ref_images": [Image.fromarray(GREEN[0]), None]}, "image 1 cannot be scored: its row has no source image"),
        ({"ref_images": None}, "image 0 has no source image: call the reward with ref_images"),
        ({"ref_images": None, "metadata": [{"image": Image.fromarray(GREEN[0])}]}, "gave 2 images and 1 metadata"),
        ({"ref_images": None, "metadata": [{"image": "no.png"}] * 2}, "'no.png' does not exist"),
    ],
)
def test_what_cannot_be_scored_is_named(tiny, given, message):
    arguments = {"images": GREEN, "prompts": ["a", "b"], "metadata": [{}, {}], "ref_images": GREEN} | given
    with pytest.raises(JRMError, match=message):
        jrm_score("cpu", model=tiny)(**arguments)


def test_needs_no_framework():
    forbidden = ("flow_grpo", "diffusers", "trl", "verl", "ray")
    code = f"import sys, jrm_plugin.integrations.flow_grpo; print([m for m in {forbidden} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
