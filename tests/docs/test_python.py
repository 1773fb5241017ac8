"""The Python of the README and of the docs runs as it stands, each page from top to bottom."""

import itertools
from pathlib import Path

import datasets
import pytest
from datasets import Dataset
from documentation import FRAGMENTS, READERS_OWN, ROOT, Block, blocks, python_blocks
from PIL import Image

from jrm_plugin.model.checkpoint import built_in_folder
from jrm_plugin.synthetic.shape_edits import SHAPE_EDITS

# What makes a block small enough to run here in seconds: models with random weights, and few steps.
SMALLER = {
    '"Qwen/Qwen3-VL-8B-Instruct"': '"backbone"',
    '"Qwen/Qwen3-0.6B"': '"policy"',
    'GRPOConfig("outputs/policy"': 'GRPOConfig("outputs/policy", max_steps=1, num_generations=2, bf16=False, '
    'use_cpu=True, per_device_train_batch_size=2, max_completion_length=4, report_to="none"',
    'JointRewardConfig("outputs/jrm"': 'JointRewardConfig("outputs/trained", max_steps=1, report_to="none"',
}
PAGES = [(page, list(group)) for page, group in itertools.groupby(python_blocks(), lambda block: block.page)]


@pytest.fixture
def readers_folder(tmp_path, monkeypatch, backbone_folder, policy_folder) -> Path:
    """What a reader has: images, preferences, a JRM, a backbone and a policy."""
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "jrm").symlink_to(built_in_folder("jrm-tiny"))
    (tmp_path / "backbone").symlink_to(backbone_folder("qwen3_vl"))
    (tmp_path / "policy").symlink_to(policy_folder)
    for name in ("scene", "edited", "cat", "blue-cat", "a", "b"):
        Image.new("RGB", (48, 48), "red").save(tmp_path / f"{name}.png")
    SHAPE_EDITS.write(tmp_path, train=2, heldout=2, language=2, progress=False)
    images = {"before": "scene.png", "good": "edited.png", "bad": "a.png"}
    rows = Dataset.from_list(
        [{"instruction": "draw", **{name: str(tmp_path / image) for name, image in images.items()}}]
    )
    for name in images:
        rows = rows.cast_column(name, datasets.Image())
    rows.to_parquet(tmp_path / "somebody" / "edits" / "train.parquet")  # `load_dataset` takes a folder before the hub
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("page", "page_blocks"), PAGES, ids=[str(page.relative_to(ROOT)) for page, _ in PAGES])
def test_a_page_runs(page: Path, page_blocks: list[Block], readers_folder: Path):
    names = {"__name__": "page"}
    exec(READERS_OWN, names)
    for block in page_blocks:
        code = block.text
        for large, small in SMALLER.items():
            code = code.replace(large, small)
        # So that a traceback shows the page and its line.
        exec(compile("\n" * (block.line - 1) + code, block.page, "exec"), names)


def test_nothing_is_made_smaller_or_left_out_that_is_not_there():
    text = "".join(block.text for block in blocks("python"))
    assert [large for large in (*SMALLER, *FRAGMENTS) if large not in text] == []
