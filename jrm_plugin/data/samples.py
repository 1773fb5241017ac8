"""Samples to score in bulk: a JSONL file, or a folder of edits.

JSONL: one object a line, `{"source": path or list or null, "instruction": text, "edited": path}` (further keys are
carried along), paths relative to the file's folder. Folder: each sub-folder is one edit with `instruction.txt`,
`source.*` (or `source_1.*`, `source_2.*`, …; none for a generation), and the images to score under any other name.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from jrm_plugin.errors import JRMError
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
    if path.is_dir():
        return _read_folder(path)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # `splitlines` cuts texts at U+2028 and the like
    except OSError as error:
        raise JRMError(f"the input {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise JRMError(f"the input {path} is no UTF-8 text; give a JSONL file or a folder.") from error
    items = [_read_line(line, f"{path}, line {k}", path.parent) for k, line in enumerate(lines, 1) if line.strip()]
    if not items:
        raise JRMError(f"the input {path} holds no sample.")
    return items


def _read_line(line: str, where: str, root: Path) -> BulkItem:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise JRMError(f"{where} is no valid JSON ({error}); mend or remove that line.") from error
    if not isinstance(record, dict) or not isinstance(record.get("edited"), str) or "instruction" not in record:
        raise JRMError(
            f'{where} must be an object with "instruction" and "edited" (a path), and "source" if there is one.'
        )
    source = record.get("source")
    sources = [] if source is None else source if isinstance(source, list) else [source]
    if not all(isinstance(path, str) for path in sources):
        raise JRMError(f'{where} must give "source" as a path, a list of paths, or null.')
    try:
        sample = Sample.edit(
            [str(root / path) for path in sources], record["instruction"], str(root / record["edited"])
        )
    except JRMError as error:
        raise JRMError(f"{where}: {error}") from error
    return BulkItem(sample, record)


def _read_folder(folder: Path) -> list[BulkItem]:
    endings = Image.registered_extensions()
    items = []
    for text in sorted(folder.glob("**/instruction.txt")):
        images = [path for path in text.parent.iterdir() if path.suffix.lower() in endings]
        images.sort(key=lambda path: (len(path.stem), path.name))  # source_10 comes after source_9
        sources = [str(path.relative_to(folder)) for path in images if path.stem.split("_")[0] == "source"]
        edited = [str(path.relative_to(folder)) for path in images if str(path.relative_to(folder)) not in sources]
        try:
            instruction = text.read_text(encoding="utf-8").strip()
        except UnicodeDecodeError as error:
            raise JRMError(f"{text} is no UTF-8 text; save it as UTF-8.") from error
        for path in edited:
            record = {"source": sources, "instruction": instruction, "edited": path}
            items.append(_read_line(json.dumps(record), f"{text.parent}", folder))
    if not items:
        raise JRMError(f"the folder {folder} holds no edit: a sub-folder with instruction.txt and images to score.")
    return items
