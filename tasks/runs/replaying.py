"""What a replay finds: the policy of a step from what was saved, and what another scoring would have made of it."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from polyepo.config import ConfigError
from polyepo.judges import AnyJudge
from polyepo.policy.trainer import Trainer, load_trainer
from polyepo.policy.update import Batch
from polyepo.policy.weights import compare_changes, weights_digest
from polyepo.scoring import AnyScoring, scoring_id
from tasks.runs.labels import commit_labels
from tasks.runs.policies import apply_update, check_replay, rebuild, training_batch
from tasks.runs.requests import check_step
from tasks.runs.run import Run
from tasks.runs.scores import commit_scores


@dataclass(frozen=True)
class ClusterChange:
    """Mean change of the log-probability (nats) of one cluster's responses to one prompt, under two updates."""

    problem_id: str
    cluster: int | None
    responses: int
    reward: float
    advantage_own: float
    advantage_other: float
    change_own: float
    change_other: float


@dataclass(frozen=True)
class Counterfactual:
    """A step's own update next to the one that another scoring would have made, from the same policy and rollouts."""

    cosine: float
    """Cosine similarity of the two changes of the weights."""
    norm_own: float
    norm_other: float
    clusters: list[ClusterChange]


def replay_policy(run: Run, step: int, output: str | None = None) -> dict[str, Any]:
    """Rebuild the policy of a step without its own checkpoint; write it to `output` as a Hugging Face directory.

    Returns:
        `weights`, the digest of the rebuilt weights, and `checkpoint`, that of the committed ones or None.

    Raises:
        ConfigError: the step is not committed, or `output` exists.
        ReplayError: an update does not reproduce what the run recorded.
    """
    check_step(run, step)
    run = run.owner(step)
    if output is not None and Path(output).exists():
        raise ConfigError(f"output {output!r} exists already; nothing is overwritten")
    trainer = rebuild(run, step, newest_checkpoint=step - 1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(output) if output is not None else Path(scratch) / "policy"
        trainer.export(folder)
        trainer.close()
        weights = weights_digest(folder)
    is_there = step in run.store.steps(run.name, "checkpoints")
    there = weights_digest(run.store.local_files(run.key("checkpoints", step))) if is_there else None
    return {"step": step, "weights": weights, "checkpoint": there}


def counterfactual(run: Run, step: int, scoring: AnyScoring, judge: AnyJudge) -> Counterfactual:
    """Apply a step's update twice, under the run's scoring and under another.

    The other scoring's labels and scores are committed next to the run's own if they are not there yet.
    """
    check_step(run, step)
    run = run.owner(step)
    for shard in range(run.config.sampling.shards):
        commit_labels(run, judge, step, shard)
    commit_scores(run, scoring, judge, step)
    other_id = scoring_id(scoring, judge)
    trainer = rebuild(run, step - 1, newest_checkpoint=step - 1)
    batch, other_batch = training_batch(run, step), training_batch(run, step, other_id)
    before_logprobs = _logprobs(run, trainer, batch)
    with tempfile.TemporaryDirectory() as scratch:
        before, own, other = (Path(scratch) / name for name in ("before", "own", "other"))
        before.mkdir()
        trainer.save(before)
        check_replay(run, step, trainer, apply_update(run, trainer, step))
        trainer.export(own)
        own_logprobs = _logprobs(run, trainer, batch)
        trainer.close()  # one policy at a time
        trainer = load_trainer(before, run.config.policy, run.config.update, run.config.resources.trainer, resume=True)
        apply_update(run, trainer, step, other_id)
        trainer.export(other)
        other_logprobs = _logprobs(run, trainer, batch)
        trainer.close()
        cosine, norm_own, norm_other = compare_changes(before, own, other)
    return Counterfactual(
        cosine=cosine,
        norm_own=norm_own,
        norm_other=norm_other,
        clusters=_by_cluster(
            run, step, batch, other_batch, own_logprobs - before_logprobs, other_logprobs - before_logprobs
        ),
    )


def _logprobs(run: Run, trainer: Trainer, batch: Batch) -> np.ndarray:
    """Log-probability of each whole response, (R,)."""
    config = run.config
    found = trainer.logprobs(
        batch.prompts, batch.responses, config.sampling.temperature, config.update.micro_batch_tokens
    )
    return np.array([logprobs.sum(dtype=np.float64) for logprobs in found])


def _by_cluster(
    run: Run, step: int, batch: Batch, other: Batch, change_own: np.ndarray, change_other: np.ndarray
) -> list[ClusterChange]:
    """Clusters of the run's own judge; first those whose log-probability the updates change most differently."""
    scores = run.store.read_table(run.scores_key(step), ["problem_id", "cluster", "reward"]).to_pylist()
    rows_of: dict[tuple[str, int | None], list[int]] = {}
    for row, score in enumerate(scores):
        rows_of.setdefault((score["problem_id"], score["cluster"]), []).append(row)
    changes = [
        ClusterChange(
            problem_id=problem_id,
            cluster=cluster,
            responses=len(rows),
            reward=float(np.mean([scores[row]["reward"] for row in rows])),
            advantage_own=float(batch.advantages[rows].mean()),
            advantage_other=float(other.advantages[rows].mean()),
            change_own=float(change_own[rows].mean()),
            change_other=float(change_other[rows].mean()),
        )
        for (problem_id, cluster), rows in rows_of.items()
    ]
    return sorted(changes, key=lambda c: -abs(c.change_own - c.change_other))
