"""`jrm critique`: what the model says is right and wrong with edited images."""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path

from jrm_plugin.cli.common import (
    add_json_argument,
    add_model_arguments,
    add_sample_arguments,
    make_scorer,
    make_table,
    named_samples,
    print_json,
    print_table,
)
from jrm_plugin.errors import JRMError
from jrm_plugin.evaluation.drawing import BOXES_SIDE, draw_boxes, enlarged
from jrm_plugin.files import check_image_writable, write_image
from jrm_plugin.records.critiques import Critique, RepairedCritique, UnparsedCritique


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_sample_arguments(parser)
    add_model_arguments(parser)
    parser.add_argument("--dimension", help="only this dimension (default: all)")
    parser.add_argument("--draw", type=Path, metavar="IMAGE", help="write the edited image with the critiques' boxes")
    add_json_argument(parser)


def run(options: argparse.Namespace) -> int:
    samples = named_samples(options)
    if options.draw:
        check_image_writable(options.draw)
        if len(samples) > 1:
            raise JRMError(f"--draw writes one image, and --edited names {len(samples)}; give one of them.")
    critiques = make_scorer(options).critique(samples, options.dimension)
    if options.draw:
        _draw(options.edited[0], critiques[0], options.draw)
    if options.json:
        rows = [
            {
                "edited": path,
                "critiques": {dimension: _to_json(critique) for dimension, critique in by_dimension.items()},
            }
            for path, by_dimension in zip(options.edited, critiques, strict=True)
        ]
        print_json(rows)
        return 0
    table = make_table("Critiques", "edited image", "dimension", "regions (x1, y1, x2, y2 of 1000)", "reasoning")
    for path, by_dimension in zip(options.edited, critiques, strict=True):
        for dimension, critique in by_dimension.items():
            table.add_row(path, dimension, *_in_words(critique))
    print_table(table)
    return 0


def _to_json(critique: Critique | UnparsedCritique) -> dict:
    if isinstance(critique, UnparsedCritique):
        return {"unparsed": critique.text, "error": critique.error}
    repaired = {"repaired": True} if isinstance(critique, RepairedCritique) else {}
    return json.loads(critique.to_json()) | repaired


def _in_words(critique: Critique | UnparsedCritique) -> tuple[str, str]:
    """Regions and reasoning."""
    if isinstance(critique, UnparsedCritique):
        return "", f"(no valid critique: {critique.error})\n{critique.text}"
    repaired = "(its JSON had to be repaired)\n" if isinstance(critique, RepairedCritique) else ""
    regions = "\n".join(f"{region.id}: {region.label} {region.bbox_2d}" for region in critique.edit_region)
    return regions, repaired + critique.reasoning


def _draw(image: str, critiques: Mapping[str, Critique | UnparsedCritique], path: Path) -> None:
    """Writes the edited image with the boxes of all critiques; small images are enlarged."""
    picture, has_boxes = enlarged(image, BOXES_SIDE), False
    for critique in critiques.values():
        if isinstance(critique, Critique):
            picture = draw_boxes(picture, critique)
            has_boxes |= bool(critique.edit_region)
    write_image(path, picture)
    if not has_boxes:
        print(f"jrm: no critique names a region, so {path} has no boxes.", file=sys.stderr)
