"""What a checkpoint was trained on, recorded in its config, and noticed where something else is scored."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from transformers import PreTrainedConfig

from jrm_plugin.files import read_text, write_text
from jrm_plugin.model.processing import EncodedSequence
from jrm_plugin.records.images import image_size
from jrm_plugin.records.samples import Sample

# Of the config.
FIELDS = ("trained_tasks", "trained_pixels", "trained_source_images", "writes_critiques")
PAIRS_FILE = "jrm_trained_pairs.txt"  # beside the config: the names of the pairs, as there may be many
TOLERANCE = 4  # times more or fewer pixels, twice or half of each side, are no other size yet


class TrainedOn:
    """Gathers the tasks of examples, the sizes of their images before they are scaled, and how many sources they have.

    `critiques` is for the caller to set, if there are any.
    """

    def __init__(self) -> None:
        self._tasks, self._pixels, self._source_images = set[str](), set[int](), set[int]()
        self.critiques = False

    def add(self, *samples: Sample) -> None:
        """Looks at samples that are trained on; reads no more of an image than its header."""
        for sample in samples:
            self._tasks.add(sample.task)
            self._source_images.add(len(sample.prompt_images))
            for image in (*sample.prompt_images, *sample.response_images):
                width, height = image_size(image)
                self._pixels.add(width * height)

    def record(self, config: PreTrainedConfig) -> None:
        """Adds what was gathered to what the config says already; with nothing gathered, it stays as it is."""
        if self._tasks:
            config.trained_tasks = sorted(self._tasks | {*(config.trained_tasks or ())})
        if pixels := self._pixels | {*(config.trained_pixels or ())}:
            config.trained_pixels = [min(pixels), max(pixels)]
        if self._source_images:
            config.trained_source_images = max(*self._source_images, config.trained_source_images or 0)
        config.writes_critiques = config.writes_critiques or self.critiques


class NotTrainedOn:
    """Notices, once each, a task, an image size and a number of sources that a checkpoint was not trained on."""

    def __init__(self, config: PreTrainedConfig):
        self._tasks, self._pixels = config.trained_tasks, config.trained_pixels
        self._source_images = config.trained_source_images

    def notice(self, sequences: Sequence[EncodedSequence]) -> list[str]:
        """What is to be said of a sample that is about to be scored, of its sequences."""
        sentences, task = [], sequences[0].task
        if self._tasks and task not in self._tasks:
            sentences.append(
                f"this checkpoint was trained on samples of the task {' and '.join(self._tasks)}; a sample of the "
                f"task {task} is scored, whose score may mean little."
            )
            self._tasks = None
        if self._pixels:
            low, high = self._pixels
            sizes = [image.pixels for sequence in sequences for image in sequence.images]
            other = next((size for size in sizes if not low / TOLERANCE <= size <= high * TOLERANCE), None)
            if other is not None:
                trained = f"{low:,}" if low == high else f"{low:,} to {high:,}"
                sentences.append(
                    f"this checkpoint was trained on images of {trained} pixels; an image of {other:,} pixels is "
                    "scored, and scores may mean little at that size."
                )
                self._pixels = None
        given = sequences[0].source_images
        if self._source_images is not None and given > self._source_images:
            sentences.append(
                f"this checkpoint was trained on at most {self._source_images} source images a sample; one with "
                f"{given} is scored, whose score may mean little."
            )
            self._source_images = None
        return sentences


def copy_fields(source: PreTrainedConfig, target: PreTrainedConfig) -> None:
    """What the adapters of `source` were trained on is what the model that they are merged into was trained on."""
    for name in FIELDS:
        value = getattr(source, name, None)
        if value is not None:
            setattr(target, name, value)


def write_trained_pairs(folder: Path, names: Iterable[str]) -> None:
    """Records beside a model which pairs it is trained on, by their names without labels (`PairNames.of_samples`)."""
    write_text(folder / PAIRS_FILE, "".join(f"{name}\n" for name in sorted(names)))


def read_trained_pairs(model: str | Path) -> set[str]:
    """The pairs that the model of a folder was trained on, as far as `jrm train` has recorded them.

    A checkpoint in the middle of a run is trained on the run's pairs.
    """
    folder = Path(model)
    folders = (folder, folder.parent) if folder.name.startswith("checkpoint-") else (folder,)
    files = (place / PAIRS_FILE for place in folders)
    return next(({*read_text(file).split()} for file in files if file.is_file()), set())
