"""Joint Reward Modeling (JRM) for RLHF frameworks.

`import jrm_plugin` is cheap: nothing below is imported before it is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:  # what type checkers see; Python itself takes each name from the table below when it is asked for
    from jrm_plugin.correction.loop import self_correct as self_correct
    from jrm_plugin.data.preferences import read_preferences as read_preferences
    from jrm_plugin.errors import JRMError as JRMError
    from jrm_plugin.model.configuration import JRMConfig as JRMConfig
    from jrm_plugin.model.lora import lora_config as lora_config
    from jrm_plugin.model.modeling import JRMForRewardModeling as JRMForRewardModeling
    from jrm_plugin.model.processing import JRMProcessor as JRMProcessor
    from jrm_plugin.records.critiques import Critique as Critique
    from jrm_plugin.records.critiques import EditRegion as EditRegion
    from jrm_plugin.records.critiques import RepairedCritique as RepairedCritique
    from jrm_plugin.records.critiques import UnparsedCritique as UnparsedCritique
    from jrm_plugin.records.images import ImageLike as ImageLike
    from jrm_plugin.records.preferences import CritiqueExample as CritiqueExample
    from jrm_plugin.records.preferences import PreferencePair as PreferencePair
    from jrm_plugin.records.preferences import RankedGroup as RankedGroup
    from jrm_plugin.records.samples import Sample as Sample
    from jrm_plugin.records.scores import RewardScore as RewardScore
    from jrm_plugin.records.scores import group_advantages as group_advantages
    from jrm_plugin.records.scores import group_rewards as group_rewards
    from jrm_plugin.scoring.loading import load_scorer as load_scorer
    from jrm_plugin.scoring.protocol import Ranked as Ranked
    from jrm_plugin.scoring.protocol import Scorer as Scorer
    from jrm_plugin.scoring.remote import RewardClient as RewardClient
    from jrm_plugin.scoring.scorer import RewardScorer as RewardScorer
    from jrm_plugin.training.losses import joint_loss as joint_loss

_EXPORTS = {
    "JRMError": "errors",
    "ImageLike": "records.images",
    "Sample": "records.samples",
    "PreferencePair": "records.preferences",
    "RankedGroup": "records.preferences",
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
    "lora_config": "model.lora",
    "read_preferences": "data.preferences",
    "Scorer": "scoring.protocol",
    "Ranked": "scoring.protocol",
    "load_scorer": "scoring.loading",
    "RewardScorer": "scoring.scorer",
    "RewardClient": "scoring.remote",
    "joint_loss": "training.losses",
    "self_correct": "correction.loop",
}

__all__ = ["__version__", *_EXPORTS]


if not TYPE_CHECKING:  # a type checker would take any name for one that is there

    def __getattr__(name: str) -> Any:
        if name not in _EXPORTS:
            raise AttributeError(f"module 'jrm_plugin' has no attribute {name!r}")
        return getattr(import_module(f"jrm_plugin.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
