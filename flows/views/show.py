"""`polyepo show`: a prompt's responses, cluster by cluster."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from flows.views.terminal import safe_text
from polyepo.config import ConfigError
from polyepo.metrics import THRESHOLD
from storage import connect, open_store, rows
from tasks.runs.groups import no_such_run
from tasks.runs.record import read_record
from tasks.runs.run import open_run

_RESPONSES = """
SELECT r.sample, s.cluster, s.degenerate, s.reward, s.ungraded, s.advantage, l.macro_strategy, l.micro_strategy,
       r.response
FROM rollouts r
LEFT JOIN (FROM scores WHERE run = $run AND step = $step AND scoring = $scoring) s USING (problem_id, sample)
LEFT JOIN (FROM labels WHERE run = $run AND step = $step) l
       ON l.judge = s.judge AND l.problem_id = r.problem_id AND l.sample = r.sample
WHERE r.run = $run AND r.step = $step AND r.problem_id = $problem
ORDER BY coalesce(s.degenerate, false), s.cluster IS NULL, count(*) OVER (PARTITION BY s.cluster) DESC, s.cluster,
         r.sample
"""


def show_prompt(root: str, run: str, step: int | None, problem: str | None) -> RenderableType:
    """One prompt's responses, a panel per cluster, largest first; by the run's own scoring where there is one.

    Imported responses may have no rewards, no advantages or no scores at all.

    Raises:
        ConfigError: the run, the step or the problem has no responses.
    """
    store = open_store(root)
    record = read_record(store, run)
    if record is None:
        raise no_such_run(store, run)
    if record.parent:  # a fork's first steps are found under the name of the run that made them
        opened = open_run(root, run)
        run = opened.owner(opened.last_step() if step is None else step).name
    connection = connect(root, [run])
    there = rows(connection, "SELECT scoring, max(step) AS step FROM scores WHERE run = $run GROUP BY ALL", run=run)
    if not there:
        there = rows(connection, "SELECT NULL AS scoring, step FROM rollouts WHERE run = $run GROUP BY ALL", run=run)
    if not there:
        raise ConfigError(f"run {run!r} has no responses yet")
    own = rows(connection, "SELECT scoring FROM runs WHERE run = $run", run=run)[0]["scoring"]
    scorings = [row["scoring"] for row in there]
    scoring = own if own in scorings else scorings[0]
    step = step if step is not None else max(row["step"] for row in there if row["scoring"] == scoring)
    problems = rows(
        connection,
        "SELECT DISTINCT problem_id FROM rollouts WHERE run = $run AND step = $step ORDER BY ALL",
        run=run, step=step,
    )  # fmt: skip
    ids = [row["problem_id"] for row in problems]
    chosen = problem if problem is not None else (ids[0] if ids else None)
    if chosen not in ids:
        what = f"problem {problem!r}" if ids else "any problem"
        raise ConfigError(
            f"step {step} of run {run!r} has no responses to {what}"
            + (f"; it has {', '.join(ids[:8])} …" if ids else "")
        )
    prompts = rows(
        connection,
        "SELECT prompt, answer FROM problems WHERE run = $run AND split = 'train' AND problem_id = $problem",
        run=run, problem=chosen,
    )  # fmt: skip
    responses = rows(connection, _RESPONSES, run=run, step=step, problem=chosen, scoring=scoring)
    graded = safe_text(scoring) if scoring else "not scored"
    head = Text(f"{safe_text(run)} · step {step} · {safe_text(chosen)} · {graded}", style="bold")
    parts: list[RenderableType] = [head]
    for row in prompts[:1]:
        answer = "" if row["answer"] is None else f"   answer: {safe_text(row['answer'], limit=200)}"
        parts.append(Text(safe_text(row["prompt"]) + answer))
    for _, members in groupby(responses, key=lambda row: (row["degenerate"], row["cluster"])):
        parts.append(_cluster(list(members)))
    return Group(*parts)


def _cluster(members: list[dict[str, Any]]) -> Panel:
    first = members[0]
    if first["degenerate"]:
        name = "degenerate"
    elif first["cluster"] is None:
        name = "not labelled"
    else:
        words = [first["macro_strategy"], first["micro_strategy"]]
        name = f"cluster {first['cluster']}: {safe_text(' / '.join(w for w in words if w), limit=120)}".rstrip(": ")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("reward", justify="right", no_wrap=True)
    table.add_column("advantage", justify="right", no_wrap=True)
    table.add_column("response")
    for row in members:
        reward, advantage = _reward(row["reward"], row["ungraded"]), _advantage(row["advantage"])
        table.add_row(reward, advantage, Text(safe_text(row["response"])))
    return Panel(table, title=Text(f"{name} · {len(members)}"), title_align="left", box=box.ROUNDED)


def _reward(reward: float | None, ungraded: str | None) -> Text:
    if reward is None:
        return Text(safe_text(ungraded or "–", limit=40))
    return Text(f"{reward:.2g}", style="green" if reward > THRESHOLD else "red")


def _advantage(advantage: float | None) -> str:
    return "–" if advantage is None else f"{advantage:+.3f}"
