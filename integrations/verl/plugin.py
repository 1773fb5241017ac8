"""What `import verl` loads, in the driver and in every worker: it waits for verl's modules and imports none.

- The registry of reward managers gets `jrm`.
- `resolve_reward_manager_cls`, the one place where verl reads the config to choose a manager, sees `reward_model: jrm`.
- Hydra's store of configs gets `reward=jrm` and `reward_model: jrm`.
"""

import functools
import warnings
from collections.abc import Callable
from importlib import import_module
from types import ModuleType

from wrapt import when_imported

# what went wrong, by what it is about; `jrm env` shows it
failures: dict[str, str] = {}


def _guarded(what: str) -> Callable:
    """What fails here must not break verl for those who do not use JRM: it is a warning, and `jrm env` repeats it."""

    def guard(install: Callable[[ModuleType], None]) -> Callable[[ModuleType], None]:
        @functools.wraps(install)
        def guarded(module: ModuleType) -> None:
            try:
                install(module)
            except Exception as error:
                failures[what] = f"{type(error).__name__}: {error}"
                warnings.warn(f"jrm-plugin could not add {what} to verl: {failures[what]}", stacklevel=2)

        return guarded

    return guard


@when_imported("verl.experimental.reward_loop.reward_manager.registry")
@_guarded("the reward manager jrm")
def _register(registry: ModuleType) -> None:
    import_module("jrm_plugin.integrations.verl.reward_manager")  # registers itself


@when_imported("verl.trainer.ppo.reward")
@_guarded("reward_model: jrm")
def _see_reward_model(reward: ModuleType) -> None:
    resolves = hasattr(reward, "resolve_reward_manager_cls")
    name = "resolve_reward_manager_cls" if resolves else "load_reward_manager"
    verls_own = getattr(reward, name)

    @functools.wraps(verls_own)
    def with_jrm(config, *args, **kwargs):
        from jrm_plugin.integrations.verl.settings import choose_jrm, refuse_reward_model

        (choose_jrm if resolves else refuse_reward_model)(config)
        return verls_own(config, *args, **kwargs)

    setattr(reward, name, with_jrm)


@when_imported("hydra.core.config_store")
@_guarded("the config groups")
def _add_config_groups(config_store: ModuleType) -> None:
    from jrm_plugin.integrations.verl.settings import defaults

    store = config_store.ConfigStore.instance().store
    reward = {"reward_manager": {"name": "jrm"}, "jrm": defaults()}
    store(group="reward", name="jrm", node={"defaults": ["reward", "_self_"], **reward}, provider="jrm-plugin")
    store(group="reward_model", name="jrm", package="_global_", node={"reward": reward}, provider="jrm-plugin")
