"""`jrm rank`: candidates, best first: those named on the command line, or those of each instruction of many."""

import argparse
import os
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from jrm_plugin.cli.bulk import (
    Ranking,
    add_bulk_arguments,
    bulk_rows,
    check_dimension,
    check_ray_options,
    checked_gallery,
    checked_output,
    end,
    rankings,
    write_gallery,
    write_table,
)
from jrm_plugin.cli.common import (
    SHORT_NAME,
    WIDE,
    add_model_arguments,
    add_sample_arguments,
    add_table_arguments,
    make_scorer,
    make_table,
    named_samples,
    print_json,
    print_scores,
    print_table,
    table_width,
    terminal,
    without_end,
    without_middle,
)
from jrm_plugin.data.samples import BulkItem
from jrm_plugin.errors import JRMError
from jrm_plugin.files import check_image_writable, check_new_folder, new_folder, write_image
from jrm_plugin.records.images import is_data_url, load_image
from jrm_plugin.records.samples import OVERALL
from jrm_plugin.scoring.loading import model_calibration

if TYPE_CHECKING:
    from rich.table import Table

PLACE_COLUMNS = ("group", "place", "win_over_second")
ROWS_SHOWN = 20  # on the terminal, of one instruction or of many; the output has all of them


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_sample_arguments(parser, required=False)
    add_bulk_arguments(parser)
    group = parser.add_argument_group("ranking")
    group.add_argument("--dimension", default=OVERALL, metavar="NAME", help="rank by this one (default: %(default)s)")
    group.add_argument("--top", type=int, metavar="K", help="keep the best K of each instruction")
    group.add_argument(
        "--best",
        type=Path,
        metavar="PATH",
        help="write the best image to this file; with --input, those of each instruction (--top K) to this folder",
    )
    add_model_arguments(parser)
    add_table_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Returns 2 if a sample could not be scored in bulk; the others are ranked all the same."""
    if options.top is not None and options.top < 1:
        raise JRMError(f"--top must be at least 1, got {options.top}.")
    check_ray_options(options)
    if options.input:
        if options.edited:
            raise JRMError("jrm rank takes --input or --edited, not both.")
        return _rank_in_bulk(options)
    if not options.edited or options.instruction is None:
        raise JRMError("jrm rank needs --instruction and --edited, or --input; see jrm rank --help.")
    if options.output or options.columns:
        raise JRMError("--output and --columns belong to --input; print JSON with --json.")
    samples = named_samples(options)
    if options.best:
        check_image_writable(options.best)
    gallery = checked_gallery(options.gallery)
    scorer = make_scorer(options)
    check_dimension(options.dimension, scorer)
    items = [BulkItem(sample, {"edited": path}) for sample, path in zip(samples, options.edited, strict=True)]
    rows = [score.to_columns() for score in scorer.score(samples)]
    (ranking,) = rankings(items, rows, getattr(scorer, "calibration", None), options.dimension)
    if options.best:
        write_image(options.best, load_image(ranking.candidates[0].image))
    if gallery:
        write_gallery(gallery, [ranking.top(options.top)])
    _print(options, [ranking])
    return 0


def _rank_in_bulk(options: argparse.Namespace) -> int:
    output = checked_output(options.output) if options.output else None
    if options.best:
        check_new_folder(options.best)
    gallery = checked_gallery(options.gallery)
    with ExitStack() as stack:
        place = output or gallery and Path(os.path.realpath(gallery))
        if place is None:  # nothing to go on in
            place = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "ranking"
        run = bulk_rows(options, place, in_place=False, columns=PLACE_COLUMNS, dimension=options.dimension)
        items, rows = stack.enter_context(run)
        ranked = rankings(items, rows, model_calibration(options.model), options.dimension)
        if gallery:
            write_gallery(gallery, [ranking.top(options.top) for ranking in ranked])
        if options.best:
            _write_best(options, ranked)
        if output:
            write_table(output, _rows(options, ranked))
    _print(options, ranked)
    return end(rows, [path for path in (output, options.best, gallery) if path])


def _rows(options: argparse.Namespace, ranked: list[Ranking]) -> list[dict]:
    """A row for each of the best of each instruction, and for those that could not be scored, which have no place."""
    rows = []
    for group, ranking in enumerate(ranked, 1):
        for place, candidate in enumerate(ranking.candidates[: options.top], 1):
            win = ranking.win_over_second if place == 1 else None
            rows.append({"group": group, "place": place, "win_over_second": win, **candidate.row})
        rows += [{"group": group, "place": None, "win_over_second": None, **failed.row} for failed in ranking.failed]
    return rows


def _write_best(options: argparse.Namespace, ranked: list[Ranking]) -> None:
    """The files of the best as they are, called GROUP_PLACE_NAME; PNG where the input holds no files."""
    digits = len(str(len(ranked)))
    with new_folder(options.best) as folder:
        for group, ranking in enumerate(ranked, 1):
            for place, candidate in enumerate(ranking.candidates[: options.top or 1], 1):
                image, name = candidate.image, Path(candidate.name)
                target = folder / f"{group:0{digits}}_{place}_{name.stem[-100:]}"
                if isinstance(image, str) and not is_data_url(image):
                    shutil.copyfile(image, target.with_name(target.name + name.suffix))
                else:
                    write_image(target.with_name(target.name + ".png"), load_image(image))


# --- what is printed --------------------------------------------------------------------------------------------------


def _print(options: argparse.Namespace, ranked: list[Ranking]) -> None:
    if options.json:
        print_json(_rows(options, ranked) if options.input else _scores(options, ranked[0]))
    elif len(ranked) > 1:
        _print_instructions(options, ranked)
    elif candidates := ranked[0].candidates[: options.top]:
        title = "Ranking, best first"
        if options.dimension != OVERALL:
            title += f", by {options.dimension.replace('_', ' ')}"
        scores = [(candidate.name, candidate.score) for candidate in candidates[:ROWS_SHOWN]]
        print_scores(title, scores, wide=options.wide, places=True, dimension=options.dimension)
        if (win := ranked[0].win_over_second) is not None:
            print(f"P(the first is better than the second) = {win:.2f}")
        _print_rest(options, len(candidates), "candidates")


def _scores(options: argparse.Namespace, ranking: Ranking) -> list[dict]:
    """What `--json` prints of candidates that are named on the command line."""
    rows = []
    for place, candidate in enumerate(ranking.candidates[: options.top], 1):
        rows.append({"place": place, **candidate.item.record, **candidate.score.to_dict()})
    if (win := ranking.win_over_second) is not None:
        rows[0]["win_over_second"] = win
    return rows


def _print_instructions(options: argparse.Namespace, ranked: list[Ranking]) -> None:
    """The best of each instruction, a line each; instruction and name share what room the numbers leave."""

    def table(room: int) -> "Table":
        table = make_table("The best of each instruction", "", "instruction", "images", "best", "overall", "beats next")
        for number, ranking in enumerate(ranked[:ROWS_SHOWN], 1):
            cells = [str(number), without_end(ranking.instruction, room), str(len(ranking.candidates))]
            for best in ranking.candidates[:1]:
                cells += [without_middle(best.name, room), f"{best.score.mu[OVERALL]:+.3f}"]
            if ranking.win_over_second is not None:
                cells.append(f"{ranking.win_over_second:.2f}")
            table.add_row(*cells)
        return table

    room = SHORT_NAME + max(0, terminal().width - table_width(table(SHORT_NAME))) // 2
    print_table(table(WIDE if options.wide else room), wide=options.wide)
    _print_rest(options, len(ranked), "instructions")


def _print_rest(options: argparse.Namespace, count: int, what: str) -> None:
    if count > ROWS_SHOWN:
        print(f"… and {count - ROWS_SHOWN} {what} more" + (f", in {options.output}." if options.output else "."))
