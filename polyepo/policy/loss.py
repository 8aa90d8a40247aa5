"""The clipped surrogate loss with one advantage per response (arXiv 2604.17654, Table 1)."""

from __future__ import annotations

from typing import Literal

import torch


def surrogate_loss(
    logprobs_BR: torch.Tensor,
    old_logprobs_BR: torch.Tensor,
    advantages_B: torch.Tensor,
    clip_low: float,
    clip_high: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Per-token loss -min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A), and where the clip was active.

    rho is the probability ratio of the current policy to the one before this step's first update; the advantage is
    the same for every token of a response. No KL penalty, no entropy bonus.

    Returns:
        losses (B, R), and a boolean (B, R): tokens whose gradient the clip removed.
    """
    ratio_BR = torch.exp(logprobs_BR - old_logprobs_BR)
    advantages_B1 = advantages_B[:, None]
    free_BR = ratio_BR * advantages_B1
    clipped_BR = ratio_BR.clamp(1 - clip_low, 1 + clip_high) * advantages_B1
    return -torch.minimum(free_BR, clipped_BR), clipped_BR < free_BR


def token_weights(
    mask_BR: torch.Tensor,
    norm: Literal["constant", "response", "token"],
    num_responses: int,
    num_tokens: int,
    max_response_tokens: int,
) -> torch.Tensor:
    """Weight of each token's loss, so that the weighted sum over all micro-batches is the minibatch's loss.

    Args:
        mask_BR: the real tokens of this micro-batch.
        norm: "constant" divides a response's sum by max_response_tokens (Dr.GRPO), "response" by its own length (GRPO),
            both averaged over responses; "token" divides the sum over all tokens by their number (DAPO).
        num_responses: responses of the whole minibatch.
        num_tokens: response tokens of the whole minibatch.
        max_response_tokens: the configured limit.
    """
    weights_BR = mask_BR.double()
    if norm == "constant":
        return weights_BR / (max_response_tokens * num_responses)
    if norm == "response":
        return weights_BR / (mask_BR.sum(-1, keepdim=True).clamp_min(1) * num_responses)
    return weights_BR / num_tokens
