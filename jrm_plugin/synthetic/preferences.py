"""What the two made-up edit sets share: how an edit can go wrong, what that is worth, and how a set is written.

An edit has two candidates. Each candidate has one failure in following the instruction (or none) and one flaw of the
picture (or none); the scores of 1 to 4 follow from those two, and the overall score is their sum.

Where a set is labelled in consistency too, a third score says whether what the instruction leaves alone was kept, which
the critique of instruction following says in words. As in the paper's rubric (appendix C.1), an edit that overdoes it
also loses a point in instruction following; visual quality (C.2) is about flaws of the picture and knows nothing of it.
"""

import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL
from PIL import Image, ImageFilter
from tqdm import tqdm

from jrm_plugin.data.editreward import write_edit_reward, write_language
from jrm_plugin.errors import JRMError
from jrm_plugin.files import write_text
from jrm_plugin.records.critiques import Critique, EditRegion
from jrm_plugin.records.images import ImageLike
from jrm_plugin.records.preferences import CritiqueExample, PreferencePair
from jrm_plugin.records.samples import DIMENSIONS, KNOWN_DIMENSIONS, OVERALL, Sample

FAILURE_SCORES = {
    "none": 4,
    "partial": 3,
    "over_edit": 3,
    "wrong_value": 2,
    "wrong_object": 2,
    "several_copies": 2,  # of ShapeEdits alone, and drawn where somebody names it alone: policies do it
    "ignored": 1,
}
QUALITY_SCORES = {"clean": 4, "mild_noise": 3, "blur": 2, "seam": 2, "heavy_noise": 1}
KEPT, PLACE_CHANGED, ALL_CHANGED = 4, 2, 1  # scores of consistency
FAILURE_WEIGHTS = {
    "none": 0.36,
    "ignored": 0.16,
    "wrong_object": 0.16,
    "wrong_value": 0.16,
    "partial": 0.08,
    "over_edit": 0.08,
}
QUALITY_WEIGHTS = {"clean": 0.60, "mild_noise": 0.10, "blur": 0.10, "seam": 0.10, "heavy_noise": 0.10}
NOISE = {"mild_noise": 18, "heavy_noise": 60}  # standard deviations, in levels of 255
QUALITY_WORDS = {
    "clean": "the image is clean",
    "mild_noise": "there is mild noise",
    "heavy_noise": "there is heavy noise",
    "blur": "the image is blurred",
    "seam": "there is a seam",
}
GRID = 3  # images are divided into GRID x GRID places, named row by row
PLACES = ("top-left", "top", "top-right", "left", "middle", "right", "bottom-left", "bottom", "bottom-right")

# Instructions of the language warm start: say what an edit changed, in one of two orders.
CHANGE_PROMPTS = {"diff": "list changes by place", "objdiff": "list changes by object"}
# Ways to divide the pairs of a set, for `evaluation.pairs.summarize`; the keys are those that `EditSet.write` writes.
GROUPS = {
    "failure": {
        "title": "Failure to follow the instruction, where one candidate shows it",
        "column": "Failure of one candidate",
        "keys": ("failure1", "failure2"),
    },
    "edit": {"title": "Kind of edit", "column": "Edit", "keys": ("edit",)},
    "quality": {
        "title": "Flaw of the picture, where one candidate shows it",
        "column": "Flaw of one candidate",
        "keys": ("quality1", "quality2"),
    },
}
_CAPTIONS = 0.14  # share of captions among the language rows; the changes halve the rest

Outcome = tuple[str, str]  # a failure and a quality
Box = tuple[int, int, int, int]  # x1, y1, x2, y2 in thousandths of the image
WHOLE: Box = (0, 0, 1000, 1000)


class Unasked(NamedTuple):
    """What changed although the instruction leaves it alone."""

    label: str
    box: Box


@dataclass(frozen=True)
class Candidate:
    """One edited image and everything that is true of it."""

    image: np.ndarray  # [height, width, 3] uint8
    failure: str
    quality: str
    critiques: dict[str, Critique]  # by each of `KNOWN_DIMENSIONS`
    changes: dict[str, str]  # "diff" and "objdiff": the texts of the language warm start
    unasked: Unasked | None = None

    def scores(self, dimensions: Sequence[str] = DIMENSIONS) -> dict[str, int]:
        """The scores of 1 to 4 in these of `KNOWN_DIMENSIONS`."""
        changed = ALL_CHANGED if self.unasked and self.unasked.box == WHOLE else PLACE_CHANGED
        consistency = changed if self.unasked else KEPT
        scores = (FAILURE_SCORES[self.failure], QUALITY_SCORES[self.quality], consistency)
        by_dimension = dict(zip(KNOWN_DIMENSIONS, scores, strict=True))
        return {name: by_dimension[name] for name in dimensions}


@dataclass(frozen=True)
class Edit:
    """One source image, one instruction and its candidates: two, the better one first, unless more were asked for."""

    kind: str
    instruction: str
    scene: str  # what of the source image decides the split
    source: np.ndarray
    caption: str
    candidates: tuple[Candidate, ...]


def pick(rng: np.random.Generator, items: Sequence | dict[Any, float]) -> Any:
    """One item at random; of a dict, one key with its value as weight."""
    if not isinstance(items, dict):
        return items[int(rng.integers(len(items)))]
    level = rng.random() * sum(items.values())
    for item, weight in items.items():
        level -= weight
        if level < 0:
            return item
    return item


def draw_outcomes(
    rng: np.random.Generator,
    *,
    tie: bool,
    failures: Mapping[str, float] = FAILURE_WEIGHTS,
    qualities: dict[str, float] = QUALITY_WEIGHTS,
) -> tuple[Outcome, Outcome]:
    """Two different (failure, quality): equal in overall score for a tie, else the better one first."""
    while True:
        first, second = ((pick(rng, failures), pick(rng, qualities)) for _ in range(2))
        difference = overall_score(*first) - overall_score(*second)
        if first != second and (difference == 0) == tie:
            return (first, second) if difference >= 0 else (second, first)


def overall_score(failure: str, quality: str) -> int:
    """The sum of both scores, 2 to 8."""
    return FAILURE_SCORES[failure] + QUALITY_SCORES[quality]


def spoil(image: np.ndarray, quality: str, rng: np.random.Generator) -> np.ndarray:
    """Give an image `[height, width, 3]` of uint8 one of the flaws of `QUALITY_SCORES`."""
    side = image.shape[1]
    if quality == "clean":
        return image
    if quality == "blur":
        return np.asarray(Image.fromarray(image).filter(ImageFilter.BoxBlur(side / 32)))
    if quality == "seam":  # an upright strip of the image, inverted and shifted
        width, shift = side // 16, side // 6
        left = int(rng.integers(shift, side - shift))
        spoiled = image.copy()
        spoiled[:, left : left + width] = 255 - np.roll(image[:, left : left + width], shift, axis=0)
        return spoiled
    noise = rng.standard_normal(image.shape, dtype=np.float32) * NOISE[quality]
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def box_of(place: int) -> Box:
    """The box of a place (index into `PLACES`)."""
    row, column = divmod(place, GRID)
    return tuple(round(1000 * edge / GRID) for edge in (column, row, column + 1, row + 1))


def make_critiques(
    label: str, box: Box, finding: str, rest: str, quality: str, unasked: Unasked | None
) -> dict[str, Critique]:
    """The critiques of a candidate by dimension.

    Instruction following: what became of the thing asked for (`finding`), which is the region `label` in `box`, and of
    the rest. Visual quality: the flaw of the picture. Consistency: the rest alone, with the region that changed.
    """
    following = Critique(f"<|bbox_0|> {finding} <|global|> {rest}", (EditRegion(0, label, box),))
    if unasked is None:
        consistency = Critique(f"<|global|> {rest}")
    else:
        consistency = Critique(f"<|bbox_0|> {rest} <|global|> nobody asked for that", (EditRegion(0, *unasked),))
    return dict(zip(KNOWN_DIMENSIONS, (following, Critique(QUALITY_WORDS[quality]), consistency), strict=True))


# --- writing a set ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EditSet:
    """A made-up set of edits: draws them one by one, or writes a whole preference set.

    Attributes:
        name: stands in `meta.json`, and as the model's name in every pair.
        draw: `draw(rng, *, heldout, tie=False, outcomes=None, failures=…)` makes an `Edit` of the wanted split. It has
            two candidates, whose overall scores are equal if `tie` and whose failures come by the weights `failures`;
            or, with `outcomes`, a sequence of (failure, quality), one candidate for each: a group to rank.
        caption_prompt: asks for the caption of a source image.
        train, heldout, language: how much `write` makes by default.
        check: raises a `JRMError` where something that `draw` needs is missing.
        failures: those that it can draw.
    """

    name: str
    draw: Callable[..., Edit]
    caption_prompt: str
    train: int
    heldout: int
    language: int
    check: Callable[[], None] | None = None
    failures: tuple[str, ...] = tuple(FAILURE_WEIGHTS)

    def write(
        self,
        folder: str | Path,
        *,
        train: int | None = None,
        heldout: int | None = None,
        language: int | None = None,
        seed: int = 0,
        tie_rate: float = 0.0,
        label_noise: float = 0.0,
        dimensions: Sequence[str] = DIMENSIONS,
        failures: Mapping[str, float] = FAILURE_WEIGHTS,
        progress: bool = True,
    ) -> Path:
        """Make the set and write it to `folder` in EditReward's training format, over an earlier set there.

        Leaves `images/*.png`, `train.json` and `heldout.json` with `train_critiques.jsonl` and
        `heldout_critiques.jsonl` (read them with `read_edit_reward`), `language.jsonl` (`read_language`) and, at last,
        `meta.json`. The records have the extra keys `edit`, `scene`, `failure1`, `failure2`, `quality1`, `quality2` and
        `flipped`. Each split has a random stream of its own, so that the held-out edits do not depend on how many are
        trained on.

        Args:
            folder: where to write.
            train, heldout: the numbers of pairs; by default the set's own.
            language: the number of texts for the language warm start, about the images of the training pairs: 14 %
                captions first, then what edits changed, by place and by object in random order (`kind`: `caption`,
                `diff`, `objdiff`); by default the set's own.
            seed: the same seed and options give the same files (with the same versions of numpy and Pillow).
            tie_rate: the probability that a pair is a tie: different flaws, equal overall scores.
            label_noise: the probability that a training pair's scores are swapped, and the preference with them;
                critiques keep telling the truth, and `flipped` tells which pairs these are. Held-out pairs are never
                flipped.
            dimensions: in which the pairs have scores and critiques, of `KNOWN_DIMENSIONS`; the overall score is the
                sum of these. The images are the same whichever they are; pairs that tie overall only in these
                dimensions come beside those of `tie_rate`.
            failures: how often a candidate goes wrong in which way, as weights by failure; `none` is one.
            progress: show bars on a terminal.

        Returns:
            The folder, absolute.

        Raises:
            JRMError: an option is out of range, the folder cannot be written, or `check` finds something missing.
        """
        numbers = {
            "train": self.train if train is None else train,
            "heldout": self.heldout if heldout is None else heldout,
            "language": self.language if language is None else language,
            "seed": seed,
        }
        _check_options(numbers, {"tie_rate": tie_rate, "label_noise": label_noise}, dimensions)
        if unknown := sorted(failures.keys() - {*self.failures}):
            raise JRMError(f"{self.name} has no failure {unknown[0]!r}; it draws {', '.join(self.failures)}.")
        if not all(0 <= weight < math.inf for weight in failures.values()) or not sum(failures.values()) > 0:
            raise JRMError(f"failures must have weights of 0 or more, and one above it, not {dict(failures)}.")
        if self.check:
            self.check()
        folder = Path(os.path.abspath(folder))
        try:
            (folder / "images").mkdir(parents=True, exist_ok=True)
            for file in ("meta.json", "train.json", "heldout.json", "language.jsonl"):
                (folder / file).unlink(missing_ok=True)  # they would speak of images that are about to be overwritten
        except OSError as error:
            raise JRMError(f"{folder} cannot be written: {error.strerror}.") from None

        texts: list[_Texts] = []
        for stream, split in enumerate(("train", "heldout")):
            rng = np.random.default_rng([seed, stream])
            pairs = []
            for index in _bar(range(numbers[split]), f"{self.name}: {split}", progress):
                edit = self.draw(rng, heldout=split == "heldout", tie=rng.random() < tie_rate, failures=failures)
                source, *edited = _save_images(edit, folder / "images", f"{split}_{index:06d}")
                if split == "train":
                    texts.append(_Texts(source, edited, edit.caption, [c.changes for c in edit.candidates]))
                flipped = split == "train" and rng.random() < label_noise
                pairs.append(_to_pair(edit, source, edited, flipped, self.name, dimensions))
            write_edit_reward(folder / f"{split}.json", pairs)
        rng = np.random.default_rng([seed, 2])
        rows = _language_rows(rng, texts, numbers["language"], self.caption_prompt)
        write_language(folder / "language.jsonl", rows)
        versions = {"numpy": np.__version__, "pillow": PIL.__version__}
        meta = {"name": self.name, **numbers, "tie_rate": tie_rate, "label_noise": label_noise, "versions": versions}
        if tuple(dimensions) != DIMENSIONS:
            meta["dimensions"] = [*dimensions]
        if failures != FAILURE_WEIGHTS:
            meta["failures"] = dict(failures)
        write_text(folder / "meta.json", json.dumps(meta, indent=1) + "\n")
        return folder

    def over_edits(self, count: int, *, seed: int = 0, dimensions: Sequence[str] = DIMENSIONS) -> list[PreferencePair]:
        """Held-out pairs of an edit as asked and one that did more, with the same flaw or none in both pictures.

        Nobody doubts which is better: a judge that is wrong here has not seen that something else was to stay.

        Args:
            count: the number of pairs; their images stay in memory.
            seed: the same one gives the same pairs, by a random stream of their own.
            dimensions: as in `write`.
        """
        rng = np.random.default_rng([seed, 3])
        pairs = []
        for _ in range(count):
            quality = pick(rng, QUALITY_WEIGHTS)
            edit = self.draw(rng, heldout=True, outcomes=[("none", quality), ("over_edit", quality)])
            images = [candidate.image for candidate in edit.candidates]
            pairs.append(_to_pair(edit, edit.source, images, False, self.name, dimensions))
        return pairs


def _check_options(numbers: dict[str, int], probabilities: dict[str, float], dimensions: Sequence[str]) -> None:
    unknown = [name for name in dimensions if name not in KNOWN_DIMENSIONS]
    if isinstance(dimensions, str) or unknown or not 0 < len(dimensions) == len(set(dimensions)):
        raise JRMError(f"dimensions must be some of {', '.join(KNOWN_DIMENSIONS)}, each once, not {dimensions!r}.")
    for option, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise JRMError(f"{option} must be a whole number of 0 or more, not {value!r}.")
    for option, value in probabilities.items():
        if not 0 <= value <= 1:
            raise JRMError(f"{option} is a probability between 0 and 1, not {value!r}.")
    if numbers["language"] and not numbers["train"]:
        raise JRMError("language rows are made from the training edits: give train=1 or more, or language=0.")


@dataclass(frozen=True)
class _Texts:
    """What the language rows need of a training edit."""

    source: str
    edited: list[str]
    caption: str
    changes: list[dict[str, str]]


def _save_images(edit: Edit, folder: Path, stem: str) -> list[str]:
    """Paths of the source and of the two edited images, written as PNG."""
    paths = []
    images = (edit.source, *(candidate.image for candidate in edit.candidates))
    for image, suffix in zip(images, ("source", "a", "b"), strict=True):
        path = f"{folder}/{stem}_{suffix}.png"
        try:
            Image.fromarray(image).save(path, compress_level=1)  # the fastest that compresses, and not much larger
        except OSError as error:
            raise JRMError(f"{path} cannot be written: {error.strerror}.") from None
        paths.append(path)
    return paths


def _to_pair(
    edit: Edit,
    source: ImageLike,
    edited: Sequence[ImageLike],
    flipped: bool,
    name: str,
    dimensions: Sequence[str],
) -> PreferencePair:
    """The pair as an annotator labels it. One who errs (`flipped`) swaps the scores; what is seen stays what it is."""
    sides = list(zip(edit.candidates, edited, strict=True))
    # Drawn with the better one first in the two dimensions that every set has; in others it may be the second.
    sides.sort(key=lambda side: -sum(side[0].scores(dimensions).values()))
    scores = [candidate.scores(dimensions) for candidate, _ in sides]
    tie = sum(scores[0].values()) == sum(scores[1].values())
    if flipped:
        # The worse image gets the better one's scores, and with them the first place. In a tie no image has the first
        # place by merit, but the scores of the dimensions are swapped all the same.
        sides.reverse()
    (chosen, chosen_image), (rejected, rejected_image) = sides
    info = {"model1": name, "model2": name, "edit": edit.kind, "scene": edit.scene, "flipped": flipped}
    info |= {"failure1": chosen.failure, "failure2": rejected.failure}
    info |= {"quality1": chosen.quality, "quality2": rejected.quality}
    return PreferencePair(
        Sample.edit(source, edit.instruction, chosen_image),
        Sample.edit(source, edit.instruction, rejected_image),
        labels={OVERALL: 0 if tie else 1},
        chosen_scores=scores[0],
        rejected_scores=scores[1],
        chosen_critiques={name: chosen.critiques[name] for name in dimensions},
        rejected_critiques={name: rejected.critiques[name] for name in dimensions},
        info=info,
    )


def _language_rows(
    rng: np.random.Generator, texts: list[_Texts], count: int, caption_prompt: str
) -> Iterator[CritiqueExample]:
    """Captions of source images first, then what edits changed, half by place and half by object, shuffled."""
    for row in range(count):
        edit = pick(rng, texts)
        if row < round(count * _CAPTIONS):
            yield CritiqueExample(Sample.generation(caption_prompt, edit.source), edit.caption, {"kind": "caption"})
        else:
            kind, candidate = pick(rng, list(CHANGE_PROMPTS)), int(rng.integers(2))
            sample = Sample.edit(edit.source, CHANGE_PROMPTS[kind], edit.edited[candidate])
            yield CritiqueExample(sample, edit.changes[candidate][kind], {"kind": kind})


def _bar(rows: range, title: str, progress: bool) -> tqdm:
    return tqdm(rows, desc=title, unit=" pairs", disable=not (progress and rows and sys.stderr.isatty()))
