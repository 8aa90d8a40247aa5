"""Update: one training step's new policy, and the row that records it."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
from prefect import task
from prefect.cache_policies import NO_CACHE

from polyepo import metrics
from polyepo.schemas import UPDATES
from storage import ArtifactKey
from tasks.judge import is_labelled
from tasks.policy import apply_update, put_policy, take_policy
from tasks.run import Run, open_run
from tasks.score import cluster_matrix


@task(name="update", task_run_name="update {name} {step}", cache_policy=NO_CACHE, persist_result=False)
def update(root: str, name: str, step: int) -> str:
    """Update the policy with a step's scored responses and commit what was measured."""
    run = open_run(root, name)
    key = run.key("updates", step)
    if not run.store.exists(key):
        started = time.perf_counter()
        policy = take_policy(run, step - 1)
        measured = asdict(apply_update(run, policy, step))
        seconds = time.perf_counter() - started
        row = {
            "run": name,
            "step": step,
            "policy_version": policy.version,
            **measured,
            **_batch_statistics(run, step),
            **_stage_seconds(run, step),
            "seconds_update": seconds,
            "checkpoint": run.key("checkpoints", step).path if checkpoint_due(run, step) else None,
        }
        parents = [run.store.manifest(parent) for keys in _stage_keys(run, step).values() for parent in keys]
        provenance = run.provenance(policy.version, seconds)
        table = pa.Table.from_pylist([row], schema=UPDATES)
        run.store.commit_table(key, table, table_name="updates", parents=parents, provenance=provenance)
        put_policy(run, policy)
    return key.path


def checkpoint_due(run: Run, step: int) -> bool:
    """Every `checkpoint_every` steps, and always after the last."""
    return step > 0 and (step % run.config.checkpoint_every == 0 or step == run.config.steps)


def _batch_statistics(run: Run, step: int) -> dict[str, Any]:
    columns = ["reward", "cluster", "degenerate", "advantage"]
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


def _stage_keys(run: Run, step: int) -> dict[str, list[ArtifactKey]]:
    """The artifacts of the step's earlier stages."""
    shards = range(run.config.sampling.shards)
    return {
        "sample": [run.key("rollouts", step, shard) for shard in shards],
        "judge": [run.labels_key(step, shard) for shard in shards],
        "score": [run.scores_key(step)],
    }


def _stage_seconds(run: Run, step: int) -> dict[str, float]:
    """Seconds of the earlier stages, as their manifests say."""
    manifests = {stage: [run.store.manifest(key) for key in keys] for stage, keys in _stage_keys(run, step).items()}
    return {f"seconds_{stage}": sum((m.seconds or 0.0) for m in found if m) for stage, found in manifests.items()}
