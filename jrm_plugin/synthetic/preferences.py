"""What the two made-up edit sets share: how an edit can go wrong, what that is worth, and how a set is written.

An edit has two candidates. Each candidate has one failure in following the instruction (or none) and one flaw of the
picture (or none); the scores of 1 to 4 follow from those two, and the overall score is their sum.
"""

import json
import os
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, ImageFilter
from tqdm import tqdm

from jrm_plugin.data.editreward import write_edit_reward, write_language
from jrm_plugin.errors import JRMError
from jrm_plugin.files import write_text
from jrm_plugin.records.critiques import Critique, EditRegion
from jrm_plugin.records.preferences import CritiqueExample, PreferencePair
from jrm_plugin.records.samples import DIMENSIONS, OVERALL, Sample

FAILURE_SCORES = {"none": 4, "partial": 3, "over_edit": 3, "wrong_value": 2, "wrong_object": 2, "ignored": 1}
QUALITY_SCORES = {"clean": 4, "mild_noise": 3, "blur": 2, "seam": 2, "heavy_noise": 1}
FAILURE_WEIGHTS = {
    "none": 0.36,
    "ignored": 0.16,
    "wrong_object": 0.16,
    "wrong_value": 0.16,
    "partial": 0.08,
    "over_edit": 0.08,
}
QUALITY_WEIGHTS = {"clean": 0.60, "mild_noise": 0.10, "blur": 0.10, "seam": 0.10, "heavy_noise": 0.10}
QUALITY_WORDS = {
    "clean": "the image is clean",
    "mild_noise": "there is mild noise",
    "heavy_noise": "there is heavy noise",
    "blur": "the image is blurred",
    "seam": "there is a seam",
}
PLACES = ("top-left", "top", "top-right", "left", "middle", "right", "bottom-left", "bottom", "bottom-right")

# What the language warm start asks of an edit: what it changed, told in two orders.
CHANGE_PROMPTS = {"diff": "list changes by place", "objdiff": "list changes by object"}
_CAPTIONS = 0.14  # share of captions among the language rows; the changes halve the rest


Outcome = tuple[str, str]  # a failure and a quality


@dataclass(frozen=True)
class Candidate:
    """One edited image and everything that is true of it."""

    image: np.ndarray  # [height, width, 3] uint8
    failure: str
    quality: str
    critiques: dict[str, Critique]
    changes: dict[str, str]  # "diff" and "objdiff": the texts of the language warm start

    @property
    def scores(self) -> dict[str, int]:
        return dict(zip(DIMENSIONS, (FAILURE_SCORES[self.failure], QUALITY_SCORES[self.quality]), strict=True))


@dataclass(frozen=True)
class Edit:
    """One source image, one instruction and its candidates: two, the better one first, unless more were asked for."""

    kind: str
    instruction: str
    scene: str  # what of the source image decides the split
    source: np.ndarray
    caption: str
    candidates: tuple[Candidate, ...]


def pick(rng: np.random.Generator, items):
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
    failures: dict[str, float] = FAILURE_WEIGHTS,
    qualities: dict[str, float] = QUALITY_WEIGHTS,
):
    """Two different (failure, quality): equal in overall score for a tie, else the better one first."""
    while True:
        one, two = ((pick(rng, failures), pick(rng, qualities)) for _ in range(2))
        difference = overall_score(*one) - overall_score(*two)
        if one != two and (difference == 0) == tie:
            return (one, two) if difference >= 0 else (two, one)


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
    noise = rng.standard_normal(image.shape, dtype=np.float32) * {"mild_noise": 18, "heavy_noise": 60}[quality]
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def make_critiques(label: str, box, finding: str, rest: str, quality: str) -> dict[str, Critique]:
    """The critiques of a candidate: what became of the thing asked for, then of the rest; and the picture's flaw."""
    following = Critique(f"<|bbox_0|> {finding} <|global|> {rest}", (EditRegion(0, label, box),))
    return dict(zip(DIMENSIONS, (following, Critique(QUALITY_WORDS[quality])), strict=True))


# --- writing a set ----------------------------------------------------------------------------------------------------


def write_edit_set(
    folder,
    draw: Callable[..., Edit],
    *,
    name: str,
    caption_prompt: str,
    train: int,
    heldout: int,
    language: int,
    seed: int,
    tie_rate: float,
    label_noise: float,
    progress: bool,
) -> Path:
    """Write `images/`, `train.json`, `heldout.json`, their critiques, `language.jsonl` and, at last, `meta.json`.

    `draw(rng, heldout=..., tie=...)` makes an `Edit`, `caption_prompt` asks for its caption. Each split has its own
    random stream, so that the held-out edits do not depend on how many are trained on. The options are those of
    `write_shape_edits`.
    """
    options = {"train": train, "heldout": heldout, "language": language, "seed": seed}
    for option, value in options.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise JRMError(f"{option} must be a whole number of 0 or more, not {value!r}.")
    for option, value in (("tie_rate", tie_rate), ("label_noise", label_noise)):
        if not 0 <= value <= 1:
            raise JRMError(f"{option} is a probability between 0 and 1, not {value!r}.")
    if language and not train:
        raise JRMError("language rows are made from the training edits: give train=1 or more, or language=0.")
    folder = Path(os.path.abspath(folder))
    try:
        (folder / "images").mkdir(parents=True, exist_ok=True)
        for file in ("meta.json", "train.json", "heldout.json", "language.jsonl"):
            (folder / file).unlink(missing_ok=True)  # they would speak of images that are about to be overwritten
    except OSError as error:
        raise JRMError(f"{folder} cannot be written: {error.strerror}.") from None

    texts: list[_Texts] = []
    for number, (split, count) in enumerate((("train", train), ("heldout", heldout))):
        rng = np.random.default_rng([seed, number])
        pairs = []
        for index in _bar(range(count), f"{name}: {split}", progress):
            edit = draw(rng, heldout=split == "heldout", tie=rng.random() < tie_rate)
            source, one, two = _save_images(edit, folder / "images", f"{split}_{index:06d}")
            if split == "train":
                texts.append(
                    _Texts(source, (one, two), edit.caption, (edit.candidates[0].changes, edit.candidates[1].changes))
                )
            flipped = split == "train" and rng.random() < label_noise
            pairs.append(_to_pair(edit, source, (one, two), flipped, name))
        write_edit_reward(folder / f"{split}.json", pairs)
    rows = _language_rows(np.random.default_rng([seed, 2]), texts, language, caption_prompt)
    write_language(folder / "language.jsonl", rows)
    versions = {"numpy": np.__version__, "pillow": PIL.__version__}
    meta = {"name": name, **options, "tie_rate": tie_rate, "label_noise": label_noise, "versions": versions}
    write_text(folder / "meta.json", json.dumps(meta, indent=1) + "\n")
    return folder


@dataclass(frozen=True)
class _Texts:
    """What the language rows need of a training edit."""

    source: str
    edited: tuple[str, str]
    caption: str
    changes: tuple[dict[str, str], dict[str, str]]


def _save_images(edit: Edit, folder: Path, stem: str) -> list[str]:
    paths = []
    images = (edit.source, *(candidate.image for candidate in edit.candidates))
    for image, suffix in zip(images, ("source", "a", "b"), strict=True):
        path = f"{folder}/{stem}_{suffix}.png"
        try:
            Path(path).write_bytes(_png(image))
        except OSError as error:
            raise JRMError(f"{path} cannot be written: {error.strerror}.") from None
        paths.append(path)
    return paths


def _png(image: np.ndarray) -> bytes:
    """An image `[height, width, 3]` of uint8 as a PNG file: for small images ten times faster than Pillow's encoder."""
    height, width, _ = image.shape
    rows = np.zeros((height, 1 + 3 * width), np.uint8)  # each row begins with the number of its filter: 0, none
    rows[:, 1:] = image.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits a channel, RGB
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def _to_pair(edit: Edit, source: str, edited: tuple[str, str], flipped: bool, name: str) -> PreferencePair:
    """The pair as an annotator labels it. One who errs (`flipped`) swaps the scores; what is seen stays what it is."""
    better, worse = edit.candidates
    scores = [better.scores, worse.scores]
    sides = [(better, edited[0]), (worse, edited[1])]
    tie = sum(scores[0].values()) == sum(scores[1].values())
    if flipped:
        # The worse image gets the better one's scores, and with them the first place. In a tie no image has the first
        # place by merit, but the scores of the dimensions are swapped all the same.
        sides.reverse()
    (one, image1), (two, image2) = sides
    info = {"model1": name, "model2": name, "edit": edit.kind, "scene": edit.scene, "flipped": flipped}
    info |= {"failure1": one.failure, "failure2": two.failure, "quality1": one.quality, "quality2": two.quality}
    return PreferencePair(
        Sample.edit(source, edit.instruction, image1),
        Sample.edit(source, edit.instruction, image2),
        labels={OVERALL: 0 if tie else 1},
        chosen_scores=scores[0],
        rejected_scores=scores[1],
        chosen_critiques=one.critiques,
        rejected_critiques=two.critiques,
        info=info,
    )


def _language_rows(
    rng: np.random.Generator, texts: list[_Texts], count: int, caption_prompt: str
) -> Iterator[CritiqueExample]:
    """Captions of source images first, then what edits changed, half by place and half by object, shuffled."""
    for row in range(count):
        of = pick(rng, texts)
        if row < round(count * _CAPTIONS):
            yield CritiqueExample(Sample.generation(caption_prompt, of.source), of.caption, {"kind": "caption"})
        else:
            kind, which = pick(rng, list(CHANGE_PROMPTS)), int(rng.integers(2))
            sample = Sample.edit(of.source, CHANGE_PROMPTS[kind], of.edited[which])
            yield CritiqueExample(sample, of.changes[which][kind], {"kind": kind})


def _bar(items, what: str, progress: bool):
    return tqdm(items, desc=what, unit=" pairs", disable=not (progress and len(items) and sys.stderr.isatty()))
