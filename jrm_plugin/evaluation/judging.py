"""Several judges on several benchmarks: each image is decoded once for all of them, and nothing is judged twice.

A judge's answers are kept in `answers/<judge>.jsonl` of the run's folder, one line a sample or a comparison, by the
content of what was judged: whatever stops the run, the same command asks only for what is not there, and further
benchmarks and judges may be added. `answers/<judge>.json` says what the answers depend on.
"""

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from jrm_plugin.data.samples import SampleDigests
from jrm_plugin.evaluation.agreement import Judged
from jrm_plugin.evaluation.benchmarks.benchmark import Benchmark
from jrm_plugin.evaluation.judges import Comparison, Judge, Row, dimension_for, file_name
from jrm_plugin.evaluation.pairs import win_probabilities
from jrm_plugin.files import check_writable, write_json
from jrm_plugin.records.images import digest, load_image
from jrm_plugin.records.preferences import PreferencePair
from jrm_plugin.records.samples import Sample
from jrm_plugin.records.scores import RewardScore
from jrm_plugin.runs import append_records, check_settings, locked, read_records

ANSWERS, LOCK_FILE = "answers", ".jrm_eval.lock"
PAIRS_AT_ONCE = 32  # whose images are in memory together
THREADS = 4


@dataclass(frozen=True)
class Verdicts:
    """What a judge said of a benchmark, by the benchmark's dimensions.

    Attributes:
        by: the judge's dimension that answered for each.
        judged: of each, as columns.
        answers: of each of `judged`'s pairs the rows behind it: of both samples, or of the comparison.
        positions: of each, which of the benchmark's pairs they are.
    """

    by: dict[str, str]
    judged: dict[str, Judged]
    answers: dict[str, list[tuple[Row, ...]]]
    positions: dict[str, list[int]]


@dataclass(frozen=True)
class Keys:
    """The names, in the files of answers, of what is judged: by content, and by what is done with the images first."""

    samples: list[tuple[str, str]]  # of each pair

    @classmethod
    def of(cls, benchmark: Benchmark, digests: SampleDigests) -> "Keys":
        prepared = benchmark.name if benchmark.prepare else ""

        def key(sample: Sample) -> str:
            return hashlib.blake2b(prepared.encode() + digests(sample), digest_size=16).hexdigest()

        return cls([(key(pair.chosen), key(pair.rejected)) for pair in benchmark.pairs])

    def of_questions(self, judge: Judge, pair: PreferencePair, position: int, by: Mapping[str, str]) -> list[str]:
        """What a judge has to answer for a pair."""
        both = self.samples[position]
        if not judge.compares:
            return [*both]
        return [f"{both[0]} {both[1]} {dimension}" for dimension in dict.fromkeys(by[name] for name in pair.labels)]


def judge_all(
    benchmarks: Sequence[Benchmark],
    judges: Sequence[Judge],
    folder: Path,
    *,
    dimensions: Mapping[str, str] | None = None,
    progress: bool = True,
) -> dict[str, dict[str, Verdicts]]:
    """What every judge says of every benchmark: benchmark -> judge -> `Verdicts`.

    Args:
        benchmarks: with different names.
        judges: with different names.
        folder: of the run, made where it is not there, or gone on in.
        dimensions: by benchmark's dimension the judges' that answers for it, where that is not clear from the names.
        progress: show a bar.

    Raises:
        JRMError: an image cannot be read, a judge cannot be asked any more, another command works in the folder, or
            the answers of a judge of that name there depend on other settings.
    """
    check_writable(folder / ANSWERS)
    with ExitStack() as stack:
        stack.enter_context(locked(folder / LOCK_FILE))
        answers = {judge.name: _Answers(judge, folder / ANSWERS) for judge in judges}
        digests, verdicts = SampleDigests(), {}
        for benchmark in benchmarks:
            keys = Keys.of(benchmark, digests)
            by = {
                judge.name: {name: dimension_for(name, judge.dimensions, dimensions) for name in benchmark.dimensions}
                for judge in judges
            }
            _ask(benchmark, keys, judges, by, answers, progress)
            verdicts[benchmark.name] = {
                judge.name: _verdicts(benchmark, keys, judge, by[judge.name], answers[judge.name]) for judge in judges
            }
        return verdicts


class _Answers(dict[str, Row]):
    """A judge's answers by what was judged; kept in a file."""

    def __init__(self, judge: Judge, folder: Path):
        name = file_name(judge.name)
        self._path, settings = folder / f"{name}.jsonl", folder / f"{name}.json"
        content = {"judge": judge.name, **judge.settings}
        check_settings(settings, content, results=self._path.exists())
        if not settings.exists():
            write_json(settings, content)
        super().__init__((row["key"], row) for row in read_records(self._path, _with_key))

    def add(self, rows: Sequence[Row]) -> None:
        append_records(self._path, rows)
        self.update((row["key"], row) for row in rows)


def _with_key(row: dict) -> dict:
    row["key"]  # noqa: B018  a `KeyError` says that this is no answer
    return row


# --- asking -----------------------------------------------------------------------------------------------------------


def _ask(
    benchmark: Benchmark,
    keys: Keys,
    judges: Sequence[Judge],
    by: Mapping[str, Mapping[str, str]],
    answers: Mapping[str, _Answers],
    progress: bool,
) -> None:
    with tqdm(total=len(benchmark.pairs), desc=benchmark.title, unit="pair", disable=not progress) as bar:
        for start in range(0, len(benchmark.pairs), PAIRS_AT_ONCE):
            batch = range(start, min(start + PAIRS_AT_ONCE, len(benchmark.pairs)))
            pairs = {position: benchmark.pairs[position] for position in batch}
            open_of = {judge.name: _open(pairs, keys, judge, by[judge.name], answers[judge.name]) for judge in judges}
            if any(open_of.values()):
                wanted = {position for questions in open_of.values() for position, _ in questions.values()}
                shown = _Shown(benchmark, {position: pairs[position] for position in wanted})
                for judge in judges:
                    _ask_one(judge, open_of[judge.name], shown, answers[judge.name])
            bar.update(len(batch))


Place = tuple[int, int | str]  # a pair, and which of its samples or in which dimension


def _open(
    pairs: Mapping[int, PreferencePair], keys: Keys, judge: Judge, by: Mapping[str, str], done: Mapping[str, Row]
) -> dict[str, Place]:
    """What a judge has not answered of these pairs, each once, and where it stands."""
    places: dict[str, Place] = {}
    for position, pair in pairs.items():
        for number, key in enumerate(keys.of_questions(judge, pair, position, by)):
            if key not in done:
                places.setdefault(key, (position, key.split()[2] if judge.compares else number))
    return places


def _ask_one(judge: Judge, questions: Mapping[str, Place], shown: "_Shown", answers: _Answers) -> None:
    if not questions:
        return
    names = [*questions]
    asked = [shown.comparison(*place) if judge.compares else shown.sample(*place) for place in questions.values()]
    for rows in judge.answer(asked):
        answers.add([{"key": names[k], **row} for k, row in rows])


class _Shown:
    """Pairs with their images decoded, each once, and prepared as the benchmark wants."""

    def __init__(self, benchmark: Benchmark, pairs: Mapping[int, PreferencePair]):
        images: dict[bytes, tuple[object, str]] = {}
        for position, pair in pairs.items():
            for sample in (pair.chosen, pair.rejected):
                for image in (*sample.prompt_images, *sample.response_images):
                    images.setdefault(digest(image), (image, f"{benchmark.name}, pair {position + 1}"))
        with ThreadPoolExecutor(THREADS) as pool:
            loaded = pool.map(lambda each: load_image(each[0], name=each[1]), images.values())
            decoded = dict(zip(images, loaded, strict=True))
            prepare = benchmark.prepare or (lambda sample: sample)
            samples = [(position, side) for position in pairs for side in (0, 1)]

            def of(place: tuple[int, int]) -> Sample:
                pair = pairs[place[0]]
                return prepare(_with_images((pair.chosen, pair.rejected)[place[1]], decoded))

            self._samples = dict(zip(samples, pool.map(of, samples), strict=True))

    def sample(self, position: int, side: int) -> Sample:
        return self._samples[position, side]

    def comparison(self, position: int, dimension: str) -> Comparison:
        first, second = self._samples[position, 0], self._samples[position, 1]
        return Comparison(first, second, dimension)


def _with_images(sample: Sample, decoded: Mapping[bytes, Image.Image]) -> Sample:
    def blocks(of: Sequence[Mapping]) -> list[Mapping]:
        return [
            {"type": "image", "image": decoded[digest(block["image"])]} if block["type"] == "image" else block
            for block in of
        ]

    return Sample(blocks(sample.prompt), blocks(sample.response))


# --- what was said ----------------------------------------------------------------------------------------------------


def _verdicts(
    benchmark: Benchmark, keys: Keys, judge: Judge, by: Mapping[str, str], answers: Mapping[str, Row]
) -> Verdicts:
    rows: dict[str, list[tuple[Row, ...]]] = {name: [] for name in by}
    positions: dict[str, list[int]] = {name: [] for name in by}
    labels: dict[str, list[int]] = {name: [] for name in by}
    infos: dict[str, list[Mapping]] = {name: [] for name in by}
    prompts: dict[str, list[int]] = {name: [] for name in by}
    numbers: dict[str, int] = {}
    for position, pair in enumerate(benchmark.pairs):
        # Pairs of one prompt share its images and text, whatever else differs.
        prompt = numbers.setdefault(pair.chosen.prompt_key(), len(numbers))
        for name, label in pair.labels.items():
            if judge.compares:
                first, second = keys.samples[position]
                rows[name].append((answers[f"{first} {second} {by[name]}"],))
            else:
                rows[name].append(tuple(answers[key] for key in keys.samples[position]))
            positions[name].append(position)
            labels[name].append(label)
            infos[name].append(pair.info)
            prompts[name].append(prompt)
    judged = {
        name: Judged(
            np.array(labels[name]),
            prompt_N=np.array(prompts[name]),
            info=division_columns(benchmark, infos[name]),
            **(_compared(rows[name]) if judge.compares else _scored(rows[name], by[name])),
        )
        for name in by
    }
    return Verdicts(dict(by), judged, rows, positions)


def division_columns(benchmark: Benchmark, infos: Sequence[Mapping]) -> dict[str, np.ndarray]:
    """The columns of `info` by which a benchmark divides its pairs."""
    wanted = {column.where[0] for column in benchmark.columns if column.where} | {*benchmark.divisions}
    wanted |= {name for name in ("group", "group_size", "task") if infos and name in infos[0]}
    return {name: np.array([info[name] for info in infos]) for name in wanted}


def _compared(rows: Sequence[tuple[Row, ...]]) -> dict[str, np.ndarray]:
    votes = [None if "error" in row else [vote for order in row["votes"] for vote in order] for (row,) in rows]
    return {"margin_N": np.array([np.nan if of_pair is None else np.mean(of_pair) for of_pair in votes])}


def _scored(rows: Sequence[tuple[Row, ...]], dimension: str) -> dict[str, np.ndarray | None]:
    """Margins; and where the judge has a sigma, how sure it is of them."""
    there = [k for k, pair in enumerate(rows) if not any("error" in row for row in pair)]
    scores = [[RewardScore.from_columns(row) for row in rows[k]] for k in there]
    columns = {"margin_N": np.full(len(rows), np.nan)}
    columns["margin_N"][there] = [first.mu[dimension] - second.mu[dimension] for first, second in scores]
    if not any(score.sigma[dimension] for pair in scores for score in pair):
        return columns
    columns |= {"probability_N": np.full(len(rows), np.nan), "sigma_N": np.full(len(rows), np.nan)}
    columns["sigma_N"][there] = [np.hypot(first.sigma[dimension], second.sigma[dimension]) for first, second in scores]
    columns["probability_N"][there] = win_probabilities(*map(list, zip(*scores, strict=True)), dimension)
    return columns
