"""`polyepo runs` and `polyepo show`: what is there, for a person at a terminal."""

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
from storage import connect, rows
from tasks.runs.run import open_run

_RUNS = """
SELECT r.run, r.state, r.domain, r.scoring, r.steps_done, r.steps, r.bytes, r.last_commit,
       u.reward_mean, u.distinct_successful
FROM runs r LEFT JOIN (
    SELECT run, arg_max(reward_mean, step) AS reward_mean, arg_max(distinct_successful, step) AS distinct_successful
    FROM updates GROUP BY run
) u USING (run)
ORDER BY r.created_at, r.run
"""
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


def runs_table(root: str) -> Table:
    """One line per run: state, steps, the last step's reward and successful strategies, size."""
    table = Table(box=None, pad_edge=False)
    for name in ("run", "state", "domain", "scoring"):
        table.add_column(name, overflow="fold")
    for name in ("steps", "reward", "distinct", "MB"):
        table.add_column(name, justify="right", no_wrap=True, min_width=len(name) + 1)
    for row in rows(connect(root), _RUNS):
        table.add_row(
            *(Text(safe_text(row[name] or "")) for name in ("run", "state", "domain")),
            Text(safe_text((row["scoring"] or "").rsplit("-", 1)[0])),
            f"{row['steps_done']}/{row['steps'] or 0}",
            "" if row["reward_mean"] is None else f"{row['reward_mean']:.2f}",
            "" if row["distinct_successful"] is None else f"{row['distinct_successful']:.2f}",
            f"{row['bytes'] / 1e6:.1f}",
        )
    return table


def show_prompt(root: str, run: str, step: int | None, problem: str | None) -> RenderableType:
    """One prompt's responses, a panel per cluster, largest first; by the run's own scoring where there is one.

    Imported responses may have no rewards, no advantages or no scores at all.

    Raises:
        ConfigError: the run, the step or the problem has no responses.
    """
    opened = open_run(root, run)
    if opened.forked_from:  # its first steps are found under the name of the run that made them
        run = opened.owner(opened.last_step() if step is None else step).name
    connection = connect(root)
    there = rows(connection, "SELECT scoring, max(step) AS step FROM scores WHERE run = $run GROUP BY ALL", run=run)
    if not there:
        there = rows(connection, "SELECT NULL AS scoring, step FROM rollouts WHERE run = $run GROUP BY ALL", run=run)
    if not there:
        raise ConfigError(f"run {run!r} has no responses under {root!r}; `polyepo runs` lists the runs")
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
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right")
    table.add_column(justify="right")
    table.add_column()
    for row in members:
        reward, advantage = _reward(row["reward"], row["ungraded"]), _advantage(row["advantage"])
        table.add_row(reward, advantage, Text(safe_text(row["response"])))
    return Panel(table, title=Text(f"{name} · {len(members)}"), title_align="left", box=box.ROUNDED)


def _reward(reward: float | None, ungraded: str | None) -> Text:
    if reward is None:
        return Text(safe_text(ungraded or "–", limit=40))
    return Text(f"{reward:.2g}", style="green" if reward > 0.5 else "red")


def _advantage(advantage: float | None) -> str:
    return "–" if advantage is None else f"{advantage:+.3f}"
