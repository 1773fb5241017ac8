"""`jrm grpo`: TRL's GRPO script with a JRM as a reward, from one YAML file.

The YAML is that of `trl grpo`, read by TRL's own parser, with the fields of [`JRMRewardArguments`] beside TRL's.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from jrm_plugin.cli.common import quiet
from jrm_plugin.errors import JRMError
from jrm_plugin.extras import require

if TYPE_CHECKING:
    from jrm_plugin.integrations.trl import JRMReward

# The reward of the run. TRL's script takes reward functions by dotted path only, and finds it under this name.
reward: "JRMReward"


@dataclass
class JRMRewardArguments:
    """The reward model. What is left out comes from the variables of `jrm_reward`, then from `JRMReward`'s defaults.

    Parameters:
        reward_model: `jrm`, and nothing else.
        reward_model_path, reward_task, reward_render, reward_mode, reward_floor: `model`, `task`, `render`, `mode` and
            `floor` of `JRMReward`.
    """

    reward_model: str | None = field(default=None, metadata={"help": "jrm"})
    reward_model_path: str | None = field(default=None, metadata={"help": "JRM checkpoint; by default jrm-tiny."})
    reward_task: str | None = field(default=None, metadata={"help": "edit, generation or response."})
    reward_render: str | None = field(default=None, metadata={"help": "Dotted path: completion and row to an image."})
    reward_mode: str | None = field(default=None, metadata={"help": "How a score becomes a reward."})
    reward_floor: float | None = field(default=None, metadata={"help": "Reward of an invalid answer."})

    def reward(self) -> "JRMReward":
        """Raises a `JRMError` if there is no such model, or the arguments or variables are wrong."""
        from jrm_plugin.integrations.trl.environment import reward_from_environment

        arguments = {
            "model": self.reward_model_path,
            "task": self.reward_task,
            "render": self.reward_render,
            "mode": self.reward_mode,
            "floor": self.reward_floor,
        }
        return reward_from_environment(**{name: value for name, value in arguments.items() if value is not None})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, required=True, help="YAML file; see docs/trl.md")
    parser.set_defaults(overrides=[])  # `--any_key value`, for TRL's parser


def run(options: argparse.Namespace) -> int:
    """Reads the YAML file and what the command line overrides, and runs TRL's script with the reward."""
    quiet()
    require("trl accelerate datasets", "jrm grpo", install="jrm-plugin[trl]")
    from trl.scripts import grpo

    global reward
    jrm, script, training, model, dataset = parse(options.config, options.overrides)
    reward = jrm.reward()  # first, so that a mistake in it is raised before anything else is loaded
    script.reward_funcs = [f"{__name__}.reward", *(script.reward_funcs or [])]
    try:
        grpo.main(script, training, model, dataset)
    except (OSError, ImportError) as error:  # a model, a data set or a reward function that is not there
        raise JRMError(f"jrm grpo cannot go on: {' '.join(str(error).split())}") from error
    except KeyboardInterrupt:
        print(
            f"jrm: interrupted; with resume_from_checkpoint: true it goes on from the last checkpoint in "
            f"{training.output_dir}, if there is one.",
            file=sys.stderr,
        )
        return 130
    return 0


def parse(config: Path, overrides: Sequence[str] = ()) -> tuple:
    """The arguments of a run: the reward's, and the four that TRL's script takes.

    Raises:
        JRMError: there is an unknown key or a wrong value, or something is missing that a run needs.
    """
    from trl import DatasetMixtureConfig, GRPOConfig, ModelConfig
    from trl.scripts import grpo

    from jrm_plugin.configs import read_config
    from jrm_plugin.integrations.trl.config_files import parse_config

    kinds = (JRMRewardArguments, grpo.GRPOScriptArguments, GRPOConfig, ModelConfig, DatasetMixtureConfig)
    parsed = parse_config(config, read_config(config), overrides, kinds)
    jrm, script, training, model, dataset = parsed
    if jrm.reward_model != "jrm":
        given = "says nothing of a reward model" if jrm.reward_model is None else f"has {jrm.reward_model!r} there"
        raise JRMError(f"jrm grpo needs reward_model: jrm, and the config {config} {given}; write it, or run trl grpo.")
    if model.model_name_or_path is None:
        raise JRMError(f"the config {config} has no model_name_or_path; give the policy to train.")
    if not script.dataset_name and not dataset.datasets:
        raise JRMError(f"the config {config} has no dataset_name and no datasets; give one of them.")
    names = [script.reward_model_name_or_path] if script.reward_model_name_or_path else []
    names += ["jrm", *(script.reward_funcs or [])]
    if training.reward_weights is not None and len(training.reward_weights) != len(names):
        raise JRMError(
            f"reward_weights in the config {config} must hold one weight for each of {', '.join(names)}, in this "
            f"order, not {training.reward_weights}."
        )
    return parsed
