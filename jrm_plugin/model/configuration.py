"""The model's configuration: a backbone, the dimensions it scores, and the shape of the reward head."""

from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig
from transformers.activations import ACT2FN

from jrm_plugin.errors import JRMError
from jrm_plugin.records.samples import DIMENSIONS

# Image-text-to-text families whose inputs the processor and the model know: images enter as `pixel_values` with
# `image_grid_thw`, and one placeholder token per merged patch. A further family with that interface is one more entry.
BACKBONE_FAMILIES = ("qwen3_vl", "qwen2_5_vl", "qwen2_vl")

# The fields of the config that shape the reward head.
HEAD_FIELDS = ("reward_head_widths", "reward_head_dropout", "reward_head_activation", "log_sigma_bound")


class JRMConfig(PreTrainedConfig):
    """Configuration of [`JRMForRewardModeling`].

    Args:
        backbone_config: the configuration (or its dict) of a Hugging Face image-text-to-text model of one of
            `BACKBONE_FAMILIES`; by default Qwen3-VL's.
        dimensions: what is scored, in the order of the reward head's outputs.
        reward_token_id: the token whose final hidden state is scored.
        reward_head_widths: widths of the hidden layers of the head (RankNet style, paper appendix B.1).
        reward_head_dropout: dropout after the first hidden layer, active in training.
        reward_head_activation: name of an activation of transformers (`relu`, `silu`, ...).
        log_sigma_bound: `None`, or `(centre, half_range)`: log sigma is `centre + half_range * tanh(.)`.
        position_ids: rotary positions of image tokens: `mrope`, the backbone's own in three dimensions, or `1d`, one
            after another like text, as some published reward models were trained.
    """

    model_type = "jrm"
    sub_configs = {"backbone_config": AutoConfig}

    backbone_config: dict | PreTrainedConfig | None = None
    dimensions: list[str] | tuple[str, ...] = DIMENSIONS
    reward_token_id: int | None = None
    reward_head_widths: list[int] | tuple[int, ...] = (1024, 16)
    reward_head_dropout: float = 0.05
    reward_head_activation: str = "relu"
    log_sigma_bound: list[float] | tuple[float, ...] | None = None
    position_ids: str = "mrope"
    tie_word_embeddings: bool = False  # the backbone's, always; peft reads it here

    def __post_init__(self, **kwargs: Any):
        if self.backbone_config is None:
            self.backbone_config = CONFIG_MAPPING["qwen3_vl"]()
        elif isinstance(self.backbone_config, dict):
            backbone = dict(self.backbone_config)
            self.backbone_config = CONFIG_MAPPING[check_backbone_family(backbone.pop("model_type", None))](**backbone)
        check_backbone_family(self.backbone_config.model_type)
        if not self.dimensions or len(set(self.dimensions)) != len(self.dimensions):
            raise JRMError(f"dimensions in the model's config must be distinct names, got {list(self.dimensions)}.")
        self.dimensions = list(self.dimensions)
        if self.reward_head_activation not in ACT2FN:
            raise JRMError(
                f"reward_head_activation must be one of {', '.join(ACT2FN)}, not this: {self.reward_head_activation}."
            )
        if self.log_sigma_bound is not None and (len(self.log_sigma_bound) != 2 or self.log_sigma_bound[1] <= 0):
            raise JRMError(f"log_sigma_bound must be [centre, half_range > 0], not {list(self.log_sigma_bound)}.")
        if self.position_ids not in ("mrope", "1d"):
            raise JRMError(f"position_ids in the model's config must be 'mrope' or '1d', not {self.position_ids!r}.")
        self.tie_word_embeddings = self.backbone_config.tie_word_embeddings
        # Lists, so that a config equals what it was saved as.
        self.reward_head_widths = list(self.reward_head_widths)
        self.log_sigma_bound = None if self.log_sigma_bound is None else list(self.log_sigma_bound)
        # Frameworks ask for the number of labels of a reward model: one scalar, the overall score.
        kwargs["num_labels"] = 1
        super().__post_init__(**kwargs)

    def get_text_config(self, *args: Any, **kwargs: Any) -> PreTrainedConfig:
        return self.backbone_config.get_text_config(*args, **kwargs)


def check_backbone_family(model_type: str | None) -> str:
    """Returns `model_type` if the processor and the model know that family; raises [`JRMError`] otherwise."""
    if model_type not in BACKBONE_FAMILIES:
        raise JRMError(
            f"a backbone of type {model_type!r} is not supported; use one of {', '.join(BACKBONE_FAMILIES)} "
            "(Qwen/Qwen3-VL-8B-Instruct, for instance)."
        )
    return model_type


AutoConfig.register(JRMConfig.model_type, JRMConfig)
