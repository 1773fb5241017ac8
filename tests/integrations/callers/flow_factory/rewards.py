"""Base classes of rewards, and how a step asks them: pointwise in batches, groupwise by group, fields by signature."""

import inspect
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
OWN = {"name", "reward_model", "weight", "dtype", "device", "batch_size", "async_reward", "num_workers"}


@dataclass
class RewardModelOutput:
    rewards: Any
    extra_info: dict | None = None


class BaseRewardModel:
    required_fields: tuple[str, ...] = ()
    use_tensor_inputs = False

    def __init__(self, config, accelerator):
        self.config, self.accelerator = config, accelerator
        self.device = accelerator.device if config.device == torch.device("cuda") else config.device
        self.dtype = config.dtype
        self.model = None


class PointwiseRewardModel(BaseRewardModel):
    required_fields = ("image", "prompt")


class GroupwiseRewardModel(BaseRewardModel):
    required_fields = ("image", "prompt")


@dataclass
class Config:
    """An entry of `rewards:`; keys that are none of the framework's own are gathered."""

    name: str = "default"
    dtype: Any = "bfloat16"
    device: Any = "cuda"
    batch_size: int = 16
    weight: float = 1.0
    extra_kwargs: dict = field(default_factory=dict)

    def __post_init__(self):
        self.dtype, self.device = DTYPES[self.dtype], torch.device(self.device)


@dataclass
class Accelerator:
    device: torch.device = torch.device("cpu")


@dataclass
class Sample:
    """What a policy made: tensors `[C, H, W]` from 0 to 1."""

    prompt: str
    image: torch.Tensor | None = None
    condition_images: list[torch.Tensor] | None = None
    video: Any = None
    unique_id: int = 0


def load(reward_class: type, **entry: Any) -> BaseRewardModel:
    """As the loader makes a reward of an entry in YAML."""
    own = {name: value for name, value in entry.items() if name in OWN}
    rest = {name: value for name, value in entry.items() if name not in OWN}
    return reward_class(config=Config(**own, extra_kwargs=rest), accelerator=Accelerator())


def rewards_of(model: BaseRewardModel, samples: Sequence[Sample], *, workers: int = 0) -> torch.Tensor:
    """The rewards of a step, float32; with `workers` they are asked for in threads, as with `async_reward`."""
    if isinstance(model, GroupwiseRewardModel):
        groups = [[k for k, s in enumerate(samples) if s.unique_id == uid] for uid in {s.unique_id for s in samples}]
    else:
        size = model.config.batch_size
        groups = [list(range(k, min(k + size, len(samples)))) for k in range(0, len(samples), size)]
    if workers:
        with ThreadPoolExecutor(workers) as pool:
            answers = list(pool.map(lambda numbers: _ask(model, [samples[k] for k in numbers]), groups))
    else:
        answers = [_ask(model, [samples[k] for k in numbers]) for numbers in groups]
    rewards = torch.zeros(len(samples), dtype=torch.float32)
    for numbers, answer in zip(groups, answers, strict=True):
        rewards[numbers] = answer
    return rewards


def _ask(model: BaseRewardModel, samples: Sequence[Sample]) -> torch.Tensor:
    wanted = inspect.signature(model.__call__).parameters
    fields = {name: [getattr(sample, name) for sample in samples] for name in vars(samples[0]) if name in wanted}
    fields = {name: values for name, values in fields.items() if all(value is not None for value in values)}
    if not model.use_tensor_inputs:
        if "image" in fields:
            fields["image"] = [_picture(image) for image in fields["image"]]
        if "condition_images" in fields:
            fields["condition_images"] = [
                [_picture(image) for image in images] for images in fields["condition_images"]
            ]
    output = model(**fields)
    return torch.as_tensor(output.rewards, device="cpu", dtype=torch.float32)


def _picture(image: torch.Tensor) -> Image.Image:
    return Image.fromarray((image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())
