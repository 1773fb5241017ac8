"""Self-correction: the model's critique tells an editor what to mend, and its score tells what that was worth.

The paper's section 4.4: an edited image is scored, the language head writes a critique of it, the editor is called with
the critique as a further condition, and the score head alone judges the image that comes out. A control arm calls the
editor with the instruction only, so that what a second try is worth by itself can be told from what the critique adds.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from jrm_plugin.errors import JRMError
from jrm_plugin.images import load_image, to_data_url
from jrm_plugin.samples import OVERALL, Critique, RewardScore, Sample
from jrm_plugin.scoring import RewardScorer, UnparsedCritique

START, CRITIQUE, CONTROL = "start", "critique", "control"  # arms of a run; every other arm begins with START's image
ROUNDS_FILE, SETTINGS_FILE = "rounds.jsonl", "settings.json"
SAMPLES_AT_ONCE = 16  # criticised, edited and scored together: what a stop can lose, but for the edits

# --- what an editor is asked ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EditRequest:
    """What an editor is asked to do.

    Attributes:
        sources: the source images, RGB; none where the image is made from text alone.
        instruction: what the user asked for.
        image: the edited image to be mended, RGB.
        critiques: by dimension, what the model says of `image`; empty in the control arm.
        seed: for an editor that draws random numbers; the same in both arms, another for every sample and round.
    """

    sources: tuple[Image.Image, ...]
    instruction: str
    image: Image.Image
    critiques: Mapping[str, Critique | UnparsedCritique]
    seed: int

    @property
    def critique(self) -> str:
        """The critiques as plain text, one line a dimension; empty in the control arm.

        `<|bbox_k|>` is written as the region's label in brackets, `<|global|>` as `[whole image]`. What could not be
        parsed stands as the model wrote it.
        """
        return "\n".join(f"{name.replace('_', ' ')}: {_plain(found)}" for name, found in self.critiques.items())

    @property
    def prompt(self) -> str:
        """Instruction and critique in one text, for editors that take one; the instruction alone in the control arm."""
        if not self.critiques:
            return self.instruction
        return f"{self.instruction}\nWhat was said of the last attempt:\n{self.critique}"


# An editor gives the mended image, as anything that `load_image` reads. What it raises is recorded for that sample.
Editor = Callable[[EditRequest], Any]


def _plain(found: Critique | UnparsedCritique) -> str:
    if isinstance(found, UnparsedCritique):
        return found.text
    labels = {str(region.id): region.label for region in found.edit_region}
    text = re.sub(r"<\|bbox_([0-9]+)\|>", lambda tag: f"[{labels[tag[1]]}]", found.reasoning)
    return text.replace("<|global|>", "[whole image]")


# --- what is recorded -------------------------------------------------------------------------------------------------


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
            mu, sigma = ({d: x for d, x in record[kind].items() if d != OVERALL} for kind in ("mu", "sigma"))
            score = RewardScore(mu, sigma)
        told = (record[name] for name in ("sample", "arm", "round", "edited", "critiques", "image"))
        return cls(*told, score, record["error"])


def best_round(history: Sequence[CorrectionRound]) -> CorrectionRound:
    """The round with the highest overall score, the earliest of equal ones; rounds without a score do not count."""
    return max((one for one in history if one.score is not None), key=_overall)


# --- the loop ---------------------------------------------------------------------------------------------------------


def self_correct(
    scorer: RewardScorer,
    samples: Sequence[Sample],
    editor: Editor,
    rounds: int,
    *,
    output: str | Path,
    control: bool = True,
    keep_better: bool = False,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> list[CorrectionRound]:
    """Score, criticise, edit and score again, `rounds` times (paper section 4.4).

    Everything is in `output` as soon as it is made: `images/*.png`, `rounds.jsonl` with a [`CorrectionRound`] a line,
    and `settings.json`. Stopped at any point, the same call goes on from there.

    Args:
        scorer: judges, and writes the critiques.
        samples: edits or generations with one response image each.
        editor: called with an [`EditRequest`]; gives an image. What it raises is recorded as this sample's `error` and
            ends this arm of the sample; the others go on. An error is not tried again.
        rounds: corrections per sample and arm.
        output: the folder to write, or to go on in.
        control: also run the arm in which the editor gets the instruction and no critique.
        keep_better: each round edits the best image so far instead of the last one.
        seed: of `EditRequest.seed`.
        settings: what else a run in `output` must agree in to be gone on from, such as the names of model and editor;
            plain JSON.
        progress: show a progress bar.

    Returns:
        All rounds, by sample, arm and number.

    Raises:
        JRMError: an argument is wrong, `output` cannot be written or holds another run.
    """
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
        raise JRMError(f"rounds must be a whole number of 1 or more, not {rounds!r}.")
    for index, sample in enumerate(samples):
        if sample.task == "response" or len(sample.response) != 1:
            raise JRMError(f"sample {index} cannot be corrected: its response must be one image and nothing else.")
    settings = {"rounds": rounds, "control": control, "keep_better": keep_better, "seed": seed, **(settings or {})}
    run = _Run(scorer, samples, editor, _Log(Path(output), settings | {"samples": _fingerprint(samples)}), settings)
    arms = (CRITIQUE, CONTROL) if control else (CRITIQUE,)
    total = len(samples) * (1 + rounds * len(arms))
    with tqdm(total=total, desc="Correcting", unit="image", disable=not progress) as bar:
        for first in range(0, len(samples), SAMPLES_AT_ONCE):
            batch = range(first, min(first + SAMPLES_AT_ONCE, len(samples)))
            run.start(batch)
            bar.update(len(batch))
            for arm in arms:
                for number in range(1, rounds + 1):
                    run.correct(batch, arm, number)
                    bar.update(len(batch))
    order = (START, *arms)
    return sorted(run.log.rounds.values(), key=lambda one: (one.sample, order.index(one.arm), one.number))


def _fingerprint(samples: Sequence[Sample]) -> str:
    """Tells lists of samples apart: by texts, paths, and the content of images in memory."""
    digest = hashlib.sha256()
    for sample in samples:
        images = [*sample.prompt_images, *sample.response_images]
        spelled = [image if isinstance(image, str) else to_data_url(image) for image in images]
        digest.update(json.dumps([sample.prompt_text, *spelled]).encode())
    return digest.hexdigest()


class _Run:
    """The steps of `self_correct` on a batch. A step that is in the log already is not done again; one that is there in
    part is done for the whole batch, so that numbers do not depend on where a run was interrupted."""

    def __init__(self, scorer, samples, editor, log: "_Log", settings: Mapping[str, Any]):
        self.scorer, self.samples, self.editor, self.log, self.settings = scorer, samples, editor, log, settings

    def start(self, batch: Iterable[int]) -> None:
        """Scores the images as they were given, and keeps a copy of them."""
        if self.log.has(batch, START, 0):
            return
        scores = self.scorer.score([self.samples[k] for k in batch], on_error="return")
        for k, score in zip(batch, scores, strict=True):
            if isinstance(score, JRMError):
                self.log.add(CorrectionRound(k, START, 0, None, {}, None, None, str(score)))
                continue
            image = self.log.image_name(k, START, 0)
            self.log.save(load_image(self.samples[k].response_images[0]), image)
            self.log.add(CorrectionRound(k, START, 0, None, {}, image, score, None))

    def correct(self, batch: Iterable[int], arm: str, number: int) -> None:
        """One round of one arm: critiques, edits, scores."""
        histories = {k: self.log.history(k, arm, number) for k in batch}
        histories = {k: history for k, history in histories.items() if all(one.error is None for one in history)}
        if self.log.has(histories, arm, number):
            return
        base = {k: best_round(h) if self.settings["keep_better"] else h[-1] for k, h in histories.items()}
        current = [self._with_image(k, base[k].image) for k in base]
        critiques = self.scorer.critique(current) if arm == CRITIQUE else [{} for _ in base]
        told = dict(zip(base, critiques, strict=True))
        made = {k: self._edit(k, base[k], told[k], arm, number) for k in base}
        edited = [k for k, image in made.items() if isinstance(image, str)]
        scores = self.scorer.score([self._with_image(k, made[k]) for k in edited], on_error="return")
        scores = dict(zip(edited, scores, strict=True))
        for k in base:
            texts = {d: c.to_json() if isinstance(c, Critique) else c.text for d, c in told[k].items()}
            image, result = (made[k], scores[k]) if k in scores else (None, made[k])
            failed = isinstance(result, Exception)
            score, error = (None, _reason(result)) if failed else (result, None)
            self.log.add(CorrectionRound(k, arm, number, base[k].number, texts, image, score, error))

    def _with_image(self, k: int, image: str) -> Sample:
        return Sample(self.samples[k].prompt, ({"type": "image", "image": str(self.log.folder / image)},))

    def _edit(self, k: int, base: CorrectionRound, critiques: Mapping, arm: str, number: int) -> str | Exception:
        """The name of the edited image, or what the editor raised."""
        name = self.log.image_name(k, arm, number)
        if (self.log.folder / name).exists():  # edited before an interruption that came before its score: edits cost
            return name
        try:
            request = EditRequest(
                tuple(load_image(image) for image in self.samples[k].prompt_images),
                self.samples[k].prompt_text,
                load_image(self.log.folder / base.image),
                critiques,
                int(np.random.SeedSequence([self.settings["seed"], k, number]).generate_state(1)[0]),
            )
            image = load_image(self.editor(request), name="the editor's image")
        except Exception as error:  # whatever the user's code raises; the other samples go on
            return error
        self.log.save(image, name)
        return name


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, JRMError) else f"the editor raised {type(error).__name__}: {error}"


class _Log:
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


# --- the table --------------------------------------------------------------------------------------------------------


def initial_quantiles(rounds: Iterable[CorrectionRound], quantiles: Sequence[float]) -> list[float]:
    """Thresholds for `correction_table`: these quantiles (0 to 1) of the overall scores before any correction."""
    if not all(0 < quantile < 1 for quantile in quantiles):
        raise JRMError(f"quantiles of thresholds must lie between 0 and 1, not {list(quantiles)}.")
    scores = [one.score.mu[OVERALL] for one in rounds if one.arm == START and one.score is not None]
    return [float(value) for value in np.quantile(scores, quantiles)] if scores and len(quantiles) else []


def correction_table(
    rounds: Iterable[CorrectionRound],
    thresholds: Sequence[float] = (),
    *,
    oracle: Callable[[CorrectionRound], float] | None = None,
) -> dict:
    """Mean change of the score, for all samples and for those that began below a threshold (paper table 3).

    Args:
        rounds: what `self_correct` gave.
        thresholds: of the overall score before any correction, in the model's own units; a sample counts where it began
            strictly below.
        oracle: the true score of a round's image, where there is one; it is asked once for each that counts.

    Returns:
        - `rounds`: corrections per sample; `arms`: their names;
        - `left_out`: the samples that have an error in any arm, and therefore count in none;
        - `rows`: for None (all) and each threshold, as `below`: `samples`, their number, and by arm what became of
          them. `last` is the image of the last round, `kept` the one the model scored highest, the start included. Each
          holds `delta`, the change of the overall mu, and with an oracle `oracle_delta`; a row then has
          `oracle_before` too. All are `{"mean", "half_width"}`: the mean, and 1.96 standard errors of it; None without
          samples, and half_width None below two.
    """
    rounds = list(rounds)
    by_key = {(one.sample, one.arm, one.number): one for one in rounds}
    samples = sorted({one.sample for one in rounds})
    arms = sorted({one.arm for one in rounds} - {START}, reverse=True)  # critique before control
    count = max((one.number for one in rounds), default=0)
    failed = {one.sample for one in rounds if one.error is not None}
    before = {k: by_key[k, START, 0] for k in samples if k not in failed}
    ends: dict[str, dict[str, dict[int, CorrectionRound]]] = {}
    for arm in arms:
        histories = {k: [before[k], *(by_key[k, arm, number] for number in range(1, count + 1))] for k in before}
        kept = {k: best_round(history) for k, history in histories.items()}
        ends[arm] = {"last": {k: history[-1] for k, history in histories.items()}, "kept": kept}

    measures = {"delta": _overall} | ({"oracle_delta": oracle} if oracle else {})
    values = {name: _ValueOf(measure) for name, measure in measures.items()}
    rows = []
    for threshold in (None, *thresholds):
        counted = [k for k, one in before.items() if threshold is None or _overall(one) < threshold]
        row: dict[str, Any] = {"below": threshold, "samples": len(counted)}
        if oracle:
            row["oracle_before"] = _mean([values["oracle_delta"](before[k]) for k in counted])
        for arm, by_end in ends.items():
            row[arm] = {
                end: {name: _mean([of(found[k]) - of(before[k]) for k in counted]) for name, of in values.items()}
                for end, found in by_end.items()
            }
        rows.append(row)
    return {"rounds": count, "arms": arms, "left_out": sorted(failed), "rows": rows}


def _overall(one: CorrectionRound) -> float:
    return one.score.mu[OVERALL]


class _ValueOf:
    """A function of a round that is asked once for each: an oracle may be a person."""

    def __init__(self, function: Callable[[CorrectionRound], float]):
        self._function, self._known = function, {}

    def __call__(self, one: CorrectionRound) -> float:
        key = (one.sample, one.arm, one.number)
        if key not in self._known:
            self._known[key] = self._function(one)
        return self._known[key]


def _mean(values: list[float]) -> dict | None:
    if not values:
        return None
    half_width = 1.96 * float(np.std(values, ddof=1)) / len(values) ** 0.5 if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "half_width": half_width}
