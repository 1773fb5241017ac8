#!/usr/bin/env bash
# Flow-GRPO on Boogu-Image-0.1-Edit with a JRM as the reward. Further arguments are overrides of verl-omni's config.
# Of the editors that verl-omni trains it is the nearest to the paper's OmniGen2. MODEL is the checkpoint's folder.
#   MODEL=/models/boogu JRM_MODEL=/models/jrm DATA=/data/edits bash examples/verl_omni/boogu_image_edit.sh
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

MODEL=${MODEL:?set MODEL to the folder of Boogu/Boogu-Image-0.1-Edit, whose tokenizer is in its subfolder processor}
PROMPT_LENGTH=1024 # tokens, the source image's among them
# Images of one forward pass: as many in the rollout as when its log-probabilities are computed again.
BATCH=6

exec python3 -m "$TRAINER" "${common[@]}" \
    trainer.experiment_name=boogu_image_edit \
    actor_rollout_ref.model.path="$MODEL" \
    actor_rollout_ref.model.tokenizer_path="$MODEL/processor" \
    actor_rollout_ref.model.trust_remote_code=True \
    actor_rollout_ref.model.target_modules="[to_q,to_k,to_v,to_out.0,img_to_q,img_to_k,img_to_v,img_out,instruct_to_q,instruct_to_k,instruct_to_v,instruct_out,feed_forward.linear_1,feed_forward.linear_2,feed_forward.linear_3,img_feed_forward.linear_1,img_feed_forward.linear_2,img_feed_forward.linear_3]" \
    actor_rollout_ref.model.fsdp_layer_prefixes="[double_stream_layers.,single_stream_layers.,context_refiner.,noise_refiner.,ref_image_refiner.]" \
    actor_rollout_ref.rollout.pipeline.guidance_scale=4.0 \
    actor_rollout_ref.rollout.pipeline.max_sequence_length=$PROMPT_LENGTH \
    data.max_prompt_length=$PROMPT_LENGTH \
    +actor_rollout_ref.rollout.engine_kwargs.vllm_omni.max_num_seqs=$BATCH \
    +actor_rollout_ref.rollout.engine_kwargs.vllm_omni.request_batch_max_wait_ms=10 \
    "$@"
