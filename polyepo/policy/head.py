"""Log-probabilities of chosen tokens from hidden states and the output head, without a tensor of logits.

The head's product is made in tiles of tokens x vocabulary. The forward pass keeps a running maximum and sum of each
token (online softmax: Milakov and Gimelshein 2018, arXiv 1805.02867), the backward pass makes each tile again, as in
Liger Kernel (arXiv 2410.10989) and Cut Cross-Entropy (arXiv 2411.09009).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

TOKENS, VOCABULARY = 1024, 16384  # of a tile: 64 MB in float32


def chosen_logprobs(
    hidden_TH: torch.Tensor,
    weight_VH: torch.Tensor,
    chosen_T: torch.Tensor,
    temperature: float,
    with_entropy: bool = False,
    known: int | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log-probabilities of tokens under softmax(hidden weight^T / temperature), and the distributions' entropies.

    Args:
        hidden_TH: the model's last hidden states.
        weight_VH: the output head.
        chosen_T: token ids.
        temperature: that of the sampler.
        with_entropy: whether entropies are wanted; nothing can be differentiated through them.
        known: rows of the head that have a token; those after them pad the vocabulary. All if not given.
        dtype: that products are made in; the hidden states' if not given. Sums are float32 at least.

    Returns:
        log-probabilities (T,) in float32, or float64 for float64; entropies in nats (T,), or None.
    """
    logprobs_T, entropy_T = _ChosenLogprobs.apply(
        hidden_TH, weight_VH, chosen_T, temperature, with_entropy, known or len(weight_VH), dtype or hidden_TH.dtype
    )
    return logprobs_T, entropy_T if with_entropy else None


class _ChosenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_TH: torch.Tensor,
        weight_VH: torch.Tensor,
        chosen_T: torch.Tensor,
        temperature: float,
        with_entropy: bool,
        known: int,
        dtype: torch.dtype,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        total_T = hidden_TH.new_empty(len(chosen_T), dtype=_wide(dtype))  # log of the sum of exponentials
        logprobs_T = torch.zeros_like(total_T)
        entropy_T = torch.zeros_like(total_T) if with_entropy else total_T.new_empty(0)
        for tokens in _tiles(len(chosen_T), TOKENS):
            hidden_BH = hidden_TH[tokens].to(dtype)
            highest_B = torch.full_like(total_T[tokens], -torch.inf)
            sum_B, chosen_logit_B = torch.zeros_like(highest_B), torch.zeros_like(highest_B)
            weighted_B = torch.zeros_like(highest_B)  # sum of exponentials times logits
            for words in _tiles(known, VOCABULARY):
                logits_BW = _product(hidden_BH, weight_VH[words].to(dtype)).div_(temperature)
                index_B1, inside_B = _index(chosen_T[tokens], words)
                chosen_logit_B = torch.where(inside_B, logits_BW.gather(1, index_B1).squeeze(1), chosen_logit_B)
                new_B = torch.maximum(highest_B, logits_BW.amax(1))
                shrink_B = torch.exp(highest_B - new_B)
                exp_BW = torch.exp(logits_BW - new_B[:, None])
                sum_B = sum_B * shrink_B + exp_BW.sum(1)
                if with_entropy:
                    weighted_B = weighted_B * shrink_B + (exp_BW * logits_BW).sum(1)
                highest_B = new_B
            total_T[tokens] = highest_B + sum_B.log()
            logprobs_T[tokens] = chosen_logit_B - total_T[tokens]
            if with_entropy:
                entropy_T[tokens] = total_T[tokens] - weighted_B / sum_B
        ctx.save_for_backward(hidden_TH, weight_VH, chosen_T, total_T)
        ctx.temperature, ctx.known, ctx.dtype = temperature, known, dtype
        ctx.mark_non_differentiable(entropy_T)
        return logprobs_T, entropy_T

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden_TH, weight_VH, chosen_T, total_T = ctx.saved_tensors
        dtype = ctx.dtype
        scaled_T = grads[0] / ctx.temperature
        grad_hidden_TH = torch.zeros_like(hidden_TH, dtype=_wide(dtype)) if ctx.needs_input_grad[0] else None
        grad_weight_VH = torch.zeros_like(weight_VH) if ctx.needs_input_grad[1] else None
        for words in _tiles(ctx.known, VOCABULARY):
            weight_WH = weight_VH[words].to(dtype)
            for tokens in _tiles(len(chosen_T), TOKENS):
                hidden_BH = hidden_TH[tokens].to(dtype)
                logits_BW = _product(hidden_BH, weight_WH).div_(ctx.temperature)
                # d log p(chosen) / d logits = onehot(chosen) - softmax
                grad_BW = torch.exp(logits_BW.sub_(total_T[tokens, None])).mul_(-scaled_T[tokens, None])
                index_B1, inside_B = _index(chosen_T[tokens], words)
                grad_BW.scatter_add_(1, index_B1, torch.where(inside_B, scaled_T[tokens], 0)[:, None])
                grad_BW = grad_BW.to(dtype)
                if grad_hidden_TH is not None:
                    grad_hidden_TH[tokens] += grad_BW @ weight_WH
                if grad_weight_VH is not None:
                    grad_weight_VH[words] += grad_BW.T @ hidden_BH
        grad_hidden = None if grad_hidden_TH is None else grad_hidden_TH.to(hidden_TH.dtype)
        return grad_hidden, grad_weight_VH, None, None, None, None, None


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _product(hidden_BH: torch.Tensor, weight_WH: torch.Tensor) -> torch.Tensor:
    """Logits in float32 at least: rounded to bfloat16 they would be off by up to a tenth of a nat."""
    if hidden_BH.dtype == _wide(hidden_BH.dtype):
        return hidden_BH @ weight_WH.T
    if hidden_BH.is_cuda:
        return torch.mm(hidden_BH, weight_WH.T, out_dtype=torch.float32)
    return hidden_BH.float() @ weight_WH.T.float()


def _index(chosen_B: torch.Tensor, words: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """Columns (B, 1) of the chosen tokens in a tile, and whether (B,) they are in it at all."""
    local_B = chosen_B - words.start
    size = words.stop - words.start
    return local_B.clamp(0, size - 1)[:, None], (local_B >= 0) & (local_B < size)


def _tiles(size: int, width: int) -> Iterator[slice]:
    for start in range(0, size, width):
        yield slice(start, min(start + width, size))
