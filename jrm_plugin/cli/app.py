"""`jrm`: finds the command and runs it.

Each command is a module of its own name with `add_arguments(parser)` and `run(options)`, which gives the exit code. A
module is imported only when its command is named, and imports what is slow to import only when it runs, so that
`jrm --help` and `jrm COMMAND --help` answer at once.
"""

import argparse
import io
import os
import sys
from contextlib import suppress
from importlib import import_module

from jrm_plugin import __version__
from jrm_plugin.errors import JRMError
from jrm_plugin.switches import kept_environment

COMMANDS = {
    "demo": "Train a small reward model from scratch, evaluate it, and write a report.",
    "train": "Train a reward model: jrm train --config x.yaml [--any_key value …].",
    "sweep": "Train with several alphas and seeds and compare: jrm sweep --config x.yaml --alpha 0 0.7 --seeds 0 1 2.",
    "grpo": "Train a policy with TRL's GRPO and a JRM as its reward: jrm grpo --config x.yaml [--any_key value …].",
    "score": "Score edited images, one set from the command line or many from a file.",
    "rank": "Rank edited images, best first.",
    "eval": "Measure judges on public benchmarks: a table as papers have it, and a page with the worst mistakes.",
    "analyze": "Look into models: directions they use, where they look, whether their two losses conflict.",
    "annotate": "Let a vision-language model or a JRM write the critiques of a preference set, for jrm train.",
    "audit": "Find wrong and doubtful labels of a preference set, and propose corrections that jrm train takes.",
    "calibrate": "Measure on held-out pairs how far a model's P(A better than B) is true, and save what makes it so.",
    "critique": "Let the model say what is right and wrong with edited images.",
    "self-correct": "Let critiques guide an editor, and score what it makes: jrm self-correct --config x.yaml.",
    "examples": "List the configs and scripts that the docs name, or copy them: jrm examples --copy.",
    "convert": "Make a JRM folder of a reward model of EditReward or HPSv3, or write it back.",
    "serve": "Put a model behind HTTP, for trainers on other machines: scores, rankings, critiques.",
    "push": "Upload a trained model and its card to the Hugging Face hub: jrm push FOLDER OWNER/NAME.",
    "env": "Show versions, the device, and which integrations are registered.",
}


def main(arguments: list[str] | None = None) -> None:
    """Runs a command; what ends it early is one sentence on stderr.

    Exit code 2: a user's mistake, or the system refused something (a full disk, a name too long, a missing right). 130:
    Ctrl-C. 1: the reader of the output has left. Any other error is a fault of the program and shows its traceback.
    """
    # Tokenizers warn when a process that used them forks data loader workers; the workers are what we want.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if sys.stderr is None:  # closed by the caller
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (until the end)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # no terminal's encoding keeps a result from being printed
            with suppress(OSError):  # of a stream whose file a parent process has exchanged
                stream.reconfigure(errors="backslashreplace")
    try:
        if sys.stdout is None:
            raise JRMError("the standard output is closed; leave it open, or send it to /dev/null.")
        with kept_environment():
            code = _run(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
    except JRMError as error:
        print(f"jrm: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("jrm: interrupted; the same command goes on from what was done.", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # the reader of our output has left, `jrm score … | head`
        _drop_output()
        code = 1
    except (OSError, UnicodeError, RecursionError, MemoryError) as error:
        print(f"jrm: the command cannot go on: {_reason(error)}.", file=sys.stderr)
        code = 2
        try:
            sys.stdout.flush()
        except OSError:  # it was the output that could not be written, `jrm score … > /dev/full`
            _drop_output()
    sys.exit(code)


def _run(arguments: list[str]) -> int | str | None:
    try:
        options = _parse(arguments)
        return options.run(options)
    except SystemExit as end:  # of argparse, after `--help` or wrong usage
        return end.code


def _drop_output() -> None:
    """What is still to be written goes nowhere; Python would try again at its end, and say that it failed."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _reason(error: OSError | UnicodeError | RecursionError | MemoryError) -> str:
    if isinstance(error, RecursionError):
        return "something that was given is nested too deep; give it with fewer levels"
    if isinstance(error, MemoryError):
        return "there is not enough memory; give less at once, or use a larger machine"
    if isinstance(error, OSError) and error.strerror:
        path = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        return f"{path}{error.strerror}"
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="jrm", description="Joint Reward Modeling: train, score, rank, criticise.")
    parser.add_argument("--version", action="version", version=f"jrm-plugin {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, about in COMMANDS.items():
        command = commands.add_parser(name, help=about, description=about)
        if name in arguments:
            module = import_module(f"jrm_plugin.cli.{name.replace('-', '_')}")
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    options, rest = parser.parse_known_args(arguments)
    if "overrides" in options:  # of a YAML config's keys, for TRL's parser
        options.overrides = rest
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return options
