"""What a sampler is: prompts and seeds in, token ids with log-probabilities out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

import numpy as np


class Sample(NamedTuple):
    """One sampled response. Token ids are the truth; text is decoded from them for people."""

    token_ids: list[int]
    logprobs: np.ndarray
    """(tokens,) float32: log softmax(logits / temperature) of each sampled token."""
    finish_reason: Literal["stop", "length"]


class Sampler(Protocol):
    """Anything that samples from the current policy."""

    def sample(self, prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]]) -> list[list[Sample]]:
        """For each prompt, one sample per seed; a sample depends on its own prompt and that prompt's seeds alone."""
        ...
