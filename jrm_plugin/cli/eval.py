"""`jrm eval`: judges on public benchmarks, in the papers' tables; the same command goes on after it was stopped."""

import argparse
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jrm_plugin.cli.common import (
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
from jrm_plugin.errors import JRMError
from jrm_plugin.evaluation.benchmarks.loading import BENCHMARKS, load_benchmark
from jrm_plugin.evaluation.results_table import markdown, notes_of, rows_of
from jrm_plugin.extras import require
from jrm_plugin.files import check_writable, write_json, write_jsonl, write_text

if TYPE_CHECKING:
    from rich.table import Table

    from jrm_plugin.evaluation.judges import Judge

RESULTS, PAIRS, TABLE, PAGE = "results.json", "pairs.jsonl", "table.md", "report.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "benchmarks:\n" + "\n".join(f"  {name:<20} {about}" for name, about in BENCHMARKS.items())
    group = parser.add_argument_group("benchmarks")
    group.add_argument("--benchmark", nargs="+", required=True, metavar="NAME", help="which; they are listed below")
    group.add_argument(
        "--data",
        nargs="+",
        default=[],
        metavar="PLACE",
        help="file, folder or hub name of the one benchmark, or NAME=PLACE of each",
    )
    group.add_argument("--columns", metavar="MAPPING", help="of a pair_file: '{source: before, a: x, b: y, label: z}'")
    group.add_argument("--limit", type=int, metavar="N", help="only the first N pairs of each")
    group.add_argument(
        "--dimension",
        nargs="+",
        default=[],
        metavar="NAME=NAME",
        help="which of a judge's dimensions answers for a benchmark's (default: by name, else overall)",
    )
    group = parser.add_argument_group("judges")
    group.add_argument(
        "--model", nargs="+", required=True, metavar="JUDGE", help="folders, hub names, jrm-tiny, or openai:MODEL"
    )
    add_placement_arguments(group)
    group = parser.add_argument_group("generative judges, openai:MODEL")
    group.add_argument("--base-url", metavar="URL", help="of a server that speaks OpenAI's protocol")
    group.add_argument("--pairwise", action="store_true", help="ask for the better of two, in both orders")
    group.add_argument("--passes", type=int, default=1, help="ask each question so often (default: %(default)s)")
    group.add_argument("--temperature", type=float, help="default: the server's own")
    group.add_argument("--concurrency", type=int, default=8, help="requests at once (default: %(default)s)")
    group.add_argument("--timeout", type=float, default=120.0, help="seconds for a request (default: %(default)s)")
    group.add_argument("--price", type=float, nargs=2, metavar=("IN", "OUT"), help="of a million tokens, for the cost")
    group = parser.add_argument_group("output")
    group.add_argument(
        "--output", type=Path, default=Path("eval-output"), help="folder to write or go on in (default: %(default)s)"
    )
    group.add_argument("--resamples", type=int, default=1000, help="of bootstrap intervals (default: %(default)s)")
    add_table_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Returns 2 if a judge could not answer for a pair, which then counts as wrong."""
    places, dimensions = _places(options), _named(options.dimension, "--dimension")
    if options.limit is not None and options.limit < 1:
        raise JRMError(f"--limit must be at least 1, got {options.limit}.")
    if options.resamples < 1:
        raise JRMError(f"--resamples must be at least 1, got {options.resamples}.")
    require("scipy matplotlib", "jrm eval", install="jrm-plugin[eval]")
    check_writable(options.output)
    quiet()
    benchmarks = [
        load_benchmark(
            name,
            places.get(name),
            columns=mapping_of(options.columns) if name == "pair_file" else None,
            limit=options.limit,
            folder=options.output / "data",
        )
        for name in options.benchmark
    ]
    judges = _judges(options)
    from jrm_plugin.evaluation.benchmark_page import write_page  # slow to import
    from jrm_plugin.evaluation.judging import judge_all
    from jrm_plugin.evaluation.results import pair_records, summarize_run

    verdicts = judge_all(benchmarks, judges, options.output, dimensions=dimensions)
    prices = None if options.price is None else (options.price[0], options.price[1])
    results = summarize_run(benchmarks, judges, verdicts, resamples=options.resamples, prices=prices)
    records = [r for b in benchmarks for r in pair_records(b, judges, verdicts[b.name])]
    write_json(options.output / RESULTS, results)
    write_jsonl(options.output / PAIRS, records)
    write_text(options.output / TABLE, markdown(results))
    write_page(options.output / PAGE, results, benchmarks, judges, verdicts)
    if options.json:
        print_json(results)
    else:
        _print(results, wide=options.wide)
        print(f"\nAll numbers and the worst mistakes are in {options.output / PAGE}; {RESULTS}, {PAIRS} and {TABLE}")
        print("lie beside it.")
    failed = sum(of["failed"] for b in results["benchmarks"].values() for of in b["judges"].values())
    if failed:
        print(f"jrm: {failed} pairs have no answer and count as wrong; {PAIRS} says why.", file=sys.stderr)
    return 2 if failed else 0


# --- what is named ----------------------------------------------------------------------------------------------------


def _places(options: Namespace) -> dict[str, str]:
    """Where the data of each benchmark are."""
    for name in options.benchmark:
        if name not in BENCHMARKS:
            raise JRMError(f"there is no benchmark {name!r}; there are {', '.join(BENCHMARKS)}.")
        if options.benchmark.count(name) > 1:
            raise JRMError(f"the benchmark {name} is named twice; name it once.")
    if options.columns and "pair_file" not in options.benchmark:
        raise JRMError("--columns belong to the benchmark pair_file; the others have their published columns.")
    places: dict[str, str] = {}
    for item in options.data:
        name, equals, place = item.partition("=")
        if not equals or name not in BENCHMARKS:
            if len(options.benchmark) > 1 or len(options.data) > 1:
                raise JRMError(f"--data must say of which benchmark {item} is: write {options.benchmark[0]}={item}.")
            name, place = options.benchmark[0], item
        if name not in options.benchmark:
            raise JRMError(f"--data has {name}, which --benchmark does not name; add it, or leave its data out.")
        if name in places:
            raise JRMError(f"--data says twice where {name} is; say it once.")
        places[name] = place
    return places


def _named(items: Sequence[str], option: str) -> dict[str, str]:
    pairs = [item.partition("=") for item in items]
    if wrong := [item for item, (name, _, value) in zip(items, pairs, strict=True) if not name or not value]:
        raise JRMError(f"{option} must be NAME=NAME, not {wrong[0]!r}.")
    return {name: value for name, _, value in pairs}


def _judges(options: Namespace) -> "list[Judge]":
    from jrm_plugin.chat_client import PREFIX
    from jrm_plugin.evaluation.generative_judge import GenerativeJudge
    from jrm_plugin.evaluation.judges import ScorerJudge, file_name
    from jrm_plugin.scoring.loading import model_digest

    names = [name.rstrip("/") or name for name in options.model]
    if len({file_name(name) for name in names}) < len(names):
        raise JRMError(f"--model names a judge twice, or two that are written alike: {', '.join(names)}.")
    generative = [name for name in names if name.startswith(PREFIX)]
    if not generative and (options.base_url or options.pairwise or options.passes != 1):
        raise JRMError(f"--base-url, --pairwise and --passes belong to {PREFIX}MODEL, which --model does not name.")
    judges: list[Judge] = []
    for name in names:
        if name in generative:
            judges.append(
                GenerativeJudge(
                    name.removeprefix(PREFIX),
                    base_url=options.base_url,
                    compares=options.pairwise,
                    passes=options.passes,
                    temperature=options.temperature,
                    max_pixels=options.max_pixels,
                    concurrency=options.concurrency,
                    timeout=options.timeout,
                )
            )
        else:
            scorer = make_scorer(Namespace(**{**vars(options), "model": name}))
            settings = {"dtype": options.dtype, "max_pixels": options.max_pixels}
            settings["weights"] = model_digest(name).hex()
            judges.append(ScorerJudge(name, scorer, settings))
    return judges


# --- what is printed --------------------------------------------------------------------------------------------------


def _print(results: dict[str, Any], *, wide: bool) -> None:
    """The tables; intervals stand below their values, where the terminal has room for them."""
    for result in results["benchmarks"].values():

        def table(with_intervals: bool, result: dict[str, Any] = result) -> "Table":
            table = make_table(result["title"], "judge", *result["columns"])
            for name, *cells in rows_of(result):
                parts = [cell.removesuffix(")").split(" (") for cell in cells]
                table.add_row(name, *("\n".join(part if with_intervals else part[:1]) for part in parts))
            return table

        fits = wide or table_width(table(True)) <= terminal().width
        print_table(table(fits), wide=wide)
        for note in [*notes_of(result), *([] if fits else ["--wide shows the intervals as well."])]:
            print(f"  {note}")
