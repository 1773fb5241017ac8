"""`jrm annotate`: critiques for a preference set; the same command goes on after it was stopped."""

import argparse
import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jrm_plugin.chat_client import PREFIX, ChatClient
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
from jrm_plugin.errors import JRMError
from jrm_plugin.files import read_text

if TYPE_CHECKING:
    from jrm_plugin.annotation.annotating import Annotation
    from jrm_plugin.annotation.critics import Critic

MODEL_PREFIX = "jrm:"
REVIEW = "review.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("preferences")
    group.add_argument("--data", required=True, metavar="PLACE", help="file, folder or hub name, as jrm train reads it")
    add_columns_argument(group)
    group.add_argument("--images-root", metavar="FOLDER", help="that image paths are relative to (default: the file's)")
    group.add_argument("--limit", type=int, metavar="N", help="only the first N pairs")
    group = parser.add_argument_group("critic")
    group.add_argument(
        "--critic",
        required=True,
        metavar="CRITIC",
        help=f"{PREFIX}MODEL on a server that speaks OpenAI's protocol, or {MODEL_PREFIX}FOLDER, a JRM",
    )
    group.add_argument("--dimension", nargs="+", metavar="NAME", help="only these dimensions (default: all)")
    add_placement_arguments(group)
    group = parser.add_argument_group(f"a model on a server, {PREFIX}MODEL")
    group.add_argument("--base-url", metavar="URL", help="of the server")
    group.add_argument(
        "--prompt",
        nargs="+",
        default=[],
        metavar="NAME=FILE",
        help="a prompt of your own for a dimension, with the slots {instruction} and {score}",
    )
    group.add_argument(
        "--boxes",
        choices=("xyxy", "yxyx", "pixels"),
        default="xyxy",
        help="how it is asked to write boxes: in thousandths in this order of edges, or in pixels (default: xyxy)",
    )
    group.add_argument("--attempts", type=int, default=3, help="answers to one question at most (default: %(default)s)")
    group.add_argument("--concurrency", type=int, default=8, help="requests at once (default: %(default)s)")
    group.add_argument("--requests-per-minute", type=float, metavar="N", help="send no more (default: no limit)")
    group.add_argument("--timeout", type=float, default=120.0, help="seconds for a request (default: %(default)s)")
    group.add_argument(
        "--retries", type=int, default=6, help="of a request that the server does not answer (default: %(default)s)"
    )
    group.add_argument("--temperature", type=float, help="default: the server's own")
    group.add_argument("--body", metavar="MAPPING", help="further fields of each request: '{max_tokens: 800}'")
    group.add_argument("--price", type=float, nargs=2, metavar=("IN", "OUT"), help="of a million tokens, for the cost")
    group = parser.add_argument_group("output")
    group.add_argument(
        "--output", type=Path, default=Path("annotated"), help="folder to write or go on in (default: %(default)s)"
    )
    group.add_argument("--review", type=int, default=200, metavar="N", help="pairs on the page (default: %(default)s)")
    add_json_argument(parser)


def run(options: argparse.Namespace) -> int:
    """Returns 2 if a critique that was asked for is missing."""
    if options.limit is not None and options.limit < 1:
        raise JRMError(f"--limit must be at least 1, got {options.limit}.")
    if options.review < 0:
        raise JRMError(f"--review must be 0 or more, got {options.review}.")
    quiet()
    critic = _critic(options)
    from jrm_plugin.annotation.annotating import annotate
    from jrm_plugin.annotation.review import write_review
    from jrm_plugin.data.preferences import read_preferences
    from jrm_plugin.records.preferences import PreferencePair

    columns = mapping_of(options.columns)
    pairs = read_preferences(options.data, columns=columns, images_root=options.images_root).examples
    pairs = list(pairs[: options.limit])
    if not all(isinstance(pair, PreferencePair) for pair in pairs):
        raise JRMError(f"{options.data} holds texts to learn; preferences are annotated.")
    prices = None if options.price is None else (options.price[0], options.price[1])
    annotation = annotate(pairs, critic, options.output, prices=prices)
    page = write_review(options.output / REVIEW, annotation, pairs=options.review) if options.review else None
    if options.json:
        print_json(annotation.summary)
    else:
        _print(annotation, page)
    missing = annotation.summary["critiques"]["missing"]
    if missing:
        place, why = next((p, why) for p, why in annotation.missing.items() if p in annotation.asked)
        print(
            f"jrm: missing critiques: {missing}, the first of pair {place[0] + 1}, {place[1]}, {place[2]}: {why}; "
            "the same command asks again what was not answered, with more --attempts also what was answered badly.",
            file=sys.stderr,
        )
    return 2 if missing else 0


def _critic(options: Namespace) -> "Critic":
    from jrm_plugin.annotation.critics import ModelCritic, ServedCritic

    name = options.critic
    if name.startswith(PREFIX):
        client = ChatClient(
            name.removeprefix(PREFIX),
            base_url=options.base_url,
            temperature=options.temperature,
            body=mapping_of(options.body, "--body", "{max_tokens: 800}"),
            max_pixels=options.max_pixels,
            concurrency=options.concurrency,
            requests_per_minute=options.requests_per_minute,
            timeout=options.timeout,
            retries=options.retries,
        )
        return ServedCritic(
            client,
            prompts=_prompts(options.prompt),
            dimensions=options.dimension,
            boxes=options.boxes,
            attempts=options.attempts,
        )
    if not name.startswith(MODEL_PREFIX):
        raise JRMError(f"--critic must be {PREFIX}MODEL or {MODEL_PREFIX}FOLDER, not {name!r}.")
    if options.base_url or options.prompt:
        raise JRMError(f"--base-url and --prompt belong to {PREFIX}MODEL, which --critic does not name.")
    from jrm_plugin.scoring.loading import model_digest  # slow to import

    model = name.removeprefix(MODEL_PREFIX)
    scorer = make_scorer(Namespace(**{**vars(options), "model": model}))
    settings: dict[str, Any] = {"dtype": options.dtype, "max_pixels": options.max_pixels}
    settings["weights"] = model_digest(model).hex()
    return ModelCritic(name, scorer, settings, dimensions=options.dimension)


def _prompts(items: list[str]) -> dict[str, str]:
    pairs = [item.partition("=") for item in items]
    if wrong := [item for item, (name, _, file) in zip(items, pairs, strict=True) if not name or not file]:
        raise JRMError(f"--prompt must be NAME=FILE, not {wrong[0]!r}.")
    return {name: read_text(file).strip() for name, _, file in pairs}


def _print(annotation: "Annotation", page: Path | None) -> None:
    from jrm_plugin.annotation.review import facts_of

    table = make_table("Annotated", "what", "how much")
    for name, value in facts_of(annotation.summary).items():
        table.add_row(name, f"{value:,}" if isinstance(value, int) else value)
    print_table(table)
    print(f"The set is {annotation.path}, which jrm train reads; summary.json lies beside it.")
    if page:
        print(f"To look at: {page}")
