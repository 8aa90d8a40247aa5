"""Evaluate: M samples to each problem of a benchmark, graded and labelled, by the policy of any step or any model.

    prefect deployment run poly-epo/evaluate --param run=my-run --param benchmark=heldout --param num_samples=256
    prefect deployment run poly-epo/evaluate --param model=path/to/model --param benchmark=aime24.jsonl

Samples are added to those that are committed; one that was stopped goes on when it is started again.
"""

from __future__ import annotations

import os
from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact

from flows.outcome import ends_plainly
from flows.progress import Progress, link_report
from flows.views.results import markdown, results
from polyepo.names import slug
from tasks.evaluate import evaluate_shard
from tasks.runs.benchmarks import leakage
from tasks.runs.code import provide
from tasks.runs.evaluating import add_benchmark, model_run
from tasks.runs.evaluations import choose_judge, choose_step, missing_samples, plan_evaluation
from tasks.runs.policies import check_prompts
from tasks.runs.requests import check_evaluation
from tasks.runs.run import open_run


@flow(name="poly-epo", flow_run_name="evaluate {benchmark}", persist_result=False)
@ends_plainly
def evaluate(
    run: str | None = None,
    model: str | None = None,
    step: int | None = None,
    benchmark: str = "heldout",
    num_samples: int = 64,
    judge: str | None = None,
    config: str | None = None,
    settings: dict[str, Any] | None = None,
    root: str | None = None,
    code: str | None = None,
) -> None:
    """Evaluate a run's policy, or a model, on a benchmark, or extend what was evaluated.

    Args:
        run: name of the run; give this or `model`.
        model: a Hugging Face directory or hub id; it gets a run of its own, without steps.
        step: the policy after this step of the run; the last if not given.
        benchmark: "heldout", the run's own held-out problems, or a JSONL or Parquet file of mathematics, whose name
            without the suffix is the benchmark's name.
        num_samples: M, samples per problem in all.
        judge: path of a judge's YAML file; the run's own, or the one that labelled the samples so far, if not given.
        config: with `model`: path of a configuration, for domain, sampling and judge.
        settings: with `model`: values that replace the configuration's, by dotted name.
        root: where artifacts are; $POLYEPO_ROOT or "artifacts" if not given.
        code: path of a configuration of yours, for the code that it names, if the run was made with code of your own.

    Raises:
        ConfigError: before anything is sampled, if this cannot be done.
    """
    root = root or os.environ.get("POLYEPO_ROOT", "artifacts")
    provide(code)
    wanted = check_evaluation(root, run, model, step, benchmark, num_samples, judge, config, settings)
    opened = open_run(root, run) if run else model_run(root, str(model), benchmark, config, settings)
    if config:
        check_prompts(opened)  # a run's own prompts were checked before it was trained
    chosen_step = choose_step(opened, step)
    opened = opened.owner(chosen_step)  # of a step before a fork, the run that made it
    problems = add_benchmark(opened, benchmark, chosen_step)
    if run and (warning := leakage(opened, problems)):
        get_run_logger().warning("%s", warning)
    chosen_judge = choose_judge(opened, problems, chosen_step, wanted)
    title = f"{opened.name}-{problems.name}"
    missing = missing_samples(opened, problems.name, chosen_step, num_samples)
    progress = Progress(f"{title}-evaluation", total=len(missing))
    if missing:
        plan_evaluation(opened, problems, chosen_step, num_samples)
    while missing:
        samples = (missing[0].start, missing[0].stop)
        evaluate_shard(root, opened.name, problems.name, chosen_step, samples, chosen_judge)
        # Asked anew: another evaluation may be going on.
        missing = missing_samples(opened, problems.name, chosen_step, num_samples)
        progress.count(f"{opened.name} · step {chosen_step} · {problems.name}")
    progress.finish()
    text = markdown(results(opened, problems.name, chosen_step))
    create_markdown_artifact(text, key=slug(f"{title}-results"), description=f"Step {chosen_step} on {problems.name}")
    get_run_logger().info("\n%s", text)
    link_report(root, opened.name, [opened.name])
