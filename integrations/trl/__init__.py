"""TRL: `JointRewardTrainer`, joint reward training on TRL's `RewardTrainer`."""

from jrm_plugin.integrations.trl.joint_reward_config import JointRewardConfig
from jrm_plugin.integrations.trl.joint_reward_trainer import JointRewardTrainer, to_dataset

__all__ = ["JointRewardConfig", "JointRewardTrainer", "to_dataset"]
