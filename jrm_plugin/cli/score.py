"""`jrm score`: one set of edited images from the command line, or many from a file, a folder or a glob."""

import argparse

from jrm_plugin.cli.bulk import (
    add_bulk_arguments,
    bulk_rows,
    check_ray_options,
    checked_gallery,
    checked_output,
    end,
    rankings,
    write_gallery,
    write_table,
)
from jrm_plugin.cli.common import (
    add_model_arguments,
    add_sample_arguments,
    add_table_arguments,
    make_scorer,
    named_samples,
    print_json,
    print_scores,
)
from jrm_plugin.data.samples import BulkItem
from jrm_plugin.errors import JRMError
from jrm_plugin.scoring.loading import model_calibration


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_sample_arguments(parser, required=False)
    add_bulk_arguments(parser)
    add_model_arguments(parser)
    add_table_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Returns 2 if a sample could not be scored in bulk; the others are scored all the same."""
    check_ray_options(options)
    if options.input or options.output:
        if not (options.input and options.output) or options.edited:
            raise JRMError("bulk scoring needs --input and --output together, and no --edited.")
        return _score_in_bulk(options)
    if not options.edited or options.instruction is None:
        raise JRMError("jrm score needs --instruction and --edited, or --input and --output; see jrm score --help.")
    if options.columns:
        raise JRMError("--columns belongs to --input.")
    samples = named_samples(options)
    gallery = checked_gallery(options.gallery)
    scorer = make_scorer(options)
    scores = scorer.score(samples)
    if gallery:
        items = [BulkItem(sample, {"edited": path}) for sample, path in zip(samples, options.edited, strict=True)]
        write_gallery(
            gallery, rankings(items, [score.to_columns() for score in scores], getattr(scorer, "calibration", None))
        )
    if options.json:
        print_json([{"edited": path, **s.to_dict()} for path, s in zip(options.edited, scores, strict=True)])
    else:
        print_scores("Scores", list(zip(options.edited, scores, strict=True)), wide=options.wide)
    return 0


def _score_in_bulk(options: argparse.Namespace) -> int:
    output = checked_output(options.output)
    gallery = checked_gallery(options.gallery)
    in_place = output.suffix == ".jsonl"
    with bulk_rows(options, output, in_place=in_place) as (items, rows):
        if gallery:
            write_gallery(gallery, rankings(items, rows, model_calibration(options.model)))
        if not in_place:
            write_table(output, rows)
    return end(rows, [output, *filter(None, [gallery])])
