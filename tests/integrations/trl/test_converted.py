"""A converted EditReward checkpoint in TRL's trainers: trained further with critiques, and as a reward of GRPO."""

import foreign_peers
import pytest
from datasets import Dataset
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from jrm_plugin import RewardScorer, Sample
from jrm_plugin.integrations.trl import JRMReward
from jrm_plugin.integrations.trl.training import parse, train
from jrm_plugin.model.foreign.conversion import convert
from jrm_plugin.synthetic.shape_edits import SHAPE_EDITS

PIXELS = 28 * 28 * 4  # an image is four tokens: the checkpoint's own sizes would take seconds
CPU = {"use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True, "gradient_checkpointing": False}


@pytest.fixture(scope="module")
def converted(backbone_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted")
    peer = foreign_peers.make_peer("editreward", "qwen2_5_vl", backbone_folder("qwen2_5_vl"), folder)
    convert(peer.write(folder / "theirs"), folder / "ours", base=str(peer.base), prompts=peer.prompts)
    return folder / "ours"


def test_jrm_train_goes_on_from_it_and_it_learns_to_write_critiques(converted, tmp_path):
    data = SHAPE_EDITS.write(tmp_path / "data", train=8, heldout=2, language=1, progress=False)
    config = tmp_path / "config.yaml"
    config.write_text(f"model: {converted}\ntrain_data: {data / 'train.json'}\noutput_dir: {tmp_path / 'run'}\n")
    options = {"max_steps": 2, "per_device_train_batch_size": 2, "max_pixels": PIXELS, "save_strategy": "no"} | CPU
    train(*parse(config, [word for name, value in options.items() for word in (f"--{name}", str(value))]))
    before, after = (load_file(folder / "model.safetensors") for folder in (converted, tmp_path / "run"))
    # The embeddings have further rows, of the region tags.
    moved = {name for name in before if before[name].shape == after[name].shape and not before[name].equal(after[name])}
    assert {"reward_head.heads.0.0.weight", "reward_head.heads.1.0.weight"} <= moved
    scorer = RewardScorer.from_pretrained(tmp_path / "run", device="cpu")
    assert (
        scorer.model.config.writes_critiques
        and not RewardScorer.from_pretrained(converted, device="cpu").model.config.writes_critiques
    )
    source, edited = (str(data / "images" / f"heldout_000000_{name}.png") for name in ("source", "a"))
    critiques = scorer.critique(Sample.edit(source, "make it blue", edited), max_new_tokens=4)
    assert list(critiques) == scorer.dimensions


def test_its_scores_are_rewards_of_grpo(converted, policy_folder, tmp_path):
    """Each completion is drawn as a picture of one colour; the reward is the scorer's score of it."""
    scorer = RewardScorer.from_pretrained(converted, device="cpu", max_pixels=PIXELS)
    source = Image.new("RGB", (56, 56), "grey")
    seen: list[tuple[list[str], list[float]]] = []

    def render(text: str, row: dict) -> Image.Image:
        return Image.new("RGB", (56, 56), (sum(text.encode()) % 256, 90, 160))

    reward = JRMReward(scorer, render=render, floor=-20.0)

    def spy(**arguments):
        rewards = reward(**arguments)
        seen.append((arguments["completions"], rewards))
        return rewards

    spy.__name__ = reward.__name__
    rows = [{"prompt": f"scene {k}", "source_image": source, "instruction": "make it blue"} for k in range(4)]
    GRPOTrainer(
        AutoModelForCausalLM.from_pretrained(policy_folder),
        spy,
        GRPOConfig(
            str(tmp_path),
            max_steps=1,
            per_device_train_batch_size=4,
            num_generations=4,
            max_completion_length=6,
            save_strategy="no",
            **CPU,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(policy_folder),
    ).train()
    ((completions, rewards),) = seen
    expected = scorer.score([Sample.edit(source, "make it blue", render(text, {})) for text in completions])
    assert rewards == pytest.approx([score.mu["overall"] for score in expected], abs=1e-5)
    assert len(set(rewards)) > 1
