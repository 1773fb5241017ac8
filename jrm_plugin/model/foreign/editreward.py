"""EditReward (TIGER-AI-Lab): two heads over Qwen2.5-VL, MiMo-VL or Qwen3-VL, one prompt each; or a single head."""

from collections.abc import Collection
from dataclasses import replace

from jrm_plugin.errors import JRMError
from jrm_plugin.model.foreign.layout import Layout, Settings
from jrm_plugin.records.samples import DIMENSIONS

TWO_HEADS = Layout(
    name="editreward",
    title="EditReward",
    task="edit",
    dimensions=DIMENSIONS,
    families=("qwen2_5_vl", "qwen3_vl", "qwen2_vl"),
    heads=("rm_heads.head_0", "rm_heads.head_1"),
    constants=(("INSTRUCTION_EDIT_FOLLOWING",), ("INSTRUCTION_EDIT_QUALITY",), ("prompt_with_special_token",)),
    prompt_files="EditReward/dataset/prompts.py and EditReward/dataset/data_collator_qwen_edit.py",
    source_images=1,
    pixels=dict.fromkeys(("qwen2_5_vl", "qwen2_vl"), 256 * 28 * 28),
    file="model.safetensors",
)
OF_ONE_HEAD = ("INSTRUCTION_EDIT_OVERALL", "INSTRUCTION_EDIT_OVERALL_DETAILED")


def editreward(names: Collection[str], settings: Settings, constant: str | None) -> Layout:
    """The layout of a checkpoint with weights of these names.

    Args:
        settings: of its run; its `rm_head_type` tells a head that both dimensions share from a single one.
        constant: the name of a single head's prompt.

    Raises:
        JRMError: it has another number of heads, or a single one and nobody says with which prompt.
    """
    heads = {name.split(".")[1] for name in names if name.startswith("rm_heads.")}
    if heads:
        if heads != {"head_0", "head_1"}:
            raise JRMError(
                f"the checkpoint has the heads {', '.join(sorted(heads))}; EditReward's are head_0 and head_1."
            )
        return TWO_HEADS
    if settings.get("rm_head_type") == "ranknet_share_head":
        return replace(TWO_HEADS, heads=("rm_head", "rm_head"))
    if constant not in OF_ONE_HEAD:
        raise JRMError(
            f"this checkpoint of EditReward has a single head, and its weights do not say with which prompt it was "
            f"trained: give --constant {' or --constant '.join(OF_ONE_HEAD)}."
        )
    return replace(
        TWO_HEADS,
        dimensions=("human_preference",),
        heads=("rm_head",),
        constants=((constant,), TWO_HEADS.constants[-1]),
    )
