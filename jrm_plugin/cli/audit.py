"""`jrm audit`: which labels of a preference set are wrong or doubtful, as a model sees it that has not learned them.

The set is divided into folds; for each a model is trained on the others, by an ordinary run of `jrm train`, and scores
it. Or a model that is there already scores all. The same command goes on after it was stopped.
"""

import argparse
import hashlib
import shlex
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jrm_plugin.cli.common import (
    add_columns_argument,
    add_json_argument,
    add_placement_arguments,
    make_scorer,
    make_table,
    mapping_of,
    print_json,
    print_table,
    quiet,
)
from jrm_plugin.cli.sweep import FINISHED
from jrm_plugin.errors import JRMError
from jrm_plugin.extras import require
from jrm_plugin.files import check_writable, write_json, write_jsonl
from jrm_plugin.runs import LOCK_FILE, check_settings, locked

if TYPE_CHECKING:
    from jrm_plugin.evaluation.audit import Audit
    from jrm_plugin.evaluation.pair_scores import PairScores
    from jrm_plugin.integrations.trl import JointRewardConfig, TrainArguments
    from jrm_plugin.records.preferences import PreferencePair

SETTINGS, PAIRS, CORRECTIONS, PAGE, SUMMARY = (
    "settings.json", "pairs.jsonl", "corrections.jsonl", "review.html", "summary.json",
)  # fmt: skip
SCORES, FOLDS = "scores.jsonl", "folds"


class Stopped(Exception):
    """Training was stopped by a signal; its checkpoint is saved."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("preferences")
    group.add_argument("--data", required=True, metavar="PLACE", help="file, folder or hub name, as jrm train reads it")
    add_columns_argument(group)
    group.add_argument("--images-root", metavar="FOLDER", help="that image paths are relative to (default: the file's)")
    group.add_argument(
        "--dimension", nargs="+", metavar="NAME", help="audit labels in these and overall alone (default: all)"
    )
    group = parser.add_argument_group("cross-fitted scores (or --model alone)")
    group.add_argument(
        "--config", type=Path, help="YAML of jrm train, of which a run is made for each fold; [--any_key value …]"
    )
    group.add_argument("--folds", type=int, default=5, help="(default: %(default)s)")
    group.add_argument(
        "--together",
        nargs="+",
        choices=("source", "instruction", "prompt"),
        default=["source", "instruction"],
        help="pairs with this in common are in one fold (default: source instruction)",
    )
    group.add_argument("--fold-seed", type=int, default=0, help="of the division (default: %(default)s)")
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model", help="folder, hub name or server that scores, unlearned of the data; with --config: to start from"
    )
    add_placement_arguments(group)
    group = parser.add_argument_group("output")
    group.add_argument(
        "--output", type=Path, default=Path("audited"), help="folder to write or go on in (default: %(default)s)"
    )
    group.add_argument(
        "--action",
        choices=("drop", "flip", "keep"),
        default="drop",
        help="what is proposed for a preference that the model contradicts (default: %(default)s)",
    )
    group.add_argument("--review", type=int, default=100, metavar="N", help="pairs on the page (default: %(default)s)")
    add_json_argument(parser)
    parser.set_defaults(overrides=[])  # `--any_key value`, for TRL's parser


def run(options: argparse.Namespace) -> int:
    """Returns 130 if training was stopped by a signal."""
    if options.folds < 2:
        raise JRMError(f"--folds must be at least 2, got {options.folds}.")
    if options.review < 0:
        raise JRMError(f"--review must be 0 or more, got {options.review}.")
    if options.config is None and options.model is None:
        raise JRMError(
            "jrm audit needs --config with the YAML of a training run, for cross-fitted scores, or --model with a "
            "model that has not learned from these pairs."
        )
    if options.config is None and options.overrides:
        raise JRMError(f"unrecognized arguments: {' '.join(options.overrides)}; keys of a training run need --config.")
    quiet()
    check_writable(options.output)
    with locked(options.output / LOCK_FILE):
        try:
            return _run(options)
        except Stopped:
            print("jrm: stopped; the same command goes on from there.", file=sys.stderr)
            return 130


def _run(options: Namespace) -> int:
    from jrm_plugin.data.corrections import PairNames
    from jrm_plugin.evaluation.audit import audit
    from jrm_plugin.model.trained_on import read_trained_pairs
    from jrm_plugin.records.preferences import in_dimensions

    pair_names = PairNames()
    if options.config is None:
        pairs = _read(options.data, mapping_of(options.columns), options.images_root)
        names = list(map(pair_names, pairs))  # with all labels that the data have
        if options.dimension is not None:
            pairs = [in_dimensions(pair, options.dimension) for pair in pairs]
        scores, facts = _scored(options, pairs, names)
        start = options.model
    else:
        arguments, training = _training(options)
        pairs = _read(options.data, arguments.columns, arguments.images_root, strict=arguments.strict)
        names = list(map(pair_names, pairs))
        if (dimensions := options.dimension or arguments.dimensions) is not None:
            pairs = [in_dimensions(pair, dimensions) for pair in pairs]
        scores, facts = _cross_fitted(options, arguments, training, pairs, names)
        start = arguments.model
    trained = read_trained_pairs(start)
    seen = [pair_names.of_samples(pair) in trained for pair in pairs]
    if any(seen):
        cure = "give --config, for cross-fitted scores" if options.config is None else "start from one that has not"
        print(
            f"jrm: {start} has learned from {sum(seen)} of these {len(pairs)} pairs, and does not contradict what it "
            f"knows by heart; {cure}.",
            file=sys.stderr,
        )
    found = audit(pairs, scores, names, seen)
    _write(options, found, facts)
    return 0


def _read(data: str, columns: dict | None, images_root: str | None, *, strict: bool = True) -> "list[PreferencePair]":
    from jrm_plugin.data.preferences import read_preferences
    from jrm_plugin.records.preferences import PreferencePair

    # As training reads them: a ranked list is one record there, and corrections are of pairs.
    options = {"columns": columns, "images_root": images_root, "groups": True, "strict": strict}
    pairs = list(read_preferences(data, **options).examples)
    if not pairs or not all(isinstance(pair, PreferencePair) for pair in pairs):
        raise JRMError(f"{data} holds something else than preference pairs, whose labels are audited.")
    return pairs


def _digest(names: Sequence[str]) -> str:
    return hashlib.sha256("".join(names).encode()).hexdigest()


def _go_on(options: Namespace, settings: dict[str, Any]) -> None:
    results = any((options.output / name).exists() for name in (SCORES, FOLDS, PAIRS))
    check_settings(options.output / SETTINGS, settings, results=results)
    write_json(options.output / SETTINGS, settings)


# --- scores -----------------------------------------------------------------------------------------------------------


def _scored(
    options: Namespace, pairs: "list[PreferencePair]", names: Sequence[str]
) -> "tuple[PairScores, dict[str, Any]]":
    """By a model that is there."""
    from jrm_plugin.evaluation.pair_scores import score_pairs
    from jrm_plugin.scoring.loading import model_digest

    settings = {"data": options.data, "pairs": _digest(names), "model": options.model}
    settings |= {"weights": model_digest(options.model).hex(), "dtype": options.dtype, "max_pixels": options.max_pixels}
    settings["dimension"] = options.dimension
    _go_on(options, settings)
    scores = score_pairs(pairs, options.output / SCORES, lambda: make_scorer(options))
    return scores, {"data": options.data, "model": options.model, "command": _command(options)}


def _training(options: Namespace) -> "tuple[TrainArguments, JointRewardConfig]":
    """The run that is made for each fold, as the config and the flags say."""
    require("trl accelerate datasets matplotlib scipy", "jrm audit --config", install="jrm-plugin[eval]")
    from jrm_plugin.integrations.trl.training import parse

    chosen = ["--train_data", str(options.data), "--output_dir", str(options.output / FOLDS)]
    chosen += ["--model", options.model] if options.model is not None else []
    arguments, training = parse(options.config, [*options.overrides, *chosen])
    if arguments.streaming:
        raise JRMError(f"jrm audit reads the data whole, in every fold: leave streaming out of {options.config}.")
    if arguments.corrections is not None:
        raise JRMError(f"jrm audit looks at the data as they are: leave corrections out of {options.config}.")
    columns = mapping_of(options.columns) or arguments.columns
    return replace(arguments, columns=columns, images_root=options.images_root or arguments.images_root), training


def _cross_fitted(
    options: Namespace,
    arguments: "TrainArguments",
    training: "JointRewardConfig",
    pairs: "list[PreferencePair]",
    names: Sequence[str],
) -> "tuple[PairScores, dict[str, Any]]":
    """Each pair by a model that was trained on the other folds."""
    import torch

    from jrm_plugin.evaluation.audit import folds_of
    from jrm_plugin.evaluation.pair_scores import read_scores, score_pairs
    from jrm_plugin.integrations.trl.training import settings_of, train

    torch.set_flush_denormal(True)  # tiny optimizer states slow a CPU down several times
    settings = settings_of(arguments, training) | {"pairs": _digest(names), "folds": options.folds}
    settings |= {"dimension": options.dimension, "together": sorted(options.together), "fold_seed": options.fold_seed}
    settings |= {"dtype of scores": options.dtype, "max_pixels of scores": options.max_pixels}
    _go_on(options, settings)
    folds = folds_of(pairs, options.folds, together=options.together, seed=options.fold_seed)
    scores: dict[int, Any] = {}
    for number, positions in enumerate(folds, 1):
        folder = options.output / FOLDS / str(number)
        model, left_out = folder / "model", folder / "left_out.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        of_fold = [pairs[position] for position in positions]
        if len(read_scores(folder / SCORES)) < len(of_fold):
            print(f"\n== fold {number} of {len(folds)}", file=sys.stderr, flush=True)
            if not (model / FINISHED).exists():
                dropped = dict.fromkeys(names[position] for position in positions)
                write_jsonl(left_out, ({"pair": name, "action": "drop"} for name in dropped))
                fold_training = replace(training, output_dir=str(model))
                if train(replace(arguments, corrections=str(left_out)), fold_training) is None:
                    raise Stopped
        load = Namespace(**{**vars(options), "model": str(model)})
        of_fold_scores = score_pairs(of_fold, folder / SCORES, lambda load=load: make_scorer(load))
        scores |= dict(zip(positions, of_fold_scores, strict=True))
    facts = {"data": options.data, "config": str(options.config), "start": arguments.model, "folds": options.folds}
    return [scores[position] for position in range(len(pairs))], facts | {"command": _command(options)}


def _command(options: Namespace) -> str:
    words = ["jrm", "audit", "--data", str(options.data)]
    for name in ("columns", "images_root", "config", "model", "dtype", "max_pixels"):
        if (value := getattr(options, name)) is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    words += ["--dimension", *options.dimension] if options.dimension is not None else []
    if options.config is not None:
        words += ["--folds", str(options.folds), "--together", *options.together]
        words += ["--fold-seed", str(options.fold_seed)]
    return shlex.join([*words, *options.overrides])


# --- what came out ----------------------------------------------------------------------------------------------------


def _write(options: Namespace, found: "Audit", facts: dict[str, Any]) -> None:
    from jrm_plugin.evaluation.audit_page import write_page

    summary = found.summary() | {"facts": facts}
    rows = [found.row(pair, options.action) for pair in found.pairs]
    write_jsonl(options.output / PAIRS, rows)
    write_json(options.output / SUMMARY, summary)
    page = options.output / PAGE
    if options.review:
        write_page(page, found, facts, pairs=options.review, action=options.action)
    corrections = options.output / CORRECTIONS
    is_there = corrections.exists()
    if not is_there:
        shown = ("pair", "action", "verdict", "probability", "where", "instruction")
        write_jsonl(corrections, ({key: row[key] for key in shown} for row in rows if row["verdict"] != "agrees"))
    if options.json:
        print_json(summary)
        return
    table = make_table("Labels", "verdict", "pairs")
    for verdict, count in summary["verdicts"].items():
        table.add_row(verdict, f"{count:,}")
    print_table(table)
    for name, agreement in summary["agreement"].items():
        if agreement["n"]:
            interval = f"{100 * agreement['low']:.1f} to {100 * agreement['high']:.1f}"
            print(f"{name.replace('_', ' ')}: ordered as labelled {100 * agreement['value']:.1f} % ({interval}).")
    if options.review:
        print(f"To look at: {page}")
    if is_there:
        print(f"{corrections} was there and is as it was; remove it to have what is proposed now.")
    else:
        print(f"What is proposed, to be edited: {corrections}; jrm train takes it as corrections.")
