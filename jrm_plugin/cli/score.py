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

from tqdm.auto import tqdm

from jrm_plugin.cli.common import (
    add_json_argument,
    add_model_arguments,
    add_sample_arguments,
    make_scorer,
    named_samples,
    print_scores,
)
from jrm_plugin.data.samples import BulkItem, read_samples
from jrm_plugin.errors import JRMError
from jrm_plugin.files import check_writable, content_digest, json_line, replacing
from jrm_plugin.records.images import is_data_url
from jrm_plugin.records.scores import RewardScore
from jrm_plugin.runs import append_records, cut_off_line, locked, read_records
from jrm_plugin.scoring.protocol import Scorer

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
    output, model = options.output, options.model
    if output.suffix not in (".jsonl", ".parquet"):
        raise JRMError(f"the output {output} must end in .jsonl or .parquet.")
    if output.suffix == ".parquet":
        try:
            import pyarrow  # noqa: F401 - asked for now, not after hours of scoring
        except ImportError as error:
            raise JRMError("a .parquet output needs pyarrow: pip install jrm-plugin[parquet].") from error
        if output.exists():
            raise JRMError(f"the output {output} is there already; remove it or choose another.")
    if output.exists() and os.path.samefile(output, options.input):
        raise JRMError(f"the output {output} is the input; choose another output.")
    items = read_samples(options.input)
    if taken := sorted({name for item in items for name in item.record} & RESULT_COLUMNS):
        raise JRMError(
            f"the input {options.input} has the key {taken[0]!r}, which is a column of the output; rename it."
        )
    check_writable(output.parent)
    rows = output if output.suffix == ".jsonl" else output.with_name(output.name + ".partial.jsonl")
    from jrm_plugin.model.checkpoint import checkpoint_digest  # slow to import

    with locked(output.with_name(f".{output.name}.lock")):
        weights = checkpoint_digest(model)
        done = _rows_done(rows, items, model, weights)
        if done:
            print(f"jrm: {done} of {len(items)} samples are in {rows} already; going on.", file=sys.stderr)
        if done < len(items):
            _score_rest(make_scorer(options), items, done, model, weights, rows)
        failed = sum("error" in row for row in read_records(rows))
        if output.suffix == ".parquet":
            _to_parquet(rows, output)
    print(f"jrm: {len(items) - failed} samples scored, in {output}.", file=sys.stderr)
    if failed:
        print(f"jrm: {failed} samples could not be scored; the column `error` says why.", file=sys.stderr)
    return 2 if failed else 0


def _rows_done(rows: Path, items: list[BulkItem], model: str, weights: bytes) -> int:
    """How many rows an earlier run left; a [`JRMError`] if the file is another's, or of another model or input."""
    earlier = read_records(rows)
    if len(earlier) > len(items):
        raise JRMError(f"{rows} has more rows than the input; it belongs to another input, choose another output.")
    for number, (row, item) in enumerate(zip(earlier, items, strict=False), 1):
        if any(row.get(name) != value for name, value in _own_columns(item, model, weights).items()):
            raise JRMError(
                f"{rows}, line {number} is of another model or input, or its images have changed; remove that file, or "
                "choose another output."
            )
    if cut_off := cut_off_line(rows):
        whole = json_line(_own_columns(items[len(earlier)], model, weights)) if len(earlier) < len(items) else ""
        begins = whole.removesuffix("}\n")
        if not begins.startswith(cut_off[: len(begins)]) or not cut_off.startswith(begins[: len(cut_off)]):
            raise JRMError(f"{rows} ends with what no earlier run of this command wrote; choose another output.")
    return len(earlier)


def _own_columns(item: BulkItem, model: str, weights: bytes) -> dict:
    """What a row holds beside its result: all that makes it this row and no other."""
    digest = hashlib.blake2b(weights, digest_size=8)
    digest.update(json.dumps(item.sample.prompt_text).encode())
    for image in (*item.sample.prompt_images, *item.sample.response_images):
        try:
            digest.update(image.encode() if is_data_url(image) else content_digest(image))
        except JRMError:  # scoring says what is wrong with it
            digest.update(b"unreadable")
    return {**item.record, "model": model, "digest": digest.hexdigest()}


def _score_rest(scorer: Scorer, items: list[BulkItem], done: int, model: str, weights: bytes, rows: Path) -> None:
    with tqdm(total=len(items), initial=done, desc="Scoring", unit="sample") as bar:
        for start in range(done, len(items), ROWS_AT_ONCE):
            batch = items[start : start + ROWS_AT_ONCE]
            scores = scorer.score([item.sample for item in batch], on_error="return")
            pairs = zip(batch, scores, strict=True)
            append_records(rows, [_own_columns(item, model, weights) | _result(score) for item, score in pairs])
            bar.update(len(batch))


def _result(score: RewardScore | JRMError) -> dict:
    return {"error": str(score)} if isinstance(score, JRMError) else score.to_dict()


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
        # of several types, as `source` where it is a path here and a list there; too large a number; no Unicode
        except (pa.ArrowException, OverflowError, UnicodeError):
            columns[name] = pa.array([None if value is None else json.dumps(value) for value in values])
    with replacing(output) as staging:
        pq.write_table(pa.table(columns), staging)
    rows.unlink()
