"""Joint Reward Modeling (JRM) for RLHF frameworks.

`import jrm_plugin` is cheap: nothing below is imported before it is used.
"""

from importlib import import_module

__version__ = "0.1.0"

_EXPORTS = {
    "JRMError": "errors",
    "Sample": "samples",
    "PreferencePair": "samples",
    "CritiqueExample": "samples",
    "Critique": "samples",
    "EditRegion": "samples",
    "RewardScore": "samples",
    "JRMConfig": "configuration",
    "JRMForRewardModeling": "modeling",
    "JRMProcessor": "processing",
    "RewardScorer": "scoring",
    "RepairedCritique": "scoring",
    "UnparsedCritique": "scoring",
    "group_rewards": "rewards",
    "group_advantages": "rewards",
    "joint_loss": "losses",
    "self_correct": "self_correction",
}

__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module 'jrm_plugin' has no attribute {name!r}")
    return getattr(import_module(f"jrm_plugin.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
