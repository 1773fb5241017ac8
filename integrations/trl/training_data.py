"""The examples of a run: read, checked, told apart from those of evaluation, and what they are, for going on.

A run may only go on with the same examples and images; `identities` says which they are.
"""

import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from datasets import IterableDataset

from jrm_plugin.data.corrections import CorrectedExamples, PairNames, read_corrections
from jrm_plugin.data.leaks import find_leaks
from jrm_plugin.data.preferences import read_preferences
from jrm_plugin.data.samples import SampleDigests
from jrm_plugin.errors import JRMError
from jrm_plugin.evaluation.benchmarks.loading import known_benchmark, load_benchmark
from jrm_plugin.files import read_json, write_json
from jrm_plugin.integrations.trl.examples import origin
from jrm_plugin.integrations.trl.joint_reward_config import JointRewardConfig
from jrm_plugin.integrations.trl.train_arguments import TrainArguments
from jrm_plugin.integrations.trl.train_sets import (
    TrainSet,
    identity_of_stream,
    mixed,
    stream_of,
    train_sets,
    without,
)
from jrm_plugin.records.images import is_data_url
from jrm_plugin.records.preferences import (
    CritiqueExample,
    Example,
    example_to_record,
    in_dimensions,
    samples_of_example,
)
from jrm_plugin.records.samples import OVERALL

LEAKS_FILE = "leaks.json"


@dataclass
class TrainingData:
    """What a run is trained on and evaluated with.

    Attributes:
        sets: what `train_data` names.
        train_examples: those of each set; of no set where they are streamed.
        eval_sets: by name.
        benchmarks: those of `eval_sets` that are a benchmark, by name.
    """

    sets: list[TrainSet]
    train_examples: list[Sequence[Example]]
    eval_sets: dict[str, Sequence[Example]]
    benchmarks: dict[str, Any]
    _digests: SampleDigests = field(default_factory=SampleDigests)

    def identities(self) -> dict[str, Any]:
        """Which examples and images they are, as settings of a run; reads every image."""
        identities = {} if self.train_examples else identity_of_stream(self.sets)
        for train_set, examples in zip(self.sets, self.train_examples, strict=False):
            name = "train_data" if len(self.sets) == 1 else f"train_data {train_set.path}"
            identities |= _identity(name, examples, self._digests)
        for name, examples in self.eval_sets.items():
            identities |= _identity(f"eval_data {name}", examples, self._digests)
        return identities

    def look_for_leaks(
        self, arguments: TrainArguments, training: JointRewardConfig, identities: Mapping[str, Any]
    ) -> None:
        """Says which images training and evaluation share, and leaves their examples out if that is asked for.

        The first process looks and leaves a file, which the others read, and which is right as long as the data stay.

        Args:
            identities: of these data; only the first process needs them.
        """
        if not self.train_examples or not self.eval_sets or arguments.leaks == "ignore":
            return
        with training.main_process_first(desc="comparing images"):
            self.train_examples = self._looked_through(arguments, training, identities)

    def _looked_through(
        self, arguments: TrainArguments, training: JointRewardConfig, identities: Mapping[str, Any]
    ) -> list[Sequence[Example]]:
        file, is_main = Path(training.output_dir, LEAKS_FILE), training.process_index == 0
        report = read_json(file) if is_main and file.exists() else None
        if is_main and not (isinstance(report, dict) and report.get("of") == identities):
            found = [
                [leak.to_dict() for leak in find_leaks(examples, self.eval_sets, progress=not training.disable_tqdm)]
                for examples in self.train_examples
            ]
            write_json(file, {"of": identities, "leaks": dict(zip([s.path for s in self.sets], found, strict=True))})
        report, kept = read_json(file), []
        for train_set, examples in zip(self.sets, self.train_examples, strict=True):
            leaks = report["leaks"][train_set.path]
            positions = {leak["position"] for leak in leaks}
            if leaks and is_main:
                first, left_out = leaks[0], arguments.leaks == "leave_out"
                same = "is" if first["same"] == "pixels" else "is nearly"
                print(
                    f"jrm: {len(positions)} of {len(examples)} examples of {train_set.path} share an image with an "
                    f"evaluation set and are {'left out' if left_out else 'trained on'}: {first['image']} of "
                    f"{first['example']} {same} {first['eval_image']} of {first['eval_set']}, {first['eval_example']}; "
                    f"all of them are in {file}.",
                    file=sys.stderr,
                )
            if arguments.leaks == "leave_out" and positions:
                if len(positions) == len(examples):
                    raise JRMError(
                        f"every example of {train_set.path} shares an image with an evaluation set; give other data, "
                        "or leaks: report."
                    )
                examples = without(examples, positions)
            kept.append(examples)
        return kept

    def pairs(self) -> set[str]:
        """The names of the pairs that are trained on, as [`PairNames`] gives them; none of a stream."""
        names = PairNames(self._digests)
        return {
            names.of_samples(pair)
            for example in chain(*self.train_examples)
            if not isinstance(example, CritiqueExample)
            for pair in example.pairs()
        }

    def train_set(self, arguments: TrainArguments, training: JointRewardConfig) -> Sequence[Example] | IterableDataset:
        """What the trainer draws from: the examples of one set, of several by weight, or a stream."""
        is_main = training.process_index == 0
        if arguments.streaming:
            if self.eval_sets and arguments.leaks == "report" and is_main:
                print("jrm: images that evaluation has too are not looked for in a stream.", file=sys.stderr)
            return stream_of(self.sets, seed=training.seed, buffer=arguments.shuffle_buffer)
        if len(self.sets) == 1:
            return self.train_examples[0]
        train_set, drawn = mixed(self.train_examples, self.sets, training.seed)
        if is_main:
            print(f"jrm: {drawn}", file=sys.stderr)
        return train_set


def read_training_data(arguments: TrainArguments, training: JointRewardConfig) -> TrainingData:
    """Reads what is trained on and evaluated with; what is left out is said on stderr.

    Raises:
        JRMError: a set cannot be read, or evaluation has sets and no strategy, or the other way round.
    """
    is_main = training.process_index == 0
    sets = train_sets(arguments.train_data, arguments.columns, arguments.images_root)
    train_examples: list[Sequence[Example]] = []
    if not arguments.streaming:
        train_examples = [_read(arguments, data, is_main, corrections=arguments.corrections) for data in sets]
    eval_sets: dict[str, Sequence[Example]] = {}
    benchmarks = {}
    for item in arguments.eval_data:
        name, separator, path = item.partition("=")
        if not separator or name in eval_sets:
            raise JRMError(f"eval_data must name each set once, as name=path; got {item!r}.")
        if (named := known_benchmark(path)) and not os.path.exists(path):
            with training.main_process_first(desc="reading a benchmark"):
                folder = Path(training.output_dir, "benchmarks")
                benchmarks[name] = load_benchmark(*named, folder=folder, progress=is_main)
            eval_sets[name] = benchmarks[name].pairs
        else:
            eval_sets[name] = _read(arguments, TrainSet(path, 1.0, arguments.columns, arguments.images_root), is_main)
    if (training.eval_strategy != "no") != bool(eval_sets):
        raise JRMError("eval_data and eval_strategy (steps or epoch) belong together; give both or neither.")
    return TrainingData(sets, train_examples, eval_sets, benchmarks)


def _read(
    arguments: TrainArguments, data: TrainSet, is_main: bool, *, corrections: str | None = None
) -> Sequence[Example]:
    path = data.path
    records = read_preferences(
        path,
        columns=data.columns,
        images_root=data.images_root,
        groups=True,
        strict=arguments.strict,
        decode=arguments.decode_images,
    )
    if records.understood and is_main:
        print(f"jrm: {records.understood}", file=sys.stderr)
    for bad in records.bad if is_main else ():
        print(f"jrm: left out: {bad.file}, row {bad.row}: {bad.reason}", file=sys.stderr)
    if records.bad and is_main:
        print(
            f"jrm: {len(records.bad)} records of {path} were left out, {len(records.examples)} kept.", file=sys.stderr
        )
    if not records.examples:
        raise JRMError(f"{path} holds no usable record.")
    examples = records.examples
    if corrections is not None:  # of pairs with all their labels
        examples = _corrected(examples, corrections, path, is_main)
    if arguments.dimensions is None:
        return examples
    return _in_dimensions(examples, arguments.dimensions, path, is_main)


class OfDimensions(Sequence):
    """Examples of which pairs say what they say in some dimensions alone."""

    def __init__(self, examples: Sequence[Example], dimensions: Sequence[str]):
        self._examples, self._dimensions = examples, dimensions

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, position: Any) -> Any:
        if isinstance(position, slice):
            return [self[k] for k in range(*position.indices(len(self)))]
        example = self._examples[position]
        return example if isinstance(example, CritiqueExample) else in_dimensions(example, self._dimensions)


def _in_dimensions(
    examples: Sequence[Example], dimensions: Sequence[str], path: str, is_main: bool
) -> Sequence[Example]:
    """The examples in the dimensions that are trained; says what of them is left out."""
    others: Counter[str] = Counter()
    for number, example in enumerate(examples):
        if isinstance(example, CritiqueExample):
            continue
        others.update({*example.ranks, *chain(*example.critiques)} - {*dimensions, OVERALL})
        try:
            in_dimensions(example, dimensions)
        except JRMError as error:
            raise JRMError(f"{origin(example) or f'{path}, example {number}'}: {error}") from error
    if others and is_main:
        counts = ", ".join(f"{name} ({count} examples)" for name, count in others.items())
        print(f"jrm: {path}: left out, because dimensions does not name it: {counts}.", file=sys.stderr)
    return OfDimensions(examples, dimensions) if others else examples


def _corrected(examples: Sequence[Example], corrections: str, path: str, is_main: bool) -> Sequence[Example]:
    corrected = CorrectedExamples(examples, read_corrections(corrections), path=corrections)
    if is_main:
        counts = ", ".join(f"{action} {count}" for action, count in sorted(corrected.counts.items())) or "none"
        print(f"jrm: corrections of {corrections}: {counts}.", file=sys.stderr)
    if not corrected:
        raise JRMError(f"{corrections} leaves no pair of {path} to train on.")
    return corrected


def _identity(name: str, examples: Sequence[Example], digests: SampleDigests) -> dict[str, str]:
    """What a run learned from, as two settings: digests of the examples, and of the content of their images."""
    records, paths = hashlib.sha256(), set()
    for example in examples:
        records.update(json.dumps(example_to_record(example)).encode())
        images = [
            image
            for sample in samples_of_example(example)
            for image in (*sample.prompt_images, *sample.response_images)
        ]
        # A data: URL and what is in memory are part of the record.
        paths.update(image for image in images if isinstance(image, str) and not is_data_url(image))
    contents = hashlib.sha256()
    for path in sorted(paths):
        contents.update(os.fsencode(path) + digests.of_image(path))
    return {f"records of {name}": records.hexdigest(), f"images of {name}": contents.hexdigest()}
