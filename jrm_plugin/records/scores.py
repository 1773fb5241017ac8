"""What comes out: a score, and the rewards and advantages of a group of candidates."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from jrm_plugin.errors import JRMError
from jrm_plugin.records.checks import check_keys
from jrm_plugin.records.samples import OVERALL

SCORE_COLUMNS = ("mu", "sigma")  # beginnings of the names of a score's columns in a table
RULE = "overall_rule"  # a field, and a column where it is not the mean
OverallRule: TypeAlias = Literal["mean", "sum", "min"]
OVERALL_RULES = get_args(OverallRule)
RewardMode: TypeAlias = Literal["mean", "lower_confidence_bound", "entropic", "win_probability"]


@dataclass(frozen=True, repr=False)
class RewardScore:
    """A Gaussian score per dimension: `mu` and `sigma` by name, larger `mu` is better.

    Made from the dimensions' values; `"overall"` is added, by a rule:

    - `mean`: its `mu` is the mean of theirs, its `sigma` that of a mean of D independent Gaussians,
      `sqrt(sum of squares) / D`;
    - `sum`: the sum of theirs, and `sqrt(sum of squares)`;
    - `min`: `mu` and `sigma` of the dimension whose `mu` is lowest, the first of equal ones.

    Where it is given, as in what `to_dict` wrote, it must be that.

    Raises:
        JRMError: `mu` and `sigma` are of different dimensions or of none, a number is not finite, a sigma is below 0,
            the rule is unknown, or the overall score that was given is not the dimensions'.

    Example:
        >>> score = RewardScore(mu={"a": 1, "b": 2}, sigma={"a": 3, "b": 4})
        >>> score.mu["overall"], score.sigma["overall"]
        (1.5, 2.5)
        >>> score
        RewardScore(overall=1.5±2.5, a=1±3, b=2±4)
    """

    mu: Mapping[str, float]
    sigma: Mapping[str, float]
    overall_rule: OverallRule = "mean"

    def __post_init__(self) -> None:
        if self.overall_rule not in OVERALL_RULES:
            raise JRMError(
                f"the overall score is one of {', '.join(OVERALL_RULES)} of the dimensions', not {self.overall_rule!r}."
            )
        names = [name for name in self.mu if name != OVERALL]
        if not names or {*names} != {*self.sigma} - {OVERALL}:
            raise JRMError(
                "a reward score needs mu and sigma of the same dimensions, at least one, not "
                f"{list(self.mu)} and {list(self.sigma)}."
            )
        mu, sigma = ({name: float(values[name]) for name in names} for values in (self.mu, self.sigma))
        if not all(map(math.isfinite, [*mu.values(), *sigma.values()])) or min(sigma.values()) < 0:
            raise JRMError(f"a reward score must be finite with sigma of 0 or more, not mu {mu} and sigma {sigma}.")
        if self.overall_rule == "min":
            lowest = min(mu, key=mu.__getitem__)
            overall_mu, overall_sigma = mu[lowest], sigma[lowest]
        else:
            parts = len(mu) if self.overall_rule == "mean" else 1
            overall_mu, overall_sigma = math.fsum(mu.values()) / parts, math.hypot(*sigma.values()) / parts
        for kind, given, values, overall in (
            ("mu", self.mu, mu, overall_mu),
            ("sigma", self.sigma, sigma, overall_sigma),
        ):
            if not math.isfinite(overall):
                raise JRMError(f"a reward score must be finite, and its overall {kind} is {overall} of {values}.")
            rounding = 1e-6 * max(map(abs, values.values()))  # what float32 leaves of them
            if OVERALL in given and not abs(given[OVERALL] - overall) <= rounding:
                raise JRMError(
                    f"the overall {kind} of a reward score comes from its dimensions: it is {overall:.6g}, not "
                    f"{given[OVERALL]!r}; leave it out."
                )
            object.__setattr__(self, kind, {**values, OVERALL: overall})

    def __hash__(self) -> int:
        return hash((frozenset(self.mu.items()), frozenset(self.sigma.items())))

    def __repr__(self) -> str:
        return f"RewardScore({', '.join(f'{n}={self.mu[n]:.4g}±{self.sigma[n]:.2g}' for n in self.names)})"

    @property
    def names(self) -> list[str]:
        """What is scored, in the order in which it is shown: overall, and then the dimensions."""
        return [OVERALL, *(name for name in self.mu if name != OVERALL)]

    def reward(
        self,
        mode: RewardMode = "mean",
        *,
        dimension: str = OVERALL,
        k: float = 1.0,
        beta: float = 1.0,
        against: "RewardScore | Sequence[RewardScore] | None" = None,
        temperature: float = 1.0,
    ) -> float:
        """One number for an RL loop, from the Gaussian score r with mean mu and standard deviation sigma.

        - `mean`: mu = E[r], in the model's units.
        - `lower_confidence_bound`: mu - k sigma, in the model's units; an uncertain score counts less. With k = 1.64, r
          is above it with a probability of 95 %.
        - `entropic`: mu - sigma^2 / (2 beta), in the model's units, as `beta` is. It is the certainty equivalent
          -beta log E[exp(-r / beta)]: the least mean of any distribution q, with its distance from this Gaussian as a
          price, min over q of E_q[r] + beta KL(q || r) (arXiv 2606.09073, the pessimistic branch, whose beta is the
          weight of the policy's KL penalty). A large `beta` gives the mean.
        - `win_probability`: P(this is better than `against`) = E[sigmoid(r - r')] over both scores (paper eq. 4), a
          probability; the mean of it where `against` is several scores. A `temperature` divides the difference of the
          mus; a calibrated model's `scorer.calibration` says at which one P is how often this is the better sample.

        Raises:
            JRMError: an unknown mode or dimension, k below 0, beta or temperature not above 0, or `against` missing,
                empty or not wanted by the mode.
        """
        if dimension not in self.mu:
            raise JRMError(f"this score has no dimension {dimension!r}; it has {', '.join(self.mu)}.")
        if (mode == "win_probability") != (against is not None):
            raise JRMError(f"against belongs to the mode win_probability and only to it, not to {mode!r}.")
        if mode == "mean":
            return self.mu[dimension]
        if mode == "lower_confidence_bound":
            if not k >= 0:
                raise JRMError(f"k of a lower confidence bound must be at least 0, got {k!r}.")
            return self.mu[dimension] - k * self.sigma[dimension]
        if mode == "entropic":
            if not 0 < beta < math.inf:
                raise JRMError(f"beta of an entropic reward must be above 0 and finite, got {beta!r}.")
            return self.mu[dimension] - self.sigma[dimension] * (self.sigma[dimension] / beta) / 2
        if mode != "win_probability":
            raise JRMError(
                f"unknown reward mode {mode!r}; use mean, lower_confidence_bound, entropic or win_probability."
            )
        others = [against] if isinstance(against, RewardScore) else list(against or ())
        if not others:
            raise JRMError("win_probability needs at least one score to compare with; against is empty.")
        if not 0 < temperature < math.inf:
            raise JRMError(f"the temperature of a win probability must be above 0 and finite, got {temperature!r}.")
        import torch  # torch is slow to import, and samples are made without it

        from jrm_plugin.kernels import win_probability

        mu, sigma = (
            torch.tensor(
                [getattr(score, name)[dimension] / by for score in (self, *others)],
                dtype=torch.float64,
                device="cpu",
            )
            for name, by in (("mu", temperature), ("sigma", 1.0))
        )
        log_sigma, count = sigma.log(), len(others)
        wins = win_probability(mu[:1].expand(count), log_sigma[:1].expand(count), mu[1:], log_sigma[1:])
        return float(wins.mean())

    def to_dict(self) -> dict[str, Any]:
        """`{"mu": {...}, "sigma": {...}}` by dimension and overall, with the rule if it is not `mean`."""
        return {"mu": dict(self.mu), "sigma": dict(self.sigma)} | self._rule()

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "RewardScore":
        """The score of which `to_dict` made `record`; raises a `JRMError` as the class does, or for other keys."""
        check_keys(record, "a reward score's record", required={"mu", "sigma"}, optional={RULE})
        return cls(record["mu"], record["sigma"], record.get(RULE, "mean"))

    def _rule(self) -> dict[str, str]:
        return {} if self.overall_rule == "mean" else {RULE: self.overall_rule}

    def to_columns(self) -> dict[str, Any]:
        """`{"mu_overall": …, "sigma_overall": …, "mu_<dimension>": …, …}`, for a table; `from_columns` reads it.

        With a column `overall_rule` if the rule is not `mean`.
        """
        columns = {f"{kind}_{name}": getattr(self, kind)[name] for name in self.names for kind in SCORE_COLUMNS}
        return columns | self._rule()

    @classmethod
    def from_columns(cls, record: Mapping[str, Any]) -> "RewardScore":
        """The score in a row of a table; other columns, and those that hold nothing, are no part of it.

        Raises:
            JRMError: the class does, as where the row has no score.

        Example:
            >>> RewardScore.from_columns({"edited": "b.png", "mu_a": 1.0, "sigma_a": 0.5})
            RewardScore(overall=1±0.5, a=1±0.5)
        """
        values: dict[str, dict[str, float]] = {kind: {} for kind in SCORE_COLUMNS}
        for column, value in record.items():
            kind, _, name = column.partition("_")
            if kind in values and name and value not in (None, ""):  # CSV's nothing
                try:
                    values[kind][name] = float(value)
                except (TypeError, ValueError):
                    raise JRMError(f"the column {column!r} of a score must hold a number, not {value!r}.") from None
        return cls(values["mu"], values["sigma"], record.get(RULE) or "mean")


def group_rewards(
    scores: Sequence[RewardScore],
    mode: Literal["mean", "lower_confidence_bound", "entropic", "win_rate", "win_probability"] = "mean",
    **options: Any,
) -> list[float]:
    """The reward of every candidate of a group.

    In the mode `win_rate` it is the candidate's mean win probability against each of the others,
    sum over j != i of E[sigmoid(r_i - r_j)] / (G - 1), a probability: Pref-GRPO's reward (arXiv 2508.20751) with the
    preferences of eq. 4 instead of those of a pairwise judge, so that G candidates cost G scores. The rewards of a
    group have the mean 1/2. In the other modes it is `RewardScore.reward`, whose options `options` are.

    Raises:
        JRMError: what `RewardScore.reward` raises, or `win_rate` of fewer than two candidates.
    """
    if mode != "win_rate":
        return [score.reward(mode, **options) for score in scores]
    if len(scores) < 2:
        raise JRMError("win_rate compares the candidates of a group and needs at least 2; take another mode.")
    others = [[*scores[:k], *scores[k + 1 :]] for k in range(len(scores))]
    return [
        score.reward("win_probability", against=rest, **options) for score, rest in zip(scores, others, strict=True)
    ]


def group_advantages(
    rewards: Sequence[float], *, scale: bool = True, variances: Sequence[float] | None = None
) -> list[float]:
    """(r - mean) / standard deviation within the group (GRPO); without `scale` only the mean is taken off (Dr. GRPO).

    The deviation is the sample's (over G - 1). Equal rewards have advantage 0, and so has a group of one.

    With `variances`, a candidate counts by its reliability w_i = (1 / v_i) / (mean of 1 / v_j): the advantage is
    w_i (r_i - b) / s, with the baseline b = sum of w_i r_i / G and s^2 = sum of w_i (r_i - b)^2 / (G - 1). A reward
    that the model is unsure of moves neither the baseline nor the policy much; the advantages of a group still add up
    to 0, and equal variances change nothing. That uncertain rewards get less weight in the advantage is UARM's idea
    (arXiv 2606.19818); 1 / variance is the weight of the least-squares mean.

    Args:
        rewards: of the candidates of one group.
        scale: whether to divide by the deviation.
        variances: of the rewards, above 0, in their units squared: `score.sigma[dimension] ** 2` for the mode `mean`.

    Raises:
        JRMError: there is no reward, a number is not finite, or there is not one variance above 0 for each reward.
    """
    if not rewards or not all(map(math.isfinite, rewards)):
        raise JRMError(f"a group needs at least one reward, all finite, not {list(rewards)}.")
    count = len(rewards)
    weights = [1.0] * count
    if variances is not None:
        if len(variances) != count or not all(0 < variance < math.inf for variance in variances):
            raise JRMError(
                f"reliability weights need one variance above 0, finite, for each of {count} rewards, not "
                f"{list(variances)}."
            )
        relative = [min(variances) / variance for variance in variances]
        weights = [count * weight / math.fsum(relative) for weight in relative]
    if min(rewards) == max(rewards):  # their mean may be rounded to another number
        return [0.0] * count
    baseline = math.fsum(weight * reward for weight, reward in zip(weights, rewards, strict=True)) / count
    centred = [reward - baseline for reward in rewards]
    if not scale:
        return [weight * c for weight, c in zip(weights, centred, strict=True)]
    roots = [math.sqrt(weight) for weight in weights]
    weighted = [root * c for root, c in zip(roots, centred, strict=True)]
    largest = max(map(abs, weighted))
    if largest == 0:  # one reward is all that is known, and it is the baseline
        return [0.0] * count
    # in units of the largest, whose square neither overflows nor vanishes
    deviation = math.sqrt(math.fsum((c / largest) ** 2 for c in weighted) / (count - 1))
    return [root * (c / largest / deviation) for root, c in zip(roots, weighted, strict=True)]
