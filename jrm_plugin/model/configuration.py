"""The model's configuration: a backbone, the dimensions it scores, and the shape of the reward head."""

import math
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig
from transformers.activations import ACT2FN

from jrm_plugin.errors import JRMError
from jrm_plugin.model.backbone import ROPE_POSITIONS, check_backbone_family
from jrm_plugin.records.samples import DIMENSIONS, OVERALL, TASKS
from jrm_plugin.records.scores import OVERALL_RULES

# The fields of the config that whoever makes a new model chooses.
CHOSEN_FIELDS = ("reward_head_widths", "reward_head_dropout", "reward_head_activation", "log_sigma_bound")
CHOSEN_FIELDS += ("rope_positions", "overall_rule")


def check_dimensions(dimensions: Any) -> list[str]:
    """The names of what is scored, as a list.

    Raises:
        JRMError: they are no list of distinct names.
    """
    names = list(dimensions) if isinstance(dimensions, (list, tuple)) else []
    fine = all(isinstance(name, str) and name for name in names) and 0 < len(set(map(str, names))) == len(names) <= 64
    _check(fine, "dimensions must be a list of distinct names", dimensions)
    if OVERALL in names:
        raise JRMError(f"no dimension can be called {OVERALL}: that is what comes of all dimensions; rename it.")
    return names


def _check(fine: bool, rule: str, value: Any) -> None:
    if not fine:
        raise JRMError(f"{rule}, not {str(value)[:60]}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: Any, smallest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and smallest <= value < 2**31


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
        overall_rule: how the overall score comes of the dimensions' (see [`RewardScore`]): `mean`, `sum` or `min`.
        writes_critiques: whether the language head was trained to write critiques; converted reward models were not.
        trained_tasks: tasks of the samples it was trained on; None where that was not recorded.
        trained_pixels: `[smallest, largest]` of the images it was trained on, before they were scaled; likewise.
        trained_source_images: how many source images a sample had at most; likewise.
        converted_from: what `jrm convert` recorded of the files that it read, from which it writes them back.
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
    overall_rule: str = "mean"
    writes_critiques: bool = True
    trained_tasks: list[str] | tuple[str, ...] | None = None
    trained_pixels: list[int] | tuple[int, ...] | None = None
    trained_source_images: int | None = None
    converted_from: dict | None = None
    tie_word_embeddings: bool = False  # the backbone's, always; peft reads it here

    def __post_init__(self, **kwargs: Any):
        if self.backbone_config is None:
            self.backbone_config = CONFIG_MAPPING["qwen3_vl"]()
        elif isinstance(self.backbone_config, dict):
            backbone = dict(self.backbone_config)
            self.backbone_config = CONFIG_MAPPING[check_backbone_family(backbone.pop("model_type", None))](**backbone)
        check_backbone_family(self.backbone_config.model_type)
        self.dimensions = check_dimensions(self.dimensions)
        _check(
            self.reward_token_id is None or _is_whole(self.reward_token_id, 0),
            "reward_token_id must be a token's number",
            self.reward_token_id,
        )
        _check(
            isinstance(self.reward_head_widths, (list, tuple))
            and len(self.reward_head_widths) <= 16
            and all(_is_whole(width, 1) for width in self.reward_head_widths),
            "reward_head_widths must be a list of whole numbers above 0",
            self.reward_head_widths,
        )
        _check(
            _is_number(self.reward_head_dropout) and 0 <= self.reward_head_dropout < 1,
            "reward_head_dropout must be a number of at least 0 and below 1",
            self.reward_head_dropout,
        )
        if not isinstance(self.reward_head_activation, str) or self.reward_head_activation not in ACT2FN:
            raise JRMError(
                f"reward_head_activation must be one of {', '.join(ACT2FN)}, not this: {self.reward_head_activation}."
            )
        bound = self.log_sigma_bound
        _check(
            bound is None
            or (isinstance(bound, (list, tuple)) and len(bound) == 2 and all(map(_is_number, bound)) and bound[1] > 0),
            "log_sigma_bound must be [centre, half_range > 0]",
            bound,
        )
        _check(
            self.rope_positions in ROPE_POSITIONS,
            "rope_positions in the model's config must be mrope or 1d",
            self.rope_positions,
        )
        _check(
            self.overall_rule in OVERALL_RULES,
            f"overall_rule must be one of {', '.join(OVERALL_RULES)}",
            self.overall_rule,
        )
        _check(isinstance(self.writes_critiques, bool), "writes_critiques must be true or false", self.writes_critiques)
        tasks, pixels, sources = self.trained_tasks, self.trained_pixels, self.trained_source_images
        _check(
            tasks is None or (isinstance(tasks, (list, tuple)) and {*map(str, tasks)} <= {*TASKS}),
            f"trained_tasks must be a list of tasks ({', '.join(TASKS)})",
            tasks,
        )
        _check(
            pixels is None
            or (isinstance(pixels, (list, tuple)) and len(pixels) == 2 and all(_is_whole(p, 1) for p in pixels)),
            "trained_pixels must be [smallest, largest]",
            pixels,
        )
        _check(sources is None or _is_whole(sources, 0), "trained_source_images must be a whole number", sources)
        self.trained_tasks = None if tasks is None else list(tasks)
        self.trained_pixels = None if pixels is None else list(pixels)
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
