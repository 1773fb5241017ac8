"""TRL: training a JRM on `RewardTrainer`, and using one as the reward of `GRPOTrainer` and `RLOOTrainer`."""

from jrm_plugin.integrations.trl.environment import jrm_reward
from jrm_plugin.integrations.trl.examples import to_dataset
from jrm_plugin.integrations.trl.joint_reward_config import JointRewardConfig
from jrm_plugin.integrations.trl.joint_reward_trainer import JointRewardTrainer
from jrm_plugin.integrations.trl.reward import JRMReward, jrm_rewards
from jrm_plugin.integrations.trl.text_reward import JRMForTextReward
from jrm_plugin.integrations.trl.train_arguments import TrainArguments
from jrm_plugin.integrations.trl.training import train
from jrm_plugin.rollouts import InvalidAnswer

__all__ = [
    "JRMForTextReward",
    "JRMReward",
    "JointRewardConfig",
    "JointRewardTrainer",
    "InvalidAnswer",
    "TrainArguments",
    "jrm_reward",
    "jrm_rewards",
    "to_dataset",
    "train",
]
