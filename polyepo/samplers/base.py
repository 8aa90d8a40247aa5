"""What a sampler is: prompts and seeds in, token ids with log-probabilities out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from polyepo.errors import PolyepoError

_ROUNDING = 1e-3
"""Nats by which a log-probability may be above 0."""


class SamplerError(PolyepoError, RuntimeError):
    """A sampler cannot give what the run needs; what is committed is not harmed, and the run can be resumed."""


class Sample(NamedTuple):
    """One sampled response. Token ids are the truth; text is decoded from them for people."""

    token_ids: list[int]
    logprobs: np.ndarray
    """(tokens,) float32: log softmax(logits / temperature) of each sampled token."""
    finish_reason: Literal["stop", "length"]


class SampledPolicy(Protocol):
    """What a sampler may ask of a policy; a `polyepo.policy.trainer.Trainer` is one."""

    @property
    def language(self) -> Any:
        """Its tokenizer, and the ids that end a response: `polyepo.policy.language.Language`."""
        ...

    @property
    def version(self) -> int:
        """Training steps behind its weights."""
        ...

    def sample(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]], sampling: Any
    ) -> list[list[Sample]]:
        """For each prompt, one sample per seed, by the policy's own process."""
        ...

    def logprobs(
        self,
        prompts: Sequence[Sequence[int]],
        responses: Sequence[Sequence[int]],
        temperature: float,
        micro_batch_tokens: int = 16384,
    ) -> list[np.ndarray]:
        """Of each response, the log-probabilities of its tokens under softmax(logits / temperature)."""
        ...

    def export(self, folder: Path, dtype: str | None = None, head_apart: bool = False) -> None:
        """Write a Hugging Face model directory, tokenizer included."""
        ...


def check_samples(samples: Any, seeds: Sequence[Sequence[int]], max_response_tokens: int, who: str) -> None:
    """Raise SamplerError unless a sampler gave, for each prompt, one usable sample per seed.

    Args:
        samples: what it gave.
        seeds: what it was asked for.
        max_response_tokens: the limit.
        who: its name, with file and line, for the message.
    """
    if not isinstance(samples, list) or [len(group) for group in samples] != [len(group) for group in seeds]:
        raise SamplerError(f"{who} must give a list with one sample per seed for each of {len(seeds)} prompts")
    for sample in (sample for group in samples for sample in group):
        if not isinstance(sample, Sample):
            raise SamplerError(f"{who} gave a {type(sample).__name__}: a sample must be a polyepo.samplers.base.Sample")
        ids, logprobs = sample.token_ids, np.asarray(sample.logprobs)
        if not 0 < len(ids) <= max_response_tokens or not all(type(i) is int and i >= 0 for i in ids):
            raise SamplerError(
                f"{who} gave the token ids {ids[:8]!r}: they must be 1 to {max_response_tokens} integers, the "
                "end-of-sequence token included"
            )
        if logprobs.shape != (len(ids),) or not np.isfinite(logprobs).all() or (logprobs > _ROUNDING).any():
            raise SamplerError(
                f"{who} gave {logprobs.shape} log-probabilities for {len(ids)} tokens, such as {logprobs.ravel()[:3]}: "
                "they must be one per token, finite, and at most 0"
            )
        if sample.finish_reason not in ("stop", "length"):
            raise SamplerError(f"{who} gave the finish_reason {sample.finish_reason!r}: it must be 'stop' or 'length'")


class Sampler(Protocol):
    """Anything that samples from the current policy."""

    def sample(self, prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]]) -> list[list[Sample]]:
        """For each prompt, one sample per seed; a sample depends on its own prompt and that prompt's seeds alone."""
        ...
