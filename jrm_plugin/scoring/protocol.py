"""What a scorer is, whatever stands behind it; importing this imports no torch."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol, overload, runtime_checkable

from jrm_plugin.errors import JRMError
from jrm_plugin.records.samples import Sample
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

    def rank(self, samples: Sequence[Sample]) -> list[Ranked]:
        """The samples by their overall score, best first; equal scores keep the order given."""
        ...
