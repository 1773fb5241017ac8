"""TRL's `GRPOConfig` for machines with and without a GPU."""

from trl import GRPOConfig

from jrm_plugin.integrations.trl.joint_reward_config import fit_to_device


class PolicyConfig(GRPOConfig):
    """`GRPOConfig`, whose `bf16`, where it is not given, is what the device can do; TRL's default is true."""

    def __post_init__(self):
        fit_to_device(self)
        super().__post_init__()
