"""The model card that every save writes."""

import re

import pytest
import yaml

from jrm_plugin.integrations.trl import JointRewardConfig, TrainArguments, train
from jrm_plugin.synthetic.shape_edits import SHAPE_EDITS


@pytest.fixture(scope="module")
def run_folder(backbone_folder, tmp_path_factory):
    """A run of two steps with adapters, evaluated after the second."""
    folder = tmp_path_factory.mktemp("card")
    data = SHAPE_EDITS.write(folder / "data", train=4, heldout=6, language=4, progress=False)
    arguments = TrainArguments(
        model=str(backbone_folder("qwen3_vl")),
        train_data=str(data / "train.json"),
        eval_data=[f"shapes={data / 'heldout.json'}"],
        rubrics="short",
        reward_head_widths=[8],
        lora_r=2,
        lora_alpha=4,
    )
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "max_steps": 2, "save_steps": 2}
    options |= {"eval_strategy": "steps", "eval_steps": 2, "report_to": "none", "use_cpu": True, "disable_tqdm": True}
    train(arguments, JointRewardConfig(str(folder / "run"), **options))
    return folder / "run"


def test_it_says_what_the_model_is_and_what_it_learned_from(run_folder):
    card = (run_folder / "README.md").read_text()
    for row in (
        "| backbone | qwen3_vl |",
        "| layout | rubric_first, joint |",
        "| training | 4 examples of train.json |",
        "| shapes | 6 examples of heldout.json |",
        "| steps | 2 of 2, 2 examples each |",
        "| adapters (default) | LoRA, rank 2, alpha 4 |",
        "α = 0.7",
    ):
        assert row in card, card
    assert re.search(r"\| shapes \| overall \| [01]\.\d{3} \([01]\.\d{3} to [01]\.\d{3}\) \| 6 \|", card)
    assert "Measured at step 2." in card


def test_its_metadata_are_the_hubs(run_folder):
    metadata = yaml.safe_load((run_folder / "README.md").read_text().split("---")[1])
    assert metadata["library_name"] == "jrm-plugin" and "trl" in metadata["tags"]
    assert "base_model" not in metadata, "the folder of a machine is no name that others know"
    (model,) = metadata["model-index"]
    assert [result["dataset"]["name"] for result in model["results"]] == ["shapes"] * len(model["results"])


def test_a_checkpoint_has_one_too(run_folder):
    assert "Measured at step 2." in (run_folder / "checkpoint-2" / "README.md").read_text()
