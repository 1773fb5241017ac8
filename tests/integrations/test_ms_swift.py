"""The plug-in file for ms-swift, loaded and asked as its GRPO does: `callers/swift` stands for the framework."""

import importlib
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from jrm_plugin import JRMError, Sample, group_rewards

ROOT = Path(__file__).parents[2]
CALLERS = Path(__file__).parent / "callers"


@pytest.fixture(scope="module")
def swift():
    """The framework, with the plug-in imported by its file's name from its folder, as `--external_plugins` does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(CALLERS))
        patch.syspath_prepend(str(ROOT / "examples" / "ms_swift"))
        rewards = importlib.import_module("swift.rewards")
        importlib.import_module("jrm_rewards")
        yield rewards


@pytest.fixture(autouse=True)
def variables(monkeypatch):
    for name in [name for name in os.environ if name.startswith("JRM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("JRM_MODEL", "jrm-tiny")
    monkeypatch.setenv("JRM_DEVICE", "cpu")
    return monkeypatch


def row(sample: Sample, text: str = "", **columns) -> dict:
    images = [{"bytes": image, "path": None} for image in sample.prompt_images]
    question = {"role": "user", "content": f"<image>{sample.prompt_text}"}
    return {"messages": [question, {"role": "assistant", "content": text}], "images": images, **columns}


def test_it_is_registered_and_scores_by_dimension(swift, tiny, group_of):
    samples = group_of(5, 3)
    rows = [row(sample, edited_image=sample.response_images[0], prompt_id="p") for sample in samples]
    names = ["jrm", "jrm_instruction_following", "jrm_visual_quality"]
    found = swift.rewards_of(names, rows, SimpleNamespace(global_step=3))
    expected = [[s.mu[name] for name in ("overall", *tiny.dimensions)] for s in tiny.score(samples)]
    assert torch.allclose(found, torch.tensor(expected), atol=1e-5)


def test_texts_are_scored_and_what_cannot_be_has_no_reward(swift, tiny, variables):
    variables.setenv("JRM_TASK", "response")
    variables.setenv("JRM_ON_ERROR", "leave_out")
    variables.setenv("JRM_FLOOR", "-5")
    good = {"messages": [{"role": "user", "content": "why"}, {"role": "assistant", "content": "so"}]}
    empty = {"messages": [{"role": "user", "content": "why"}, {"role": "assistant", "content": " "}]}
    broken = good | {"images": [{"bytes": b"no image", "path": None}]}
    found = swift.rewards_of(["jrm"], [good, empty, broken])[:, 0]
    (score,) = tiny.score([Sample.text_response(None, "why", "so")])
    assert found[:2].tolist() == pytest.approx([score.mu["overall"], -5.0], abs=1e-5)
    assert found[2].isnan()


def test_groups_are_told_by_the_prompt_id_or_the_conversation(swift, tiny, group_of, variables):
    variables.setenv("JRM_MODE", "win_rate")
    samples = [*group_of(5, 2), *group_of(6, 2)]
    expected = [p for k in (0, 2) for p in group_rewards(tiny.score(samples[k : k + 2]), "win_rate")]
    for ids in (["a", "a", "b", "b"], [None] * 4):
        rows = [row(s, edited_image=s.response_images[0], prompt_id=i) for s, i in zip(samples, ids, strict=True)]
        assert swift.rewards_of(["jrm"], rows)[:, 0].tolist() == pytest.approx(expected, abs=1e-5)


def test_mistakes_are_one_sentence(swift, group_of, variables):
    (sample,) = group_of(5, 1)
    with pytest.raises(JRMError, match=r"needs edited_image \(or give render\)"):
        swift.rewards_of(["jrm"], [row(sample)])
    variables.setenv("JRM_MODLE", "x")
    with pytest.raises(JRMError, match="JRM_MODLE means nothing to the JRM plug-in of ms-swift"):
        swift.rewards_of(["jrm"], [])
