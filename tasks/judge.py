"""Judge: cluster each prompt's responses by reasoning strategy."""

from __future__ import annotations

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.runs.labels import commit_labels
from tasks.runs.run import open_run


@task(name="judge", task_run_name="judge {name} {step}.{shard}", cache_policy=NO_CACHE, persist_result=False)
def judge(root: str, name: str, step: int, shard: int) -> str:
    """Commit one label per response of a shard, by the run's own judge."""
    run = open_run(root, name)
    return commit_labels(run, run.config.judge, step, shard).path
