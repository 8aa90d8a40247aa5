"""What a step's update row says besides the update: rewards, signal, strategies, and seconds by stage."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from polyepo import metrics
from polyepo.clusters import cluster_matrix, is_labelled
from polyepo.objectives import num_distinct
from storage import ArtifactKey
from tasks.runs.run import Run


def batch_statistics(run: Run, step: int) -> dict[str, Any]:
    """Columns of the updates table that come from the step's scores and rollouts.

    Rewards are of the responses that were graded, strategies of those that have a label as well, over the prompts that
    have any; None where there is none.
    """
    columns = ["reward", "parsed_answer", "cluster", "degenerate", "advantage"]
    rows = run.store.read_table(run.scores_key(step), columns).to_pylist()
    shape = (-1, run.config.sampling.num_responses)
    rewards_PN = np.array([row["reward"] for row in rows], dtype=float).reshape(shape)
    advantages_PN = np.array([row["advantage"] for row in rows]).reshape(shape)
    clusters_PN, labelled_P = cluster_matrix(rows, shape[1], run.config.judge.missing_labels.policy)
    graded_PN, has_label_PN = ~np.isnan(rewards_PN), np.array([is_labelled(row) for row in rows]).reshape(shape)
    uses_clusters = run.config.scoring.uses_clusters
    signal = metrics.signal_accounting(rewards_PN, clusters_PN, advantages_PN, labelled_P, uses_clusters=uses_clusters)
    flipped_P = metrics.sign_flips(np.nan_to_num(rewards_PN), advantages_PN) & graded_PN.all(-1)
    known = [np.flatnonzero(known) for known in graded_PN & has_label_PN]
    prompts = [(rewards_PN[p, found], clusters_PN[p, found]) for p, found in enumerate(known) if len(found)]
    reasons = [
        reason
        for shard in range(run.config.sampling.shards)
        for reason in run.store.read_table(run.key("rollouts", step, shard), ["finish_reason"])[
            "finish_reason"
        ].to_pylist()
    ]
    return {
        "reward_mean": _mean(rewards_PN[graded_PN]),
        "reward_std": float(rewards_PN[graded_PN].std()) if graded_PN.any() else None,
        "unparsed_rate": _mean([row["parsed_answer"] is None for row in rows]),
        "distinct_clusters": _mean([num_distinct(clusters) for _, clusters in prompts]),
        "coverage": _mean((rewards_PN[graded_PN.any(-1)] > metrics.THRESHOLD).any(-1)),
        "distinct_successful": _mean([metrics.distinct_successful_strategies(*prompt) for prompt in prompts]),
        "distinct_unsuccessful": _mean([metrics.distinct_unsuccessful_strategies(*prompt) for prompt in prompts]),
        "degenerate_rate": _mean([row["degenerate"] for row in rows if is_labelled(row)]),
        "missing_label_rate": _mean(~has_label_PN),
        "ungraded_rate": _mean(~graded_PN),
        "truncated_rate": _mean([reason == "length" for reason in reasons]),
        "prompts": len(rewards_PN),
        "prompts_with_signal": signal.with_gradient,
        "prompts_all_wrong": signal.all_wrong,
        "prompts_one_cluster": signal.one_cluster,
        "prompts_unlabelled": signal.unlabelled,
        "prompts_ungraded": signal.ungraded,
        "prompts_other_zero": signal.other_zero,
        "prompts_sign_flipped": int(flipped_P.sum()),
    }


def _mean(values: ArrayLike) -> float | None:
    """The mean, or None of nothing: what is not known is no 0."""
    array = np.asarray(values, dtype=float)
    return float(array.mean()) if array.size else None


def stage_keys(run: Run, step: int) -> dict[str, list[ArtifactKey]]:
    """The artifacts of the step's earlier stages."""
    shards = range(run.config.sampling.shards)
    return {
        "sample": [run.key("rollouts", step, shard) for shard in shards],
        "judge": [run.labels_key(step, shard) for shard in shards],
        "score": [run.scores_key(step)],
    }


def stage_seconds(run: Run, step: int) -> dict[str, float]:
    """Seconds of the earlier stages, as their manifests say."""
    manifests = {stage: [run.store.manifest(key) for key in keys] for stage, keys in stage_keys(run, step).items()}
    return {f"seconds_{stage}": sum((m.seconds or 0.0) for m in found if m) for stage, found in manifests.items()}


def read_updates(run: Run, steps: Iterable[int]) -> list[dict[str, Any]]:
    """Update rows of committed steps, in the order asked for; rows of older runs lack newer columns."""
    tables = run.store.read_tables(run.key("updates", step) for step in steps)
    return [row for table in tables for row in table.to_pylist()]
