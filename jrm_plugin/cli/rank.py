"""`jrm rank`: edited images, best first."""

import argparse
from pathlib import Path

from jrm_plugin.cli.common import (
    add_json_argument,
    add_model_arguments,
    add_sample_arguments,
    make_scorer,
    named_samples,
    print_scores,
)
from jrm_plugin.files import check_image_writable, write_image
from jrm_plugin.records.images import load_image


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_sample_arguments(parser)
    add_model_arguments(parser)
    parser.add_argument("--best", type=Path, metavar="IMAGE", help="write the best image to this file")
    add_json_argument(parser)


def run(options: argparse.Namespace) -> int:
    samples = named_samples(options)
    if options.best:
        check_image_writable(options.best)
    ranked = make_scorer(options).rank(samples)
    if options.best:
        write_image(options.best, load_image(options.edited[ranked[0].position]))
    print_scores(options, [(options.edited[place.position], place.score) for place in ranked], "Ranking, best first")
    return 0
