# Sourced by the recipes beside it: the paper's settings for Flow-GRPO (appendix B.2), JRM as the reward, the machines.
# Fills the array `common` with overrides of verl-omni's config.

JRM_MODEL=${JRM_MODEL:?set JRM_MODEL to a JRM folder that every node can read, or to a hub name}
DATA=${DATA:?set DATA to the folder of train.parquet and test.parquet}
OUTPUT=${OUTPUT:-outputs/verl_omni}
GPUS=${GPUS:-6}         # of each node, for the policy and its rollouts
NODES=${NODES:-1}
REPLICAS=${REPLICAS:-2} # scorers, each with a GPU of its own beside those
TRAINER=${TRAINER:-verl_omni.trainer.main_diffusion}

common=(
    # Global batch 288, groups of 12: 24 instructions with 12 images each, in two updates.
    data.train_batch_size=24
    actor_rollout_ref.rollout.n=12
    actor_rollout_ref.actor.ppo_mini_batch_size=12
    actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=6
    actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=6
    actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=6
    # T = 20, diffusion coefficient 0.9
    actor_rollout_ref.rollout.pipeline.num_inference_steps=20
    actor_rollout_ref.rollout.algo.sde_type=sde
    actor_rollout_ref.rollout.algo.noise_level=0.9
    # The paper clips at 1e-4 below and 5e-4 above; verl-omni has one bound for both sides.
    actor_rollout_ref.actor.diffusion_loss.clip_ratio=0.0001
    actor_rollout_ref.actor.optim.lr=4e-4
    # KL coefficient 0.04
    actor_rollout_ref.actor.use_kl_loss=True
    actor_rollout_ref.actor.kl_loss_coef=0.04
    actor_rollout_ref.model.lora_rank=32
    actor_rollout_ref.model.lora_alpha=64

    # Not in the paper: as in verl-omni's own recipes for editing.
    actor_rollout_ref.model.algorithm=flow_grpo
    actor_rollout_ref.model.lora_dtype=float32
    algorithm.global_std=False
    actor_rollout_ref.actor.optim.weight_decay=0.0001
    actor_rollout_ref.actor.fsdp_config.model_dtype=bfloat16
    actor_rollout_ref.actor.fsdp_config.param_offload=True
    actor_rollout_ref.actor.fsdp_config.optimizer_offload=True
    actor_rollout_ref.rollout.name=vllm_omni
    actor_rollout_ref.rollout.tensor_model_parallel_size=1
    actor_rollout_ref.rollout.agent.num_workers=$((GPUS * NODES))
    actor_rollout_ref.rollout.load_format=safetensors
    actor_rollout_ref.rollout.layered_summon=True
    actor_rollout_ref.rollout.pipeline.height=512
    actor_rollout_ref.rollout.pipeline.width=512
    actor_rollout_ref.rollout.val_kwargs.pipeline.num_inference_steps=40
    actor_rollout_ref.rollout.val_kwargs.algo.noise_level=0.0

    # The reward. verl-omni's schema has no section reward.jrm, hence the plus signs.
    reward.num_workers=4
    reward.reward_model.enable=False
    reward.reward_manager.source=importlib
    reward.reward_manager.module.path=pkg://jrm_plugin.integrations.verl_omni
    reward.reward_manager.name=JRMVisualRewardManager
    +reward.jrm.model_path="$JRM_MODEL"
    +reward.jrm.task=edit
    +reward.jrm.mode=mean
    +reward.jrm.num_gpus=1
    +reward.jrm.replicas="$REPLICAS"

    data.train_files="$DATA/train.parquet"
    data.val_files="$DATA/test.parquet"
    data.seed=42
    actor_rollout_ref.rollout.seed=42
    trainer.n_gpus_per_node="$GPUS"
    trainer.nnodes="$NODES"
    trainer.total_training_steps=300
    trainer.total_epochs=100
    trainer.save_freq=25
    trainer.test_freq=25
    trainer.log_val_generations=8
    trainer.logger='["console","tensorboard"]'
    trainer.project_name=jrm
    trainer.default_local_dir="$OUTPUT/checkpoints"
)
