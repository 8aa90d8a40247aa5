"""Evaluate: held-out problems, sampled, verified and labelled."""

from __future__ import annotations

import time

import pyarrow as pa
from prefect import task
from prefect.cache_policies import NO_CACHE

from polyepo.config import EvaluationConfig
from polyepo.schemas import EVALS
from tasks.calls import EVALUATION_SHARD, kept_calls
from tasks.judge import label_rows
from tasks.policy import policy_at
from tasks.run import Run, open_run
from tasks.sample import sample_rows

BENCHMARK = "heldout"


@task(name="evaluate", task_run_name="evaluate {name} {step}", cache_policy=NO_CACHE, persist_result=False)
def evaluate(root: str, name: str, step: int) -> str:
    """Commit `evaluation.num_samples` graded responses to each held-out problem, by the policy after a step."""
    run = open_run(root, name)
    config = run.config.evaluation or EvaluationConfig()
    key = run.key("evals", step, benchmark=BENCHMARK)
    if not run.store.exists(key):
        started = time.perf_counter()
        policy = policy_at(run, step)
        problems = run.split("heldout")[: config.max_problems]
        # Every step and arm draws with the same random numbers: differences are the policies', not the dice's.
        rows = sample_rows(run, policy, problems, 0, config.num_samples, "evaluation")
        verdicts = run.config.domain.verify_batch(
            [run.problems[row["problem_id"]] for row in rows], [row["response"] for row in rows]
        )
        with kept_calls(run, run.config.judge, step, EVALUATION_SHARD) as calls:
            labels = label_rows(run, run.config.judge, rows, calls)
        for row, verdict, label in zip(rows, verdicts, labels, strict=True):
            row |= {
                "step": step,
                "benchmark": BENCHMARK,
                "judge": run.config.judge.judge_id,
                **{name: label[name] for name in ("cluster", "degenerate", "macro_strategy", "micro_strategy")},
                **verdict._asdict(),
            }
        table = pa.Table.from_pylist(rows, schema=EVALS)
        provenance = run.provenance(step, time.perf_counter() - started)
        run.store.commit_table(key, table, table_name="evals", provenance=provenance)
    return key.path


def evaluation_due(run: Run, step: int) -> bool:
    """Before the first step, every `evaluation.every` steps, and after the last."""
    every = run.config.evaluation and run.config.evaluation.every
    return run.config.evaluation is not None and (step in (0, run.config.steps) or bool(every and step % every == 0))
