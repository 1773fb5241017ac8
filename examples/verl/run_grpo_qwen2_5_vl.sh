#!/usr/bin/env bash
# GRPO on Qwen2.5-VL with a JRM that judges its answers. Further arguments are overrides of the config.
#   JRM_MODEL=/models/jrm DATA=/data/questions bash examples/verl/run_grpo_qwen2_5_vl.sh
set -euo pipefail

JRM_MODEL=${JRM_MODEL:?set JRM_MODEL to a JRM folder that every node can read, or to a hub name}
DATA=${DATA:?set DATA to the folder of train.parquet and test.parquet}
GPUS=${GPUS:-3}         # of each node, for the policy and its rollouts
NODES=${NODES:-1}
REPLICAS=${REPLICAS:-1} # scorers, each with a GPU of its own beside those

exec python3 -m verl.trainer.main_ppo \
    --config-dir "$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)" --config-name grpo_qwen2_5_vl \
    reward.jrm.model_path="$JRM_MODEL" \
    reward.jrm.replicas="$REPLICAS" \
    data.train_files="$DATA/train.parquet" \
    data.val_files="$DATA/test.parquet" \
    trainer.n_gpus_per_node="$GPUS" \
    trainer.nnodes="$NODES" \
    "$@"
