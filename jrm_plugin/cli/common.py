"""What several commands share: the samples and the model that are named on the command line, and tables."""

import argparse
import sys
import warnings
from typing import TYPE_CHECKING, Any

from jrm_plugin.errors import JRMError
from jrm_plugin.files import to_json
from jrm_plugin.records.samples import Sample
from jrm_plugin.records.scores import RewardScore
from jrm_plugin.scoring.loading import load_scorer
from jrm_plugin.scoring.protocol import Scorer

if TYPE_CHECKING:
    from rich.table import Table

# --- samples and model ------------------------------------------------------------------------------------------------


def add_sample_arguments(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    group = parser.add_argument_group("what to score")
    group.add_argument("--source", nargs="+", default=[], metavar="IMAGE", help="source image(s); none: generation")
    group.add_argument("--instruction", required=required, help="what was asked for")
    group.add_argument("--edited", nargs="+", required=required, metavar="IMAGE", help="the edited image(s)")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument("--model", default="jrm-tiny", help="folder or hub name (default: %(default)s)")
    group.add_argument("--device", help="cpu, cuda, cuda:1 … (default: a GPU if there is one)")
    group.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="of the backbone")
    group.add_argument("--memory", type=float, metavar="GIB", help="memory for scoring beside the weights, in GiB")
    group.add_argument("--max-pixels", type=int, help="scale larger images down to this (default: the model's own)")


def add_json_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def named_samples(options: argparse.Namespace) -> list[Sample]:
    return [Sample.edit(options.source, options.instruction, edited) for edited in options.edited]


def make_scorer(options: argparse.Namespace) -> Scorer:
    quiet()
    import torch

    if options.memory is not None and not 0 < options.memory <= 2**20:  # 1 PiB: no number that overflows
        raise JRMError(f"--memory must be above 0 and at most {2**20} (GiB), got {options.memory}.")
    return load_scorer(
        options.model,
        device=options.device,
        dtype=None if options.dtype is None else getattr(torch, options.dtype),
        max_pixels=options.max_pixels,
        memory_budget=None if options.memory is None else int(options.memory * 2**30),
    )


def quiet() -> None:
    """No loading bars and notes of libraries between the user and the answer."""
    from PIL import Image
    from transformers.utils import logging

    warnings.simplefilter("ignore", FutureWarning)  # what libraries will remove is for us to replace
    warnings.simplefilter("error", Image.DecompressionBombWarning)  # `load_image` says it in one sentence
    logging.set_verbosity_error()
    logging.disable_progress_bar()


# --- what is printed --------------------------------------------------------------------------------------------------


def print_scores(options: argparse.Namespace, scores: list[tuple[str, RewardScore]], title: str) -> None:
    """Edited images and their scores, in this order, as JSON or as a table."""
    if options.json:
        print_json([{"edited": path, **score.to_dict()} for path, score in scores])
        return
    between = "±" if (sys.stdout.encoding or "").lower().startswith("utf") else "+/-"
    names = [f"{name.replace('_', ' ')} (mu {between} sigma)" for name in scores[0][1].mu]
    table = make_table(title, "edited image", *names)
    for path, score in scores:
        table.add_row(path, *(f"{score.mu[d]:+.3f} {between} {score.sigma[d]:.3f}" for d in score.mu))
    print_table(table)


def print_json(content: Any) -> None:
    """Prints JSON that people can read, as far as the terminal has its letters."""
    print(to_json(content, encoding=sys.stdout.encoding or "ascii", indent=2))


def make_table(title: str, *columns: str) -> "Table":
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def print_table(table: "Table") -> None:
    from rich.console import Console

    # File names and critiques are data: `[red]` in one is no colour and `:smile:` no face.
    Console(markup=False, emoji=False, highlight=False).print(table)
