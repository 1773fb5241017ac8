"""Samples in, scores out: what is the same wherever a JRM is computed, in this process or by an engine of its own.

Shape suffixes: D dimensions.
"""

import logging
import math
from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import Any, Literal, Protocol, overload

from tqdm.auto import tqdm

from jrm_plugin.errors import JRMError
from jrm_plugin.model.configuration import JRMConfig
from jrm_plugin.model.processing import EncodedSequence, JRMProcessor
from jrm_plugin.model.trained_on import NotTrainedOn
from jrm_plugin.records.calibration import Calibration
from jrm_plugin.records.samples import OVERALL, SampleLike, is_sample, to_sample
from jrm_plugin.records.scores import RewardScore
from jrm_plugin.scoring.prefetch import DecodingBudget, encode_ahead
from jrm_plugin.scoring.protocol import Ranked, check_one_prompt, ranked

logger = logging.getLogger(__name__)

# Samples of one pass at most, so that progress is seen; the memory budget may allow fewer.
SAMPLES_AT_ONCE = 256


class Engine(Protocol):
    """What computes a JRM, as far as passes are cut to its measure."""

    memory_budget: int

    def sequence_bytes(self, sequences: Sequence[EncodedSequence]) -> int:
        """The memory that they take."""
        ...


class SampleScorer:
    """Scores and ranks samples; a subclass computes mu and sigma of one pass, in `_mu_and_sigma`.

    Args:
        processor: of the checkpoint.
        config: of the checkpoint.
        engine: what computes.

    Attributes:
        calibration: what `jrm calibrate` saved with the checkpoint, or None; scores do not change with it.
    """

    def __init__(self, processor: JRMProcessor, config: JRMConfig, engine: Engine):
        self.processor, self.config, self.engine = processor, config, engine
        self.calibration: Calibration | None = None
        self._not_trained_on = NotTrainedOn(config)
        # Images are decoded on CPU, beside what is computed.
        self._decoding = DecodingBudget(engine.memory_budget // 2)

    @property
    def name(self) -> str:
        """What the user named."""
        raise NotImplementedError

    @property
    def dtype(self) -> str:
        """The precision in which the backbone is computed."""
        raise NotImplementedError

    @property
    def positions(self) -> int:
        """Tokens that a sequence may have."""
        return self.config.get_text_config().max_position_embeddings

    @property
    def writes_critiques(self) -> bool:
        """Whether it has a method `critique` for what the checkpoint learned to write."""
        return bool(self.config.writes_critiques)

    def _mu_and_sigma(self, sequences: Sequence[EncodedSequence]) -> list[tuple[list[float], list[float]]]:
        """mu and sigma by dimension of each sample in one pass; what is not finite is its sample's own."""
        raise NotImplementedError

    @property
    def dimensions(self) -> list[str]:
        return self.processor.dimensions

    @overload
    def score(
        self, samples: SampleLike, *, on_error: Literal["raise"] = "raise", progress: bool = False
    ) -> RewardScore: ...

    @overload
    def score(
        self, samples: SampleLike, *, on_error: Literal["return"], progress: bool = False
    ) -> RewardScore | JRMError: ...

    @overload
    def score(
        self, samples: Iterable[SampleLike], *, on_error: Literal["raise"] = "raise", progress: bool = False
    ) -> list[RewardScore]: ...

    @overload
    def score(
        self, samples: Iterable[SampleLike], *, on_error: Literal["return"], progress: bool = False
    ) -> list[RewardScore | JRMError]: ...

    def score(
        self,
        samples: SampleLike | Iterable[SampleLike],
        *,
        on_error: Literal["raise", "return"] = "raise",
        progress: bool = False,
    ) -> RewardScore | JRMError | list[RewardScore] | list[RewardScore | JRMError]:
        """The score of each sample, in their order; the same alone, in any batch, and from any number of threads.

        Args:
            samples: what to score, a generator too, of which a few at a time are taken. A tuple
                `(source, instruction, edited)` is a `Sample.edit`. One sample alone gives one score.
            on_error: `raise`: the first sample that cannot be read, or whose score is not a finite number, raises and
                names its position; `return`: its error stands in its place and the others are scored. Running out of
                memory is raised either way.
            progress: show a progress bar.

        Raises:
            JRMError: a sample cannot be scored (with `on_error="raise"`).

        Example:
            >>> scores = scorer.score([Sample.edit("cat.png", "make the cat blue", path) for path in candidates])
            >>> [score.mu["overall"] for score in scores]
            >>> scorer.score(("cat.png", "make the cat blue", "blue-cat.png")).mu["overall"]
        """
        if on_error not in ("raise", "return"):
            raise JRMError(f"on_error must be 'raise' or 'return', got {on_error!r}.")
        if is_sample(samples):
            return self.score([samples], on_error=on_error)[0]
        results: dict[int, Any] = {}
        for positions, sequences in self._passes(samples, results if on_error == "return" else None, progress):
            scores = self._mu_and_sigma(sequences)
            for position, (mu_D, sigma_D) in zip(positions, scores, strict=True):
                try:
                    results[position] = self._reward_score(mu_D, sigma_D)
                except JRMError as error:
                    if on_error == "raise":
                        raise JRMError(f"sample {position} cannot be scored: {error}") from error
                    results[position] = error
        return [results[position] for position in range(len(results))]

    def _reward_score(self, mu_D: list[float], sigma_D: list[float]) -> RewardScore:
        if not all(map(math.isfinite, [*mu_D, *sigma_D])):
            raise JRMError(self._not_finite("score"))
        return RewardScore(
            mu=dict(zip(self.dimensions, mu_D, strict=True)),
            sigma=dict(zip(self.dimensions, sigma_D, strict=True)),
            overall_rule=self.config.overall_rule,
        )

    def _not_finite(self, what: str) -> str:
        advice = (
            "numbers above 65504 overflow in this precision; load the model in bfloat16 or float32"
            if self.dtype == "float16"
            else "the model's weights hold numbers that are not finite, or it was trained until it diverged; check them"
        )
        return f"its {what}, computed in the precision {self.dtype}, is not a finite number: {advice}."

    def rank(
        self, samples: Iterable[SampleLike], *, dimension: str = OVERALL, different_prompts: bool = False
    ) -> list[Ranked]:
        """The candidates of one prompt, best first; equal scores keep the order given.

        Args:
            samples: with one prompt, as in `score`: only their scores compare.
            dimension: by whose mu; by default the overall one.
            different_prompts: rank samples of several prompts all the same.

        Raises:
            JRMError: the prompts differ, the checkpoint has no such dimension, or a sample cannot be scored.
        """
        if dimension != OVERALL:
            self._check_dimension(dimension)
        candidates = [to_sample(sample) for sample in samples]
        if not different_prompts:
            check_one_prompt(candidates)
        return ranked(self.score(candidates), dimension)

    def _check_dimension(self, dimension: str) -> None:
        if dimension not in self.dimensions:
            raise JRMError(f"this checkpoint has no dimension {dimension!r}; it has {', '.join(self.dimensions)}.")

    def _passes(
        self, samples: Iterable[SampleLike], errors: dict[int, Any] | None, progress: bool, description: str = "Scoring"
    ) -> Iterator[tuple[list[int], list[EncodedSequence]]]:
        """Positions of samples and their sequences, as many at once as the memory budget allows.

        The error of a sample that cannot be read goes into `errors` at its position, or is raised.
        """
        positions: list[int] = []
        sequences: list[EncodedSequence] = []
        taken = 0
        total = len(samples) if isinstance(samples, Sized) else None
        with tqdm(total=total, desc=description, unit="sample", disable=not progress) as bar:
            for position, encoded in enumerate(encode_ahead(self.processor, samples, self._decoding)):
                encoded = self._within_positions(encoded)
                if isinstance(encoded, JRMError):
                    if errors is None:
                        raise JRMError(f"sample {position} cannot be scored: {encoded}") from encoded
                    errors[position] = encoded
                    bar.update()
                    continue
                for sentence in self._not_trained_on.notice(encoded):
                    logger.warning("%s: %s", self.name, sentence)
                size = self.engine.sequence_bytes(encoded)
                if positions and (taken + size > self.engine.memory_budget // 2 or len(positions) == SAMPLES_AT_ONCE):
                    yield positions, sequences
                    bar.update(len(positions))
                    sequences.clear()  # the caller's too, who is done with them: they hold the pixels
                    positions, taken = [], 0
                positions.append(position)
                sequences += encoded
                taken += size
            if positions:
                yield positions, sequences
                bar.update(len(positions))

    def _within_positions(self, encoded: list[EncodedSequence] | JRMError) -> list[EncodedSequence] | JRMError:
        """What is encoded, or the error of a sample that has more tokens than the model has positions."""
        if isinstance(encoded, JRMError):
            return encoded
        longest = max(len(sequence.prompt) for sequence in encoded)
        if longest <= self.positions:
            return encoded
        return JRMError(
            f"its sequence has {longest} tokens and the model positions for {self.positions}; "
            "shorten its text, or give fewer or smaller images (max_pixels)."
        )
