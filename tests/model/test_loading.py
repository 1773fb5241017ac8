"""A model and its processor in one call, and files that do not belong together."""

import json
from shutil import copytree

import pytest

from jrm_plugin import JRMForRewardModeling, JRMProcessor
from jrm_plugin.errors import JRMError
from jrm_plugin.model.checkpoint import built_in_folder
from jrm_plugin.model.loading import checkpoint_digest, load


def test_a_folder_and_a_built_in_name_load_alike(tmp_path):
    copytree(built_in_folder("jrm-tiny"), tmp_path / "copy")
    (model, processor), (same, same_processor) = load("jrm-tiny"), load(tmp_path / "copy", max_pixels=48 * 48)
    assert {name: weight.sum().item() for name, weight in model.state_dict().items()} == {
        name: weight.sum().item() for name, weight in same.state_dict().items()
    }
    assert repr(processor) == repr(same_processor)
    assert (model.name_or_path, same.name_or_path) == ("jrm-tiny", str(tmp_path / "copy"))
    assert JRMForRewardModeling.from_pretrained("jrm-tiny").config.dimensions == model.config.dimensions
    assert JRMProcessor.from_pretrained("jrm-tiny").rubrics == processor.rubrics


@pytest.mark.parametrize(
    ("file", "key", "value", "message"),
    [
        ("config.json", "dimensions", ["beauty", "truth"], "the model scores beauty, truth but its processor is for"),
        ("config.json", "reward_token_id", 7, "the model's reward token is 7 and its processor's is"),
    ],
)
def test_files_of_two_checkpoints_are_refused(tmp_path, file, key, value, message):
    copytree(built_in_folder("jrm-tiny"), tmp_path / "mixed")
    path = tmp_path / "mixed" / file
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(JRMError, match=f"{message}.*do not belong together"):
        load(tmp_path / "mixed")


def test_a_digest_tells_one_changed_byte_of_the_weights_and_of_what_adapters_adapt(tmp_path):
    base, adapters = tmp_path / "base", tmp_path / "adapters"
    copytree(built_in_folder("jrm-tiny"), base)
    adapters.mkdir()
    (adapters / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    before = checkpoint_digest(base), checkpoint_digest(adapters)
    assert before == (checkpoint_digest(base), checkpoint_digest(adapters))
    with (base / "model.safetensors").open("r+b") as weights:
        middle = weights.seek(0, 2) // 2
        weights.seek(middle)
        byte = weights.read(1)[0]
        weights.seek(middle)
        weights.write(bytes([byte ^ 1]))
    assert checkpoint_digest(base) != before[0] and checkpoint_digest(adapters) != before[1]
