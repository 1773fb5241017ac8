"""The model's configuration: a backbone, the dimensions it scores, and the shape of the reward head."""

from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig
from transformers.activations import ACT2FN

from jrm_plugin.errors import JRMError
from jrm_plugin.model.backbone import ROPE_POSITIONS, check_backbone_family
from jrm_plugin.records.samples import DIMENSIONS

# The fields of the config that shape the reward head.
HEAD_FIELDS = ("reward_head_widths", "reward_head_dropout", "reward_head_activation", "log_sigma_bound")


class JRMConfig(PreTrainedConfig):
    """Configuration of [`JRMForRewardModeling`].

    Args:
        backbone_config: the configuration (or its dict) of a Hugging Face image-text-to-text model of one of
            `backbone.FAMILIES`; by default Qwen3-VL's.
        dimensions: what is scored, in the order of the reward head's outputs.
        reward_token_id: the token whose final hidden state is scored.
        reward_head_widths: widths of the hidden layers of the head (RankNet style, paper appendix B.1).
        reward_head_dropout: dropout after the first hidden layer, active in training.
        reward_head_activation: name of an activation of transformers (`relu`, `silu`, ...).
        log_sigma_bound: `None`, or `(centre, half_range)`: log sigma is `centre + half_range * tanh(.)`.
        rope_positions: rotary positions of image tokens: `mrope`, the backbone's own in three dimensions, or `1d`, one
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
    rope_positions: str = "mrope"
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
        if self.rope_positions not in ROPE_POSITIONS:
            raise JRMError(f"rope_positions in the model's config must be mrope or 1d, not {self.rope_positions!r}.")
        self.tie_word_embeddings = self.backbone_config.tie_word_embeddings
        # Lists, so that a config equals what it was saved as.
        self.reward_head_widths = list(self.reward_head_widths)
        self.log_sigma_bound = None if self.log_sigma_bound is None else list(self.log_sigma_bound)
        # Frameworks ask for the number of labels of a reward model: one scalar, the overall score.
        kwargs["num_labels"] = 1
        super().__post_init__(**kwargs)

    def get_text_config(self, *args: Any, **kwargs: Any) -> PreTrainedConfig:
        return self.backbone_config.get_text_config(*args, **kwargs)


AutoConfig.register(JRMConfig.model_type, JRMConfig)
