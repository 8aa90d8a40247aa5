"""Re-score saved rollouts with another judge, objective, set size or verifier, next to what is there.

    prefect deployment run poly-epo/rescore --param run=my-run --param judge=configs/judges/answer.yaml

Nothing is sampled and nothing old is rewritten. What is committed is never done again, so a rescore that was stopped
goes on when it is started again.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable
from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.futures import PrefectFuture

from flows.outcome import ends_plainly
from flows.progress import Progress, link_report
from flows.views.compare import Comparison, compare, markdown
from polyepo.judges import Estimate
from polyepo.names import slug
from polyepo.scoring import scoring_id
from tasks.rescore import relabel, rescore_step
from tasks.runs.code import provide
from tasks.runs.labels import estimate_labels
from tasks.runs.record import RunRecord, read_record
from tasks.runs.requests import check_rescoring

# Judges wait for servers most of the time, so shards overlap; few enough that a server is not flooded.
_IN_FLIGHT = 8


@flow(name="poly-epo", flow_run_name="rescore {run}", persist_result=False)
@ends_plainly
def rescore(
    run: str,
    judge: str | None = None,
    scoring: dict[str, Any] | None = None,
    objective: str | None = None,
    set_size: int | None = None,
    verifier: dict[str, Any] | None = None,
    steps: str | int | list[int] | None = None,
    root: str | None = None,
    estimate: bool = False,
    code: str | None = None,
) -> None:
    """Label and score a run's rollouts anew, then compare with the run's own labels and scores.

    Args:
        run: name of the run.
        judge: path of a judge's YAML file; the run's own judge if not given.
        scoring: a scoring section, such as {"method": "grpo"}; the run's own if not given.
        objective: set objective, such as pass_at_n or distinct_successful.
        set_size: n.
        verifier: domain settings that replace the run's: the same texts are graded again.
        steps: 12, "1-50", "1-50,60" or [1, 2]; all committed steps if not given.
        root: where artifacts are; $POLYEPO_ROOT or "artifacts" if not given.
        estimate: only say how many calls and tokens the judge's labels would take, and what they would cost.
        code: path of a configuration of yours, for the code that it names, if the run was made with code of your own.
    """
    root = root or os.environ.get("POLYEPO_ROOT", "artifacts")
    provide(code)
    asked = check_rescoring(root, run, judge, scoring, objective, set_size, verifier, steps)
    opened, chosen_judge, chosen_steps = asked.run, asked.judge, asked.steps
    if estimate:
        _report_estimate(run, chosen_judge.judge_id, estimate_labels(opened, chosen_judge, chosen_steps))
        return
    shards = range(opened.config.sampling.shards)
    progress = Progress(f"{run}-rescore", total=len(chosen_steps) * (len(shards) + 1))
    todo = (relabel.submit(root, run, chosen_judge, step, shard) for step in chosen_steps for shard in shards)
    for _ in _bounded(todo):
        progress.count(f"{run} · labels by {chosen_judge.judge_id}")
    for step in chosen_steps:
        rescore_step(root, run, asked.scoring, chosen_judge, step, asked.verifier)
        progress.count(f"{run} · scores · step {step}")
    progress.finish()
    record = read_record(opened.store, run) or RunRecord()
    own = (record.judge or opened.config.judge.judge_id, record.scoring or opened.config.scoring_id)
    new = (chosen_judge.judge_id, scoring_id(asked.scoring, chosen_judge, asked.verifier))
    if new != own:
        if not opened.store.exists(opened.scores_key(chosen_steps[0], own[1])):
            get_run_logger().info("run %s came without rewards: there is nothing to compare with", run)
            return
        _report(compare(root, run, own, new))
    link_report(root, run, [run])


def _bounded(futures: Iterable[PrefectFuture[str]]) -> Iterable[str]:
    """Results in order; a new task starts only when one of the last few is done."""
    waiting: deque[PrefectFuture[str]] = deque()
    for future in futures:
        waiting.append(future)
        if len(waiting) >= _IN_FLIGHT:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _report_estimate(run: str, judge_id: str, found: Estimate) -> None:
    text = (
        f"Labels of {run} by {judge_id} would take {found.calls:,} calls with about {found.prompt_tokens:,} prompt and "
        f"{found.completion_tokens:,} completion tokens, and cost {found.cost:.2f} at the judge's prices."
    )
    create_markdown_artifact(text, key=slug(f"{run}-estimate"), description="Estimate")
    get_run_logger().info("%s", text)


def _report(comparison: Comparison) -> None:
    text = markdown(comparison)
    create_markdown_artifact(text, key=slug(f"{comparison.run}-comparison"), description="Comparison")
    get_run_logger().info("\n%s", text)
