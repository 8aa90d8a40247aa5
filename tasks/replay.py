"""Replay: the policy of any step from what was saved, and what another scoring would have made of a step."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from polyepo.judges import AnyJudge
from polyepo.scoring import AnyScoring
from tasks.runs import replaying
from tasks.runs.run import open_run


@task(name="replay", task_run_name="replay {name} {step}", cache_policy=NO_CACHE, persist_result=False)
def replay_policy(root: str, name: str, step: int, output: str | None = None) -> dict[str, Any]:
    """Rebuild the policy of a step without its own checkpoint; write it to `output` as a Hugging Face directory."""
    return replaying.replay_policy(open_run(root, name), step, output)


@task(name="counterfactual", task_run_name="counterfactual {name} {step}", cache_policy=NO_CACHE, persist_result=False)
def counterfactual(root: str, name: str, step: int, scoring: AnyScoring, judge: AnyJudge) -> dict[str, Any]:
    """Apply a step's update twice, under the run's scoring and under another; `Counterfactual` as a dictionary."""
    return asdict(replaying.counterfactual(open_run(root, name), step, scoring, judge))
