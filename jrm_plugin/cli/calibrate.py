"""`jrm calibrate`: fits what P(A better than B) needs on held-out pairs, and saves it with the checkpoint.

Scores are appended to a file as they come, and the same command goes on from them.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jrm_plugin.cli.common import (
    add_columns_argument,
    add_json_argument,
    add_model_arguments,
    make_scorer,
    make_table,
    mapping_of,
    print_json,
    print_table,
)
from jrm_plugin.errors import JRMError

if TYPE_CHECKING:
    from jrm_plugin.evaluation.calibration import ScoredPair
    from jrm_plugin.records.preferences import PreferencePair


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", required=True, metavar="PATH", help="held-out preference pairs, as jrm train reads them"
    )
    add_columns_argument(parser)
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="where it is saved (default: the model's folder)")
    parser.add_argument(
        "--share", type=float, default=0.5, help="of the prompts to fit on; the others judge (default: 0.5)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the split (default: 0)")
    add_model_arguments(parser)
    add_json_argument(parser)


def run(options: argparse.Namespace) -> int:
    from jrm_plugin.data.preferences import read_preferences
    from jrm_plugin.evaluation.calibration import fit, report, split_by_prompt
    from jrm_plugin.files import check_writable
    from jrm_plugin.model.calibration_file import write_calibration
    from jrm_plugin.records.preferences import PreferencePair
    from jrm_plugin.runs import locked
    from jrm_plugin.scoring.loading import model_digest, named_model

    if not 0.1 <= options.share <= 0.9:
        raise JRMError(f"--share must be between 0.1 and 0.9, got {options.share}.")
    options.model = named_model(options.model)
    folder = options.output or Path(options.model)
    if options.output is None and not folder.is_dir():
        raise JRMError(f"{options.model} is no folder into which a calibration could be written; give --output FOLDER.")
    pairs = read_preferences(options.data, columns=mapping_of(options.columns)).examples
    if not all(isinstance(pair, PreferencePair) for pair in pairs):
        raise JRMError(f"{options.data} holds texts to learn and no pairs to compare; give preference pairs.")
    check_writable(folder)
    settings = {
        "data": str(options.data),
        "pairs": len(pairs),
        "model": str(options.model),
        "weights": model_digest(options.model).hex(),
        "dtype": options.dtype,
        "max_pixels": options.max_pixels,
    }
    with locked(folder / ".jrm_calibration.lock"):
        rows = folder / "jrm_calibration.partial.jsonl"
        scored = _scored(options, pairs, rows, settings)
        first, second = split_by_prompt(scored, options.share, options.seed)
        calibration = fit(first)
        measured = report(calibration, second)
        measured |= {"data": str(options.data), "fitted_on": len(first), "judged_on": len(second), "seed": options.seed}
        path = write_calibration(folder, calibration, measured)
        for file in (rows, _settings_file(rows)):
            file.unlink(missing_ok=True)
    if options.json:
        print_json(calibration.to_dict() | {"report": measured})
    else:
        _print(measured, path)
    return 0


def _settings_file(rows: Path) -> Path:
    return rows.with_name("jrm_calibration.partial.json")


def _scored(
    options: argparse.Namespace, pairs: "Sequence[PreferencePair]", rows: Path, settings: Mapping[str, Any]
) -> "list[ScoredPair]":
    """Every pair with its scores; those that an earlier command has scored are read."""
    from jrm_plugin.evaluation.calibration import ScoredPair
    from jrm_plugin.evaluation.pair_scores import score_pairs
    from jrm_plugin.files import write_json
    from jrm_plugin.runs import check_settings

    check_settings(_settings_file(rows), settings, results=rows.exists())
    write_json(_settings_file(rows), settings)
    scores = score_pairs(pairs, rows, lambda: make_scorer(options))
    return [ScoredPair(pair.chosen.prompt_key(), pair.labels, *both) for pair, both in zip(pairs, scores, strict=True)]


def _print(measured: Mapping[str, Any], path: Path) -> None:
    table = make_table(
        f"On {measured['judged_on']} pairs that nothing was fitted on", "dimension", "pairs", "right", "temperature",
        "ECE before", "ECE after",
    )  # fmt: skip
    for name, row in measured["dimensions"].items():
        errors = (f"{row[k]['value']:.3f} ({row[k]['low']:.3f} to {row[k]['high']:.3f})" for k in ("before", "after"))
        right = f"{row['accuracy']['value']:.3f}"
        table.add_row(name.replace("_", " "), str(row["pairs"]), right, f"{row['temperature']:.3f}", *errors)
    print_table(table)
    print(f"The calibration is in {path}; scores and rankings do not change.")
