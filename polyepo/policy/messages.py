"""What a run and its trainer group say to each other: one line of JSON each way, so that nothing is unpickled."""

from __future__ import annotations

from typing import Any

import numpy as np

from polyepo.policy.update import Batch


def from_batch(batch: Batch) -> dict[str, Any]:
    """A batch as JSON values. Every float is kept bit for bit."""
    return {
        "problem_ids": list(batch.problem_ids),
        "prompts": [list(map(int, row)) for row in batch.prompts],
        "responses": [list(map(int, row)) for row in batch.responses],
        "sampler_logprobs": [row.tolist() for row in batch.sampler_logprobs],
        "advantages": batch.advantages.tolist(),
        "truncated": batch.truncated.tolist(),
    }


def to_batch(message: dict[str, Any]) -> Batch:
    """The batch that `from_batch` made a message of."""
    return Batch(
        problem_ids=message["problem_ids"],
        prompts=message["prompts"],
        responses=message["responses"],
        sampler_logprobs=[np.array(row, dtype=np.float32) for row in message["sampler_logprobs"]],
        advantages=np.array(message["advantages"], dtype=np.float64),
        truncated=np.array(message["truncated"], dtype=bool),
    )
