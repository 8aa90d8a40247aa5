"""Sample: the policy's responses to one shard of a step's prompts."""

from __future__ import annotations

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.runs.rollouts import commit_rollouts
from tasks.runs.run import open_run


@task(name="sample", task_run_name="sample {name} {step}.{shard}", cache_policy=NO_CACHE, persist_result=False)
def sample(root: str, name: str, step: int, shard: int) -> str:
    """Commit N responses to each prompt of a shard, from the policy before this step's update."""
    return commit_rollouts(open_run(root, name), step, shard).path
