"""One training step's update: from a batch of scored responses to new weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.distributed.tensor import DTensor

from polyepo.config import SamplingConfig, UpdateConfig
from polyepo.errors import PolyepoError
from polyepo.policy.loss import surrogate_loss, token_weights
from polyepo.policy.model import Policy, gradient_checkpointing, micro_batches, response_logprobs
from polyepo.seeds import derive_seed

# Rows that a rank computes without effect, when it has fewer micro-batches than others.
_FILLER = np.array([0])


class NonFiniteError(PolyepoError, FloatingPointError):
    """A loss, gradient or log-probability is NaN or infinite; the weights were not touched by it."""

    resumable = False


@dataclass(frozen=True)
class Batch:
    """A step's scored responses, R rows; rows of one problem are its group."""

    problem_ids: Sequence[str]
    prompts: Sequence[Sequence[int]]
    responses: Sequence[Sequence[int]]
    sampler_logprobs: Sequence[np.ndarray]
    advantages: np.ndarray
    truncated: np.ndarray
    """Whether a response was cut off at the limit, (R,)."""

    def select(self, rows: np.ndarray) -> Batch:
        """The given rows, in that order."""
        return Batch(
            [self.problem_ids[r] for r in rows],
            [self.prompts[r] for r in rows],
            [self.responses[r] for r in rows],
            [self.sampler_logprobs[r] for r in rows],
            self.advantages[rows],
            self.truncated[rows],
        )

    def micro_batches(self, budget: int) -> list[np.ndarray]:
        """Row indices of groups within a token budget."""
        lengths = [(len(p), len(r)) for p, r in zip(self.prompts, self.responses, strict=True)]
        return micro_batches(lengths, budget)


@dataclass(frozen=True)
class UpdateMetrics:
    """What an update measured. Means are over response tokens; entropies are in nats."""

    loss: float
    grad_norm: float
    clip_fraction: float
    entropy: float
    logprob_mismatch: float
    logprob_mismatch_max: float
    importance_weight_max: float
    lr: float
    num_responses: int
    num_tokens: int
    num_optimizer_steps: int


@dataclass(frozen=True)
class OldPolicy:
    """What the policy before the update says of each row: its log-probabilities, and how the sampler's differ."""

    logprobs: list[torch.Tensor]
    importance: list[torch.Tensor]
    entropy: float
    mismatch: float
    mismatch_max: float
    importance_max: float


def update(policy: Policy, batch: Batch, config: UpdateConfig, sampling: SamplingConfig, seed: int) -> UpdateMetrics:
    """Update the policy in place and advance its version.

    A pure function of the policy, the batch and the seed: bit-identical when repeated on the CPU. Prompts whose
    advantages are all exactly 0 take no part in the backward pass, but in every denominator.

    Raises:
        NonFiniteError: a log-probability, loss or gradient is NaN or infinite. The optimizer step it would have gone
            into was not taken; discard the policy if `epochs` or minibatches had changed it before.
    """
    step = policy.version + 1
    lr = config.lr * min(1.0, step / config.warmup_steps) if config.warmup_steps else config.lr
    for group in policy.optimizer.param_groups:
        group.update(lr=lr, betas=config.betas, weight_decay=config.weight_decay)
    old = _old_policy(policy, batch, config, sampling)
    losses, norms, clipped, trained_tokens = [], [], 0.0, 0
    for epoch in range(config.epochs):
        for rows in _minibatches(batch, config, derive_seed(seed, step, "minibatches", epoch)):
            with gradient_checkpointing(policy.model, config.gradient_checkpointing):
                loss, num_clipped, num_tokens = _accumulate_gradients(policy, batch, rows, old, config, sampling)
            losses.append(loss)
            norms.append(_optimizer_step(policy, config.max_grad_norm, loss))
            clipped += num_clipped
            trained_tokens += num_tokens
    policy.version = step
    return UpdateMetrics(
        loss=float(np.mean(losses)),
        grad_norm=float(np.mean(norms)),
        clip_fraction=clipped / max(trained_tokens, 1),
        entropy=old.entropy,
        logprob_mismatch=old.mismatch,
        logprob_mismatch_max=old.mismatch_max,
        importance_weight_max=old.importance_max,
        lr=lr,
        num_responses=len(batch.responses),
        num_tokens=sum(map(len, batch.responses)),
        num_optimizer_steps=len(losses),
    )


@torch.no_grad()
def _old_policy(policy: Policy, batch: Batch, config: UpdateConfig, sampling: SamplingConfig) -> OldPolicy:
    """Recompute log-probabilities with the trainer's own weights, once: the sampler's differ slightly.

    Each rank computes some rows and has all in the end: another may train on them.
    """
    ranks = policy.ranks
    lengths = [len(response) for response in batch.responses]
    starts = np.cumsum([0, *lengths])
    flat = torch.zeros(starts[-1], dtype=policy.logprob_dtype, device=policy.device)
    entropy = 0.0
    for rows in ranks.share(batch.micro_batches(config.micro_batch_tokens)):
        part = batch.select(_FILLER if rows is None else rows)
        logprobs_BR, entropy_BR, mask_BR = response_logprobs(
            policy.model, part.prompts, part.responses, sampling.temperature
        )
        if rows is None:
            continue
        entropy += float(entropy_BR[mask_BR].double().sum())
        for b, row in enumerate(rows):
            flat[starts[row] : starts[row + 1]] = logprobs_BR[b, : lengths[row]]
    (entropy,) = ranks.sum(entropy)
    logprobs = list(ranks.fill(flat).split(lengths))
    if not torch.isfinite(flat).all():
        raise NonFiniteError(f"step {policy.version + 1}: the policy's log-probabilities are not finite")
    sampler = torch.as_tensor(np.concatenate(batch.sampler_logprobs), dtype=flat.dtype, device=flat.device)
    difference = flat - sampler
    weight = difference.exp()
    return OldPolicy(
        logprobs,
        list(weight.split(lengths)),
        entropy / len(flat),
        float(difference.abs().double().sum()) / len(flat),
        float(difference.abs().max()),
        float(weight.max()),
    )


def _minibatches(batch: Batch, config: UpdateConfig, seed: int) -> list[np.ndarray]:
    """Row indices by minibatch: prompts are shuffled, a prompt's responses stay together."""
    rows_by_problem: dict[str, list[int]] = {}
    for row, problem_id in enumerate(batch.problem_ids):
        rows_by_problem.setdefault(problem_id, []).append(row)
    groups = list(rows_by_problem.values())
    size = config.prompts_per_minibatch or len(groups)
    if size < len(groups):
        groups = [groups[g] for g in np.random.default_rng(seed).permutation(len(groups))]
    return [np.concatenate([np.array(g) for g in groups[i : i + size]]) for i in range(0, len(groups), size)]


def _accumulate_gradients(
    policy: Policy,
    batch: Batch,
    rows: np.ndarray,
    old: OldPolicy,
    config: UpdateConfig,
    sampling: SamplingConfig,
) -> tuple[float, float, int]:
    """Backward passes over one minibatch; returns its loss, its clipped tokens and the tokens that took part."""
    if config.overlong_filtering:
        rows = rows[~batch.truncated[rows]]
    minibatch = batch.select(rows)
    num_tokens = sum(map(len, minibatch.responses))
    silent = _problems_without_signal(minibatch)
    active = np.array([r for r in rows if batch.problem_ids[r] not in silent], dtype=int)
    total, clipped, trained = 0.0, 0.0, 0
    policy.optimizer.zero_grad(set_to_none=True)
    if not len(active):
        return total, clipped, trained
    for local in policy.ranks.share(batch.select(active).micro_batches(config.micro_batch_tokens)):
        micro_rows = active[_FILLER if local is None else local]
        part = batch.select(micro_rows)
        logprobs_BR, _, mask_BR = response_logprobs(policy.model, part.prompts, part.responses, sampling.temperature)
        pad = torch.nn.utils.rnn.pad_sequence
        old_BR = pad([old.logprobs[r] for r in micro_rows], batch_first=True)
        advantages_B = torch.as_tensor(part.advantages, dtype=logprobs_BR.dtype, device=policy.device)
        losses_BR, clipped_BR = surrogate_loss(
            logprobs_BR,
            torch.where(mask_BR, old_BR, logprobs_BR.detach()),
            advantages_B,
            config.clip_low,
            config.clip_high,
        )
        if config.importance_cap is not None:
            weights_BR = pad([old.importance[r] for r in micro_rows], batch_first=True)
            losses_BR = losses_BR * weights_BR.clamp_max(config.importance_cap)
        weights_BR = token_weights(
            mask_BR, config.loss_norm, len(minibatch.responses), num_tokens, sampling.max_response_tokens
        )
        if local is None:
            mask_BR, weights_BR = torch.zeros_like(mask_BR), torch.zeros_like(weights_BR)
        loss = (losses_BR.double() * weights_BR).sum()
        # FSDP averages the ranks' gradients, and the weights divide by the whole minibatch already.
        (loss * policy.ranks.size).backward()
        total += float(loss.detach())
        clipped += float((clipped_BR & mask_BR).sum())
        trained += int(mask_BR.sum())
    loss_sum, clipped_sum, trained_sum = policy.ranks.sum(total, clipped, trained)
    if not math.isfinite(loss_sum):
        policy.optimizer.zero_grad(set_to_none=True)
        raise NonFiniteError(f"step {policy.version + 1}: loss is {loss_sum}; the weights were not updated")
    return loss_sum, clipped_sum, int(trained_sum)


def _problems_without_signal(batch: Batch) -> set[str]:
    loud = {p for p, a in zip(batch.problem_ids, batch.advantages, strict=True) if a != 0}
    return set(batch.problem_ids) - loud


def _optimizer_step(policy: Policy, max_grad_norm: float, loss: float) -> float:
    """Clip and step; returns the gradient's norm before clipping. A minibatch without signal still decays momentum."""
    parameters = [p for p in policy.model.parameters() if p.requires_grad]
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    total_norm = torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    norm = float(total_norm.full_tensor() if isinstance(total_norm, DTensor) else total_norm)
    if not math.isfinite(norm):
        policy.optimizer.zero_grad(set_to_none=True)
        raise NonFiniteError(
            f"step {policy.version + 1}: gradient norm is {norm} at loss {loss}; the weights were not updated"
        )
    policy.optimizer.step()
    policy.optimizer.zero_grad(set_to_none=True)
    return norm


@torch.no_grad()
def compute_logprobs(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    temperature: float,
    micro_batch_tokens: int,
) -> list[np.ndarray]:
    """Of each response, the log-probabilities of its tokens under softmax(logits / temperature)."""
    lengths = [len(response) for response in responses]
    starts = np.cumsum([0, *lengths])
    flat = torch.zeros(starts[-1], dtype=policy.logprob_dtype, device=policy.device)
    pairs = [(len(p), len(r)) for p, r in zip(prompts, responses, strict=True)]
    for rows in policy.ranks.share(micro_batches(pairs, micro_batch_tokens)):
        chosen = _FILLER if rows is None else rows
        logprobs_BR, _, _ = response_logprobs(
            policy.model, [prompts[r] for r in chosen], [responses[r] for r in chosen], temperature
        )
        for b, row in enumerate([] if rows is None else rows):
            flat[starts[row] : starts[row + 1]] = logprobs_BR[b, : lengths[row]]
    return [part.cpu().numpy() for part in policy.ranks.fill(flat).split(lengths)]
