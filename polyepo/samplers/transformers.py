"""Sampling with the trainer's own model: batched, with a KV cache, prompts computed once for all their responses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import DynamicCache

from polyepo.config import SamplingConfig
from polyepo.policy.logprobs import left_padded, position_ids
from polyepo.policy.model import Policy
from polyepo.samplers.base import Sample

_UNIFORMS_AT_A_TIME = 64


class TransformersSampler:
    """Samples from a policy in this process."""

    def __init__(self, policy: Policy, config: SamplingConfig) -> None:
        self._policy = policy
        self._config = config

    def sample(self, prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]]) -> list[list[Sample]]:
        """For each prompt, one sample per seed."""
        samples: list[list[Sample]] = []
        size = max(1, self._config.batch_size // max(len(s) for s in seeds))
        for i in range(0, len(prompts), size):
            samples += self._sample_batch(prompts[i : i + size], seeds[i : i + size])
        return samples

    @torch.no_grad()
    def _sample_batch(self, prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]]) -> list[list[Sample]]:
        num_responses = len(seeds[0])
        model, eos = self._policy.model, self._policy.language.eos_token_ids
        ids_PL, mask_PL = left_padded(prompts, self._policy.device)
        cache = DynamicCache(config=model.config)
        output = model(
            input_ids=ids_PL,
            attention_mask=mask_PL,
            position_ids=position_ids(mask_PL),
            past_key_values=cache,
            logits_to_keep=1,
        )
        cache.batch_repeat_interleave(num_responses)
        mask_BL = mask_PL.repeat_interleave(num_responses, dim=0)
        logits_BV = output.logits[:, -1].repeat_interleave(num_responses, dim=0)
        noise = _Uniforms([seed for group in seeds for seed in group], self._config.max_response_tokens)
        alive = np.arange(len(prompts) * num_responses)
        tokens: list[list[int]] = [[] for _ in alive]
        logprobs: list[list[float]] = [[] for _ in alive]
        for position in range(self._config.max_response_tokens):
            token_B, logprob_B = _draw(logits_BV, noise.at(position, alive), self._config.temperature)
            for row, token, logprob in zip(alive, token_B.tolist(), logprob_B.tolist(), strict=True):
                tokens[row].append(token)
                logprobs[row].append(logprob)
            going = [b for b, token in enumerate(token_B.tolist()) if token not in eos]
            if not going or position + 1 == self._config.max_response_tokens:
                break
            if len(going) < len(alive):
                keep = torch.tensor(going, device=model.device)
                cache.batch_select_indices(keep)
                mask_BL, token_B, alive = mask_BL[keep], token_B[keep], alive[going]
            mask_BL = torch.cat([mask_BL, torch.ones_like(mask_BL[:, :1])], dim=1)
            logits_BV = model(
                input_ids=token_B[:, None],
                attention_mask=mask_BL,
                position_ids=position_ids(mask_BL)[:, -1:],
                past_key_values=cache,
            ).logits[:, -1]
        flat = [
            Sample(t, np.array(lp, dtype=np.float32), "stop" if t[-1] in eos else "length")
            for t, lp in zip(tokens, logprobs, strict=True)
        ]
        return [flat[i : i + num_responses] for i in range(0, len(flat), num_responses)]


class _Uniforms:
    """One stream of uniform numbers per row, from the row's own seed: no sample depends on its neighbours'."""

    def __init__(self, seeds: Sequence[int], limit: int) -> None:
        self._streams = [np.random.Generator(np.random.Philox(key=seed)) for seed in seeds]
        self._width = min(_UNIFORMS_AT_A_TIME, limit)
        self._blocks = np.empty((len(seeds), self._width))

    def at(self, position: int, rows: np.ndarray) -> np.ndarray:
        """The number of each given row for a position; positions must come in order."""
        column = position % self._width
        if column == 0:
            for row in rows:
                self._blocks[row] = self._streams[row].random(self._width)
        return self._blocks[rows, column]


def _draw(logits_BV: torch.Tensor, uniform_B: np.ndarray, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Invert the cumulative distribution of softmax(logits / temperature) at the given uniform numbers."""
    logprobs_BV = torch.log_softmax(logits_BV.float() / temperature, dim=-1)
    if not torch.isfinite(logprobs_BV.amax(-1)).all():
        raise FloatingPointError("the policy's logits are not finite: its weights are damaged")
    cumulative_BV = logprobs_BV.double().exp().cumsum(-1)
    threshold_B1 = torch.as_tensor(uniform_B, device=logits_BV.device)[:, None] * cumulative_BV[:, -1:]
    token_B = torch.searchsorted(cumulative_BV, threshold_B1, right=True).squeeze(-1)
    token_B = token_B.clamp_max(logits_BV.shape[-1] - 1)
    return token_B, logprobs_BV.gather(-1, token_B[:, None]).squeeze(-1)
