"""Re-score: another judge's labels and another scoring's advantages for rollouts that are there already."""

from __future__ import annotations

from prefect import task
from prefect.cache_policies import NO_CACHE

from polyepo.domains import AnyDomain
from polyepo.judges import AnyJudge
from polyepo.scoring import AnyScoring
from tasks.runs.labels import commit_labels
from tasks.runs.run import open_run
from tasks.runs.scores import commit_scores


@task(name="relabel", task_run_name="relabel {name} {step}.{shard}", cache_policy=NO_CACHE, persist_result=False)
def relabel(root: str, name: str, judge: AnyJudge, step: int, shard: int) -> str:
    """Commit a judge's labels of one shard of saved rollouts."""
    return commit_labels(open_run(root, name), judge, step, shard).path


@task(name="rescore", task_run_name="rescore {name} {step}", cache_policy=NO_CACHE, persist_result=False)
def rescore_step(
    root: str, name: str, scoring: AnyScoring, judge: AnyJudge, step: int, verifier: AnyDomain | None = None
) -> str:
    """Commit a scoring's rewards and advantages of one step of saved rollouts."""
    return commit_scores(open_run(root, name), scoring, judge, step, verifier).path
