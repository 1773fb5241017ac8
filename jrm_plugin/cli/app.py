"""The commands of `jrm`. Each imports what it needs when it runs, so that `jrm --help` answers at once."""

import argparse
import json
import os
import sys
from pathlib import Path

from jrm_plugin import __version__
from jrm_plugin.errors import JRMError


def main(arguments: list[str] | None = None) -> None:
    """Runs a command. A user's mistake is one sentence on stderr and exit code 2; Ctrl-C is exit code 130."""
    # Tokenizers warn when a process that used them forks data loader workers; the workers are what we want.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    options, rest = _parser().parse_known_args(arguments)
    if rest and options.run not in (_train, _grpo):  # these hand the rest to TRL's parser
        _parser().error(f"unrecognized arguments: {' '.join(rest)}")
    options.rest = rest
    try:
        code = options.run(options)
        sys.stdout.flush()
    except JRMError as error:
        print(f"jrm: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("jrm: interrupted; the same command goes on from what was done.", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # the reader of our output has left, `jrm score … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code or 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="jrm", description="Joint Reward Modeling: train, score, rank, criticise.")
    parser.add_argument("--version", action="version", version=f"jrm-plugin {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, run, about: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=about, description=about)
        sub.set_defaults(run=run)
        return sub

    demo = command("demo", _demo, "Train a small reward model from scratch, evaluate it, and write a report.")
    demo.add_argument("--output", type=Path, default=Path("demo-output"), help="folder to write (default: %(default)s)")
    demo.add_argument("--photos", action="store_true", help="edits of photographs instead of coloured shapes")
    demo.add_argument("--compare", action="store_true", help="also train the alpha = 0 baseline and compare")
    demo.add_argument("--scale", type=float, default=1.0, help="times the usual number of steps (default: %(default)s)")
    demo.add_argument("--seed", type=int, default=0, help="of data and weights (default: %(default)s)")

    train = command("train", _train, "Train a reward model: jrm train --config x.yaml [--any_key value …].")
    train.add_argument("--config", type=Path, required=True, help="YAML file; see docs/training.md")

    about = "Train a policy with TRL's GRPO and a JRM as its reward: jrm grpo --config x.yaml [--any_key value …]."
    command("grpo", _grpo, about).add_argument("--config", type=Path, required=True, help="YAML file; see docs/trl.md")

    score = command("score", _score, "Score edited images, one set from the command line or many from a file.")
    _add_sample(score, required=False)
    score.add_argument("--input", type=Path, help="score in bulk: a JSONL file, or a folder of edits")
    score.add_argument("--output", type=Path, help="where bulk scores go: .jsonl or .parquet; goes on if it exists")

    rank = command("rank", _rank, "Rank edited images, best first.")
    _add_sample(rank)
    rank.add_argument("--best", type=Path, metavar="IMAGE", help="write the best image to this file")

    critique = command("critique", _critique, "Let the model say what is right and wrong with edited images.")
    _add_sample(critique)
    critique.add_argument("--dimension", help="only this dimension (default: all)")
    critique.add_argument("--draw", type=Path, metavar="IMAGE", help="write the edited image with the critiques' boxes")

    about = "Let critiques guide an editor, and score what it makes: jrm self-correct --config x.yaml."
    correct = command("self-correct", _self_correct, about)
    correct.add_argument("--config", type=Path, required=True, help="YAML file; see docs/self-correction.md")

    env = command("env", _env, "Show versions, the device, and which integrations are registered.")
    env.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _add_sample(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """What is scored, and with which model."""
    sample = parser.add_argument_group("what to score")
    sample.add_argument("--source", nargs="+", default=[], metavar="IMAGE", help="source image(s); none: generation")
    sample.add_argument("--instruction", required=required, help="what was asked for")
    sample.add_argument("--edited", nargs="+", required=required, metavar="IMAGE", help="the edited image(s)")
    model = parser.add_argument_group("model")
    model.add_argument("--model", default="jrm-tiny", help="folder or hub name (default: %(default)s)")
    model.add_argument("--device", help="cpu, cuda, cuda:1 … (default: a GPU if there is one)")
    model.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="of the backbone")
    model.add_argument("--memory", type=float, metavar="GIB", help="memory for scoring beside the weights, in GiB")
    model.add_argument("--max-pixels", type=int, help="scale larger images down to this (default: the model's own)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _scorer(options: argparse.Namespace):
    _quiet()
    import torch

    from jrm_plugin.scoring.scorer import RewardScorer

    if options.memory is not None and not options.memory > 0:
        raise JRMError(f"--memory must be above 0 (GiB), got {options.memory}.")
    try:
        torch.empty(0, device=options.device)
    except (RuntimeError, AssertionError) as error:  # no such device, not on this machine, or not in this torch
        reason = str(error).split("\n")[0].rstrip(".")
        raise JRMError(
            f"--device {options.device} cannot be used here ({reason}); use cpu, or leave it out."
        ) from error
    return RewardScorer.from_pretrained(
        options.model,
        device=options.device,
        dtype=None if options.dtype is None else getattr(torch, options.dtype),
        max_pixels=options.max_pixels,
        memory_budget=None if options.memory is None else int(options.memory * 2**30),
    )


def _samples(options: argparse.Namespace) -> list:
    from jrm_plugin.records.samples import Sample

    return [Sample.edit(options.source, options.instruction, edited) for edited in options.edited]


def _quiet() -> None:
    """No loading bars and notes of libraries between the user and the answer."""
    import warnings

    from PIL import Image
    from transformers.utils import logging

    warnings.simplefilter("error", Image.DecompressionBombWarning)  # `load_image` says it in one sentence
    logging.set_verbosity_error()
    logging.disable_progress_bar()


# -- the commands


def _score(options: argparse.Namespace) -> int:
    if options.input or options.output:
        if not (options.input and options.output) or options.edited:
            raise JRMError("bulk scoring needs --input and --output together, and no --edited.")
        from jrm_plugin.cli.bulk import score_in_bulk

        return score_in_bulk(lambda: _scorer(options), options.model, options.input, options.output)
    if not options.edited or options.instruction is None:
        raise JRMError("jrm score needs --instruction and --edited, or --input and --output; see jrm score --help.")
    samples = _samples(options)
    scores = _scorer(options).score(samples)
    _print_scores(options, list(enumerate(scores)), "Scores")
    return 0


def _rank(options: argparse.Namespace) -> int:
    samples = _samples(options)
    if options.best:
        from jrm_plugin.files import check_image_writable, write_image
        from jrm_plugin.records.images import load_image

        check_image_writable(options.best)
    ranked = _scorer(options).rank(samples)
    if options.best:
        write_image(options.best, load_image(options.edited[ranked[0].position]))
    _print_scores(options, ranked, "Ranking, best first")
    return 0


def _print_scores(options: argparse.Namespace, places: list, title: str) -> None:
    if options.json:
        rows = [{"edited": options.edited[index], **score.to_dict()} for index, score in places]
        print(json.dumps(rows, indent=2))
        return
    table = _table(title, "edited image", *(f"{name.replace('_', ' ')} (mu ± sigma)" for name in places[0][1].mu))
    for index, score in places:
        table.add_row(options.edited[index], *(f"{score.mu[d]:+.3f} ± {score.sigma[d]:.3f}" for d in score.mu))
    _print(table)


def _critique(options: argparse.Namespace) -> int:
    from jrm_plugin.records.critiques import Critique, RepairedCritique

    samples = _samples(options)
    if options.draw:
        from jrm_plugin.files import check_image_writable

        check_image_writable(options.draw)
        if len(samples) > 1:
            raise JRMError(f"--draw writes one image, and --edited names {len(samples)}; give one of them.")
    scorer = _scorer(options)
    critiques = scorer.critique(samples, options.dimension)
    if options.draw:
        _draw(options, critiques[0])
    if options.json:
        rows = [
            {
                "edited": path,
                "critiques": {
                    dimension: json.loads(found.to_json())
                    | ({"repaired": True} if isinstance(found, RepairedCritique) else {})
                    if isinstance(found, Critique)
                    else {"unparsed": found.text, "error": found.error}
                    for dimension, found in by_dimension.items()
                },
            }
            for path, by_dimension in zip(options.edited, critiques, strict=True)
        ]
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return 0
    table = _table("Critiques", "edited image", "dimension", "regions (x1, y1, x2, y2 of 1000)", "reasoning")
    for path, by_dimension in zip(options.edited, critiques, strict=True):
        for dimension, found in by_dimension.items():
            if isinstance(found, Critique):
                regions = "\n".join(f"{region.id}: {region.label} {region.bbox_2d}" for region in found.edit_region)
                repaired = "(its JSON had to be repaired)\n" if isinstance(found, RepairedCritique) else ""
                table.add_row(path, dimension, regions, repaired + found.reasoning)
            else:
                table.add_row(path, dimension, "", f"(no valid critique: {found.error})\n{found.text}")
    _print(table)
    return 0


def _draw(options: argparse.Namespace, critiques: dict) -> None:
    """The edited image with the boxes of all critiques; small images are enlarged."""
    from jrm_plugin.evaluation.drawing import draw_boxes, enlarged
    from jrm_plugin.files import write_image
    from jrm_plugin.records.critiques import Critique

    picture = enlarged(options.edited[0])
    for found in critiques.values():
        if isinstance(found, Critique):
            picture = draw_boxes(picture, found)
    write_image(options.draw, picture)
    if not any(isinstance(found, Critique) and found.edit_region for found in critiques.values()):
        print(f"jrm: no critique names a region, so {options.draw} has no boxes.", file=sys.stderr)


def _self_correct(options: argparse.Namespace) -> int:
    _quiet()
    from jrm_plugin.cli.self_correct import self_correct_from_config

    return self_correct_from_config(options.config)


def _env(options: argparse.Namespace) -> int:
    from jrm_plugin.cli.environment import environment

    found = environment()
    if options.json:
        print(json.dumps(found, indent=2))
        return 0
    for title, rows in found.items():
        table = _table(title, "what", "")
        for name, value in rows.items():
            table.add_row(name, value)
        _print(table)
    return 0


def _train(options: argparse.Namespace) -> int:
    _quiet()
    from jrm_plugin.cli.train import train_from_command_line

    return train_from_command_line(options.config, options.rest)


def _grpo(options: argparse.Namespace) -> int:
    _quiet()
    from jrm_plugin.cli.grpo import grpo_from_command_line

    return grpo_from_command_line(options.config, options.rest)


def _demo(options: argparse.Namespace) -> int:
    from jrm_plugin.cli.demo import run_demo

    return run_demo(
        options.output, photos=options.photos, compare=options.compare, scale=options.scale, seed=options.seed
    )


def _table(title: str, *columns: str):
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _print(table) -> None:
    from rich.console import Console

    # File names and critiques are data: `[red]` in one is no colour and `:smile:` no face.
    Console(markup=False, emoji=False, highlight=False).print(table)
