"""One training step's update: from a batch of scored responses to new weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.distributed.tensor import DTensor

from polyepo.config import SamplingConfig, UpdateConfig
from polyepo.errors import PolyepoError
from polyepo.policy.logprobs import backward_pass
from polyepo.policy.loss import surrogate_loss, token_weights
from polyepo.policy.model import Policy
from polyepo.policy.schedule import learning_rate
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
class Mismatch:
    """How the log-probabilities of sampler and trainer differ, in nats, and the largest ratio trainer/sampler."""

    mean: float
    max: float
    importance_max: float


class OldPolicy:
    """What the policy before the update says of each response token: of N tokens, as far as it was computed.

    Each rank computes some rows, and has all of them after `complete`: another may have to train on them.
    """

    def __init__(self, policy: Policy, batch: Batch) -> None:
        self._ranks = policy.ranks
        self._lengths = [len(response) for response in batch.responses]
        self._starts = np.cumsum([0, *self._lengths])
        self._logprobs_N = torch.zeros(self._starts[-1], dtype=policy.logprob_dtype, device=policy.device)
        self._sampler_N = torch.as_tensor(np.concatenate(batch.sampler_logprobs)).to(self._logprobs_N)
        self._entropy = 0.0

    def note(
        self, rows: np.ndarray, logprobs_BR: torch.Tensor, entropy_BR: torch.Tensor | None, mask_BR: torch.Tensor
    ) -> None:
        """Log-probabilities and entropies of some rows' tokens."""
        assert entropy_BR is not None
        self._entropy += float(entropy_BR[mask_BR].double().sum())
        for b, row in enumerate(rows):
            self._logprobs_N[self._starts[row] : self._starts[row + 1]] = logprobs_BR[b, : self._lengths[row]].detach()

    def complete(self) -> None:
        """Learn what other ranks have noted; every row must have been by one of them."""
        self._logprobs_N = self._ranks.fill(self._logprobs_N)
        (self._entropy,) = self._ranks.sum(self._entropy)

    def logprobs(self, rows: np.ndarray) -> torch.Tensor:
        """(B, R), padded with zeros."""
        return self._padded(self._logprobs_N, rows)

    def sampler_logprobs(self, rows: np.ndarray) -> torch.Tensor:
        """(B, R), padded with zeros: the sampler's."""
        return self._padded(self._sampler_N, rows)

    @property
    def finite(self) -> bool:
        """Whether all log-probabilities are numbers."""
        return bool(torch.isfinite(self._logprobs_N).all())

    @property
    def entropy(self) -> float:
        """Mean over all tokens, in nats."""
        return self._entropy / len(self._logprobs_N)

    def mismatch(self) -> Mismatch:
        """Over all tokens."""
        difference_N = self._logprobs_N - self._sampler_N
        mean = float(difference_N.abs().double().sum()) / len(difference_N)
        return Mismatch(mean, float(difference_N.abs().max()), float(difference_N.max().exp()))

    def _padded(self, values_N: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
        parts = [values_N[self._starts[row] : self._starts[row + 1]] for row in rows]
        return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)


def update(policy: Policy, batch: Batch, config: UpdateConfig, sampling: SamplingConfig, seed: int) -> UpdateMetrics:
    """Update the policy in place and advance its version.

    A pure function of the policy, the batch and the seed: bit-identical when repeated on the CPU. Prompts whose
    advantages are all exactly 0 take no part in the backward pass, but in every denominator.

    Raises:
        NonFiniteError: a log-probability, loss or gradient is NaN or infinite. The optimizer step it would have gone
            into was not taken; discard the policy if `epochs` or minibatches had changed it before.
    """
    step = policy.version + 1
    lr = learning_rate(config, step)
    for group in policy.optimizer.param_groups:
        decays = config.decay_norms_and_biases or group["matrices"]
        group.update(lr=lr, betas=config.betas, weight_decay=config.weight_decay if decays else 0.0)
    minibatches = [
        rows
        for epoch in range(config.epochs)
        for rows in _minibatches(batch, config, derive_seed(seed, step, "minibatches", epoch))
    ]
    old = OldPolicy(policy, batch)
    # In the first minibatch the policy is the old one still, so that its own pass tells what the old one says.
    first = _rows_with_signal(batch, _unfiltered(batch, minibatches[0], config))
    _recompute(policy, batch, np.setdiff1d(np.arange(len(batch.responses)), first), old, config, sampling)
    losses, norms, clipped, trained_tokens = [], [], 0.0, 0
    for number, rows in enumerate(minibatches):
        with backward_pass(policy.model, policy.engine, config.gradient_checkpointing):
            loss, num_clipped, num_tokens = _accumulate_gradients(
                policy, batch, rows, old, config, sampling, is_old=number == 0
            )
        if number == 0:
            old.complete()
            if not old.finite:
                raise NonFiniteError(f"step {step}: the policy's log-probabilities are not finite")
        if not math.isfinite(loss):
            raise NonFiniteError(f"step {step}: loss is {loss}; the weights were not updated")
        losses.append(loss)
        norms.append(_optimizer_step(policy, config.max_grad_norm, loss))
        clipped += num_clipped
        trained_tokens += num_tokens
    mismatch = old.mismatch()
    policy.version = step
    return UpdateMetrics(
        loss=float(np.mean(losses)),
        grad_norm=float(np.mean(norms)),
        clip_fraction=clipped / max(trained_tokens, 1),
        entropy=old.entropy,
        logprob_mismatch=mismatch.mean,
        logprob_mismatch_max=mismatch.max,
        importance_weight_max=mismatch.importance_max,
        lr=lr,
        num_responses=len(batch.responses),
        num_tokens=sum(map(len, batch.responses)),
        num_optimizer_steps=len(losses),
    )


@torch.no_grad()
def _recompute(
    policy: Policy, batch: Batch, rows: np.ndarray, old: OldPolicy, config: UpdateConfig, sampling: SamplingConfig
) -> None:
    """Log-probabilities by the trainer's own weights, before they change: the sampler's differ slightly."""
    for micro_rows, counts in _micro_batches(policy, batch, rows, config):
        part = batch.select(micro_rows)
        found = policy.logprobs(part.prompts, part.responses, sampling.temperature, with_entropy=True)
        if counts:
            old.note(micro_rows, *found)


def _micro_batches(
    policy: Policy, batch: Batch, rows: np.ndarray, config: UpdateConfig
) -> Iterator[tuple[np.ndarray, bool]]:
    """This rank's share of some rows, by forward pass, and whether it counts: ranks with fewer make as many passes."""
    if len(rows):
        part = batch.select(rows)
        for local in _shares(policy, part.prompts, part.responses, config.micro_batch_tokens):
            yield (rows[_FILLER], False) if local is None else (rows[local], True)


def _shares(
    policy: Policy, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], micro_batch_tokens: int
) -> list[np.ndarray | None]:
    """This rank's share of rows, by forward pass; None for a pass that only keeps the others company."""
    ranks = policy.ranks
    return ranks.share(policy.engine.micro_batches(prompts, responses, micro_batch_tokens, ranks.size))


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
    is_old: bool,
) -> tuple[float, float, int]:
    """Backward passes over one minibatch; returns its loss, its clipped tokens and the tokens that took part.

    If the policy is still the old one, what it says is noted there, and the ratio is exactly 1.
    """
    rows = _unfiltered(batch, rows, config)
    num_tokens = sum(len(batch.responses[row]) for row in rows)
    total, clipped, trained = 0.0, 0.0, 0
    policy.optimizer.zero_grad(set_to_none=True)
    for micro_rows, counts in _micro_batches(policy, batch, _rows_with_signal(batch, rows), config):
        part = batch.select(micro_rows)
        logprobs_BR, entropy_BR, mask_BR = policy.logprobs(part.prompts, part.responses, sampling.temperature, is_old)
        old_BR = logprobs_BR.detach()
        if not is_old:
            old_BR = torch.where(mask_BR, old.logprobs(micro_rows), old_BR)
        elif counts:
            old.note(micro_rows, logprobs_BR, entropy_BR, mask_BR)
        advantages_B = torch.as_tensor(part.advantages, dtype=logprobs_BR.dtype, device=policy.device)
        losses_BR, clipped_BR = surrogate_loss(logprobs_BR, old_BR, advantages_B, config.clip_low, config.clip_high)
        if config.importance_cap is not None:
            importance_BR = (old_BR - old.sampler_logprobs(micro_rows)).exp()
            losses_BR = losses_BR * importance_BR.clamp_max(config.importance_cap)
        weights_BR = token_weights(mask_BR, config.loss_norm, len(rows), num_tokens, sampling.max_response_tokens)
        if not counts:
            mask_BR, weights_BR = torch.zeros_like(mask_BR), torch.zeros_like(weights_BR)
        loss = (losses_BR.double() * weights_BR).sum()
        # FSDP averages the ranks' gradients, and the weights divide by the whole minibatch already.
        (loss * policy.ranks.size).backward()
        total += float(loss.detach())
        clipped += float((clipped_BR & mask_BR).sum())
        trained += int(mask_BR.sum())
    total, clipped, trained_sum = policy.ranks.sum(total, clipped, trained)
    return total, clipped, int(trained_sum)


def _unfiltered(batch: Batch, rows: np.ndarray, config: UpdateConfig) -> np.ndarray:
    """The rows that take part in loss and denominators."""
    return rows[~batch.truncated[rows]] if config.overlong_filtering else rows


def _rows_with_signal(batch: Batch, rows: np.ndarray) -> np.ndarray:
    """The rows of prompts of which any advantage is not exactly 0: without one there is no gradient."""
    loud = {batch.problem_ids[row] for row in rows if batch.advantages[row] != 0}
    return np.array([row for row in rows if batch.problem_ids[row] in loud], dtype=int)


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
    for rows in _shares(policy, prompts, responses, micro_batch_tokens):
        chosen = _FILLER if rows is None else rows
        logprobs_BR, _, _ = policy.logprobs([prompts[r] for r in chosen], [responses[r] for r in chosen], temperature)
        for b, row in enumerate([] if rows is None else rows):
            flat[starts[row] : starts[row + 1]] = logprobs_BR[b, : lengths[row]]
    return [part.cpu().numpy() for part in policy.ranks.fill(flat).split(lengths)]
