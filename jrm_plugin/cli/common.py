"""What several commands share: the samples and the model that are named on the command line, and tables."""

import argparse
import os
import sys
import warnings
from typing import TYPE_CHECKING, Any

from jrm_plugin.errors import JRMError
from jrm_plugin.files import to_json
from jrm_plugin.records.samples import OVERALL, Sample
from jrm_plugin.records.scores import RewardScore
from jrm_plugin.scoring.loading import DEFAULT_MODEL, load_scorer
from jrm_plugin.scoring.protocol import Scorer
from jrm_plugin.scoring.remote import is_server

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


SHORT_NAME = 16  # columns of a terminal that an image's name has at least
WIDE = 10_000  # more columns than any table has

# --- samples and model ------------------------------------------------------------------------------------------------


def add_sample_arguments(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    group = parser.add_argument_group("what to score")
    group.add_argument("--source", nargs="+", default=[], metavar="IMAGE", help="source image(s); none: generation")
    group.add_argument("--instruction", required=required, help="what was asked for")
    group.add_argument("--edited", nargs="+", required=required, metavar="IMAGE", help="the edited image(s)")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        help=f"folder, hub name or http://server:8000 (default: {DEFAULT_MODEL}, which knows coloured shapes, no more)",
    )
    add_placement_arguments(group)


PLACEMENT = ("engine", "device", "dtype", "memory", "max_pixels")


def add_placement_arguments(group: argparse._ArgumentGroup) -> None:
    """What computes a model, where it runs, and in what precision and sizes."""
    group.add_argument("--engine", choices=["vllm"], help="compute with vLLM instead (pip install 'jrm-plugin[vllm]')")
    group.add_argument("--device", help="cpu, cuda, cuda:1 … (default: a GPU if there is one)")
    group.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="of the backbone")
    group.add_argument("--memory", type=float, metavar="GIB", help="memory for scoring beside the weights, in GiB")
    group.add_argument("--max-pixels", type=int, help="scale larger images down to this (default: the model's own)")


def add_columns_argument(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--columns",
        metavar="MAPPING",
        help="what the columns of the input mean where names differ: '{source: before, edited: after}'",
    )


def mapping_of(
    text: str | None, option: str = "--columns", example: str = "{source: before, edited: after}"
) -> dict | None:
    """A mapping in YAML; `--columns` has the form of `columns` in the YAML of `jrm train`, and that errors show."""
    if text is None:
        return None
    import yaml

    try:
        mapping = yaml.safe_load(text)
    except yaml.YAMLError:
        mapping = None
    if not isinstance(mapping, dict):
        raise JRMError(f"{option} must be a mapping such as '{example}', not {text!r}.")
    return mapping


def add_json_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def named_samples(options: argparse.Namespace) -> list[Sample]:
    return [Sample.edit(options.source, options.instruction, edited) for edited in options.edited]


def make_scorer(options: argparse.Namespace) -> Scorer:
    quiet()
    if options.model is not None and is_server(options.model):
        if given := [name for name in PLACEMENT if getattr(options, name) is not None]:
            option = given[0].replace("_", "-")
            raise JRMError(
                f"--{option} is of a model that is loaded here, and {options.model} is a server's; leave it out."
            )
        return load_scorer(options.model)
    import torch

    if options.memory is not None and not 0 < options.memory <= 2**20:  # 1 PiB: no number that overflows
        raise JRMError(f"--memory must be above 0 and at most {2**20} (GiB), got {options.memory}.")
    if options.engine == "vllm":  # its log is long, and it reports its use to its makers
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    return load_scorer(
        options.model,
        engine=options.engine,
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


def add_table_arguments(parser: argparse.ArgumentParser) -> None:
    add_json_argument(parser)
    parser.add_argument("--wide", action="store_true", help="print whole names and all dimensions, however wide")


def print_scores(
    title: str,
    scores: list[tuple[str, RewardScore]],
    *,
    wide: bool,
    places: bool = False,
    dimension: str = OVERALL,
) -> None:
    """Names and scores in this order: overall, `dimension`, then as many others as the terminal has room for."""
    sign = "±" if (sys.stdout.encoding or "").lower().startswith("utf") else "+/-"
    names = [*dict.fromkeys((OVERALL, dimension, *scores[0][1].names))]

    def table(count: int, room: int) -> "Table":
        headings = [name.replace("_", "\n", 1).replace("_", " ") for name in names[:count]]
        table = make_table(f"{title} (mu {sign} sigma)", *["place"] * places, "image", *headings)
        for place, (path, score) in enumerate(scores, 1):
            cells = [f"{score.mu[name]:+.3f} {sign} {score.sigma[name]:.3f}" for name in names[:count]]
            table.add_row(*[str(place)] * places, without_middle(path, room), *cells)
        return table

    width, count, room = terminal().width, len(names), WIDE
    if not wide:
        while count > 1 and table_width(table(count, SHORT_NAME)) > width:
            count -= 1
        room = max(SHORT_NAME, SHORT_NAME + width - table_width(table(count, SHORT_NAME)))
    print_table(table(count, room), wide=wide)
    if count < len(names):
        print(f"--wide shows {', '.join(names[count:])} as well.")


def without_middle(text: str, room: int) -> str:
    """A text without its middle if it needs more than `room` columns of a terminal; the end of a path says most."""
    from rich.cells import cell_len, set_cell_size

    if cell_len(text) <= room:
        return text
    end = room * 2 // 3
    tail = next(text[k:] for k in range(len(text)) if cell_len(text[k:]) <= end)
    return set_cell_size(text, room - 1 - cell_len(tail)) + "…" + tail


def without_end(text: str, room: int) -> str:
    """A text of one line without its end if it needs more than `room` columns of a terminal."""
    from rich.cells import cell_len, set_cell_size

    text = " ".join(text.split())
    return text if cell_len(text) <= room else set_cell_size(text, room - 1) + "…"


def print_json(content: Any) -> None:
    """Prints JSON that people can read, as far as the terminal has its letters."""
    print(to_json(content, encoding=sys.stdout.encoding or "ascii", indent=2))


def make_table(title: str, *columns: str) -> "Table":
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def print_table(table: "Table", *, wide: bool = False) -> None:
    """Prints a table as wide as the terminal, or as wide as it is."""
    terminal(WIDE if wide else None).print(table)


def table_width(table: "Table") -> int:
    """Columns of a terminal that a table takes if nothing is folded."""
    return terminal(WIDE).measure(table).maximum


def terminal(width: int | None = None) -> "Console":
    from rich.console import Console

    # File names and critiques are data: `[red]` in one is no colour and `:smile:` no face.
    return Console(width=width, markup=False, emoji=False, highlight=False)
