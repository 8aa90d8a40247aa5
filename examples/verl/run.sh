#!/usr/bin/env bash
# Name things with verl: GRPO's sampling and update, Poly-EPO's judge and advantages. Wants a GPU and vLLM.
#   examples/verl/run.sh MODEL OUTPUT [more of verl's settings]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd) model=$1 output=$2
shift 2
python "$here/task.py" "$output/data"
VERL_USE_EXTERNAL_MODULES=polyepo.integrations.verl python -m verl.trainer.main_ppo \
    algorithm.adv_estimator=poly_epo trainer.v1.trainer_mode=poly_epo "+poly_epo.method=$here/method.yaml" \
    data.train_files="$output/data/train.parquet" data.val_files="$output/data/heldout.parquet" \
    data.train_batch_size=8 data.max_prompt_length=64 data.max_response_length=8 \
    reward.custom_reward_function.path="$here/task.py" reward.custom_reward_function.name=compute_score \
    actor_rollout_ref.model.path="$model" actor_rollout_ref.rollout.name=vllm actor_rollout_ref.rollout.n=8 \
    actor_rollout_ref.rollout.tensor_model_parallel_size=1 actor_rollout_ref.rollout.gpu_memory_utilization=0.4 \
    actor_rollout_ref.actor.optim.lr=1e-6 actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum-norm \
    actor_rollout_ref.actor.ppo_mini_batch_size=8 actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=8 \
    actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=8 \
    trainer.n_gpus_per_node=1 trainer.nnodes=1 trainer.total_epochs=10 "trainer.logger=[console]" \
    trainer.project_name=poly-epo trainer.experiment_name=naming trainer.default_local_dir="$output" "$@"
