"""Self-correction: the model's critique tells an editor what to mend, and its score tells what that was worth.

The paper's section 4.4: an edited image is scored, the language head writes a critique of it, the editor is called with
the critique as a further condition, and the score head alone judges the image that comes out. A control arm calls the
editor with the instruction only, so that what a second try is worth by itself can be told from what the critique adds.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm.auto import tqdm

from jrm_plugin.correction.editing import Editor, EditRequest
from jrm_plugin.correction.rounds import CONTROL, CRITIQUE, START, CorrectionFolder, CorrectionRound, best_round
from jrm_plugin.data.samples import SampleDigests
from jrm_plugin.errors import JRMError
from jrm_plugin.files import check_writable
from jrm_plugin.records.critiques import Critique, UnparsedCritique
from jrm_plugin.records.images import load_image
from jrm_plugin.records.samples import Sample
from jrm_plugin.runs import LOCK_FILE, locked
from jrm_plugin.scoring.protocol import Scorer

SAMPLES_AT_ONCE = 16  # criticised, edited and scored together: what a stop can lose, but for the edits


class CritiquingScorer(Scorer, Protocol):
    """A scorer that also says what is right and wrong with a sample; [`RewardScorer`] is one."""

    def critique(self, samples: Sequence[Sample]) -> list[dict[str, Critique | UnparsedCritique]]:
        """Per sample, by dimension, what the model says of it."""
        ...


def self_correct(
    scorer: CritiquingScorer,
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
    arms = (CRITIQUE, CONTROL) if control else (CRITIQUE,)
    total = len(samples) * (1 + rounds * len(arms))
    check_writable(output)
    with locked(Path(output, LOCK_FILE)), ExitStack() as stack:
        folder = CorrectionFolder(Path(output), settings | {"samples": _fingerprint(samples)})
        run = _Run(scorer, samples, editor, folder, keep_better=keep_better, seed=seed)
        bar = stack.enter_context(tqdm(total=total, desc="Correcting", unit="image", disable=not progress))
        for first in range(0, len(samples), SAMPLES_AT_ONCE):
            batch = range(first, min(first + SAMPLES_AT_ONCE, len(samples)))
            run.start(batch)
            bar.update(len(batch))
            for arm in arms:
                for number in range(1, rounds + 1):
                    run.correct(batch, arm, number)
                    bar.update(len(batch))
    order = (START, *arms)
    return sorted(folder.rounds.values(), key=lambda made: (made.sample, order.index(made.arm), made.number))


def _fingerprint(samples: Sequence[Sample]) -> str:
    """Tells lists of samples apart, by what is in their files."""
    return hashlib.sha256(b"".join(map(SampleDigests(), samples))).hexdigest()


class _Run:
    """The steps of `self_correct` on a batch. A step that is in the folder already is not done again; one that is there
    in part is done for the whole batch, so that numbers do not depend on where a run was interrupted."""

    def __init__(
        self,
        scorer: CritiquingScorer,
        samples: Sequence[Sample],
        editor: Editor,
        folder: CorrectionFolder,
        *,
        keep_better: bool,
        seed: int,
    ):
        self.scorer, self.samples, self.editor, self.folder = scorer, samples, editor, folder
        self.keep_better, self.seed = keep_better, seed

    def start(self, batch: Iterable[int]) -> None:
        """Scores the images as they were given, and keeps a copy of them."""
        if self.folder.has(batch, START, 0):
            return
        scores = self.scorer.score([self.samples[k] for k in batch], on_error="return")
        for k, score in zip(batch, scores, strict=True):
            if isinstance(score, JRMError):
                self.folder.add(CorrectionRound(k, START, 0, None, {}, None, None, str(score)))
                continue
            image = self.folder.image_name(k, START, 0)
            self.folder.save(load_image(self.samples[k].response_images[0]), image)
            self.folder.add(CorrectionRound(k, START, 0, None, {}, image, score, None))

    def correct(self, batch: Iterable[int], arm: str, number: int) -> None:
        """One round of one arm: critiques, edits, scores."""
        histories = {k: self.folder.history(k, arm, number) for k in batch}
        histories = {k: history for k, history in histories.items() if all(past.error is None for past in history)}
        if self.folder.has(histories, arm, number):
            return
        base = {k: best_round(h) if self.keep_better else h[-1] for k, h in histories.items()}
        current = [self._with_image(k, base[k].image) for k in base]
        critiques = self.scorer.critique(current) if arm == CRITIQUE else [{} for _ in base]
        critiques = dict(zip(base, critiques, strict=True))
        results = {k: self._edit(k, base[k], critiques[k], arm, number) for k in base}
        edited = [k for k, image in results.items() if isinstance(image, str)]
        scores = self.scorer.score([self._with_image(k, results[k]) for k in edited], on_error="return")
        scores = dict(zip(edited, scores, strict=True))
        for k in base:
            texts = {d: c.to_json() if isinstance(c, Critique) else c.text for d, c in critiques[k].items()}
            image, result = (results[k], scores[k]) if k in scores else (None, results[k])
            failed = isinstance(result, Exception)
            score, error = (None, _reason(result)) if failed else (result, None)
            self.folder.add(CorrectionRound(k, arm, number, base[k].number, texts, image, score, error))

    def _with_image(self, k: int, image: str) -> Sample:
        return Sample(self.samples[k].prompt, ({"type": "image", "image": str(self.folder.path / image)},))

    def _edit(self, k: int, base: CorrectionRound, critiques: Mapping, arm: str, number: int) -> str | Exception:
        """The name of the edited image, or what the editor raised."""
        name = self.folder.image_name(k, arm, number)
        if (self.folder.path / name).exists():  # edited before a stop that came before its score: edits cost
            return name
        try:
            request = EditRequest(
                tuple(load_image(image) for image in self.samples[k].prompt_images),
                self.samples[k].prompt_text,
                load_image(self.folder.path / base.image),
                critiques,
                int(np.random.SeedSequence([self.seed, k, number]).generate_state(1)[0]),
            )
            image = load_image(self.editor(request), name="the editor's image")
        except Exception as error:  # whatever the user's code raises; the other samples go on
            return error
        self.folder.save(image, name)
        return name


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, JRMError) else f"the editor raised {type(error).__name__}: {error}"
