"""Our update against TRL's GRPO loss, where the two are the same by definition: sets of one, mean reward.

    pip install trl==1.16.0 accelerate datasets     # into an environment that has this project
    python benchmarks/trl_loss.py

Takes real rollouts of a base model, and applies two steps of gradient descent: once by `polyepo.policy.update`, once by
GRPOTrainer's own loss. The second is off-policy, so its ratios are not 1 and some are
clipped. TRL computes its head in float32, hence the tolerance.
"""

from __future__ import annotations

import copy
import sys
import tempfile
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from polyepo.config import UpdateConfig, load_config
from polyepo.policy.model import Policy
from polyepo.policy.trainer import LocalTrainer
from polyepo.policy.update import Batch, update
from tasks.checkpoint import warm_start
from tasks.judge import judge
from tasks.runs.models import warm_start_digest
from tasks.runs.policies import policy_at, training_batch
from tasks.runs.run import Run, create_or_resume
from tasks.sample import sample
from tasks.score import score

LOSS_TYPES = {"constant": "dr_grpo", "response": "grpo", "token": "dapo"}
LR, EPOCHS, TOLERANCE = 1.0, 2, 1e-6


def scored_step(root: str) -> Run:
    """A run whose first step is sampled, judged and scored: advantages of sets of one are reward - mean reward."""
    settings = {
        "arms": {},
        "policy.warm_start.steps": 200,
        "scoring": {"method": "poly_epo", "objective": "mean_reward", "set_size": 1},
    }
    config = load_config("configs/quickstart.yaml", settings).runs("trl")["trl"]
    warm_start.fn(root, config, warm_start_digest(config))
    run = create_or_resume(root, "trl", config)
    for shard in range(config.sampling.shards):
        sample.fn(root, "trl", 1, shard)
        judge.fn(root, "trl", 1, shard)
    score.fn(root, "trl", 1)
    return run


def group_advantages(run: Run) -> np.ndarray:
    """reward - mean reward of the prompt, without our library."""
    rewards = run.store.read_table(run.scores_key(1), ["reward"])["reward"].to_numpy()
    groups = rewards.reshape(-1, run.config.sampling.num_responses)
    return (groups - groups.mean(-1, keepdims=True)).ravel()


def trl_inputs(batch: Batch, advantages: np.ndarray) -> dict[str, Any]:
    """A batch as GRPOTrainer wants it: prompts padded on the left, completions on the right."""

    def padded(rows: Any, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
        width = max(map(len, rows))
        ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
        for i, row in enumerate(rows):
            where = slice(width - len(row), width) if left else slice(0, len(row))
            ids[i, where], mask[i, where] = torch.tensor(row), 1
        return ids, mask

    prompt_ids, prompt_mask = padded(batch.prompts, left=True)
    completion_ids, completion_mask = padded(batch.responses, left=False)
    return {
        "prompt_ids": prompt_ids,
        "prompt_mask": prompt_mask,
        "completion_ids": completion_ids,
        "completion_mask": completion_mask,
        "advantages": torch.as_tensor(advantages),
        "num_items_in_batch": completion_mask.sum(),
    }


def trl_update(policy: Policy, batch: Batch, run: Run, config: UpdateConfig, scratch: str) -> list[float]:
    """EPOCHS steps on GRPOTrainer's loss, in place; returns the losses."""
    arguments = GRPOConfig(
        output_dir=scratch,
        loss_type=LOSS_TYPES[config.loss_norm],
        beta=0.0,
        epsilon=config.clip_low,
        epsilon_high=config.clip_high,
        max_completion_length=run.config.sampling.max_response_tokens,
        temperature=run.config.sampling.temperature,
        per_device_train_batch_size=len(batch.responses),
        num_generations=run.config.sampling.num_responses,
        gradient_accumulation_steps=1,
        gradient_checkpointing=False,
        use_cpu=True,
        bf16=False,
        report_to=[],
    )
    trainer = GRPOTrainer(
        model=policy.model,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": ["1"]}),
        processing_class=policy.language.tokenizer,
    )
    trainer.current_gradient_accumulation_steps = 1
    inputs = trl_inputs(batch, group_advantages(run))
    policy.model.eval()  # no dropout on either side; TRL's loss is then the one of a batch that is not accumulated
    with torch.no_grad():
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        width = inputs["completion_ids"].size(1)
        inputs["old_per_token_logps"] = trainer._get_per_token_logps_and_entropies(policy.model, ids, mask, width)[0]
    losses = []
    for _ in range(EPOCHS):
        loss = trainer._compute_loss(policy.model, inputs)
        policy.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.model.parameters(), config.max_grad_norm)
        policy.optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def main() -> None:
    """Print losses and the largest difference of any weight; exit 1 if the two disagree."""
    agree = True
    with tempfile.TemporaryDirectory() as scratch:
        run = scored_step(f"{scratch}/root")
        trainer = policy_at(run, 0)
        assert isinstance(trainer, LocalTrainer)
        start = trainer.policy
        start.model.double()
        batch = training_batch(run, 1)
        print(
            f"{'loss_norm':>10} {'TRL':>8} {'our loss':>13} {'TRL loss':>13} {'clipped':>8} {'weights differ by':>18}"
        )
        for norm, loss_type in LOSS_TYPES.items():
            config = UpdateConfig(lr=LR, epochs=EPOCHS, loss_norm=norm)
            ours, theirs = fresh(start), fresh(start)
            metrics = update(ours, batch, config, run.config.sampling, seed=0)
            trl_loss = float(np.mean(trl_update(theirs, batch, run, config, scratch)))
            pairs = zip(ours.model.parameters(), theirs.model.parameters(), strict=True)
            difference = max(float((a - b).abs().max().detach()) for a, b in pairs)
            agree = agree and abs(metrics.loss - trl_loss) < TOLERANCE and difference < TOLERANCE
            print(
                f"{norm:>10} {loss_type:>8} {metrics.loss:13.9f} {trl_loss:13.9f} {metrics.clip_fraction:8.1%} "
                f"{difference:18.1e}"
            )
    sys.exit(0 if agree else f"ours and TRL's differ by more than {TOLERANCE}")


def fresh(policy: Policy) -> Policy:
    """A copy with an optimizer of its own."""
    model = copy.deepcopy(policy.model)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    return Policy(model, policy.language, optimizer)


if __name__ == "__main__":
    main()
