"""`jrm score --input … --output …`: many samples to a file, in order, resumable.

Rows are appended to a JSONL file as they are scored; the same command goes on after the last whole row. A Parquet
output is made from such a file, `OUTPUT.partial.jsonl`, at the end.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from tqdm.auto import tqdm

from jrm_plugin.data.samples import BulkItem, read_samples
from jrm_plugin.errors import JRMError
from jrm_plugin.files import check_writable

# Rows are written after so many samples: what a stop can lose.
ROWS_AT_ONCE = 64

_OWN_COLUMNS = {"model", "mu", "sigma", "error"}


def score_in_bulk(make_scorer: Callable, model: str, source: Path, output: Path) -> int:
    """Scores what `source` holds into `output`; returns 2 if a sample could not be scored, else 0.

    A sample that cannot be scored has its reason in the column `error` and no scores; the others are scored.
    """
    if output.suffix not in (".jsonl", ".parquet"):
        raise JRMError(f"the output {output} must end in .jsonl or .parquet.")
    if output.suffix == ".parquet":
        try:
            import pyarrow  # noqa: F401 - asked for now, not after hours of scoring
        except ImportError as error:
            raise JRMError("a .parquet output needs pyarrow: pip install jrm-plugin[parquet].") from error
    items = read_samples(source)
    if taken := sorted({name for item in items for name in item.record} & _OWN_COLUMNS):
        raise JRMError(f"the input {source} has the key {taken[0]!r}, which is a column of the output; rename it.")
    check_writable(output.parent)
    rows = output if output.suffix == ".jsonl" else output.with_name(output.name + ".partial.jsonl")
    if output.suffix == ".parquet" and output.exists():
        raise JRMError(f"the output {output} is there already; remove it or choose another.")
    done = _done(rows, items, model)
    if done:
        print(f"jrm: {done} of {len(items)} samples are in {rows} already; going on.", file=sys.stderr)
    if done < len(items):
        _append(rows, items[done:], make_scorer(), model, len(items))
    failed = sum("error" in row for row in _rows(rows))
    if output.suffix == ".parquet":
        _to_parquet(rows, output)
    print(f"jrm: {len(items) - failed} samples scored, in {output}.", file=sys.stderr)
    if failed:
        print(f"jrm: {failed} samples could not be scored; the column `error` says why.", file=sys.stderr)
    return 2 if failed else 0


def _done(rows: Path, items: list[BulkItem], model: str) -> int:
    """How many rows an earlier run left; a last line that was cut off is removed."""
    if not rows.exists():
        return 0
    content = rows.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    lines = whole.splitlines()
    if len(lines) > len(items):
        raise JRMError(f"{rows} has more rows than the input; it belongs to another input, choose another output.")
    for number, (line, item) in enumerate(zip(lines, items, strict=False), 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise JRMError(f"{rows}, line {number} is no valid JSON; remove that file or choose another.") from error
        if row.get("model") != model or any(row.get(name) != value for name, value in item.record.items()):
            raise JRMError(
                f"{rows}, line {number} is of another model or input; remove that file or choose another output."
            )
    if whole != content:
        with rows.open("r+b") as file:
            file.truncate(len(whole))
    return len(lines)


def _append(rows: Path, items: list[BulkItem], scorer, model: str, total: int) -> None:
    bar = tqdm(total=total, initial=total - len(items), desc="Scoring", unit="sample")
    with rows.open("a", encoding="utf-8") as file, bar:
        for start in range(0, len(items), ROWS_AT_ONCE):
            batch = items[start : start + ROWS_AT_ONCE]
            for item, score in zip(batch, scorer.score([i.sample for i in batch], on_error="return"), strict=True):
                found = {"error": str(score)} if isinstance(score, JRMError) else score.to_dict()
                file.write(json.dumps({**item.record, "model": model, **found}, ensure_ascii=False) + "\n")
            file.flush()
            bar.update(len(batch))


def _to_parquet(rows: Path, output: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    records = _rows(rows)
    names = dict.fromkeys(name for record in records for name in record)
    columns = {}
    for name in names:
        values = [record.get(name) for record in records]
        try:
            columns[name] = pa.array(values)
        except pa.ArrowException:  # of several types, as `source` where it is a path here and a list there
            columns[name] = pa.array([None if value is None else json.dumps(value) for value in values])
    staging = output.with_name(output.name + ".saving")
    pq.write_table(pa.table(columns), staging)
    os.replace(staging, output)
    rows.unlink()


def _rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]
