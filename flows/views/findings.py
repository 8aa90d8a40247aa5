"""What is wrong with runs, read from the store: below the summary, and where a run's command ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from rich.console import Group
from rich.text import Text

from flows.views.terminal import safe_text
from polyepo.config import RunConfig
from polyepo.findings import RECENT, Finding, HeldOut, Severity, objective_findings, training_findings
from tasks.runs.evaluations import HELDOUT, evaluated_steps, read_evaluation
from tasks.runs.groups import members
from tasks.runs.run import Run, open_run
from tasks.runs.statistics import read_updates

_SIGNS = {
    Severity.FATAL: ("✗", "red"),
    Severity.WARNING: ("!", "yellow"),
    Severity.UNKNOWN: ("? not known:", "yellow"),
    Severity.NOTE: ("·", "dim"),
}


def finding_line(finding: Finding, where: str = "") -> Text:
    """A finding with its sign, and the runs that it is about."""
    sign, style = _SIGNS[finding.severity]
    return Text.assemble((f"{sign} ", style), safe_text(f"{where}: {finding}" if where else finding))


def run_findings(run: Run) -> list[Finding]:
    """Findings about a run, worst first: from its first and last update rows and its last held-out evaluation."""
    last = run.last_step()
    ends = sorted({*range(1, min(RECENT, last) + 1), *range(max(1, last - RECENT + 1), last + 1)})
    return training_findings(run.config, read_updates(run, ends), _held_out(run, last))


def warnings(root: str, name: str) -> list[tuple[str, Finding]]:
    """What is wrong with a run, or a configuration's arms, with the names of those it is said of; no notes.

    Raises:
        ConfigError: there is no such run under the root.
    """
    return _by_finding({run: run_findings(open_run(root, run)) for run in members(root, name)})


def _by_finding(found: Mapping[str, Sequence[Finding]]) -> list[tuple[str, Finding]]:
    """By finding, worst first, the runs that it is said of, unless there is one run only; no notes."""
    said: dict[Finding, list[str]] = {}
    for run, findings in found.items():
        for finding in findings:
            if finding.severity > Severity.NOTE:
                said.setdefault(finding, []).append(run)
    worst_first = sorted(said.items(), key=lambda item: -item[0].severity)
    return [("" if len(found) == 1 else ", ".join(runs), finding) for finding, runs in worst_first]


def of_objectives(runs: Mapping[str, RunConfig]) -> list[tuple[str, Finding]]:
    """What is wrong with the objectives of runs that are asked for, with the names of those it is said of."""
    return _by_finding({name: objective_findings(config) for name, config in runs.items()})


def render(found: list[tuple[str, Finding]]) -> Group:
    """Findings for a terminal, each with the runs that it is about."""
    return Group(*(finding_line(finding, where) for where, finding in found))


def markdown(found: list[tuple[str, Finding]]) -> str:
    """The same as a markdown list."""
    return "\n".join(f"- {finding_line(finding, where)}" for where, finding in found)


def _held_out(run: Run, last: int) -> HeldOut | None:
    """The newest held-out results beside the base model's, of the problems and samples that both have."""
    step = max((step for step in evaluated_steps(run, HELDOUT) if step <= last), default=0)
    if not step:
        return None
    base, now = (_mean_rewards(run, at) for at in (0, step))
    both = sorted(base.keys() & now.keys())
    return HeldOut(step, [base[problem] for problem in both], [now[problem] for problem in both])


def _mean_rewards(run: Run, step: int) -> dict[str, float]:
    """By problem, over the samples that could be graded."""
    rewards: dict[str, list[float]] = {}
    for row in read_evaluation(run, HELDOUT, step, ["reward"]):
        if row["reward"] is not None:
            rewards.setdefault(row["problem_id"], []).append(row["reward"])
    return {problem: fmean(values) for problem, values in rewards.items()}
