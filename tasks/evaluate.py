"""Evaluate: samples of a benchmark's problems, verified and labelled, in shards that later ones are added to."""

from __future__ import annotations

from prefect import task
from prefect.cache_policies import NO_CACHE

from polyepo.config import EvaluationConfig
from polyepo.judges import AnyJudge
from tasks.runs.benchmarks import heldout, open_benchmark
from tasks.runs.evaluating import commit_samples, evaluate_missing
from tasks.runs.evaluations import HELDOUT
from tasks.runs.run import open_run


@task(name="evaluate", task_run_name="evaluate {name} {step}", cache_policy=NO_CACHE, persist_result=False)
def evaluate(root: str, name: str, step: int) -> str:
    """Commit `evaluation.num_samples` graded responses to each held-out problem, by the policy after a step."""
    run = open_run(root, name)
    config = run.config.evaluation or EvaluationConfig()
    evaluate_missing(run, heldout(run), step, config.num_samples, run.config.judge)
    return run.key("evals", step, benchmark=HELDOUT).path


@task(
    name="evaluate-shard",
    task_run_name="evaluate {name} {benchmark} {step} {samples}",
    cache_policy=NO_CACHE,
    persist_result=False,
)
def evaluate_shard(root: str, name: str, benchmark: str, step: int, samples: tuple[int, int], judge: AnyJudge) -> str:
    """Commit one shard of an evaluation, from one sample to before another; the benchmark's problems are committed."""
    run = open_run(root, name)
    return commit_samples(run, open_benchmark(run, benchmark), step, range(*samples), judge).path
