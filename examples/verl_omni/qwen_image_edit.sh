#!/usr/bin/env bash
# Flow-GRPO on Qwen-Image-Edit-2511 with a JRM as the reward. Further arguments are overrides of verl-omni's config.
#   JRM_MODEL=/models/jrm DATA=/data/edits bash examples/verl_omni/qwen_image_edit.sh
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

MODEL=${MODEL:-Qwen/Qwen-Image-Edit-2511}
PROMPT_LENGTH=8192 # tokens, the source image's among them

exec python3 -m "$TRAINER" "${common[@]}" \
    trainer.experiment_name=qwen_image_edit \
    actor_rollout_ref.model.path="$MODEL" \
    actor_rollout_ref.model.target_modules="[to_q,to_k,to_v,to_out.0,add_q_proj,add_k_proj,add_v_proj,to_add_out,img_mlp.net.0.proj,img_mlp.net.2,txt_mlp.net.0.proj,txt_mlp.net.2]" \
    actor_rollout_ref.rollout.pipeline.true_cfg_scale=4.0 \
    actor_rollout_ref.rollout.pipeline.max_sequence_length=$PROMPT_LENGTH \
    data.max_prompt_length=$PROMPT_LENGTH \
    +actor_rollout_ref.rollout.engine_kwargs.vllm_omni.mm_processor_cache_gb=0 \
    "$@"
