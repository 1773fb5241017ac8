"""JRM as components of a reward that verl-omni keeps apart (`reward.aggregation: preserve_components`).

verl-omni itself is not imported. `run_batch` does what its manager of such rewards does with the module of each entry,
written anew after its public behaviour.
"""

import gc
import weakref

import numpy as np
import pytest
import torch

pytest.importorskip("verl")

from verl import DataProto  # noqa: E402
from verl.utils.import_utils import load_module  # noqa: E402

from jrm_plugin import JRMError, Sample  # noqa: E402
from jrm_plugin.integrations import verl_omni  # noqa: E402
from jrm_plugin.records.images import load_image  # noqa: E402

ENTRY = {"path": "pkg://jrm_plugin.integrations.verl_omni", "required": True, "micro_batch_size": 2}
ENTRY |= {"model_path": "jrm-tiny", "routing_weights": {"video": 1.0, "audio": 0.0}}


def batch_of(samples: list[Sample]) -> DataProto:
    images = [np.array(load_image(sample.response_images[0])) for sample in samples]
    info = [
        {"instruction": s.prompt_text} | ({"source_image": s.prompt_images[0]} if s.prompt_images else {})
        for s in samples
    ]
    uids = [f"sample-{number}" for number in range(len(samples))]
    return DataProto.from_dict(
        {"responses": torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)},
        non_tensors={"extra_info": np.array(info, dtype=object), "sample_uid": np.array(uids, dtype=object)},
    )


def run_batch(entries: dict[str, dict], data: DataProto) -> dict:
    """The reward matrix of a batch, a column an entry; one entry after the other is active."""
    columns, masks, told = [], [], {}
    for name, entry in entries.items():
        config = dict(entry)
        module = load_module(config.pop("path"))
        assert config.pop("required") is True
        size = config.pop("micro_batch_size")
        config.pop("routing_weights", None)
        state = module.initialize(**config)
        try:
            module.activate(state, torch.device("cpu"))
            result = module.score_batch(state, data, micro_batch_size=size)
        finally:
            module.deactivate(state)
        columns.append(result["scores"].to(dtype=torch.float32))
        masks.append(result["valid_mask"])
        told[name] = {key: result[key] for key in ("metrics", "model_revision", "definition_version")}
        module.finalize(state)
    return {"rm_scores": torch.stack(columns, dim=1), "valid": torch.stack(masks, dim=1), "told": told}


def test_each_dimension_is_a_column_of_the_reward_matrix(tiny, group_of):
    samples = [*group_of(5, 3), *group_of(6, 2)]
    entries = {name: ENTRY | {"dimension": name} for name in tiny.dimensions}
    answer, expected = run_batch(entries, batch_of(samples)), tiny.score(samples)
    wanted = torch.tensor([[score.mu[name] for name in entries] for score in expected])
    torch.testing.assert_close(answer["rm_scores"], wanted, atol=1e-5, rtol=0)
    assert answer["rm_scores"].dtype == torch.float32 and answer["valid"].dtype == torch.bool
    assert answer["valid"].shape == (5, 2) and answer["valid"].all()
    told = answer["told"]["visual_quality"]
    assert told["metrics"]["visual_quality/mu"] == pytest.approx(wanted[:, 1].mean().item(), abs=1e-5)
    assert told["model_revision"] and told["definition_version"].startswith("jrm-plugin ")


def test_what_cannot_be_scored_has_the_floor_and_the_others_keep_their_reward(tiny, group_of):
    first, second = group_of(5, 2)
    sourceless = Sample.generation(first.prompt_text, first.response_images[0])
    unedited = Sample.edit(second.prompt_images[0], second.prompt_text, second.prompt_images[0])
    entry = ENTRY | {"on_error": "floor", "floor": -9.0, "unedited": "floor", "mode": "lower_confidence_bound"}
    scores = run_batch({"jrm": entry}, batch_of([first, sourceless, unedited, second]))["rm_scores"][:, 0]
    kept = [score.reward("lower_confidence_bound") for score in tiny.score([first, second])]
    assert scores.tolist() == pytest.approx([kept[0], -9.0, -9.0, kept[1]], abs=1e-5)
    with pytest.raises(JRMError, match="rollout 1"):
        run_batch({"jrm": ENTRY}, batch_of([first, sourceless]))


def test_the_model_is_there_only_while_the_component_is_active(group_of):
    component = verl_omni.initialize(model_path="jrm-tiny")
    data = batch_of(group_of(5, 2))
    with pytest.raises(JRMError, match="this component of the reward is not active"):
        verl_omni.score_batch(component, data, micro_batch_size=1)
    first = None
    for _ in range(2):
        verl_omni.activate(component, "cpu")
        scores = verl_omni.score_batch(component, data, micro_batch_size=1)["scores"]
        first = scores if first is None else first
        assert torch.equal(scores, first)
        model = weakref.ref(component.judge.scorer.model)
        verl_omni.deactivate(component)
        gc.collect()
        assert model() is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device is there")
def test_a_device_by_its_number_is_the_accelerators():
    with pytest.raises(JRMError, match="cuda:0"):
        verl_omni.activate(verl_omni.initialize(model_path="jrm-tiny"), 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "the settings of a component of the reward have no model_path; give a JRM folder"),
        ({"model_path": "jrm-tiny", "weight": 1.0}, "a component of the reward has no key weight; its keys are task"),
        ({"model_path": "jrm-tiny", "mode": "win_rate"}, "mode win_rate compares the candidates of a group"),
        ({"model_path": "jrm-tiny", "on_error": "leave_out"}, "verl needs one for every rollout"),
    ],
)
def test_wrong_settings_are_one_sentence(settings, message):
    with pytest.raises(JRMError, match=message):
        verl_omni.initialize(**settings)
