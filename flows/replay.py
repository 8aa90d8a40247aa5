"""Replay a run: the policy of any step, or what another scoring would have made of it.

    prefect deployment run poly-epo/replay --param run=my-run --param step=100 --param output=policy-100
    prefect deployment run poly-epo/replay --param run=my-run --param step=100 --param scoring='{"method": "grpo"}'

Everything comes from saved rollouts and scores: nothing is sampled, and on the CPU the weights are bit-identical.
"""

from __future__ import annotations

import os
from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact

from flows.outcome import ends_plainly
from flows.views.compare import code as quoted
from polyepo.names import slug
from tasks.replay import counterfactual, replay_policy
from tasks.runs.code import provide
from tasks.runs.requests import check_replay

_SHOWN = 20


@flow(name="poly-epo", flow_run_name="replay {run} {step}", persist_result=False)
@ends_plainly
def replay(
    run: str,
    step: int,
    scoring: dict[str, Any] | None = None,
    judge: str | None = None,
    objective: str | None = None,
    set_size: int | None = None,
    output: str | None = None,
    root: str | None = None,
    code: str | None = None,
) -> None:
    """Rebuild the policy after a step; with another scoring or judge, compare the step's update with theirs.

    Args:
        run: name of the run.
        step: a committed training step, from 1.
        scoring: a scoring section, such as {"method": "grpo"}.
        judge: path of a judge's YAML file.
        objective: set objective of the other scoring, such as pass_at_n or distinct_successful.
        set_size: n of the other scoring.
        output: a folder that does not exist yet, for the rebuilt policy as a Hugging Face model.
        root: where artifacts are; $POLYEPO_ROOT or "artifacts" if not given.
        code: path of a configuration of yours, for the code that it names, if the run was made with code of your own.
    """
    root = root or os.environ.get("POLYEPO_ROOT", "artifacts")
    provide(code)
    asked = check_replay(root, run, step, scoring, judge, objective, set_size, output)
    if asked.scoring is None:
        text = rebuilt_markdown(run, replay_policy(root, run, step, output), output)
    else:
        found = counterfactual(root, run, step, asked.scoring, asked.judge)
        text = counterfactual_markdown(run, step, found)
    create_markdown_artifact(text, key=slug(f"{run}-replay-{step}"), description=f"Replay of step {step}")
    get_run_logger().info("\n%s", text)


def rebuilt_markdown(run: str, found: dict[str, Any], output: str | None) -> str:
    """What a replay found, as markdown."""
    if found["checkpoint"] is None:
        verdict = (
            "every update gave the loss and gradient norm that the run recorded, to the bit or within what the log "
            "says; this step has no checkpoint"
        )
    elif found["checkpoint"] == found["weights"]:
        verdict = "bit-identical to the committed checkpoint"
    else:
        verdict = f"**not** those of the committed checkpoint, sha256 {found['checkpoint']}"
    written = f"\n\nWritten to {quoted(output)}." if output else ""
    return f"### {run}: policy after step {found['step']}\n\nWeights sha256 {found['weights']}: {verdict}.{written}"


def counterfactual_markdown(run: str, step: int, found: dict[str, Any]) -> str:
    """A `tasks.replay.Counterfactual` as markdown: its numbers, and the clusters that fare most differently."""
    lines = [
        f"### {run}, step {step}: the update under another scoring",
        "",
        f"Cosine similarity of the two updates: {found['cosine']:.4f}; norms {found['norm_own']:.3g} (own) and "
        f"{found['norm_other']:.3g} (other).",
        "",
        "Change of the mean log-probability of each cluster's responses, in nats; the most different first:",
        "",
        "| problem | cluster | responses | reward | advantage own | other | change own | other |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in found["clusters"][:_SHOWN]:
        cluster = "degenerate" if row["cluster"] is None else row["cluster"]
        numbers = [row["reward"], row["advantage_own"], row["advantage_other"], row["change_own"], row["change_other"]]
        cells = [
            quoted(row["problem_id"]),
            str(cluster),
            str(row["responses"]),
            *(f"{number:.4f}" for number in numbers),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
