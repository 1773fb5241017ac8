"""`jrm train`: a training run from a YAML file; the same command goes on after it was stopped."""

import argparse
import sys
from pathlib import Path

from jrm_plugin.cli.common import quiet
from jrm_plugin.errors import JRMError
from jrm_plugin.extras import require


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, required=True, help="YAML file; see docs/training.md")
    parser.set_defaults(overrides=[])  # `--any_key value`, for TRL's parser


def run(options: argparse.Namespace) -> int:
    """Trains, and says where the result is.

    Returns 130 if the run was stopped by a signal, and 2 if another of its processes has said already what is wrong.
    """
    quiet()
    require("trl accelerate datasets", "jrm train", install="jrm-plugin[trl]")
    from transformers.trainer_utils import get_last_checkpoint

    from jrm_plugin.integrations.trl.processes import is_first_to_fail
    from jrm_plugin.integrations.trl.training import parse, train

    try:
        arguments, training = parse(options.config, options.overrides)
        trainer = train(arguments, training)
    except JRMError:
        if is_first_to_fail():
            raise
        return 2
    output = training.output_dir
    if trainer is None:
        print(f"jrm: stopped; the same command goes on from {get_last_checkpoint(output)}.", file=sys.stderr)
        return 130
    if trainer.is_world_process_zero():
        print(f"Trained; the model is in {output} (jrm score --model {output} …).")
    return 0
