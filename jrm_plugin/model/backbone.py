"""All that is a backbone family's: what it is fed, how images enter it, and where its parts are.

The families share Qwen-VL's interface: images enter as `pixel_values` (patches) with `image_grid_thw`, one placeholder
token stands for each merged patch, and rotary positions have three dimensions. What differs is in `FAMILIES`.

Shape suffixes: N nodes of a batch, S tokens of a node, L length, F image tokens, D layers of image features, H hidden.
"""

import copy
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    Cache,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2VLImageProcessorPil,
)
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import create_causal_mask, sdpa_mask

from jrm_plugin.errors import JRMError


@dataclass(frozen=True)
class BackboneFamily:
    """What differs between families: widths of the vision encoder, of its patches and inside its MLPs."""

    vision_width: Callable[[PreTrainedConfig], int]
    vision_mlp_width: Callable[[PreTrainedConfig], int]


# By `model_type`. A further family with the interface above is one more entry.
FAMILIES = {
    "qwen3_vl": BackboneFamily(lambda vision: vision.hidden_size, lambda vision: vision.intermediate_size),
    "qwen2_5_vl": BackboneFamily(lambda vision: vision.hidden_size, lambda vision: vision.intermediate_size),
    "qwen2_vl": BackboneFamily(lambda vision: vision.embed_dim, lambda vision: 4 * vision.embed_dim),
}

# Attention, MLPs and the vision merger of every family, as LoRA adapts them in a `JRMForRewardModeling`.
LINEAR_MAPS = r"backbone\.model\..*\.((q|k|v|o|gate|up|down)_proj|qkv|attn\.proj|(linear_)?fc[12]|mlp\.[02])"

ROPE_POSITIONS = ("mrope", "1d")

# torch's SDPA, and FlexAttention where the mask is one of blocks; transformers allows its own to some families only.
SDPA_OR_FLEX = "jrm_sdpa_or_flex"
# Implementations of attention that take the mask of a tree.
TREE_ATTENTION = ("sdpa", "eager", SDPA_OR_FLEX)


def _sdpa_or_flex(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **options: Any
) -> tuple[torch.Tensor, torch.Tensor | None]:
    if not isinstance(attention_mask, BlockMask):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    # autocast, which makes them of one type for SDPA, does not know FlexAttention
    return flex_attention_forward(module, query.to(value.dtype), key.to(value.dtype), value, attention_mask, **options)


AttentionInterface.register(SDPA_OR_FLEX, _sdpa_or_flex)
AttentionMaskInterface.register(SDPA_OR_FLEX, sdpa_mask)


@dataclass(frozen=True)
class TokenCosts:
    """What a token costs in one decoder layer, in FLOPs, and by which attention it is computed.

    `per_token`: its linear maps. `per_pair`: a token that attends to another one.
    """

    per_token: float
    per_pair: float
    attention: str


def check_backbone_family(model_type: str | None) -> str:
    """Returns `model_type` if it is in `FAMILIES`; raises [`JRMError`] otherwise."""
    if model_type == "jrm":
        raise JRMError("this is a JRM checkpoint and no backbone; load it with from_pretrained.")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise JRMError(
            f"a backbone of type {model_type!r} is not supported; use one of {', '.join(FAMILIES)} "
            "(Qwen/Qwen3-VL-8B-Instruct, for instance)."
        )
    return model_type


# --- images -----------------------------------------------------------------------------------------------------------

# All families use Qwen2-VL's image processor; its PIL backend everywhere, because scores must not depend on whether
# torchvision is installed.
ImageProcessor = Qwen2VLImageProcessorPil


def patches_of(image_processor: ImageProcessor, picture: Image.Image) -> tuple[torch.Tensor, torch.Tensor, int]:
    """An RGB picture as the backbone takes it: patches `[patches, C * T * P * P]`, their grid `[3]`, and its tokens."""
    encoded = image_processor(images=[picture], return_tensors="pt")
    pixel_values, (grid_thw,) = encoded["pixel_values"], encoded["image_grid_thw"]
    return pixel_values, grid_thw, len(pixel_values) // image_processor.merge_size**2


def image_tokens(image_processor: ImageProcessor, width: int, height: int) -> int:
    """How many tokens an image of this size takes."""
    return image_processor.get_number_of_image_patches(height, width, {}) // image_processor.merge_size**2


def pixels_per_token(image_processor: ImageProcessor) -> int:
    return (image_processor.patch_size * image_processor.merge_size) ** 2


def token_grid(image_processor: ImageProcessor, grid_thw: torch.Tensor) -> tuple[int, int]:
    """Rows and columns of an image's tokens, which follow each other row by row."""
    _, height, width = grid_thw.tolist()
    return height // image_processor.merge_size, width // image_processor.merge_size


def max_pixels(image_processor: ImageProcessor) -> int:
    """Images with more pixels than this are scaled down."""
    return image_processor.size["longest_edge"]


def min_pixels(image_processor: ImageProcessor) -> int:
    """Images with fewer pixels than this are scaled up."""
    return image_processor.size["shortest_edge"]


def set_max_pixels(image_processor: ImageProcessor, value: int) -> None:
    smallest = min(image_processor.size["shortest_edge"], value)
    image_processor.size = {"shortest_edge": smallest, "longest_edge": value}


# --- what a forward pass takes beside token ids -----------------------------------------------------------------------


def image_token_id(backbone_config: PreTrainedConfig) -> int:
    """The placeholder token that stands for one merged patch."""
    return backbone_config.image_token_id


def token_types(backbone_config: PreTrainedConfig, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """The further input that tells image tokens from text, of the shape of `input_ids`."""
    return {"mm_token_type_ids": (input_ids == image_token_id(backbone_config)).int()}


def rotary_inputs(rope_positions: str, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
    """The further input that numbers tokens one after another; none where the backbone numbers them itself."""
    return {"position_ids": (attention_mask.cumsum(-1) - 1).clamp(min=0)} if rope_positions == "1d" else {}


# --- its parts, for engines that run them one by one ------------------------------------------------------------------


class BackboneParts:
    """The parts of a backbone, which [`SharedPrefixEngine`] and packed batches run one by one.

    Args:
        backbone: the Hugging Face image-text-to-text model; `BackboneParts.known` must hold.
    """

    def __init__(self, backbone: PreTrainedModel):
        self._core = backbone.model
        text, vision = backbone.config.get_text_config(), backbone.config.vision_config
        self.image_token_id = image_token_id(backbone.config)
        self.layer_count = text.num_hidden_layers
        self.heads, self.kv_heads = text.num_attention_heads, text.num_key_value_heads
        self.head_width = getattr(text, "head_dim", None) or text.hidden_size // self.heads
        self.hidden, self.mlp_width = text.hidden_size, text.intermediate_size
        family = FAMILIES[backbone.config.model_type]
        self.vision_width, self.vision_mlp_width = family.vision_width(vision), family.vision_mlp_width(vision)
        self.vision_heads = vision.num_heads

    @staticmethod
    def known(backbone: PreTrainedModel) -> bool:
        """Whether the backbone has the structure that is walked through here: full attention, rotary positions."""
        language = getattr(backbone.model, "language_model", None)
        layer_types = getattr(backbone.config.get_text_config(), "layer_types", None) or ["full_attention"]
        return (
            all(hasattr(language, part) for part in ("embed_tokens", "layers", "norm", "rotary_emb"))
            and hasattr(backbone.model, "get_image_features")
            and hasattr(backbone.model, "get_rope_index")
            and set(layer_types) == {"full_attention"}
        )

    @property
    def layers(self) -> nn.ModuleList:
        return self._core.language_model.layers

    @property
    def attends_eagerly(self) -> tuple[bool, bool]:
        """Whether whole matrices of attention scores are made: by the language model, and by the vision encoder."""
        return (
            self.attention_implementation == "eager",
            self._core.config._attn_implementation == "eager",
        )

    @property
    def attention_implementation(self) -> str:
        """Of the language model, as transformers names it."""
        return self._core.language_model.config._attn_implementation

    def use_flex_attention(self) -> None:
        """From here on, FlexAttention computes what has the mask of a tree, and SDPA all else."""
        self._core.language_model.config._attn_implementation = SDPA_OR_FLEX

    @property
    def takes_trees(self) -> bool:
        """Whether the language model's attention takes the mask of a tree."""
        return self.attention_implementation in TREE_ATTENTION

    def costs(self) -> TokenCosts:
        """What a token costs in one decoder layer; for models whose attention takes the mask of a tree."""
        attended = self.heads * self.head_width
        maps = self.hidden * (2 * attended + 2 * self.kv_heads * self.head_width + 3 * self.mlp_width)
        return TokenCosts(2 * maps, 4 * attended, self.attention_implementation)

    def embed(self, id_NS: torch.Tensor) -> torch.Tensor:
        """Token embeddings, `[N, S, H]`."""
        return self._core.language_model.embed_tokens(id_NS)

    def norm(self, hidden: torch.Tensor) -> torch.Tensor:
        """The final norm."""
        return self._core.language_model.norm(hidden)

    def causal_mask(self, hidden_NSH: torch.Tensor, valid_NL: torch.Tensor | None, cache: Cache) -> Any:
        """What `decode` takes as the mask of tokens that see all cached ones and those before them.

        Args:
            hidden_NSH: the tokens' embeddings.
            valid_NL: False where the cached tokens and these ones, together L, are padding; None if nowhere.
            cache: keys and values of what stands before.
        """
        return create_causal_mask(
            config=self._core.language_model.config,
            inputs_embeds=hidden_NSH,
            attention_mask=valid_NL,
            position_ids=None,
            **{_cache_argument(create_causal_mask): cache},
        )

    def tree_mask(self, hidden_NSH: torch.Tensor, end_NS: torch.Tensor | None) -> Any:
        """What `decode` takes as the mask of rows that hold trees: token q sees token k where k <= q < end of k.

        FlexAttention takes it as a rule and computes no block in which nothing is seen; the others take a matrix.

        Args:
            hidden_NSH: the tokens' embeddings.
            end_NS: for each token the place in its row where what stands behind it ends; None where no row branches.
        """
        N, S, _ = hidden_NSH.shape
        attention = self.attention_implementation
        if end_NS is None:
            if attention == "sdpa":
                return None  # it is causal by itself, and faster without a mask
            end_NS = torch.full((N, S), S, device=hidden_NSH.device)
        if attention == SDPA_OR_FLEX:
            return create_block_mask(
                lambda n, head, q, k: (k <= q) & (q < end_NS[n, k]), N, None, S, S, device=hidden_NSH.device
            )
        place_S = torch.arange(S, device=hidden_NSH.device)
        sees_N1SS = ((place_S <= place_S[:, None]) & (place_S[:, None] < end_NS[:, None]))[:, None]
        if attention == "sdpa":
            return sees_N1SS
        return torch.zeros_like(sees_N1SS, dtype=hidden_NSH.dtype).masked_fill(
            ~sees_N1SS, torch.finfo(hidden_NSH.dtype).min
        )

    def decode(
        self,
        hidden_NSH: torch.Tensor,
        *,
        position_3NS: torch.Tensor,
        mask: Any,
        cache: Cache | None = None,
        image_index: tuple[torch.Tensor, torch.Tensor] | None = None,
        image_features_FDH: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """All decoder layers: hidden states before the final norm, `[N, S, H]`.

        Args:
            hidden_NSH: the tokens' embeddings.
            position_3NS: rotary positions.
            mask: from `causal_mask` or `tree_mask`.
            cache: keys and values of what stands before, which takes those of these tokens too; None if nothing does.
            image_index, image_features_FDH: where image tokens stand (n, s) and their features; those behind the first
                are added after the first layers, as Qwen3-VL does.
        """
        language = self._core.language_model
        added = 0
        if image_features_FDH is not None:
            hidden_NSH = hidden_NSH.index_put(image_index, image_features_FDH[:, 0].to(hidden_NSH))
            added = image_features_FDH.shape[1] - 1
        rotary = language.rotary_emb(hidden_NSH, position_3NS)
        for k, layer in enumerate(language.layers):
            hidden_NSH = layer(
                hidden_NSH,
                attention_mask=mask,
                position_embeddings=rotary,
                use_cache=cache is not None,
                **{_cache_argument(type(layer).forward): cache},
            )
            if k < added:
                features_FH = image_features_FDH[:, 1 + k].to(hidden_NSH)
                hidden_NSH = hidden_NSH.index_put(image_index, features_FH, accumulate=True)
        return hidden_NSH

    def attention(self, hidden_11H: torch.Tensor, *, position_311: torch.Tensor, cache: Cache) -> torch.Tensor:
        """How one token attends to all before it and itself, in every layer and head: `[layers, heads, L]` on CPU.

        Whatever computes the attention otherwise, here whole rows of it are made, one a layer and head; the model is
        then as it was.

        Args:
            hidden_11H: the token's embedding.
            position_311: its rotary position.
            cache: keys and values of what stands before; it takes those of the token.
        """
        language = self._core.language_model
        rotary = language.rotary_emb(hidden_11H, position_311)
        rows: list[torch.Tensor] = []
        with self._attending_eagerly(rows):
            for layer in language.layers:
                hidden_11H = layer(
                    hidden_11H,
                    attention_mask=None,  # the last token sees all
                    position_embeddings=rotary,
                    use_cache=True,
                    **{_cache_argument(type(layer).forward): cache},
                )
        return torch.stack([row_1K1L[0, :, 0].float().cpu() for row_1K1L in rows])

    @contextmanager
    def _attending_eagerly(self, rows: list[torch.Tensor]) -> Iterator[None]:
        """Inside, layers compute their attention weights as matrices, and leave them in `rows`."""
        attentions = [layer.self_attn for layer in self.layers]
        configs = [attention.config for attention in attentions]
        eager = copy.copy(self._core.language_model.config)
        eager._attn_implementation = "eager"
        with ExitStack() as stack:
            for attention, config in zip(attentions, configs, strict=True):
                hook = attention.register_forward_hook(lambda module, inputs, output: rows.append(output[1]))
                stack.callback(hook.remove)
                stack.callback(setattr, attention, "config", config)
                attention.config = eager
            yield

    def image_features(self, pixel_values: torch.Tensor, grid_thw: torch.Tensor) -> torch.Tensor:
        """Features of images, all their tokens one after another: `[F, D, H]`.

        The first of the D stands in the sequence; the others, in Qwen3-VL, are those of earlier vision layers.
        """
        output = self._core.get_image_features(pixel_values, grid_thw, return_dict=True)
        layers = [output.pooler_output, *(getattr(output, "deepstack_features", None) or [])]
        return torch.stack([_joined(layer) for layer in layers], 1)

    def vision_weights(self) -> list[tuple[int, int]]:
        """Other ones whenever a weight of the vision encoder was replaced or changed in place, as optimizers do."""
        weights = self._core.visual.parameters()
        return [(weight.data_ptr(), 0 if weight.is_inference() else weight._version) for weight in weights]

    def batch_positions(
        self, id_BL: torch.Tensor, mask_BL: torch.Tensor, grids_thw: torch.Tensor | None, rope_positions: str
    ) -> torch.Tensor:
        """Rotary positions of padded sequences as the backbone's own forward pass numbers them, `[3, B, L]`."""
        if rope_positions == "1d" or grids_thw is None:
            return (mask_BL.cumsum(-1) - 1).clamp(min=0).expand(3, -1, -1)
        types_BL = (id_BL == self.image_token_id).int()
        return self._core.get_rope_index(
            id_BL, mm_token_type_ids=types_BL, image_grid_thw=grids_thw, attention_mask=mask_BL
        )[0]

    def rope_positions(self, ids: Sequence[int], grids_thw: Sequence[torch.Tensor], rope_positions: str) -> np.ndarray:
        """Rotary positions of one sequence, `[3, L]`; `rope_positions` as in `JRMConfig`."""
        if rope_positions == "1d" or not grids_thw:
            return np.arange(len(ids))[None].repeat(3, 0)
        id_1L = torch.tensor([ids])
        position_31L, _ = self._core.get_rope_index(
            id_1L,
            mm_token_type_ids=(id_1L == self.image_token_id).int(),
            image_grid_thw=torch.stack(list(grids_thw)),
            attention_mask=torch.ones_like(id_1L),
        )
        return position_31L[:, 0].numpy()


@functools.cache
def _cache_argument(function: Callable) -> str:
    """What a function calls keys and values of earlier tokens: newer versions of transformers have renamed it."""
    return "cache" if "cache" in inspect.signature(function).parameters else "past_key_values"


def _joined(features: torch.Tensor | Sequence[torch.Tensor]) -> torch.Tensor:
    """Features of all images, which come split by image or not: that depends on the version of transformers."""
    return features if isinstance(features, torch.Tensor) else torch.cat(list(features))
