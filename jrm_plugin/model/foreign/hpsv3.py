"""HPSv3 (MizzenAI): one head over Qwen2-VL, for images made from text."""

from collections.abc import Collection

from jrm_plugin.model.foreign.layout import Layout, Settings

ONE_HEAD = Layout(
    name="hpsv3",
    title="HPSv3",
    task="generation",
    dimensions=("human_preference",),
    families=("qwen2_vl",),
    heads=("rm_head",),
    constants=(("INSTRUCTION", "_INSTRUCTION"), ("prompt_with_special_token", "_PROMPT_WITH_SPECIAL_TOKEN")),
    prompt_files="hpsv3/dataset/data_collator_qwen.py",
    source_images=0,
    pixels={"qwen2_vl": 256 * 28 * 28},
    file="HPSv3.safetensors",
)


def hpsv3(names: Collection[str], settings: Settings, constant: str | None) -> Layout:
    """The layout of a checkpoint: it is always the same."""
    return ONE_HEAD
