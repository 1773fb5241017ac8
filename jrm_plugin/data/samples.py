"""Samples to score in bulk: a JSONL file, or a folder of edits.

JSONL: one object a line, `{"source": path or list or null, "instruction": text, "edited": path}` (further keys are
carried along), paths relative to the file's folder. Folder: each sub-folder is one edit with `instruction.txt`,
`source.*` (or `source_1.*`, `source_2.*`, …; none for a generation), and the images to score under any other name.
"""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from jrm_plugin.data.reading import BadRecord, need, read_json_lines, to_edit
from jrm_plugin.errors import JRMError
from jrm_plugin.files import read_text
from jrm_plugin.records.samples import Sample


@dataclass(frozen=True)
class BulkItem:
    """A sample to score and the record it came from."""

    sample: Sample
    record: dict


def read_samples(path: Path) -> list[BulkItem]:
    """All samples of a JSONL file or a folder of edits.

    Raises:
        JRMError: a line is no such object, or there is nothing to score; names the file and line.
    """
    return _read_folder(path) if path.is_dir() else _read_lines(path)


def _read_lines(path: Path) -> list[BulkItem]:
    items: list[BulkItem] = []
    bad: list[BadRecord] = []
    for row, record in read_json_lines(path, bad, progress=False):
        try:
            items.append(_to_item(record, path.parent))
        except JRMError as error:
            bad.append(BadRecord(str(path), row, str(error)))
    if bad:
        raise JRMError(f"{str(bad[0]).rstrip('.')}; mend or remove that line.")
    if not items:
        raise JRMError(f"{path} holds no sample.")
    return items


def _read_folder(folder: Path) -> list[BulkItem]:
    endings = Image.registered_extensions()
    items = []
    for text in sorted(folder.glob("**/instruction.txt")):
        instruction = read_text(text).strip()
        images = [path for path in text.parent.iterdir() if path.suffix.lower() in endings]
        images.sort(key=lambda path: (len(path.stem), path.name))  # source_10 comes after source_9
        sources = [str(path.relative_to(folder)) for path in images if path.stem.split("_")[0] == "source"]
        edited = [str(path.relative_to(folder)) for path in images if str(path.relative_to(folder)) not in sources]
        for path in edited:
            try:
                items.append(_to_item({"source": sources, "instruction": instruction, "edited": path}, folder))
            except JRMError as error:
                raise JRMError(f"{text.parent}: {error}") from error
    if not items:
        raise JRMError(f"the folder {folder} holds no edit: a sub-folder with instruction.txt and images to score.")
    return items


def _to_item(record: dict, root: Path) -> BulkItem:
    need(record, ("instruction", "edited"))
    return BulkItem(to_edit(record["instruction"], record.get("source"), record["edited"], root), record)
