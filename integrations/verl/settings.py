"""The section `reward.jrm` of a verl config, and the ways to choose JRM in one."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, TypeVar

from omegaconf import DictConfig, OmegaConf, open_dict

from jrm_plugin.errors import JRMError
from jrm_plugin.integrations.ray.settings import ScorerSettings
from jrm_plugin.records.samples import OVERALL
from jrm_plugin.rollouts import RolloutReward
from jrm_plugin.saved_rollouts import check_saving

SECTION = "reward.jrm"


@dataclass(frozen=True)
class RolloutSettings:
    """What is scored how.

    Args:
        task, render, mode, k, beta, floor, on_error, dimension, unedited: as in [`RolloutReward`]; `render` is a dotted
            path. What compares the candidates of a group, as the mode `win_rate` does, cannot be offered, since verl
            asks for one reward at a time, nor `on_error: leave_out`, since it needs a number for each.
        save_images, save_folder: of each reward worker's rollouts, as in [`SavedRollouts`].

    Raises:
        JRMError: a value is missing or wrong.
    """

    task: str = "edit"
    render: str | None = None
    mode: str = "mean"
    k: float = 1.0
    beta: float = 1.0
    floor: float | None = None
    on_error: str = "raise"
    dimension: str = OVERALL
    unedited: str = "count"
    save_images: int | None = None
    save_folder: str | None = None

    section: ClassVar[str] = "the settings of the reward function"
    owner: ClassVar[str] = "a reward function whose model is one of reward.models"

    def __post_init__(self):
        try:
            self.rollouts()
            check_saving(self.save_images, self.save_folder)
        except JRMError as error:
            raise JRMError(f"{self.section} cannot be used: {error}") from error

    def rollouts(self) -> RolloutReward:
        """Raises a `JRMError` for what is wrong."""
        names = {field.name for field in fields(RolloutReward)} & {field.name for field in fields(RolloutSettings)}
        rollouts = RolloutReward(**{name: getattr(self, name) for name in names})
        rollouts.refuse_groups("verl asks for one reward at a time")
        rollouts.refuse_leaving_out("verl needs one for every rollout")
        return rollouts


@dataclass(frozen=True)
class JRMSettings(RolloutSettings, ScorerSettings):
    """What the section `reward.jrm` holds: the pool of scorers, and what is scored how.

    Args:
        model_path … lease: as in [`ScorerSettings`].
        task … save_folder: as in [`RolloutSettings`].

    Raises:
        JRMError: a value is missing or wrong.
    """

    section: ClassVar[str] = f"the settings {SECTION}"
    owner: ClassVar[str] = SECTION

    def __post_init__(self):
        ScorerSettings.__post_init__(self)
        RolloutSettings.__post_init__(self)

    def scorers(self) -> ScorerSettings:
        """Those that processes must have in common to share a pool."""
        return ScorerSettings(**{field.name: getattr(self, field.name) for field in fields(ScorerSettings)})


T = TypeVar("T", bound=RolloutSettings)


def defaults(kind: type[RolloutSettings] = JRMSettings) -> dict[str, Any]:
    """Every key of `reward.jrm`, or of other settings, with its default, as plain values."""
    return {field.name: field.default for field in fields(kind)}


def settings_of(given: Mapping[str, Any] | None, kind: type[T] = JRMSettings) -> T:
    """The settings in a section `reward.jrm`; or those of a reward function beside a model that is named elsewhere.

    Raises:
        JRMError: a key is unknown, or a value is missing or wrong.
    """
    given = OmegaConf.to_container(given, resolve=True) if isinstance(given, DictConfig) else dict(given or {})
    given = {name: value for name, value in given.items() if value != "???"}  # a value that YAML leaves to the user
    if unknown := sorted(given.keys() - defaults(kind).keys()):
        raise JRMError(f"{kind.owner} has no key {unknown[0]}; its keys are {', '.join(defaults(kind))}.")
    return kind(**given)


def choose_jrm(config: DictConfig) -> None:
    """Lets `reward_model: jrm` and `reward_model.reward_manager: jrm`, which verl passes over, choose the manager jrm.

    Where JRM is chosen, by these or by `reward.reward_manager.name: jrm`, `reward.jrm` gets every key that it lacks;
    otherwise the config stays as it is.

    Raises:
        JRMError: another reward manager is chosen beside it, or the config asks for something else that would keep JRM
            from being asked.
    """
    manager = config.reward.reward_manager
    chosen = manager.source == "register" and manager.name == "jrm"
    if _by_reward_model(config) and not chosen:
        if (manager.source, manager.name) != ("register", "naive"):  # verl's default
            raise JRMError(
                f"the config chooses JRM by reward_model and another reward manager, {manager.name}, by "
                "reward.reward_manager; leave one out."
            )
        with open_dict(config):
            manager.name = "jrm"
        chosen = True
    if not chosen:
        return
    if config.reward.reward_model.enable:
        raise JRMError(
            "with reward.reward_model.enable verl asks its own reward model and never JRM; leave it false, JRM loads "
            f"{SECTION}.model_path itself."
        )
    if config.reward.get("custom_reward_function") and config.reward.custom_reward_function.path is not None:
        raise JRMError(
            "the reward manager jrm calls no other reward function; leave reward.custom_reward_function.path out, or "
            "call compute_score_jrm in that function and leave the reward manager jrm out (docs/verl.md)."
        )
    settings = settings_of(config.reward.get("jrm"))
    with open_dict(config):
        config.reward.jrm = asdict(settings)


def refuse_reward_model(config: DictConfig) -> None:
    """For a verl in which nothing can be chosen for the user: says what to write instead of `reward_model: jrm`.

    Raises:
        JRMError: the config has `reward_model: jrm` or `reward_model.reward_manager: jrm`.
    """
    if _by_reward_model(config):
        raise JRMError(
            "this version of verl does not let reward_model choose JRM; write reward.reward_manager.name=jrm and leave "
            "reward_model out."
        )


def _by_reward_model(config: DictConfig) -> bool:
    given = config.get("reward_model")
    return (given.get("reward_manager") if isinstance(given, Mapping) else given) == "jrm"
