"""EditReward's training format, read and written, with critiques in a file beside it.

`train.json` is a list of records: `prompt`, `path_src`, `path1` (always the preferred image), `path2`, `tie_case`, the
models, and scores of 1 to 4 per dimension (`model1_dim1_score` is instruction following, `..._dim2_...` visual quality,
`model1_consistency_score` one that the published format does not have; `..._overall_score` is their sum). `path_src`
may also be a list of images, or null where the images were made from text alone. Any further key of a record is kept in
`PreferencePair.info`.

`train_critiques.jsonl` holds one line per judged image, found by the prompt and the paths as the records spell them:
`{"prompt": ..., "path_src": ..., "path": ..., "instruction_following": {critique}, "visual_quality": {critique}}`.

`language.jsonl` holds one line per text to learn without a preference: `{"prompt", "path_src", "path", "text"}`.

Paths are relative to `images_root`, by default the folder of the file they stand in.
"""

import json
import os
import warnings
from collections.abc import Iterable
from pathlib import Path

from jrm_plugin.data.reading import (
    BadRecord,
    ImageCheck,
    Records,
    checked_records,
    is_number,
    need,
    read_json_lines,
    read_json_list,
    reading_bar,
    to_edit,
)
from jrm_plugin.errors import JRMError
from jrm_plugin.files import write_json, write_jsonl
from jrm_plugin.records.critiques import Critique
from jrm_plugin.records.images import is_data_url
from jrm_plugin.records.preferences import CritiqueExample, PreferencePair
from jrm_plugin.records.samples import CONSISTENCY, DIMENSIONS, KNOWN_DIMENSIONS, OVERALL, Sample

_SCORE_KEYS = {(side, name): f"model{side}_dim{k}_score" for side in (1, 2) for k, name in enumerate(DIMENSIONS, 1)}
_SCORE_KEYS |= {(side, CONSISTENCY): f"model{side}_{CONSISTENCY}_score" for side in (1, 2)}
_REQUIRED = ("prompt", "path_src", "path1", "path2")
# What the samples and labels already say, so that it is not repeated in `info`.
_NOT_INFO = {*_REQUIRED, *_SCORE_KEYS.values(), "model1_overall_score", "model2_overall_score", "tie_case"}
_READERS_INFO = {"file", "row"}  # added by the readers, not written back


# --- reading ----------------------------------------------------------------------------------------------------------


def read_edit_reward(
    path: str | Path,
    *,
    critiques: str | Path | None = None,
    images_root: str | Path | None = None,
    strict: bool = True,
    decode: bool = False,
    progress: bool = True,
) -> Records:
    """Read EditReward's training JSON into `PreferencePair`s; `path1` becomes `chosen`.

    Labels: `"overall"` is 1, or 0 with `tie_case`; a dimension's label follows from its two scores. `info` holds the
    record's other keys, `file` and `row`. Images stay paths.

    Args:
        path: the JSON file.
        critiques: the JSONL with critiques; by default `<stem>_critiques.jsonl` beside `path`, if there is one.
        images_root: the folder that image paths are relative to; by default the folder of `path`.
        strict: True: a bad record is an error. False: bad records are left out and listed, and every image is decoded.
        decode: whether every image is decoded also with `strict`; otherwise a file's header and end are read.
        progress: show a bar on a terminal.

    Returns:
        `Records` of `PreferencePair`.

    Raises:
        JRMError: the file cannot be read or is no JSON list; with `strict`, the first bad record and their number.
    """
    path = Path(path)
    root = Path(images_root) if images_root is not None else path.parent
    if critiques is None and _critiques_beside(path).exists():
        critiques = _critiques_beside(path)
    bad: list[BadRecord] = []
    by_image = _read_critiques(Path(critiques), bad) if critiques is not None else {}
    images, examples, judged = ImageCheck(decode=decode or not strict), [], set()
    rows = read_json_list(path)
    for row, record in enumerate(reading_bar(rows, path, progress), 1):
        try:
            pair = _to_pair(record, root, by_image, judged, {"file": str(path), "row": row})
            images.check(pair.chosen, pair.rejected)
            examples.append(pair)
        except JRMError as error:
            bad.append(BadRecord(str(path), row, str(error)))
    if unused := len(by_image.keys() - judged):
        warnings.warn(f"{unused} of {len(by_image)} lines of {critiques} belong to no record of {path}.", stacklevel=2)
    return checked_records(examples, bad, strict)


def read_language(
    path: str | Path,
    *,
    images_root: str | Path | None = None,
    strict: bool = True,
    decode: bool = False,
    progress: bool = True,
) -> Records:
    """Read `language.jsonl` into `CritiqueExample`s, in the order of the file; arguments as in `read_edit_reward`."""
    path = Path(path)
    root = Path(images_root) if images_root is not None else path.parent
    bad: list[BadRecord] = []
    images, examples = ImageCheck(decode=decode or not strict), []
    for row, record in read_json_lines(path, bad, progress):
        try:
            need(record, ("prompt", "path_src", "path", "text"))
            sample = to_edit(record["prompt"], record["path_src"], record["path"], root)
            info = {key: value for key, value in record.items() if key not in ("prompt", "path_src", "path", "text")}
            example = CritiqueExample(sample, record["text"], {**info, "file": str(path), "row": row})
            images.check(sample)
            examples.append(example)
        except JRMError as error:
            bad.append(BadRecord(str(path), row, str(error)))
    return checked_records(examples, bad, strict)


def _to_pair(record, root: Path, by_image: dict, judged: set, origin: dict) -> PreferencePair:
    need(record, _REQUIRED)
    tie = record.get("tie_case", False)
    if not isinstance(tie, bool):
        raise JRMError(f"tie_case must be true or false, not {tie!r}")
    _check_votes(record)
    scores: tuple[dict, dict] = ({}, {})
    for name in KNOWN_DIMENSIONS:
        keys = _SCORE_KEYS[1, name], _SCORE_KEYS[2, name]
        values = [record.get(key) for key in keys]
        if values == [None, None]:
            continue
        for key, value in zip(keys, values, strict=True):
            if not is_number(value):
                raise JRMError(f"{key} must be a number, not {value!r}")
        scores[0][name], scores[1][name] = values
    samples, critiques = [], []
    for key in ("path1", "path2"):
        samples.append(to_edit(record["prompt"], record["path_src"], record[key], root))
        name = _image_key(record["prompt"], record["path_src"], record[key])
        judged.add(name)
        critiques.append(by_image.get(name, {}))
    info = {key: value for key, value in record.items() if key not in _NOT_INFO and value is not None}
    return PreferencePair(
        *samples,
        labels={OVERALL: 0 if tie else 1},
        chosen_scores=scores[0] or None,
        rejected_scores=scores[1] or None,
        chosen_critiques=critiques[0],
        rejected_critiques=critiques[1],
        info={**info, **origin},
    )


def _check_votes(record: dict) -> None:
    votes = record.get("choice_dist")
    if votes is not None and not (isinstance(votes, list) and len(votes) == 2 and all(map(is_number, votes))):
        raise JRMError(f"choice_dist must be null or a list of two numbers, not {votes!r}")
    confidence = record.get("confidence")
    if confidence is not None and not is_number(confidence):
        raise JRMError(f"confidence must be null or a number, not {confidence!r}")


def _image_key(prompt, sources, image) -> tuple:
    return prompt, tuple(sources) if isinstance(sources, list) else sources, image


def _read_critiques(path: Path, bad: list[BadRecord]) -> dict[tuple, dict[str, Critique]]:
    by_image: dict[tuple, dict[str, Critique]] = {}
    for row, record in read_json_lines(path, bad, progress=False):
        try:
            need(record, ("prompt", "path_src", "path"))
            name = _image_key(record.pop("prompt"), record.pop("path_src"), record.pop("path"))
            if name in by_image:
                raise JRMError(f"a second line for {name[2]!r} with the same prompt and source")
            by_image[name] = {dimension: Critique.parse(json.dumps(value)) for dimension, value in record.items()}
        except JRMError as error:
            bad.append(BadRecord(str(path), row, str(error)))
        except TypeError:  # a path or prompt that is a list or an object cannot be looked up
            bad.append(BadRecord(str(path), row, "prompt and path must be text, path_src text, a list or null"))
    return by_image


def _critiques_beside(path: Path) -> Path:
    return path.with_name(f"{path.stem}_critiques.jsonl")


# --- writing ----------------------------------------------------------------------------------------------------------


def write_edit_reward(path: str | Path, pairs: Iterable[PreferencePair]) -> Path:
    """Write pairs as EditReward's training JSON, with their critiques in `<stem>_critiques.jsonl` beside it.

    `chosen` becomes `path1`. Images must be files (or `data:` URLs); paths under the folder of `path` are
    written relative to it, others absolute. `read_edit_reward` gives the same pairs back.

    Raises:
        JRMError: a pair says what the format cannot: it has no overall label or prefers `rejected`, has a dimension's
            label without scores, a score in another dimension or of one side only, text as response or an image in
            memory.
    """
    path = Path(path)
    records, critiques = [], {}
    for number, pair in enumerate(pairs, 1):
        try:
            records.append(_to_record(pair, path.parent, critiques))
        except JRMError as error:
            raise JRMError(f"pair {number} does not fit into {path}: {error}") from None
    write_json(path, records)
    beside = _critiques_beside(path)
    if critiques:
        write_jsonl(beside, critiques.values())
    else:
        beside.unlink(missing_ok=True)  # of an earlier file of this name: they are not about these pairs
    return path


def write_language(path: str | Path, examples: Iterable[CritiqueExample]) -> Path:
    """Write `language.jsonl`, which `read_language` reads; paths as in `write_edit_reward`."""
    path = Path(path)
    lines = []
    for example in examples:
        prompt, sources, image = _parts(example.sample, path.parent)
        info = {key: value for key, value in example.info.items() if key not in _READERS_INFO}
        lines.append({"prompt": prompt, "path_src": sources, "path": image, "text": example.text, **info})
    return write_jsonl(path, lines)


def _to_record(pair: PreferencePair, root: Path, critiques: dict) -> dict:
    label = pair.labels.get(OVERALL)
    if label not in (0, 1):
        raise JRMError("overall, its chosen sample must be the better one or a tie")
    scores = (pair.chosen_scores or {}, pair.rejected_scores or {})
    for name in {*pair.labels, *scores[0], *scores[1]} - {OVERALL}:
        if name not in KNOWN_DIMENSIONS or name not in scores[0] or name not in scores[1]:
            raise JRMError(f"{name} needs a score of both images and must be one of {', '.join(KNOWN_DIMENSIONS)}")
        if pair.labels[name] != (scores[0][name] > scores[1][name]) - (scores[0][name] < scores[1][name]):
            raise JRMError(f"its label of {name} contradicts the scores")
    prompt, sources, path1 = _parts(pair.chosen, root)
    path2 = _parts(pair.rejected, root)[2]
    record = {"prompt": prompt, "choice_dist": None, "confidence": None, "path_src": sources}
    record |= {"path1": path1, "path2": path2}
    for side, of_side in enumerate(scores, 1):
        record |= {_SCORE_KEYS[side, name]: of_side[name] for name in KNOWN_DIMENSIONS if name in of_side}
        if all(name in of_side for name in DIMENSIONS):
            record[f"model{side}_overall_score"] = sum(of_side[name] for name in KNOWN_DIMENSIONS if name in of_side)
    for path, of_image in ((path1, pair.chosen_critiques), (path2, pair.rejected_critiques)):
        if of_image:
            line = {"prompt": prompt, "path_src": sources, "path": path}
            line |= {name: json.loads(critique.to_json()) for name, critique in of_image.items()}
            if critiques.setdefault(_image_key(prompt, sources, path), line) != line:
                raise JRMError(f"{path} has other critiques in an earlier pair with the same prompt")
    record["tie_case"] = label == 0
    return record | {key: value for key, value in pair.info.items() if key not in _READERS_INFO}


def _parts(sample: Sample, root: Path) -> tuple[str, str | list[str] | None, str]:
    """Prompt text, source (one path, a list or null) and edited image of a sample as the formats spell them."""
    if sample.response_text or len(sample.response_images) != 1:
        raise JRMError("the response must be one image")
    sources = [_relative(image, root) for image in sample.prompt_images]
    path_src = sources if len(sources) > 1 else sources[0] if sources else None
    return sample.prompt_text, path_src, _relative(sample.response_images[0], root)


def _relative(image, root: Path) -> str:
    if not isinstance(image, str):
        raise JRMError(f"its images must be files, not a {type(image).__name__}")
    folder = os.path.join(root, "")
    return image.removeprefix(folder) if is_data_url(image) or image.startswith(folder) else os.path.abspath(image)
