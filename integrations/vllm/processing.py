"""Images on their way into vLLM: opened, scaled and cut by the checkpoint's own `JRMProcessor`, as everywhere else."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, lru_cache
from typing import Any

import torch
from PIL import Image
from transformers import BatchFeature
from vllm.config import ModelConfig
from vllm.exceptions import VLLMValidationError
from vllm.inputs import MultiModalHashes
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems
from vllm.multimodal.media import MediaWithBytes
from vllm.multimodal.parse import ImageProcessorItems, MultiModalDataItems, MultiModalDataParser
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    ProcessorInputs,
    PromptReplacement,
)

from jrm_plugin.errors import JRMError, as_jrm_error
from jrm_plugin.model.backbone import pixels_per_token
from jrm_plugin.model.processing import EncodedImage, JRMProcessor
from jrm_plugin.scoring.surroundings import usual_process


def processor_of(model_config: ModelConfig) -> JRMProcessor:
    """The processor of the checkpoint that vLLM was given; `mm_processor_kwargs={"max_pixels": …}` overrides its own.

    Raises:
        JRMError: the checkpoint's files are wrong, or `mm_processor_kwargs` holds something else.
    """
    options = _options(model_config)
    if unknown := sorted(options.keys() - {"max_pixels"}):
        raise JRMError(f"mm_processor_kwargs of a JRM take max_pixels, and not {unknown[0]}; leave it out.")
    return _load_processor(model_config.model, model_config.revision, options.get("max_pixels"))


def _options(model_config: ModelConfig) -> dict[str, Any]:
    return dict(model_config.get_multimodal_config().mm_processor_kwargs or {})


@lru_cache(maxsize=4)
def _load_processor(folder: str, revision: str | None, max_pixels: int | None) -> JRMProcessor:
    return JRMProcessor.from_pretrained(folder, revision=revision, max_pixels=max_pixels)


@contextmanager
def refused(beginning: str = "") -> Iterator[None]:
    """What is wrong with a request, raised inside, becomes the error that vLLM answers with status 400."""
    try:
        yield
    except JRMError as error:
        raise VLLMValidationError(f"{beginning}{error}") from error


class _Images(ImageProcessorItems):
    """Images as `EncodedImage`s, whose digest is what vLLM's caches know them by."""

    def get_item_for_hash(self, index: int) -> bytes:
        return self.data[index].digest


class _ImageParser(MultiModalDataParser):
    """Takes what `JRMProcessor.encode_image` takes; vLLM's own conversion gives other pixels of some files."""

    def __init__(self, processor: JRMProcessor):
        super().__init__()
        self._processor = processor

    def _parse_image_data(self, data: Any) -> _Images | None:
        if data is None:
            return None
        images = data if isinstance(data, (list, tuple)) else [data]
        with refused(), usual_process(), as_jrm_error("an image cannot be read"):
            return _Images([self._encoded(image) for image in images])

    def _encoded(self, image: Any) -> EncodedImage:
        if isinstance(image, EncodedImage):
            return image
        opened = isinstance(image, MediaWithBytes)  # by vLLM, out of a file's bytes
        return self._processor.encode_image(image.original_bytes if opened else image)


class JRMProcessingInfo(BaseProcessingInfo):
    @cached_property
    def processor(self) -> JRMProcessor:
        return processor_of(self.ctx.model_config)

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        return {"image": None}

    def get_supported_mm_processor_kwargs(self) -> dict[str, set[str]]:
        return {}

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        return {"image": self.processor.max_pixels // pixels_per_token(self.processor.image_processor)}

    def get_data_parser(self) -> MultiModalDataParser:
        return _ImageParser(self.processor)


class JRMDummyInputs(BaseDummyInputsBuilder[JRMProcessingInfo]):
    """Pictures of the largest size, by which vLLM measures memory."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        return self.info.processor.image_token * mm_counts.get("image", 0)

    def get_dummy_mm_data(self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Any) -> dict[str, Any]:
        side = int(self.info.processor.max_pixels**0.5)
        return {"image": [Image.new("RGB", (side, side))] * mm_counts.get("image", 0)}


class JRMMultiModalProcessor(BaseMultiModalProcessor[JRMProcessingInfo]):
    """Hands on the patches of images; one placeholder in the prompt becomes those of all its image's tokens."""

    def _get_mm_hashes(self, inputs: ProcessorInputs) -> MultiModalHashes:
        """By what the images are: a name that a client gives to one might be another image's too."""
        return super()._get_mm_hashes(replace(inputs, mm_uuid_items=None))

    def _call_hf_processor(self, hf_data: Mapping[str, Any], hf_kwargs: Mapping[str, object]) -> BatchFeature:
        if dict(hf_kwargs) not in ({}, _options(self.info.ctx.model_config)):
            raise VLLMValidationError("leave mm_processor_kwargs out: all images are scaled as vLLM was told.")
        images = hf_data["images"]
        return BatchFeature(
            {
                "pixel_values": torch.cat([image.pixel_values for image in images]),
                "image_grid_thw": torch.stack([image.grid_thw for image in images]),
            }
        )

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        patches = hf_inputs.get("image_grid_thw", torch.empty(0, 3, dtype=torch.long)).prod(-1)
        return {
            "pixel_values": MultiModalFieldConfig.flat_from_sizes("image", patches),
            "image_grid_thw": MultiModalFieldConfig.batched("image", keep_on_cpu=True),
        }

    def _get_prompt_updates(
        self,
        mm_items: MultiModalDataItems,
        hf_processor_mm_kwargs: Mapping[str, object],
        out_mm_kwargs: MultiModalKwargsItems,
    ) -> Sequence[PromptReplacement]:
        token, merge = self.info.processor.image_token_id, self.info.processor.image_processor.merge_size

        def placeholders(item: int) -> list[int]:
            return [token] * (int(out_mm_kwargs["image"][item]["image_grid_thw"].data.prod()) // merge**2)

        return [PromptReplacement(modality="image", target=[token], replacement=placeholders)]

    def apply(self, inputs: ProcessorInputs, timing_ctx: Any) -> Any:
        """Refuses, before a cache knows of the images, where vLLM would decode the ids and tokenize again.

        Plain text would then become special tokens.
        """
        places = inputs.prompt.count(self.info.processor.image_token_id)
        images = inputs.mm_data_items.get_all_counts().get("image", 0)
        if places != images:
            raise VLLMValidationError(
                f"the prompt has {places} image placeholders and {images} images; give one placeholder for each image, "
                "no text that spells one, and no truncate_prompt_tokens."
            )
        return super().apply(inputs, timing_ctx)
