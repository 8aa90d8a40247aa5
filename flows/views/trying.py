"""What `polyepo try` shows: every response of a few problems, and what a step of them would teach."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from flows.views import findings
from flows.views.show import show_prompt
from polyepo.findings import Finding, Severity
from tasks.runs.run import Run
from tasks.runs.statistics import batch_statistics

_STEP = 1


def trial(run: Run) -> Group:
    """A trial's problems one below the other, then the step in numbers and what is wrong with it."""
    shown: list[RenderableType] = []
    for problem in run.shard_of_step(_STEP, 0):
        shown += [show_prompt(run.store.root, run.name, _STEP, problem.problem_id), Text()]
    row = batch_statistics(run, _STEP)
    parts = [
        f"reward {_number(row['reward_mean'])}",
        f"strategies {_number(row['distinct_clusters'])} a problem, successful {_number(row['distinct_successful'])}",
        f"problems with a gradient {row['prompts_with_signal']} of {row['prompts']}",
        f"cut off {_percent(row['truncated_rate'])}",
        f"without an answer {_percent(row['unparsed_rate'])}",
        f"not graded {_percent(row['ungraded_rate'])}",
        f"without a label {_percent(row['missing_label_rate'])}",
    ]
    found = findings.of_objectives({run.name: run.config})
    if not row["prompts_with_signal"]:
        silent = "no problem has a gradient: nothing would be learnt from this step"
        found.append(("", Finding(Severity.WARNING, silent, "look at the rewards above, or take more problems by -n")))
    return Group(*shown, Text(" · ".join(parts), style="bold"), findings.render(found))


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"
