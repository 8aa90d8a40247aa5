"""What scoring takes from labels: clusters, and whether a prompt's are complete."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from polyepo.objectives import DEGENERATE, Bools, Ints


def is_labelled(row: Mapping[str, Any]) -> bool:
    """Whether the judge gave a response a cluster or found it degenerate."""
    return row["degenerate"] or row["cluster"] is not None


def cluster_matrix(
    rows: Sequence[Mapping[str, Any]],
    num_responses: int,
    missing: Literal["drop_prompt", "singleton"] = "drop_prompt",
) -> tuple[Ints, Bools]:
    """Clusters (P, N) of P x N labels (cluster, degenerate), and whether a prompt's clusters can be used, (P,).

    They can if all of its responses have a label, or if those without one count as clusters of their own (singleton).
    """
    clusters = [DEGENERATE if row["cluster"] is None else row["cluster"] for row in rows]
    labelled = np.array([is_labelled(row) for row in rows], dtype=bool)
    shape = (-1, num_responses)
    if missing == "singleton":
        # A prompt has no more clusters than responses, so numbers from there on are free.
        own = [
            cluster if has_label else num_responses + number % num_responses
            for number, (cluster, has_label) in enumerate(zip(clusters, labelled, strict=True))
        ]
        return np.array(own, dtype=np.int64).reshape(shape), np.ones(len(rows) // num_responses, dtype=bool)
    complete: Bools = np.asarray(labelled.reshape(shape).all(axis=1))
    return np.array(clusters, dtype=np.int64).reshape(shape), complete
