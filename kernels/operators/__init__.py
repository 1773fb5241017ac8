"""Operators on tensors, installed as `jrm_plugin.kernels`: the ranking loss and the pooling of reward tokens."""

from .group_ranking_loss import group_ranking_loss
from .plackett_luce_loss import plackett_luce_loss
from .pool_reward_tokens import check_reward_token_counts, pool_reward_tokens
from .uncertainty_ranking_loss import uncertainty_ranking_loss, win_probability

__all__ = [
    "check_reward_token_counts",
    "group_ranking_loss",
    "plackett_luce_loss",
    "pool_reward_tokens",
    "uncertainty_ranking_loss",
    "win_probability",
]
