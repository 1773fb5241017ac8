"""verl: the reward manager `jrm`, and the function `compute_score_jrm` for one of several rewards.

verl loads `plugin` by itself (entry point group `verl.plugins`); nothing needs to be imported by hand. `plugin` lies in
this package and comes with every `import verl`, so the package imports nothing before it is asked for.
"""

from importlib import import_module

_EXPORTS = {"JRMRewardManager": "reward_manager", "JRMSettings": "settings", "compute_score_jrm": "compute_score"}

__all__ = ["JRMRewardManager", "JRMSettings", "compute_score_jrm", "registered"]


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module 'jrm_plugin.integrations.verl' has no attribute {name!r}")
    return getattr(import_module(f"jrm_plugin.integrations.verl.{_EXPORTS[name]}"), name)


def registered() -> str:
    """How verl sees JRM.

    Raises:
        RuntimeError: it does not; the message says why.
    """
    import verl
    from verl.experimental.reward_loop.reward_manager import get_reward_manager_cls

    from jrm_plugin.integrations.verl import plugin

    if plugin.failures:
        raise RuntimeError("; ".join(f"{what}: {why}" for what, why in plugin.failures.items()))
    get_reward_manager_cls("jrm")
    return f"registered as the reward manager jrm of verl {verl.__version__}"
