"""`jrm grpo`: TRL's GRPO script with a JRM as a reward, from one YAML file.

The YAML is that of `trl grpo`, read by TRL's own parser, with the fields of [`JRMRewardArguments`] beside TRL's.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from jrm_plugin.cli.common import quiet
from jrm_plugin.errors import JRMError
from jrm_plugin.extras import require

if TYPE_CHECKING:
    from jrm_plugin.integrations.trl import JRMReward

SAVE_FOLDER = "jrm_rollouts"  # in the output folder


@dataclass
class JRMRewardArguments:
    """The reward model. What is left out comes from the variables of `jrm_reward`, then from `JRMReward`'s defaults.

    Parameters:
        reward_model: `jrm`, and nothing else.
        reward_model_path: `model` of `JRMReward`; each of the others is its argument of that name. `save_folder` is by
            default the folder `jrm_rollouts` in the run's output folder.
        reward_dimensions: of `jrm_rewards`: a reward function for each, in this order. Not together with
            `reward_dimension`.
    """

    reward_model: str | None = field(default=None, metadata={"help": "jrm"})
    reward_model_path: str | None = field(default=None, metadata={"help": "JRM checkpoint; by default jrm-tiny."})
    reward_task: str | None = field(default=None, metadata={"help": "edit, generation or response."})
    reward_render: str | None = field(default=None, metadata={"help": "Dotted path: completion and row to an image."})
    reward_mode: str | None = field(default=None, metadata={"help": "How a score becomes a reward."})
    reward_k: float | None = field(default=None, metadata={"help": "Of the mode lower_confidence_bound."})
    reward_beta: float | None = field(default=None, metadata={"help": "Of the mode entropic."})
    reward_dimension: str | None = field(default=None, metadata={"help": "Whose mu and sigma count; overall."})
    reward_dimensions: list[str] | None = field(default=None, metadata={"help": "A reward function for each."})
    reward_floor: float | None = field(default=None, metadata={"help": "Reward of an invalid answer."})
    reward_on_error: str | None = field(default=None, metadata={"help": "raise, floor or leave_out."})
    reward_unedited: str | None = field(default=None, metadata={"help": "count, or floor for an edit like its source."})
    reward_undecided: str | None = field(default=None, metadata={"help": "count, or equal within undecided groups."})
    reward_win_threshold: float | None = field(default=None, metadata={"help": "From where a pair is decided."})
    reward_second_judge: str | None = field(
        default=None, metadata={"help": "JRM checkpoint, logged beside the reward."}
    )
    reward_second_judge_every: int | None = field(default=None, metadata={"help": "Of so many rollouts, one."})
    reward_device: str | None = field(default=None, metadata={"help": "Of the reward model; a GPU if there is one."})
    reward_dtype: str | None = field(default=None, metadata={"help": "float32, bfloat16 or float16, of its backbone."})
    reward_save_images: int | None = field(default=None, metadata={"help": "Keep one of so many rollouts."})
    reward_save_folder: str | None = field(default=None, metadata={"help": "Where they are kept."})

    def arguments(self) -> dict[str, Any]:
        """Those of `JRMReward` or `jrm_rewards`; raises a `JRMError` for a wrong variable, or two that do not agree."""
        from jrm_plugin.rollouts import arguments_from_environment

        given = {field.name.removeprefix("reward_"): getattr(self, field.name) for field in fields(self)}
        given["model"] = given.pop("model_path")
        arguments = arguments_from_environment("jrm grpo") | {
            name: value for name, value in given.items() if value is not None
        }
        if {"dimension", "dimensions"} <= arguments.keys():
            raise JRMError("one reward of a dimension and a reward for each of several exclude each other; drop one.")
        return arguments

    def check(self) -> None:
        """Raises a `JRMError` for what is wrong in them, as far as no model is needed to know it."""
        from jrm_plugin.rollouts import RolloutReward
        from jrm_plugin.scoring.loading import as_dtype

        arguments = self.arguments()
        as_dtype(arguments.get("dtype"))
        RolloutReward(
            **{field.name: arguments[field.name] for field in fields(RolloutReward) if field.name in arguments}
        )

    def names(self) -> list[str]:
        """What errors call the rewards, in the order of their weights."""
        return ["jrm"] if self.reward_dimensions is None else [f"jrm_{name}" for name in self.reward_dimensions]

    def rewards(self, output_dir: str) -> "list[JRMReward]":
        """Raises a `JRMError` if there is no such model, or the arguments or variables are wrong."""
        from jrm_plugin.integrations.trl import JRMReward, jrm_rewards

        arguments = self.arguments()
        if "save_images" in arguments:
            arguments.setdefault("save_folder", Path(output_dir, SAVE_FOLDER))
        return [JRMReward(**arguments)] if self.reward_dimensions is None else jrm_rewards(**arguments)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, required=True, help="YAML file; see docs/trl.md")
    parser.set_defaults(overrides=[])  # `--any_key value`, for TRL's parser


def run(options: argparse.Namespace) -> int:
    """Reads the YAML file and what the command line overrides, and runs TRL's script with the reward."""
    quiet()
    require("trl accelerate datasets", "jrm grpo", install="jrm-plugin[trl]")
    from trl.scripts import grpo

    jrm, script, training, model, dataset = parse(options.config, options.overrides)
    rewards = jrm.rewards(training.output_dir)  # before TRL loads anything
    with importable(rewards) as paths:
        script.reward_funcs = [*paths, *(script.reward_funcs or [])]
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
    if training.log_completions and training.process_index == 0:
        print(f"What was written in each step is in {Path(training.output_dir, 'completions')}, as Parquet files.")
    return 0


@contextmanager
def importable(rewards: Sequence["JRMReward"]) -> Iterator[list[str]]:
    """Gives reward functions dotted paths for the length of a run: TRL's script takes them by path only."""
    module = ModuleType("jrm_plugin_rewards_of_this_run")
    for reward in rewards:
        setattr(module, reward.__name__, reward)
    sys.modules[module.__name__] = module
    try:
        yield [f"{module.__name__}.{reward.__name__}" for reward in rewards]
    finally:
        del sys.modules[module.__name__]


def parse(config: Path, overrides: Sequence[str] = ()) -> tuple:
    """The arguments of a run: the reward's, and the four that TRL's script takes.

    What is wrong with the reward is said before TRL's and transformers' own checks of the training.

    Raises:
        JRMError: there is an unknown key or a wrong value, or something is missing that a run needs.
    """
    from trl import DatasetMixtureConfig, ModelConfig
    from trl.scripts import grpo

    from jrm_plugin.configs import read_config
    from jrm_plugin.integrations.trl.config_files import parse_config
    from jrm_plugin.integrations.trl.policy_config import PolicyConfig

    reward_and_data = (JRMRewardArguments, grpo.GRPOScriptArguments, ModelConfig, DatasetMixtureConfig)
    stages = parse_config(config, read_config(config), overrides, reward_and_data, (PolicyConfig,))
    jrm, script, model, dataset = next(stages)
    if jrm.reward_model != "jrm":
        given = "says nothing of a reward model" if jrm.reward_model is None else f"has {jrm.reward_model!r} there"
        raise JRMError(f"jrm grpo needs reward_model: jrm, and the config {config} {given}; write it, or run trl grpo.")
    try:
        jrm.check()
    except JRMError as error:
        raise JRMError(f"the config {config} cannot be used: {error}") from error
    if model.model_name_or_path is None:
        raise JRMError(f"the config {config} has no model_name_or_path; give the policy to train.")
    if not script.dataset_name and not dataset.datasets:
        raise JRMError(f"the config {config} has no dataset_name and no datasets; give one of them.")
    (training,) = next(stages)
    names = [script.reward_model_name_or_path] if script.reward_model_name_or_path else []
    names += [*jrm.names(), *(script.reward_funcs or [])]
    if training.reward_weights is not None and len(training.reward_weights) != len(names):
        raise JRMError(
            f"reward_weights in the config {config} must hold one weight for each of {', '.join(names)}, in this "
            f"order, not {training.reward_weights}."
        )
    return jrm, script, training, model, dataset
