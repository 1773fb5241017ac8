"""What a scorer is, whatever stands behind it; importing this imports no torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, overload, runtime_checkable

from jrm_plugin.errors import JRMError
from jrm_plugin.records.samples import Sample
from jrm_plugin.records.scores import RewardScore

if TYPE_CHECKING:
    import torch


class Ranked(NamedTuple):
    """A place in a ranking: which of the samples, and its score."""

    position: int
    score: RewardScore


@runtime_checkable
class Scorer(Protocol):
    """Scores samples: what adapters, the pool of scorers, the evaluation and the commands are written against.

    [`RewardScorer`] is one. Another engine or another model is one too if it has these members.
    """

    @property
    def dimensions(self) -> list[str]:
        """Names of what is scored, in order, without `overall`."""
        ...

    @overload
    def score(
        self, samples: Sequence[Sample], *, on_error: Literal["raise"] = "raise", progress: bool = False
    ) -> list[RewardScore]: ...

    @overload
    def score(
        self, samples: Sequence[Sample], *, on_error: Literal["return"], progress: bool = False
    ) -> list[RewardScore | JRMError]: ...

    def score(
        self, samples: Sequence[Sample], *, on_error: Literal["raise", "return"] = "raise", progress: bool = False
    ) -> list[RewardScore] | list[RewardScore | JRMError]:
        """The score of each sample, in their order.

        With `on_error="return"`, the error of a sample that cannot be scored stands in its place.
        """
        ...

    def rank(self, samples: Sequence[Sample]) -> list[Ranked]:
        """The samples by their overall score, best first; equal scores keep the order given."""
        ...


def load_scorer(model: "str | Path | Scorer", *, device: "str | torch.device | None" = None, **options: Any) -> Scorer:
    """The scorer that a user names; the one function that turns a name into one.

    Args:
        model: a JRM folder, a LoRA folder that `jrm train` wrote, a hub name, the built-in `jrm-tiny`; or a [`Scorer`],
            which comes back as it is.
        device: where the model goes; by default the GPU if there is one.
        options: further arguments of `RewardScorer.from_pretrained`.

    Raises:
        JRMError: there is no such model, its weights do not fit, or the device cannot be used.
    """
    if isinstance(model, Scorer):
        return model
    from jrm_plugin.scoring.scorer import RewardScorer  # imports torch and transformers

    return RewardScorer.from_pretrained(model, device=device, **options)
