"""`jrm score --input … --output …`: many samples to a file, in order, resumable.

Rows are appended to a JSONL file as they are scored; the same command goes on after the last whole row. A Parquet
output is made from such a file, `OUTPUT.partial.jsonl`, at the end.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

from tqdm.auto import tqdm

from jrm_plugin.data.samples import BulkItem, read_samples
from jrm_plugin.errors import JRMError
from jrm_plugin.files import check_writable, replacing
from jrm_plugin.runs import append_records, read_records

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
    failed = sum("error" in row for row in read_records(rows))
    if output.suffix == ".parquet":
        _to_parquet(rows, output)
    print(f"jrm: {len(items) - failed} samples scored, in {output}.", file=sys.stderr)
    if failed:
        print(f"jrm: {failed} samples could not be scored; the column `error` says why.", file=sys.stderr)
    return 2 if failed else 0


def _done(rows: Path, items: list[BulkItem], model: str) -> int:
    """How many rows an earlier run left."""
    done = read_records(rows)
    if len(done) > len(items):
        raise JRMError(f"{rows} has more rows than the input; it belongs to another input, choose another output.")
    for number, (row, item) in enumerate(zip(done, items, strict=False), 1):
        if row.get("model") != model or any(row.get(name) != value for name, value in item.record.items()):
            raise JRMError(
                f"{rows}, line {number} is of another model or input; remove that file, or choose another output."
            )
    return len(done)


def _append(rows: Path, items: list[BulkItem], scorer, model: str, total: int) -> None:
    with tqdm(total=total, initial=total - len(items), desc="Scoring", unit="sample") as bar:
        for start in range(0, len(items), ROWS_AT_ONCE):
            batch = items[start : start + ROWS_AT_ONCE]
            scores = scorer.score([item.sample for item in batch], on_error="return")
            append_records(rows, [_row(item, model, score) for item, score in zip(batch, scores, strict=True)])
            bar.update(len(batch))


def _row(item: BulkItem, model: str, score) -> dict:
    result = {"error": str(score)} if isinstance(score, JRMError) else score.to_dict()
    return {**item.record, "model": model, **result}


def _to_parquet(rows: Path, output: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    records = read_records(rows)
    names = dict.fromkeys(name for record in records for name in record)
    columns = {}
    for name in names:
        values = [record.get(name) for record in records]
        try:
            columns[name] = pa.array(values)
        except pa.ArrowException:  # of several types, as `source` where it is a path here and a list there
            columns[name] = pa.array([None if value is None else json.dumps(value) for value in values])
    with replacing(output) as staging:
        pq.write_table(pa.table(columns), staging)
    rows.unlink()
