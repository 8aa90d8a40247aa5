"""What a step's update row says besides the update: rewards, signal, strategies, and seconds by stage."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from polyepo import metrics
from polyepo.objectives import num_distinct
from storage import ArtifactKey
from tasks.runs.labels import is_labelled
from tasks.runs.run import Run
from tasks.runs.scores import cluster_matrix


def batch_statistics(run: Run, step: int) -> dict[str, Any]:
    """Columns of the updates table that come from the step's scores and rollouts."""
    columns = ["reward", "parsed_answer", "cluster", "degenerate", "advantage"]
    rows = run.store.read_table(run.scores_key(step), columns).to_pylist()
    num_responses = run.config.sampling.num_responses
    rewards_PN = np.array([row["reward"] for row in rows]).reshape(-1, num_responses)
    advantages_PN = np.array([row["advantage"] for row in rows]).reshape(-1, num_responses)
    clusters_PN, labelled_P = cluster_matrix(rows, num_responses, run.config.judge.missing_labels.policy)
    signal = metrics.signal_accounting(rewards_PN, clusters_PN, advantages_PN, labelled_P)
    reasons = [
        reason
        for shard in range(run.config.sampling.shards)
        for reason in run.store.read_table(run.key("rollouts", step, shard), ["finish_reason"])[
            "finish_reason"
        ].to_pylist()
    ]
    return {
        "reward_mean": float(rewards_PN.mean()),
        "reward_std": float(rewards_PN.std()),
        "unparsed_rate": float(np.mean([row["parsed_answer"] is None for row in rows])),
        "distinct_clusters": float(num_distinct(clusters_PN).mean()),
        "coverage": float(metrics.coverage(rewards_PN)),
        "distinct_successful": float(metrics.distinct_successful_strategies(rewards_PN, clusters_PN).mean()),
        "distinct_unsuccessful": float(metrics.distinct_unsuccessful_strategies(rewards_PN, clusters_PN).mean()),
        "degenerate_rate": float(np.mean([row["degenerate"] for row in rows])),
        "missing_label_rate": float(np.mean([not is_labelled(row) for row in rows])),
        "truncated_rate": float(np.mean([reason == "length" for reason in reasons])),
        "prompts": len(rewards_PN),
        "prompts_with_signal": signal.with_gradient,
        "prompts_all_wrong": signal.all_wrong,
        "prompts_one_cluster": signal.one_cluster,
        "prompts_unlabelled": signal.unlabelled,
        "prompts_other_zero": signal.other_zero,
        "prompts_sign_flipped": int(metrics.sign_flips(rewards_PN, advantages_PN).sum()),
    }


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
    with ThreadPoolExecutor(16) as pool:  # object storage answers many requests at a time
        tables = pool.map(lambda step: run.store.read_table(run.key("updates", step)), steps)
        return [row for table in tables for row in table.to_pylist()]
