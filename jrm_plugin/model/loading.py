"""From what a user names to a model and its processor, in one call."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from jrm_plugin.errors import JRMError
from jrm_plugin.files import content_digest
from jrm_plugin.model.backbone import image_token_id
from jrm_plugin.model.checkpoint import CALIBRATION_FILE, built_in_folder, load_config, named, read_object, reading
from jrm_plugin.model.configuration import JRMConfig
from jrm_plugin.model.lora import ADAPTER_FILE, LONGEST_CHAIN, base_of, is_lora_folder, load_lora
from jrm_plugin.model.modeling import JRMForRewardModeling
from jrm_plugin.model.processing import JRMProcessor
from jrm_plugin.records.samples import Sample


def load(
    path_or_name: str | Path, *, revision: str | None = None, max_pixels: int | None = None, **options: Any
) -> tuple[JRMForRewardModeling, JRMProcessor]:
    """A model, adapters merged into it, and its processor.

    Args:
        path_or_name: a JRM folder, a LoRA folder that `jrm train` wrote, a hub name, or the built-in `jrm-tiny`.
        revision: of a hub name.
        max_pixels: overrides the checkpoint's; scores change with it.
        options: go to `from_pretrained` (`dtype`, `device_map`, `attn_implementation`, `quantization_config`, ...).

    Raises:
        JRMError: there is no such checkpoint, its weights do not fit, or its files do not belong together.
    """
    folder = built_in_folder(path_or_name)
    if revision is not None:
        options["revision"] = revision
    if is_lora_folder(folder):
        model = load_lora(folder, **options)
    else:
        model = JRMForRewardModeling.from_pretrained(folder, **options)
    processor = JRMProcessor.from_pretrained(folder, revision=revision, max_pixels=max_pixels)
    check_belong_together(model, processor)
    return model, processor


def checkpoint_digest(path_or_name: str | Path) -> bytes:
    """Tells whether a model's name and files are those of earlier; adapters with the files of what they adapt.

    Of a hub name it is the name.

    Raises:
        JRMError: a file cannot be read.
    """
    digest = hashlib.sha256()
    name: str | Path = path_or_name
    for _ in range(LONGEST_CHAIN + 2):
        digest.update(str(name).encode(errors="surrogatepass"))
        folder = Path(built_in_folder(name))
        if not folder.is_dir():
            break
        for path in sorted(path for path in folder.iterdir() if path.suffix in (".json", ".jinja", ".safetensors")):
            if path.name.startswith(Path(CALIBRATION_FILE).stem):
                continue
            digest.update(path.name.encode(errors="surrogatepass") + content_digest(path))
        if not is_lora_folder(folder):
            break
        name = base_of(folder, read_object(folder / ADAPTER_FILE))
    return digest.digest()


def start_from(
    path_or_name: str | Path,
    *,
    max_pixels: int | None = None,
    layout: Mapping[str, Any] | None = None,
    head: Mapping[str, Any] | None = None,
    **options: Any,
) -> tuple[JRMForRewardModeling, JRMProcessor]:
    """What training begins with: a JRM checkpoint to go on from, or a new reward model over a backbone.

    Call `torch.manual_seed` before for a reproducible head.

    Args:
        path_or_name: a JRM folder, a LoRA folder, a backbone's folder, a hub name of either, or `jrm-tiny`.
        max_pixels: of the images of a new model; by default the paper's.
        layout, head: the layout and the reward head of a new model, as [`JRMProcessor`] and `JRMConfig` take them.
        options: go to `from_pretrained` (`quantization_config`, ...).

    Raises:
        JRMError: as `load`; or a layout or head is given for a checkpoint, which has its own. Its own dimensions may be
            given.
    """
    folder = built_in_folder(path_or_name)
    layout, head = dict(layout or {}), dict(head or {})
    if is_lora_folder(folder) or load_config(folder).model_type == JRMConfig.model_type:
        if "dimensions" in layout and [*layout["dimensions"]] == JRMProcessor.from_pretrained(folder).dimensions:
            del layout["dimensions"]
        if layout or head:
            raise JRMError(
                f"{path_or_name} is a JRM checkpoint and has its own {', '.join([*layout, *head])}; "
                "leave that out, or start from a backbone."
            )
        model, processor = load(folder, **options)
    else:
        processor = JRMProcessor.from_backbone(folder, max_pixels=max_pixels, **layout)
        model = JRMForRewardModeling.from_backbone(folder, processor=processor, config=head, **options)
    model.name_or_path = named(path_or_name)  # LoRA checkpoints name the model that they adapt
    return model, processor


def check_belong_together(model: JRMForRewardModeling, processor: JRMProcessor) -> None:
    """Raises a [`JRMError`] if the processor is of another model."""
    if model.config.dimensions != processor.dimensions:
        raise JRMError(
            f"the model scores {', '.join(model.config.dimensions)} but its processor is for "
            f"{', '.join(processor.dimensions)}; the checkpoint's files do not belong together."
        )
    backbone_config, images = model.config.backbone_config, processor.image_processor
    vision = backbone_config.vision_config
    for what, of_model, of_processor in (
        ("reward token", model.config.reward_token_id, processor.reward_token_id),
        ("image token", image_token_id(backbone_config), processor.image_token_id),
        ("patch_size", vision.patch_size, images.patch_size),
        ("temporal_patch_size", vision.temporal_patch_size, images.temporal_patch_size),
        ("merge_size", vision.spatial_merge_size, images.merge_size),
    ):
        if of_model != of_processor:
            raise JRMError(
                f"the model's {what} is {of_model} and its processor's is {of_processor}; "
                "the checkpoint's files do not belong together."
            )
    vocabulary = model.config.get_text_config().vocab_size
    if len(processor.tokenizer) > vocabulary:
        raise JRMError(
            f"the tokenizer has {len(processor.tokenizer)} tokens and the model rows for {vocabulary}; "
            "the checkpoint's files do not belong together."
        )


@torch.inference_mode()
def try_out(model: JRMForRewardModeling, processor: JRMProcessor, folder: str | Path) -> None:
    """Takes a picture and a few words through processor and model.

    Values that fit each other one by one can still not work together; this says so before the first sample is scored.

    Raises:
        JRMError: it fails.
    """
    picture = Image.new("RGB", (32, 32))
    with reading(folder, "the checkpoint"):
        sequences = processor.encode(Sample.edit(picture, "a", picture), "a")
        model.eval()(**{name: value.to(model.device) for name, value in processor.collate(sequences).items()})
