"""`jrm sweep`: one training run with several alphas and seeds, and a page that compares them (paper section 4.2).

Each run is that of `jrm train` in a folder of its own, and the same command goes on after the last whole one.
"""

import argparse
import math
import shlex
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jrm_plugin.cli.common import add_table_arguments, make_table, print_json, print_table, quiet
from jrm_plugin.cli.env import versions
from jrm_plugin.errors import JRMError
from jrm_plugin.extras import require
from jrm_plugin.files import check_writable, read_json, write_json
from jrm_plugin.runs import check_settings

SETTINGS, RESULTS, PAGE = "sweep.json", "results.json", "report.html"
# Of a run's folder: written last, and written first.
FINISHED, TRAIN_SETTINGS = "trainer_state.json", "jrm_train.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", type=Path, required=True, help="YAML file of jrm train; alpha, seed and output_dir are set here"
    )
    parser.add_argument("--alpha", type=float, nargs="+", default=[0.0, 0.3, 0.5, 0.7], help="(default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(default: %(default)s)")
    parser.add_argument(
        "--output", type=Path, default=Path("sweep-output"), help="folder to write or go on in (default: %(default)s)"
    )
    add_table_arguments(parser)
    parser.set_defaults(overrides=[])  # `--any_key value`, for TRL's parser


def run(options: argparse.Namespace) -> int:
    """Trains what is not trained yet, and compares. Returns 130 if a run was stopped by a signal."""
    for name, values in (("--alpha", options.alpha), ("--seeds", options.seeds)):
        if len(set(values)) < len(values):
            raise JRMError(f"{name} names a value twice: {', '.join(map(str, values))}; name each once.")
    if wrong := [alpha for alpha in options.alpha if not 0 <= alpha < 1 or math.isnan(alpha)]:
        raise JRMError(f"--alpha must be at least 0 and below 1, where preferences are learned, got {wrong[0]:g}.")
    quiet()
    require("trl accelerate datasets matplotlib scipy", "jrm sweep", install="jrm-plugin[eval]")
    import torch

    from jrm_plugin.integrations.trl.training import parse, settings_of, train

    torch.set_flush_denormal(True)  # tiny optimizer states slow a CPU down several times
    check_writable(options.output)
    # Seeds outside: whenever it is stopped, the alphas have been tried about as often as each other.
    folders = {(alpha, seed): _folder(options.output, alpha, seed) for seed in options.seeds for alpha in options.alpha}
    for (alpha, seed), folder in folders.items():
        chosen = ["--alpha", str(alpha), "--seed", str(seed), "--output_dir", str(folder)]
        arguments, training = parse(options.config, [*options.overrides, *chosen])
        if not arguments.eval_data:
            raise JRMError(
                f"jrm sweep compares what was evaluated: give eval_data and eval_strategy in {options.config}."
            )
        settings = settings_of(arguments, training)
        shared = {name: value for name, value in settings.items() if name not in ("alpha", "seed")}
        check_settings(options.output / SETTINGS, shared, results=any(map(_is_finished, folders.values())))
        write_json(options.output / SETTINGS, shared)
        if _is_finished(folder):
            continue
        print(f"\n== alpha = {alpha:g}, seed {seed}", file=sys.stderr, flush=True)
        if train(arguments, training) is None:
            print("jrm: stopped; the same command goes on from there.", file=sys.stderr)
            return 130
    return _compare(options, folders)


def _compare(options: argparse.Namespace, folders: Mapping[tuple[float, int], Path]) -> int:
    from jrm_plugin.evaluation.sweep import summarize_sweep
    from jrm_plugin.evaluation.sweep_page import headings, rows_of, write_page

    _check_same_data(folders.values())
    results = summarize_sweep({key: read_json(folder / FINISHED)["log_history"] for key, folder in folders.items()})
    results |= {"facts": _facts(next(iter(folders.values()))), "versions": versions(), "command": _command(options)}
    write_json(options.output / RESULTS, results)
    write_page(options.output / PAGE, results)
    if options.json:
        print_json(results)
        return 0
    for name in results["sets"]:
        table = make_table(f"Accuracy on {name.replace('_', ' ')} (%)", *headings(results, name))
        for row in rows_of(results, name):
            table.add_row(*(cell.removesuffix(")").replace(" (", "\n") for cell in row))
        print_table(table, wide=options.wide)
    print(f"Charts and losses are in {options.output / PAGE}; all numbers in {RESULTS} beside it.")
    return 0


def _check_same_data(folders: Iterable[Path]) -> None:
    """Every run learned from the same records and images, and was evaluated on the same."""
    settings = {folder: read_json(folder / TRAIN_SETTINGS) for folder in folders}
    first = next(iter(settings))
    for folder, of_run in settings.items():
        for name in settings[first].keys() | of_run.keys():
            if name not in ("alpha", "seed") and settings[first].get(name) != of_run.get(name):
                raise JRMError(
                    f"{folder} was trained with another {name} than {first}; remove the folder of the run that is not "
                    "as it should be, and start the same command again."
                )


def _facts(folder: Path) -> dict[str, Any]:
    settings = read_json(folder / TRAIN_SETTINGS)
    names = ("model", "train_data", "eval_data", "max_steps", "num_train_epochs", "per_device_train_batch_size")
    return {name.replace("_", " "): _words(settings[name]) for name in (*names, "learning_rate") if name in settings}


def _words(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _command(options: argparse.Namespace) -> str:
    numbers = ["--alpha", *(f"{alpha:g}" for alpha in options.alpha), "--seeds", *map(str, options.seeds)]
    return shlex.join(["jrm", "sweep", "--config", str(options.config), *numbers, *options.overrides])


def _folder(output: Path, alpha: float, seed: int) -> Path:
    return output / f"alpha-{alpha:g}-seed-{seed}"


def _is_finished(folder: Path) -> bool:
    return (folder / FINISHED).exists()
