"""`jrm analyze`: what is inside models: their representations, their attention, their gradients (paper section 4.3)."""

import argparse
import shlex
from argparse import Namespace
from pathlib import Path
from typing import Any

from jrm_plugin.cli.common import (
    add_columns_argument,
    add_placement_arguments,
    add_table_arguments,
    make_scorer,
    make_table,
    mapping_of,
    print_json,
    print_table,
    quiet,
    table_width,
    terminal,
)
from jrm_plugin.cli.env import versions
from jrm_plugin.errors import JRMError
from jrm_plugin.extras import require
from jrm_plugin.files import check_writable, write_json

RESULTS, POINTS, PAGE = "results.json", "points.json", "report.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is read")
    group.add_argument("--data", required=True, help="preferences, as jrm train reads them; the same for all models")
    add_columns_argument(group)
    group.add_argument("--limit", type=int, metavar="N", help="only the first N pairs")
    group = parser.add_argument_group("models")
    group.add_argument(
        "--models", nargs="+", required=True, metavar="MODEL", help="folders or hub names; all are set beside the first"
    )
    add_placement_arguments(group)
    group = parser.add_argument_group("how much")
    group.add_argument(
        "--attention", type=int, default=200, metavar="N", help="of so many pairs; 0: none (default: %(default)s)"
    )
    group.add_argument("--shown", type=int, default=6, metavar="N", help="samples as pictures (default: %(default)s)")
    group.add_argument(
        "--batches", type=int, default=16, metavar="N", help="of gradients; 0: none (default: %(default)s)"
    )
    group.add_argument("--batch-size", type=int, default=8, metavar="N", help="pairs in each (default: %(default)s)")
    group.add_argument("--resamples", type=int, default=200, metavar="N", help="of intervals (default: %(default)s)")
    group.add_argument("--seed", type=int, default=0, help="of the resampling (default: %(default)s)")
    group = parser.add_argument_group("output")
    group.add_argument(
        "--output", type=Path, default=Path("analysis-output"), help="folder to write (default: %(default)s)"
    )
    add_table_arguments(parser)


def run(options: argparse.Namespace) -> int:
    names = [name.rstrip("/") or name for name in options.models]
    if len(set(names)) < len(names):
        raise JRMError(f"--models names a model twice: {', '.join(names)}; name each once.")
    least = {"limit": 1, "attention": 0, "shown": 0, "batches": 0, "batch_size": 1, "resamples": 2, "seed": 0}
    for name, smallest in least.items():
        value = getattr(options, name)
        if value is not None and value < smallest:
            raise JRMError(f"--{name.replace('_', '-')} must be at least {smallest}, got {value}.")
    require("scipy matplotlib", "jrm analyze", install="jrm-plugin[eval]")
    check_writable(options.output)
    quiet()
    from jrm_plugin.data.preferences import read_preferences
    from jrm_plugin.evaluation.analysis import Plan, check_plan, read_model, summarize_readings
    from jrm_plugin.evaluation.analysis_page import write_page
    from jrm_plugin.records.preferences import PreferencePair
    from jrm_plugin.scoring.scorer import RewardScorer

    pairs = read_preferences(options.data, columns=mapping_of(options.columns)).examples[: options.limit]
    if not pairs or not isinstance(pairs[0], PreferencePair):
        raise JRMError(f"{options.data} holds no preference pairs; give data of two samples with one prompt each.")
    plan = Plan(options.attention, options.shown, options.batches, options.batch_size)
    check_plan(pairs, plan)
    folders = _labels(names)
    readings = {}
    for label, name in folders.items():  # one model in memory at a time
        scorer = make_scorer(Namespace(**{**vars(options), "model": name}))
        if not isinstance(scorer, RewardScorer):
            raise JRMError(f"{name} is no JRM: only the hidden states of those can be analysed; convert it first.")
        readings[label] = read_model(scorer, pairs, plan, progress=True)
        del scorer
    results = summarize_readings(readings, len(pairs), bootstrap=options.resamples, seed=options.seed)
    results |= {
        "folders": folders,
        "data": options.data,
        "settings": _settings(options),
        "versions": versions(),
        "command": _command(options),
    }
    write_page(options.output / PAGE, results, readings, pairs)
    projections = {label: of["projection"] for label, of in results["representation"]["models"].items()}
    write_json(options.output / POINTS, {label: of.pop("points") for label, of in projections.items()})
    write_json(options.output / RESULTS, results)
    if options.json:
        print_json(results)
    else:
        _print(results, wide=options.wide)
        print(f"\nPanels and pictures are in {options.output / PAGE}; all numbers in {RESULTS} beside it.")
    return 0


def _labels(names: list[str]) -> dict[str, str]:
    """The models by what they are called in tables: the last part of the name, where it tells them apart."""
    last = [Path(name).name for name in names]
    return dict(zip(last if len(set(last)) == len(last) else names, names, strict=True))


def _settings(options: Namespace) -> dict[str, Any]:
    names = ("limit", "attention", "batches", "batch_size", "resamples", "seed", "device", "dtype", "max_pixels")
    return {name.replace("_", " "): value for name in names if (value := getattr(options, name)) is not None}


def _command(options: Namespace) -> str:
    words = ["jrm", "analyze", "--models", *options.models, "--data", options.data]
    for name, value in _settings(options).items():
        words += [f"--{name.replace(' ', '-')}", str(value)]
    if options.columns:
        words += ["--columns", options.columns]
    return shlex.join(words)


def _print(results: dict[str, Any], *, wide: bool) -> None:
    from jrm_plugin.evaluation.analysis_page import tables_of

    first, *others = results["models"]
    titles = {"representation": "Representation", "attention": "Attention", "gradients": "Gradients"}
    for section, rows in tables_of(results).items():
        if not rows:
            continue
        table = make_table(titles[section], "", *results["models"], *(f"{first} less {name}" for name in others))
        for row in rows:
            cells = [cell.removesuffix(")").replace(" (", "\n") for cell in [*row["cells"], *row["differences"]]]
            table.add_row(row["name"], *cells)
        print_table(table, wide=wide or table_width(table) > terminal().width)
    for name, notes in results["notes"].items():
        for note in notes:
            print(f"{name}: {note}")
