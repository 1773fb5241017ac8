"""A JRM inside vLLM: vLLM's own backbone, our reward head, and a pooler that scores the last token of a prompt.

Refusals are numbers that are none (NaN): a model that raised would end the engine, for all its requests.

Tried: vLLM 0.32 on a CPU, eager, in float32 and bfloat16, one process a model. Shape suffixes: T tokens of a batch,
B prompts, H hidden, D dimensions.
"""

from collections.abc import Iterable, Iterator, Set
from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.model_executor.layers.pooler import Pooler
from vllm.model_executor.models.interfaces import SupportsMRoPE, SupportsMultiModal
from vllm.model_executor.models.utils import AutoWeightsLoader, init_vllm_registered_model, maybe_prefix
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.v1.pool.metadata import PoolingMetadata

from jrm_plugin.integrations.vllm.processing import (
    JRMDummyInputs,
    JRMMultiModalProcessor,
    JRMProcessingInfo,
    processor_of,
)
from jrm_plugin.model.checkpoint import check_names, load_config
from jrm_plugin.model.configuration import JRMConfig
from jrm_plugin.model.loading import check_belong_together
from jrm_plugin.model.lora import is_lora_folder, load_lora
from jrm_plugin.model.modeling import JRMForRewardModeling, RewardHead
from jrm_plugin.scoring.surroundings import usual_process
from jrm_plugin.scoring.vllm_requests import READS_OWN_DIMENSION

# vLLM's names of the backbones, by `model_type`.
BACKBONES = {
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
}

# Taken off the positions of a prompt that is refused, so that the forward pass knows its tokens.
REFUSED = 2**30


class ScorePooler(Pooler):
    """From the hidden states of prompts' last tokens to `[2 D + 1]` numbers each, float64.

    They are mu and sigma of the dimensions, and the overall mu, which is the last. In the layout `per_dimension` a
    prompt scores one dimension, and which one only those know who made it: the numbers are for requests that say so
    (`READS_OWN_DIMENSION`), without an overall mu.
    """

    def __init__(self, head: RewardHead, overall_rule: str, per_dimension: bool):
        super().__init__()
        self.head, self._overall_rule, self._per_dimension = head, overall_rule, per_dimension

    def get_supported_tasks(self) -> Set[str]:
        return {"classify"}

    def forward(self, hidden_states: torch.Tensor, pooling_metadata: PoolingMetadata) -> torch.Tensor:
        hidden_BH = hidden_states[pooling_metadata.get_pooling_cursor().last_token_indices_gpu]
        with usual_process():
            mu_BD, log_sigma_BD = (x.double() for x in self.head(hidden_BH))
        overall_B1 = self._overall(mu_BD)
        if self._per_dimension:
            overall_B1 = torch.full_like(overall_B1, torch.nan)
            for row, params in enumerate(pooling_metadata.pooling_params):
                if not (params.extra_kwargs or {}).get(READS_OWN_DIMENSION):
                    mu_BD[row] = log_sigma_BD[row] = torch.nan
        return torch.cat([mu_BD, log_sigma_BD.exp(), overall_B1], dim=1)

    def _overall(self, mu_BD: torch.Tensor) -> torch.Tensor:
        return {"mean": mu_BD.mean, "sum": mu_BD.sum, "min": mu_BD.amin}[self._overall_rule](1, keepdim=True)


@MULTIMODAL_REGISTRY.register_processor(JRMMultiModalProcessor, info=JRMProcessingInfo, dummy_inputs=JRMDummyInputs)
class JRMForVLLM(nn.Module, SupportsMultiModal, SupportsMRoPE):
    """A JRM checkpoint, or a LoRA one merged as it is loaded, as vLLM serves it.

    Raises:
        JRMError: the checkpoint's files are wrong, do not belong together, or hold other weights than the model's.
    """

    is_pooling_model = True
    # Of the backbone's classes it is true: they would normalise, on the device, pixels that are normalised already.
    supports_mm_device_do_normalize = False

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__()
        model = vllm_config.model_config
        load_config(model.model, revision=model.revision)  # checks every value; vLLM does not
        self.config: JRMConfig = model.hf_config
        self.processor = processor_of(model)
        check_belong_together(self, self.processor)
        self._folder, self._dtype = model.model, model.dtype
        self.backbone = init_vllm_registered_model(
            vllm_config,
            hf_config=self.config.backbone_config,
            architectures=[BACKBONES[self.config.backbone_config.model_type]],
            prefix=maybe_prefix(prefix, "backbone"),
        )
        self._language_model_names = ["backbone.language_model"]
        self.packed_modules_mapping = self.backbone.packed_modules_mapping
        self.make_empty_intermediate_tensors = self.backbone.make_empty_intermediate_tensors
        self.reward_head = RewardHead(self.config).float()
        self.pooler = ScorePooler(
            self.reward_head, self.config.overall_rule, self.processor.sequences == "per_dimension"
        )

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        return "<|vision_start|><|image_pad|><|vision_end|>"

    def embed_multimodal(self, **kwargs: Any) -> Any:
        return self.backbone.embed_multimodal(**kwargs)

    def embed_input_ids(
        self, input_ids: torch.Tensor, multimodal_embeddings: Any = None, *, is_multimodal: torch.Tensor | None = None
    ) -> torch.Tensor:
        return self.backbone.embed_input_ids(input_ids, multimodal_embeddings, is_multimodal=is_multimodal)

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: list[Any]) -> tuple[torch.Tensor, int]:
        """Positions of a prompt's tokens, `[3, T]`, and by how much they end before or after its length.

        This is where vLLM shows the model a prompt whole. Those of one that is refused are below zero: it is no prompt
        of the checkpoint, or has a placeholder without an image.
        """
        if self.config.rope_positions == "1d":
            positions_3T, delta = torch.arange(len(input_tokens)).expand(3, -1), 0
        else:
            positions_3T, delta = self.backbone.get_mrope_input_positions(input_tokens, mm_features)
        filled = sum(feature.mm_position.length for feature in mm_features)
        if input_tokens.count(self.processor.image_token_id) != filled or not self.processor.is_prompt(input_tokens):
            positions_3T = positions_3T - REFUSED
        return positions_3T, delta

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Final hidden states, `[T, H]`; of refused prompts they are NaN, and what is kept of these is finite."""
        refused_T = positions.view(-1, positions.shape[-1])[0] < 0
        positions = torch.where(refused_T, positions + REFUSED, positions)
        hidden_TH = self.backbone(input_ids, positions, intermediate_tensors, inputs_embeds, **kwargs)
        return hidden_TH.masked_fill(refused_T.unsqueeze(1), torch.nan)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        if is_lora_folder(self._folder):
            with usual_process():
                weights = load_lora(self._folder, dtype=self._dtype).state_dict().items()
        return AutoWeightsLoader(self).load_weights(self._checked(weights))

    def _checked(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        """Weights as they come, if each is the model's by name and shape, once, and none is missing.

        vLLM itself cuts those that are too large. In files, backbones' names differ between versions of transformers.
        """
        with torch.device("meta"):
            model = JRMForRewardModeling(self.config)
        expected = {self._in_vllm(name): (name, list(weight.shape)) for name, weight in model.state_dict().items()}
        missing = {self._in_vllm(name) for name, _ in model.named_parameters()}  # of tied ones, one
        wrong: dict[str, list[str]] = {"unexpected": [], "mismatched": []}
        left = dict(expected)
        for name, weight in weights:
            place = self._in_vllm(name)
            missing.discard(place)
            if place not in left:
                wrong["unexpected"].append(name)
            elif list(weight.shape) != (shape := left.pop(place)[1]):
                wrong["mismatched"].append(f"{name} {list(weight.shape)}, not {shape}")
            else:
                yield name, weight
        check_names(self._folder, {"missing": sorted(expected[place][0] for place in missing), **wrong})

    def _in_vllm(self, name: str) -> str | None:
        """What vLLM makes of a weight's name."""
        part, _, rest = name.partition(".")
        return f"{part}.{self.backbone.hf_to_vllm_mapper.map_name(rest)}" if part == "backbone" else name
