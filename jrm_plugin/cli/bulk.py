"""Scoring in bulk, for `jrm score` and `jrm rank`: samples of a file, a folder or a glob, into a table and a gallery.

Rows are appended to a JSONL file as they are scored, and the same command goes on after the last whole row. What is
made of all rows (CSV, Parquet, a ranking, a gallery) is made at the end, from such a file, `OUTPUT.partial.jsonl`. Each
row has the digest of what was scored, the model's weights included, so that nothing goes on with other images, another
text or another model. With `--ray` workers of a cluster score, and all else is the same.
"""

import argparse
import csv
import hashlib
import json
import os
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from jrm_plugin.cli.common import add_columns_argument, make_scorer, mapping_of
from jrm_plugin.data.samples import BulkItem, SampleDigests, read_samples
from jrm_plugin.errors import JRMError
from jrm_plugin.extras import require
from jrm_plugin.files import check_writable, replacing, to_json, write_jsonl
from jrm_plugin.records.calibration import Calibration
from jrm_plugin.records.images import is_data_url
from jrm_plugin.records.names import value_of
from jrm_plugin.records.samples import OVERALL, Sample, StoredImage
from jrm_plugin.records.scores import RULE, SCORE_COLUMNS, RewardScore
from jrm_plugin.runs import append_records, cut_off_line, locked, read_records
from jrm_plugin.scoring.loading import model_digest, named_model
from jrm_plugin.scoring.protocol import Scorer, ranked

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_AT_ONCE = 64  # scored and then written together: what a stop can lose
TABLES = (".jsonl", ".csv", ".parquet")  # what an output may be
ROW_COLUMNS = {"model", "digest", "error"}  # beside the score's


def add_bulk_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "many images", "Samples of a file; or all images of a folder or a glob, which are candidates for --instruction."
    )
    group.add_argument(
        "--input",
        type=Path,
        metavar="PATH",
        help="JSONL, CSV, TSV or Parquet; a folder of edits; with --instruction, a folder or glob of images",
    )
    add_columns_argument(group)
    group.add_argument("--output", type=Path, help="table to write: .jsonl, .csv or .parquet; the same command goes on")
    group.add_argument("--gallery", type=Path, metavar="HTML", help="page to look at: candidates, best first")
    group.add_argument("--ray", action="store_true", help="on many workers: RAY_ADDRESS's cluster, or a new one")
    group.add_argument(
        "--replicas", type=int, metavar="N", help="workers, with --ray (default: one a GPU, or one a CPU)"
    )


def check_ray_options(options: argparse.Namespace) -> None:
    if not options.ray:
        if options.replicas is not None:
            raise JRMError("--replicas belongs to --ray.")
        return
    if not options.input:
        raise JRMError("--ray belongs to --input.")
    if options.replicas is not None and options.replicas < 1:
        raise JRMError(f"--replicas must be at least 1, got {options.replicas}.")
    require("ray.data", "--ray", install="ray[data]")


@contextmanager
def bulk_rows(
    options: argparse.Namespace,
    output: Path,
    *,
    in_place: bool,
    columns: Collection[str] = (),
    dimension: str = OVERALL,
) -> Iterator[tuple[list[BulkItem], list[dict]]]:
    """The samples of `options.input` and a row of each, with the columns of its score or with `error`.

    Args:
        options: of the command.
        output: what the command makes; no other command makes it at the same time.
        in_place: the output is the JSONL file of the rows; else that file lies beside it until the block has ended.
        columns: further ones that the output will have.
        dimension: one that the model must have.
    """
    rows = output if in_place else output.with_name(output.name + ".partial.jsonl")
    for path in (output, rows):
        if path.exists() and options.input.exists() and path.samefile(options.input):
            raise JRMError(f"the output {path} is the input; choose another output.")
        if path.exists() and not path.is_file():
            raise JRMError(f"the output {path} is there and is no file; choose another output.")
    items = read_samples(
        options.input, columns=mapping_of(options.columns), instruction=options.instruction, sources=options.source
    )
    for name in {name for item in items for name in item.record}:
        if name in {*ROW_COLUMNS, RULE, *columns} or name.partition("_")[0] in SCORE_COLUMNS:
            raise JRMError(
                f"the input {options.input} has the key {name!r}, which is a column of the output; rename it."
            )
    check_writable(output.parent)
    with locked(output.with_name(f".{output.name}.lock")):
        if output != rows and output.suffix in TABLES and output.exists():
            raise JRMError(f"the output {output} is there already; remove it or choose another.")
        yield items, _score(options, items, rows, dimension)
        if output != rows:
            rows.unlink()


def check_dimension(dimension: str, scorer: Scorer) -> None:
    if dimension != OVERALL and dimension not in scorer.dimensions:
        raise JRMError(
            f"the model has no dimension {dimension!r}; it has {', '.join(scorer.dimensions)} and {OVERALL}."
        )


def checked_output(output: Path) -> Path:
    """The file that a link names, so that it has one lock, if a table can be written to it."""
    output = Path(os.path.realpath(output))
    if output.suffix not in TABLES:
        raise JRMError(f"the output {output} must end in {', '.join(TABLES[:-1])} or {TABLES[-1]}.")
    if output.suffix == ".parquet":  # asked for now, not after hours of scoring
        require("pyarrow", "a .parquet output", install="jrm-plugin[parquet]")
    return output


def checked_gallery(path: Path | None) -> Path | None:
    """The page that a gallery is written to, if it can be."""
    if path is not None:
        from jrm_plugin.evaluation.gallery import check_gallery

        check_gallery(path)
    return path


def end(rows: list[dict], made: list[Path]) -> int:
    """Says what was scored and where it is; the exit code, which is 2 where a sample could not be scored."""
    failed = sum("error" in row for row in rows)
    where = f": {', '.join(map(str, made))}" if made else ""
    print(f"jrm: {len(rows) - failed} samples scored{where}.", file=sys.stderr)
    if failed:
        print(f"jrm: {failed} samples could not be scored; the column `error` says why.", file=sys.stderr)
    return 2 if failed else 0


# --- rows -------------------------------------------------------------------------------------------------------------


def _score(options: argparse.Namespace, items: list[BulkItem], rows: Path, dimension: str) -> list[dict]:
    """All rows, those of an earlier run included."""
    options.model = named_model(options.model)
    columns = _own_columns(items, options, model_digest(options.model))
    done = _rows_done(rows, columns)
    if done:
        print(f"jrm: {done} of {len(items)} samples are in {rows} already; going on.", file=sys.stderr)
    if done < len(items):
        samples = [item.sample for item in items]
        shards = [samples[start : start + ROWS_AT_ONCE] for start in range(done, len(samples), ROWS_AT_ONCE)]
        load = partial(_checked_scorer, options, dimension)
        _append_scores(_scores(options, load, shards), columns, done, rows)
    return read_records(rows)


def _checked_scorer(options: argparse.Namespace, dimension: str) -> Scorer:
    scorer = make_scorer(options)
    check_dimension(dimension, scorer)
    return scorer


def _scores(
    options: argparse.Namespace, load: Callable[[], Scorer], shards: list[list[Sample]]
) -> Iterator[list[RewardScore | JRMError]]:
    """The scores of each shard, in order; here the model is loaded at once, and on a cluster with the first."""
    if options.ray:
        from jrm_plugin.integrations.ray.bulk_scoring import score_shards

        return score_shards(load, shards, replicas=options.replicas, on_cpu=options.device == "cpu")
    scorer = load()
    return (scorer.score(shard, on_error="return") for shard in shards)


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


def _append_scores(scores: Iterator[list[RewardScore | JRMError]], columns: list[dict], done: int, rows: Path) -> None:
    """Writes the rows of each shard as soon as its scores are there."""
    with tqdm(total=len(columns), initial=done, desc="Scoring", unit="sample") as bar:
        for shard in scores:
            append_records(rows, [columns[done + k] | _result(score) for k, score in enumerate(shard)])
            done += len(shard)
            bar.update(len(shard))


def _result(score: RewardScore | JRMError) -> dict:
    return {"error": str(score)} if isinstance(score, JRMError) else score.to_columns()


# --- rankings ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Candidate:
    """A sample with its row, and with its score if it has one."""

    item: BulkItem
    row: dict
    score: RewardScore | None

    @property
    def image(self) -> StoredImage:
        return self.item.sample.response_images[0]

    @property
    def name(self) -> str:
        """What the input calls its image; its digest, where that is no name."""
        edited = value_of(self.item.record, "edited")
        if isinstance(edited, str) and not is_data_url(edited):
            return edited
        return self.row.get("digest") or self.item.sample.key()[-16:]


@dataclass(frozen=True)
class Ranking:
    """The candidates of one prompt, by their scores in a dimension; `failed` are those that could not be scored.

    `win_over_second` is P(the first is better than the second), where there are two.
    """

    candidates: list[Candidate]
    failed: list[Candidate]
    dimension: str
    win_over_second: float | None

    @property
    def instruction(self) -> str:
        return (self.candidates or self.failed)[0].item.sample.prompt_text

    def top(self, count: int | None) -> "Ranking":
        return replace(self, candidates=self.candidates[:count])


def rankings(
    items: list[BulkItem], rows: list[dict], calibration: Calibration | None, dimension: str = OVERALL
) -> list[Ranking]:
    """The samples by their prompts, in the order of the input, and each prompt's by their score in `dimension`."""
    temperature = 1.0 if calibration is None else calibration.temperature_of(dimension)
    groups: dict[str, list[Candidate]] = {}
    for item, row in zip(items, rows, strict=True):
        score = None if "error" in row else RewardScore.from_columns(row)
        groups.setdefault(item.sample.prompt_key(), []).append(Candidate(item, row, score))
    result = []
    for group in groups.values():
        scored = [candidate for candidate in group if candidate.score is not None]
        places = ranked([candidate.score for candidate in scored], dimension)
        win = None
        if len(places) > 1:
            win = places[0].score.reward(
                "win_probability", against=places[1].score, dimension=dimension, temperature=temperature
            )
        failed = [candidate for candidate in group if candidate.score is None]
        result.append(Ranking([scored[place.position] for place in places], failed, dimension, win))
    return result


def write_gallery(path: Path, ranked: list[Ranking]) -> None:
    """Writes the page of the rankings; the candidates that could not be scored stand at the end of theirs."""
    from jrm_plugin.evaluation import gallery

    groups = []
    for ranking in ranked:
        scored = [{"image": c.image, "score": c.score, "note": c.name} for c in ranking.candidates]
        groups.append(
            {
                "instruction": ranking.instruction,
                "sources": list((ranking.candidates or ranking.failed)[0].item.sample.prompt_images),
                "candidates": scored,
                "win_over_second": ranking.win_over_second,
                "failed": [{"name": failed.name, "error": failed.row["error"]} for failed in ranking.failed],
            }
        )
    by = "" if ranked[0].dimension == OVERALL else f", by {ranked[0].dimension.replace('_', ' ')}"
    gallery.write_gallery(path, groups, title=f"Candidates, best first{by}")


# --- tables -----------------------------------------------------------------------------------------------------------


def write_table(path: Path, rows: list[dict]) -> None:
    """Writes rows as JSONL, CSV or Parquet; in the last two each row has all columns, some of them empty."""
    if path.suffix == ".jsonl":
        write_jsonl(path, rows)
        return
    names = list(dict.fromkeys(name for row in rows for name in row))
    if path.suffix == ".csv":
        with replacing(path) as staging, staging.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(map(_to_cell, names))
            writer.writerows([_to_cell(row.get(name)) for name in names] for row in rows)
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {name: _to_column([row.get(name) for row in rows]) for name in names}
    with replacing(path) as staging:
        pq.write_table(pa.table(columns), staging)


def _to_cell(value: Any) -> Any:
    """A value as CSV holds it; JSON where it is a list or an object, or no Unicode."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return json.dumps(value)
    return to_json(value) if isinstance(value, (dict, list, bool)) else value


def _to_column(values: list) -> "pa.Array":
    """A column of one type; of JSON text where its values have several, or are none that Parquet has."""
    import pyarrow as pa

    if not any(map(_holds_object, values)):  # an empty object has no column to go to
        try:
            return pa.array(values)
        except (pa.ArrowException, OverflowError, ValueError, TypeError):  # too large a number, or no Unicode
            pass
    return pa.array([None if value is None else json.dumps(value) for value in values])


def _holds_object(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and any(map(_holds_object, value)))
