"""`jrm score`: one set of edited images from the command line, or many from a file or folder into another file.

In bulk, rows are appended to a JSONL file as they are scored, and the same command goes on after the last whole row. A
Parquet output is made from such a file, `OUTPUT.partial.jsonl`, at the end. Each row has the digest of what was scored,
the model's weights included, so that nothing goes on with other images, another text or another model.
"""

import argparse
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from jrm_plugin.cli.common import (
    add_json_argument,
    add_model_arguments,
    add_sample_arguments,
    make_scorer,
    named_samples,
    print_scores,
)
from jrm_plugin.data.samples import BulkItem, SampleDigests, read_samples
from jrm_plugin.errors import JRMError
from jrm_plugin.files import check_writable, replacing, to_json
from jrm_plugin.records.scores import RewardScore
from jrm_plugin.runs import append_records, cut_off_line, locked, read_records
from jrm_plugin.scoring.protocol import Scorer

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_AT_ONCE = 64  # scored and then written together: what a stop can lose
RESULT_COLUMNS = {"model", "digest", "mu", "sigma", "error"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_sample_arguments(parser, required=False)
    add_model_arguments(parser)
    parser.add_argument("--input", type=Path, help="score in bulk: a JSONL file, or a folder of edits")
    parser.add_argument("--output", type=Path, help="where bulk scores go: .jsonl or .parquet; goes on if it exists")
    add_json_argument(parser)


def run(options: argparse.Namespace) -> int:
    """Returns 2 if a sample could not be scored in bulk; the others are scored all the same."""
    if options.input or options.output:
        if not (options.input and options.output) or options.edited:
            raise JRMError("bulk scoring needs --input and --output together, and no --edited.")
        return _score_in_bulk(options)
    if not options.edited or options.instruction is None:
        raise JRMError("jrm score needs --instruction and --edited, or --input and --output; see jrm score --help.")
    samples = named_samples(options)
    scores = make_scorer(options).score(samples)
    print_scores(options, list(zip(options.edited, scores, strict=True)), "Scores")
    return 0


# --- in bulk ----------------------------------------------------------------------------------------------------------


def _score_in_bulk(options: argparse.Namespace) -> int:
    output = Path(os.path.realpath(options.output))  # the file that a link names, so that it has one lock
    if output.suffix not in (".jsonl", ".parquet"):
        raise JRMError(f"the output {output} must end in .jsonl or .parquet.")
    if output.suffix == ".parquet":
        try:
            import pyarrow  # noqa: F401 - asked for now, not after hours of scoring
        except ImportError as error:
            raise JRMError("a .parquet output needs pyarrow: pip install jrm-plugin[parquet].") from error
    rows = output if output.suffix == ".jsonl" else output.with_name(output.name + ".partial.jsonl")
    for path in (output, rows):
        if path.exists() and options.input.exists() and path.samefile(options.input):
            raise JRMError(f"the output {path} is the input; choose another output.")
        if path.exists() and not path.is_file():
            raise JRMError(f"the output {path} is there and is no file; choose another output.")
    items = read_samples(options.input)
    if taken := sorted({name for item in items for name in item.record} & RESULT_COLUMNS):
        raise JRMError(
            f"the input {options.input} has the key {taken[0]!r}, which is a column of the output; rename it."
        )
    check_writable(output.parent)
    from jrm_plugin.model.checkpoint import checkpoint_digest  # slow to import

    with locked(output.with_name(f".{output.name}.lock")):
        if output != rows and output.exists():
            raise JRMError(f"the output {output} is there already; remove it or choose another.")
        weights = checkpoint_digest(options.model)
        columns = _own_columns(items, options, weights)
        done = _rows_done(rows, columns)
        if done:
            print(f"jrm: {done} of {len(items)} samples are in {rows} already; going on.", file=sys.stderr)
        if done < len(items):
            _score_rest(make_scorer(options), items, columns, done, rows)
        failed = sum("error" in row for row in read_records(rows))
        if output.suffix == ".parquet":
            _to_parquet(rows, output)
    print(f"jrm: {len(items) - failed} samples scored, in {output}.", file=sys.stderr)
    if failed:
        print(f"jrm: {failed} samples could not be scored; the column `error` says why.", file=sys.stderr)
    return 2 if failed else 0


def _rows_done(rows: Path, columns: list[dict]) -> int:
    """How many rows an earlier run left; a [`JRMError`] if the file is another's, or of another model or input."""
    earlier = read_records(rows)
    if len(earlier) > len(columns):
        raise JRMError(f"{rows} has more rows than the input; it belongs to another input, choose another output.")
    for number, (row, own) in enumerate(zip(earlier, columns, strict=False), 1):
        if to_json({name: row.get(name) for name in own}) != to_json(own):  # as text: NaN is not equal to itself
            raise JRMError(
                f"{rows}, line {number} is of another model or input, or its images have changed; remove that file, or "
                "choose another output."
            )
    if cut_off := cut_off_line(rows):
        whole = to_json(columns[len(earlier)]) if len(earlier) < len(columns) else ""
        begins = whole.removesuffix("}")
        if not begins.startswith(cut_off[: len(begins)]) or not cut_off.startswith(begins[: len(cut_off)]):
            raise JRMError(f"{rows} ends with what no earlier run of this command wrote; choose another output.")
    return len(earlier)


def _own_columns(items: list[BulkItem], options: argparse.Namespace, weights: bytes) -> list[dict]:
    """What each row holds beside its result: all that makes it this row and no other."""
    run = weights + f"{options.dtype} {options.max_pixels}".encode()
    digests, columns = SampleDigests(), []
    for item in items:
        digest = hashlib.blake2b(run + digests(item.sample), digest_size=8).hexdigest()
        columns.append({**item.record, "model": options.model, "digest": digest})
    return columns


def _score_rest(scorer: Scorer, items: list[BulkItem], columns: list[dict], done: int, rows: Path) -> None:
    with tqdm(total=len(items), initial=done, desc="Scoring", unit="sample") as bar:
        for start in range(done, len(items), ROWS_AT_ONCE):
            batch = range(start, min(start + ROWS_AT_ONCE, len(items)))
            scores = scorer.score([items[k].sample for k in batch], on_error="return")
            append_records(rows, [columns[k] | _result(score) for k, score in zip(batch, scores, strict=True)])
            bar.update(len(batch))


def _result(score: RewardScore | JRMError) -> dict:
    return {"error": str(score)} if isinstance(score, JRMError) else score.to_dict()


def _to_parquet(rows: Path, output: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    records = read_records(rows)
    names = dict.fromkeys(name for record in records for name in record)
    columns = {name: _to_column(name, [record.get(name) for record in records]) for name in names}
    with replacing(output) as staging:
        pq.write_table(pa.table(columns), staging)
    rows.unlink()


def _to_column(name: str, values: list) -> "pa.Array":
    """A column of one type; of JSON text where its values have several, or are none that Parquet has."""
    import pyarrow as pa

    if name in ("mu", "sigma") or not any(map(_holds_object, values)):  # an empty object has no column to go to
        try:
            return pa.array(values)
        except (pa.ArrowException, OverflowError, ValueError, TypeError):  # too large a number, or no Unicode
            pass
    return pa.array([None if value is None else json.dumps(value) for value in values])


def _holds_object(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and any(map(_holds_object, value)))
