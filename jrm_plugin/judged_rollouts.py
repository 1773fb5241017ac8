"""A batch of rollouts in, their rewards and what is to be logged of them out: the work of adapters that see batches."""

import logging
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jrm_plugin.errors import JRMError
from jrm_plugin.guards import is_unedited
from jrm_plugin.records.calibration import Calibration
from jrm_plugin.records.samples import OVERALL, Sample
from jrm_plugin.records.scores import RewardScore
from jrm_plugin.rollouts import InvalidAnswer, RolloutReward
from jrm_plugin.saved_rollouts import SavedRollouts, saved_rollouts
from jrm_plugin.scoring.loading import load_scorer
from jrm_plugin.scoring.protocol import Scorer

if TYPE_CHECKING:
    import torch


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class JudgedRollouts:
    """What a [`RolloutJudge`] thinks of a batch.

    Attributes:
        scores: of each rollout: its score, the error of one that cannot be scored, or None for an invalid answer.
        rewards: of each rollout, by dimension: finite, or None with `leave_out`.
        metrics: numbers to log, all finite:

            - `<dimension>/mu` and `<dimension>/sigma`, means over those with a score;
            - `invalid_answers` and `unscorable`, shares of the batch, where the settings allow for them;
            - `unedited`, for edits: the share of those with a score that show their source, pixel for pixel;
            - `<dimension>/undecided_groups`, of each reward: the share of groups in which no pair is decided;
            - `<dimension>/sigma_above`, of a calibrated model: the share of those with a score whose sigma lies above
              the 95 % quantile of the held-out set; where samples are like those, it is 0.05;
            - `second_judge/mu` and `second_judge/first_mu`: means of the second judge and of the first over the
              rollouts that the second was shown.
        paths: of the images that were kept, in the folder.
    """

    scores: Sequence[RewardScore | JRMError | None]
    rewards: Mapping[str, Sequence[float | None]]
    metrics: Mapping[str, float]
    paths: Sequence[str | None]


class RolloutJudge:
    """Scores batches of rollouts, once for one reward or several that differ in their dimension.

    It can be pickled: its scorers are sent as their settings, and load where they are read.

    Args:
        scorer: of the rewards.
        objectives: the rewards.
        saved: keeps rollouts for people to look at.
        second, second_every: another judge, which scores one of every `second_every` rollouts. It earns nothing: where
            a policy learns what only the first judge likes, the two drift apart.

    Raises:
        JRMError: a dimension is not the model's, or `second_every` is no whole number of at least 1.
    """

    def __init__(
        self,
        scorer: Scorer,
        objectives: Sequence[RolloutReward],
        *,
        saved: SavedRollouts | None = None,
        second: Scorer | None = None,
        second_every: int = 8,
    ):
        for objective in objectives:
            objective.check_dimension(scorer.dimensions)
        if type(second_every) is not int or second_every < 1:
            raise JRMError(f"second_judge_every must be a whole number of at least 1, not {second_every!r}.")
        self.scorer, self.objectives = scorer, tuple(objectives)
        self.rollouts = objectives[0]  # they differ in the dimension only
        self._saved, self._second, self._second_every = saved, second, second_every
        self._seen = 0  # rollouts with a score, of which the second judge sees some

    @classmethod
    def load(
        cls,
        model: "str | Path | Scorer | None",
        *,
        dimensions: Sequence[str] | Literal["all"] | None = None,
        device: "str | torch.device | None" = None,
        dtype: "torch.dtype | str | None" = None,
        save_images: int | None = None,
        save_folder: str | Path | None = None,
        second_judge: "str | Path | Scorer | None" = None,
        second_judge_every: int = 8,
        **rollouts: Any,
    ) -> "RolloutJudge":
        """A judge with the settings that the adapters have in common.

        Args:
            model, device, dtype: as in `load_scorer`, of both judges.
            dimensions: a reward for each, or for `all` of the model's; by default one, whose `dimension` is among
                `rollouts`.
            save_images, save_folder: as in [`SavedRollouts`].
            second_judge, second_judge_every: the second judge by name, and of how many rollouts it sees one.
            rollouts: the arguments of [`RolloutReward`].

        Raises:
            JRMError: there is no such model, or a setting is wrong.
        """
        objective = RolloutReward(**rollouts)
        saved = saved_rollouts(save_images, save_folder)
        scorer = load_scorer(model, device=device, dtype=dtype)
        dimensions = scorer.dimensions if dimensions == "all" else dimensions
        if dimensions is not None and (not dimensions or len({*dimensions}) < len(dimensions)):
            raise JRMError(f"the dimensions of JRM rewards must be one or more, each once, not {list(dimensions)}.")
        objectives = [objective]
        if dimensions is not None:
            objectives = [replace(objective, dimension=name) for name in dimensions]
        second = None if second_judge is None else load_scorer(second_judge, device=device, dtype=dtype)
        return cls(scorer, objectives, saved=saved, second=second, second_every=second_judge_every)

    def __call__(
        self,
        texts: Sequence[Any],
        rows: Sequence[Mapping[str, Any]],
        groups: Sequence[Hashable] = (),
        *,
        name: str = "rollout",
        marks: Mapping[str, Any] | None = None,
    ) -> JudgedRollouts:
        """Scores a batch.

        Args:
            texts: what the policy wrote, one for each rollout; a text that is a `JRMError` is its rollout's error.
            rows: as in `RolloutReward.sample`.
            groups: what the candidates of a group have in common, one for each rollout; nothing, where the framework
                does not show groups.
            name: what the framework calls a rollout; errors add its number.
            marks: what is kept with every image, such as the step.

        Raises:
            JRMError: a rollout cannot be scored, with `on_error="raise"`, or a group has one candidate in the mode
                `win_rate`.
        """
        samples = [self._sample(*each) for each in zip(texts, rows, strict=True)]
        scorable = [sample if isinstance(sample, Sample) else None for sample in samples]
        sources = self.rollouts.unedited_sources(scorable)
        scored, unedited_scores = self._score(samples, sources)
        copies = [sample is not None and is_unedited(sample) for sample in scorable]
        earning = scored
        if self.rollouts.unedited == "floor":
            earning = [None if copy else score for copy, score in zip(copies, scored, strict=True)]
        metrics = self._means(scored, copies)
        rewards = {}
        for objective in self.objectives:
            values = objective.rewards(earning, groups, unedited_scores, name=name)
            if groups:
                undecided, count = objective.undecided_groups(earning, groups, self._calibration)
                values = objective.evened_out(values, undecided)
                if count:
                    metrics[f"{objective.dimension}/undecided_groups"] = len(undecided) / count
            rewards[objective.dimension] = values
        metrics |= self._second_opinion(scorable, scored)
        logger.info(
            "%d rollouts: %s", len(samples), ", ".join(f"{what} {value:.4g}" for what, value in metrics.items())
        )
        return JudgedRollouts(scored, rewards, metrics, self._save(scorable, scored, texts, rewards, marks or {}))

    @property
    def _calibration(self) -> Calibration | None:
        return getattr(self.scorer, "calibration", None)  # a scorer of another kind may have none

    def _sample(self, text: Any, row: Mapping[str, Any]) -> Sample | JRMError | None:
        """The sample of a rollout, or its error; None for an invalid answer."""
        if isinstance(text, JRMError):
            return text
        try:
            return self.rollouts.sample(text, row)
        except InvalidAnswer:
            return None
        except JRMError as error:
            return error

    def _score(self, *lists: Sequence[Sample | JRMError | None]) -> list[list[RewardScore | JRMError | None]]:
        """The scores of several lists of samples, computed together, or their errors; None stays None."""
        samples = [sample for samples in lists for sample in samples if isinstance(sample, Sample)]
        scores = iter(self.scorer.score(samples, on_error="return"))
        return [[next(scores) if isinstance(sample, Sample) else sample for sample in samples] for samples in lists]

    def _means(self, scores: Sequence[RewardScore | JRMError | None], copies: Sequence[bool]) -> dict[str, float]:
        metrics: dict[str, float] = {}
        scored = [score for score in scores if isinstance(score, RewardScore)]
        for dimension in scored[0].mu if scored else ():
            for kind in ("mu", "sigma"):
                total = math.fsum(getattr(score, kind)[dimension] for score in scored)
                metrics[f"{dimension}/{kind}"] = total / len(scored)
        invalid = scores.count(None)
        if self.rollouts.floor is not None and scores:
            metrics["invalid_answers"] = invalid / len(scores)
        if self.rollouts.on_error != "raise" and scores:
            metrics["unscorable"] = (len(scores) - len(scored) - invalid) / len(scores)
        if self.rollouts.task == "edit" and scored:
            metrics["unedited"] = sum(copies) / len(scored)
        if self._calibration is not None and scored:
            above = [self._calibration.sigma_above(score) for score in scored]
            metrics |= {
                f"{dimension}/sigma_above": sum(each[dimension] for each in above) / len(above)
                for dimension in above[0]
            }
        return metrics

    def _second_opinion(
        self, samples: Sequence[Sample | None], scores: Sequence[RewardScore | JRMError | None]
    ) -> dict[str, float]:
        if self._second is None:
            return {}
        shown: list[tuple[Sample, RewardScore]] = []
        for sample, score in zip(samples, scores, strict=True):
            if sample is not None and isinstance(score, RewardScore):
                if self._seen % self._second_every == 0:
                    shown.append((sample, score))
                self._seen += 1
        opinions = self._second.score([sample for sample, _ in shown], on_error="return")
        both = [
            (score, opinion)
            for (_, score), opinion in zip(shown, opinions, strict=True)
            if isinstance(opinion, RewardScore)
        ]
        if not both:
            return {}
        dimension = self.rollouts.dimension
        of_second = dimension if dimension in both[0][1].mu else OVERALL
        return {
            "second_judge/mu": math.fsum(opinion.mu[of_second] for _, opinion in both) / len(both),
            "second_judge/first_mu": math.fsum(score.mu[dimension] for score, _ in both) / len(both),
        }

    def _save(
        self,
        samples: Sequence[Sample | None],
        scores: Sequence[RewardScore | JRMError | None],
        texts: Sequence[str],
        rewards: Mapping[str, Sequence[float | None]],
        marks: Mapping[str, Any],
    ) -> list[str | None]:
        """The path of each rollout's image, where it was kept."""
        paths: list[str | None] = [None] * len(scores)
        for number, (sample, score) in enumerate(zip(samples, scores, strict=True)):
            if self._saved is not None and isinstance(score, RewardScore):
                several = len(rewards) > 1
                earned = {f"reward_{name}" if several else "reward": values[number] for name, values in rewards.items()}
                paths[number] = self._saved.save(sample, score, texts[number], **earned, **marks)
        return paths
