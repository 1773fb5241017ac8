"""Joint Reward Modeling (JRM) for RLHF frameworks.

`import jrm_plugin` is cheap: nothing below is imported before it is used.
"""

from importlib import import_module

__version__ = "0.1.0"

_EXPORTS = {
    "JRMError": "errors",
    "Sample": "records.samples",
    "PreferencePair": "records.preferences",
    "CritiqueExample": "records.preferences",
    "Critique": "records.critiques",
    "EditRegion": "records.critiques",
    "RepairedCritique": "records.critiques",
    "UnparsedCritique": "records.critiques",
    "RewardScore": "records.scores",
    "group_rewards": "records.scores",
    "group_advantages": "records.scores",
    "JRMConfig": "model.configuration",
    "JRMForRewardModeling": "model.modeling",
    "JRMProcessor": "model.processing",
    "RewardScorer": "scoring.scorer",
    "joint_loss": "training.losses",
    "self_correct": "correction.loop",
}

__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module 'jrm_plugin' has no attribute {name!r}")
    return getattr(import_module(f"jrm_plugin.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
