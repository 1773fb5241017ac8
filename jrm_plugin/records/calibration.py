"""What was measured of a model on held-out pairs: how far its differences can be trusted, and its usual sigma."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jrm_plugin.errors import JRMError
from jrm_plugin.records.checks import check_keys
from jrm_plugin.records.scores import RewardScore

LEVELS = (0.9, 0.95, 0.99)  # of the quantiles of sigma


@dataclass(frozen=True)
class Calibration:
    """The calibration of a checkpoint, by dimension and `overall`; scores and rankings do not change with it.

    Attributes:
        temperature: what the difference of two mus is divided by, so that P(a beats b) is how often a is the better
            one: E[sigmoid((mu_a - mu_b) / temperature + z)], z Gaussian with the variance sigma_a^2 + sigma_b^2.
        sigma: quantiles of sigma by level, such as `{"visual_quality": {0.95: 1.4}}`: of samples like those that the
            model was calibrated on, at most a share of 1 - level has a larger sigma (split conformal prediction). A
            level for which there were too few samples is missing.

    Raises:
        JRMError: a number is not finite, or not above 0.
    """

    temperature: Mapping[str, float]
    sigma: Mapping[str, Mapping[float, float]]

    def __post_init__(self) -> None:
        numbers = [*self.temperature.values(), *(value for levels in self.sigma.values() for value in levels.values())]
        if not all(isinstance(number, (int, float)) and 0 < number < math.inf for number in numbers):
            raise JRMError(f"the numbers of a calibration must be finite and above 0, not {numbers}.")

    def temperature_of(self, dimension: str) -> float:
        """The temperature of a dimension; 1 where there were too few pairs to tell."""
        return self.temperature.get(dimension, 1.0)

    def sigma_above(self, score: RewardScore, level: float = 0.95) -> dict[str, bool]:
        """By dimension, whether sigma lies above the quantile: often, where samples are of another kind."""
        return {
            name: score.sigma[name] > levels[level]
            for name, levels in self.sigma.items()
            if level in levels and name in score.sigma
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; `from_dict` reads it."""
        sigma = {name: {str(level): value for level, value in levels.items()} for name, levels in self.sigma.items()}
        return {"temperature": dict(self.temperature), "sigma_quantiles": sigma}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "Calibration":
        """The calibration of which `to_dict` made `record`; raises a `JRMError` for anything else."""
        check_keys(record, "a calibration", required={"temperature", "sigma_quantiles"})
        try:
            quantiles = {
                str(name): {float(level): value for level, value in levels.items()}
                for name, levels in record["sigma_quantiles"].items()
            }
            return cls(dict(record["temperature"]), quantiles)
        except (AttributeError, TypeError, ValueError) as error:
            raise error if isinstance(error, JRMError) else JRMError(f"this is no calibration: {error}.") from error
