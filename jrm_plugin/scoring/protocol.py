"""What a scorer is, whatever stands behind it; importing this imports no torch."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol, overload, runtime_checkable

from jrm_plugin.errors import JRMError
from jrm_plugin.records.samples import OVERALL, Sample
from jrm_plugin.records.scores import RewardScore


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

    def rank(
        self, samples: Sequence[Sample], *, dimension: str = OVERALL, different_prompts: bool = False
    ) -> list[Ranked]:
        """The samples by their score in `dimension`, best first; equal scores keep the order given.

        Samples of several prompts are refused, unless `different_prompts` says that this is meant.
        """
        ...


def ranked(scores: Sequence[RewardScore], dimension: str = OVERALL) -> list[Ranked]:
    """Scores of one prompt's samples as a ranking, best first; equal scores keep the order given.

    Raises:
        JRMError: the scores have no such dimension.
    """
    rewards = [score.reward(dimension=dimension) for score in scores]
    return [Ranked(position, scores[position]) for position in sorted(range(len(scores)), key=lambda k: -rewards[k])]


def check_one_prompt(samples: Sequence[Sample]) -> None:
    """Raises a [`JRMError`] that names the first sample whose prompt is not that of the others."""
    keys = [sample.prompt_key() for sample in samples]
    other = next((position for position, key in enumerate(keys) if key != keys[0]), None)
    if other is not None:
        raise JRMError(
            f"sample {other} has another instruction or source than sample 0, and only scores of one prompt compare: "
            "rank the samples of each prompt by themselves, or pass different_prompts=True."
        )
