"""What a self-correction leaves: a line of `rounds.jsonl` and an image for every round, in a folder to go on in."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from jrm_plugin.files import check_writable, write_image, write_json
from jrm_plugin.records.samples import OVERALL
from jrm_plugin.records.scores import RewardScore
from jrm_plugin.runs import append_records, check_settings, read_records

START, CRITIQUE, CONTROL = "start", "critique", "control"  # arms of a run; every other arm begins with START's image
ROUNDS_FILE, SETTINGS_FILE, IMAGES_FOLDER = "rounds.jsonl", "settings.json", "images"


@dataclass(frozen=True)
class CorrectionRound:
    """One image of one sample, and how it came about: a line of `rounds.jsonl`.

    Attributes:
        sample: position of the sample, from 0.
        arm: `start` (the image given), `critique` or `control`.
        number: 0 for the start, then from 1.
        edited: the number of the round whose image was edited; None for the start.
        critiques: by dimension, what the model wrote about that image: a critique's JSON, or any text where it wrote no
            valid one. Empty at the start and in the control arm.
        image: the image that came out, relative to the output folder; None where none did.
        score: its score; None where there is an error.
        error: why there is no score. The arm of this sample ends here.
    """

    sample: int
    arm: str
    number: int
    edited: int | None
    critiques: Mapping[str, str]
    image: str | None
    score: RewardScore | None
    error: str | None

    @property
    def key(self) -> tuple[int, str, int]:
        """Sample, arm and number: what tells a run's rounds apart."""
        return self.sample, self.arm, self.number

    def to_record(self) -> dict:
        score = {"mu": None, "sigma": None} if self.score is None else self.score.to_dict()
        return {
            "sample": self.sample,
            "arm": self.arm,
            "round": self.number,
            "edited": self.edited,
            "critiques": dict(self.critiques),
            "image": self.image,
            **score,
            "error": self.error,
        }

    @classmethod
    def from_record(cls, record: Mapping) -> "CorrectionRound":
        """Read what `to_record` wrote."""
        score = None
        if record["mu"] is not None:
            score = RewardScore.from_dict({kind: record[kind] for kind in ("mu", "sigma")})
        fields = (record[name] for name in ("sample", "arm", "round", "edited", "critiques", "image"))
        return cls(*fields, score, record["error"])


def best_round(history: Sequence[CorrectionRound]) -> CorrectionRound:
    """The round with the highest overall score, the earliest of equal ones; rounds without a score do not count."""
    return max((scored for scored in history if scored.score is not None), key=overall)


def overall(scored: CorrectionRound) -> float:
    return scored.score.mu[OVERALL]


def read_rounds(folder: str | Path) -> list[CorrectionRound]:
    """The rounds in the output folder of `self_correct`, in the order of the file, as far as they are written.

    Raises:
        JRMError: a line is no such record.
    """
    return read_records(Path(folder, ROUNDS_FILE), CorrectionRound.from_record)


class CorrectionFolder:
    """The output folder: what an earlier run left there, and what is added.

    Raises:
        JRMError: the folder cannot be written, or holds a run with other settings.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]):
        self.path = folder
        check_writable(folder / IMAGES_FOLDER)
        results = (folder / ROUNDS_FILE).exists() or any((folder / IMAGES_FOLDER).iterdir())
        check_settings(folder / SETTINGS_FILE, settings, results=results)
        write_json(folder / SETTINGS_FILE, settings)
        self.rounds = {saved.key: saved for saved in read_rounds(folder)}

    def image_name(self, sample: int, arm: str, number: int) -> str:
        return f"{IMAGES_FOLDER}/{sample:06d}_{arm}_{number}.png"

    def has(self, samples: Iterable[int], arm: str, number: int) -> bool:
        return all((k, arm, number) in self.rounds for k in samples)

    def history(self, sample: int, arm: str, number: int) -> list[CorrectionRound]:
        """The start and the rounds of an arm before `number`; shorter where the arm ended with an error."""
        keys = [(sample, START, 0), *((sample, arm, k) for k in range(1, number))]
        return [self.rounds[key] for key in keys if key in self.rounds]

    def add(self, new: CorrectionRound) -> None:
        """Records a round, unless it is there already."""
        if new.key not in self.rounds:
            self.rounds[new.key] = new
            append_records(self.path / ROUNDS_FILE, [new.to_record()])

    def save(self, image: Image.Image, name: str) -> None:
        write_image(self.path / name, image)
