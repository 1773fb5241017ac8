"""`jrm`: finds the command and runs it.

Each command is a module of its own name with `add_arguments(parser)` and `run(options)`, which gives the exit code. A
module is imported only when its command is named, and imports what is slow to import only when it runs, so that
`jrm --help` and `jrm COMMAND --help` answer at once.
"""

import argparse
import os
import sys
from importlib import import_module

from jrm_plugin import __version__
from jrm_plugin.errors import JRMError

COMMANDS = {
    "demo": "Train a small reward model from scratch, evaluate it, and write a report.",
    "train": "Train a reward model: jrm train --config x.yaml [--any_key value …].",
    "grpo": "Train a policy with TRL's GRPO and a JRM as its reward: jrm grpo --config x.yaml [--any_key value …].",
    "score": "Score edited images, one set from the command line or many from a file.",
    "rank": "Rank edited images, best first.",
    "critique": "Let the model say what is right and wrong with edited images.",
    "self-correct": "Let critiques guide an editor, and score what it makes: jrm self-correct --config x.yaml.",
    "env": "Show versions, the device, and which integrations are registered.",
}


def main(arguments: list[str] | None = None) -> None:
    """Runs a command. A user's mistake is one sentence on stderr and exit code 2; Ctrl-C is exit code 130."""
    # Tokenizers warn when a process that used them forks data loader workers; the workers are what we want.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    options = _parse(sys.argv[1:] if arguments is None else arguments)
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
    sys.exit(code)


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
