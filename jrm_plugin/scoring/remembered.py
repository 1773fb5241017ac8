"""Scores that are kept for a while, for frameworks that ask for several rewards of one rollout one after the other."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

from jrm_plugin.errors import JRMError
from jrm_plugin.records.calibration import Calibration
from jrm_plugin.records.images import is_data_url
from jrm_plugin.records.samples import OVERALL, Sample
from jrm_plugin.records.scores import RewardScore
from jrm_plugin.scoring.protocol import Ranked, Scorer, check_one_prompt, ranked


class RememberedScores:
    """A [`Scorer`] that asks another one, and keeps the scores of the last samples.

    Samples are the same where their texts and images are. An image to be scored that is a path is always scored: the
    file may hold another one by now.

    Args:
        scorer: the one to ask.
        most: how many scores are kept.
    """

    def __init__(self, scorer: Scorer, most: int = 8192):
        self._scorer, self._most = scorer, most
        self._scores: OrderedDict[str, RewardScore] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type, tuple[Scorer, int]]:
        return RememberedScores, (self._scorer, self._most)

    @property
    def dimensions(self) -> list[str]:
        return self._scorer.dimensions

    @property
    def calibration(self) -> Calibration | None:
        return getattr(self._scorer, "calibration", None)

    def score(
        self, samples: Sequence[Sample], *, on_error: Literal["raise", "return"] = "raise", progress: bool = False
    ) -> list[RewardScore | JRMError]:
        keys = [_key(sample) for sample in samples]
        with self._lock:  # one that asks for what another has computed waits for it
            known = {key: self._scores[key] for key in keys if key is not None and key in self._scores}
            asked: dict[str, Sample] = {}  # each once
            for number, (key, sample) in enumerate(zip(keys, samples, strict=True)):
                if key not in known:
                    asked.setdefault(key or f"path {number}", sample)
            answers = self._scorer.score(list(asked.values()), on_error="return", progress=progress) if asked else []
            new = dict(zip(asked, answers, strict=True))
            for key, answer in new.items():
                if isinstance(answer, RewardScore) and not key.startswith("path "):
                    self._scores[key] = answer
            for key in known:
                self._scores.move_to_end(key)
            while len(self._scores) > self._most:
                self._scores.popitem(last=False)
        results = [known.get(key) or new[key or f"path {number}"] for number, key in enumerate(keys)]
        for position, result in enumerate(results):
            if on_error == "raise" and isinstance(result, JRMError):
                raise JRMError(f"sample {position} cannot be scored: {result}") from result
        return results

    def rank(
        self, samples: Sequence[Sample], *, dimension: str = OVERALL, different_prompts: bool = False
    ) -> list[Ranked]:
        if not different_prompts:
            check_one_prompt(samples)
        return ranked(self.score(samples), dimension)


def _key(sample: Sample) -> str | None:
    """Equal for equal samples; None where a file would have to be read to know."""
    if any(isinstance(image, str) and not is_data_url(image) for image in sample.response_images):
        return None
    try:
        return sample.key()
    except JRMError:  # scoring says what is wrong with it
        return None
