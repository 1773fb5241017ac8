"""What a self-correction leaves: a line of `rounds.jsonl` and an image for every round, in a folder to go on in."""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from jrm_plugin.errors import JRMError
from jrm_plugin.records.samples import OVERALL
from jrm_plugin.records.scores import RewardScore

START, CRITIQUE, CONTROL = "start", "critique", "control"  # arms of a run; every other arm begins with START's image
ROUNDS_FILE, SETTINGS_FILE = "rounds.jsonl", "settings.json"


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
        told = (record[name] for name in ("sample", "arm", "round", "edited", "critiques", "image"))
        return cls(*told, score, record["error"])


def best_round(history: Sequence[CorrectionRound]) -> CorrectionRound:
    """The round with the highest overall score, the earliest of equal ones; rounds without a score do not count."""
    return max((one for one in history if one.score is not None), key=overall)


def overall(one: CorrectionRound) -> float:
    return one.score.mu[OVERALL]


class CorrectionFolder:
    """The output folder: what an earlier run left there, and what is added."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]):
        self.folder, self.file = folder, folder / ROUNDS_FILE
        try:
            (folder / "images").mkdir(parents=True, exist_ok=True)
            self._check_settings(json.loads(json.dumps(settings)))
        except OSError as error:
            raise JRMError(f"the output folder {folder} cannot be written: {error.strerror}; choose another.") from None
        self.rounds = {(one.sample, one.arm, one.number): one for one in read_rounds(folder, mend=True)}

    def _check_settings(self, settings: dict) -> None:
        path = self.folder / SETTINGS_FILE
        if not path.exists():
            if self.file.exists() or any((self.folder / "images").iterdir()):
                raise JRMError(f"{self.folder} holds rounds or images of an unknown run; choose another output folder.")
            self._replace(path, lambda unfinished: unfinished.write_text(json.dumps(settings, indent=1) + "\n"))
            return
        earlier = json.loads(path.read_text())
        changed = sorted(name for name in settings.keys() | earlier.keys() if settings.get(name) != earlier.get(name))
        if changed:
            raise JRMError(
                f"{self.folder} holds a self-correction with another {', '.join(changed)}; "
                "go on with the same settings, or choose another output folder."
            )

    def image_name(self, sample: int, arm: str, number: int) -> str:
        return f"images/{sample:06d}_{arm}_{number}.png"

    def has(self, samples: Iterable[int], arm: str, number: int) -> bool:
        return all((k, arm, number) in self.rounds for k in samples)

    def history(self, sample: int, arm: str, number: int) -> list[CorrectionRound]:
        """The start and the rounds of an arm before `number`; shorter where the arm ended with an error."""
        keys = [(sample, START, 0), *((sample, arm, k) for k in range(1, number))]
        return [self.rounds[key] for key in keys if key in self.rounds]

    def add(self, one: CorrectionRound) -> None:
        key = (one.sample, one.arm, one.number)
        if key not in self.rounds:
            self.rounds[key] = one
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(one.to_record(), ensure_ascii=False) + "\n")

    def save(self, image: Image.Image, name: str) -> None:
        self._replace(self.folder / name, lambda unfinished: image.save(unfinished, format="PNG"))

    @staticmethod
    def _replace(path: Path, write: Callable[[Path], Any]) -> None:
        """At any moment the file is whole or not there."""
        unfinished = path.with_name(f".{path.name}.tmp")
        write(unfinished)
        os.replace(unfinished, path)


def read_rounds(folder: str | Path, *, mend: bool = False) -> list[CorrectionRound]:
    """The rounds in the output folder of `self_correct`, in the order of the file.

    A last line that was cut off is left out, and with `mend` removed from the file.

    Raises:
        JRMError: a line is no such record.
    """
    path = Path(folder, ROUNDS_FILE)
    content = path.read_bytes() if path.exists() else b""
    whole = content[: content.rfind(b"\n") + 1]
    rounds = []
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            rounds.append(CorrectionRound.from_record(json.loads(line)))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise JRMError(f"{path}, line {number} is no record of a round; choose another output folder.") from error
    if mend and whole != content:
        os.truncate(path, len(whole))
    return rounds
