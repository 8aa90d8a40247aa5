"""Score: verify each response, and turn rewards and clusters into one advantage per response."""

from __future__ import annotations

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.runs.run import open_run
from tasks.runs.scores import commit_scores


@task(name="score", task_run_name="score {name} {step}", cache_policy=NO_CACHE, persist_result=False)
def score(root: str, name: str, step: int) -> str:
    """Commit reward and advantage of every response of a step, by the run's own scoring."""
    run = open_run(root, name)
    return commit_scores(run, run.config.scoring, run.config.judge, step).path
