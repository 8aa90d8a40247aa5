"""What the command line does with judges: measure them side by side, and write a sheet for labelling by hand."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Group as RichGroup
from rich.table import Table
from rich.text import Text

from flows.views.terminal import safe_text
from polyepo.config import ConfigError, load_judge
from polyepo.domains import AnyDomain, Countdown, Multiplication, Polynomial
from polyepo.judges import Group
from polyepo.judges.bench import Measured, Suite, domain_suite, human_suite, measure
from polyepo.judges.sheet import write_sheet
from storage import connect, rows
from tasks.runs.run import open_run

HUMAN_SOLUTIONS = Path("creativemath/subset.json")
_RESPONSES = """
SELECT problem_id, response FROM rollouts
WHERE run = $run AND (problem_id, step) IN (
    SELECT (problem_id, arg_min(step, hash(step, $seed))) FROM rollouts WHERE run = $run GROUP BY problem_id
)
ORDER BY problem_id, sample
"""


def suites(data: Path | None, prompts: int, responses: int, seed: int) -> list[Suite]:
    """Sets of responses with known strategies: our domains', and human solutions if `data` has them."""
    domains: list[AnyDomain] = [Polynomial(), Multiplication(), Countdown()]
    found = [domain_suite(domain, prompts, responses, seed) for domain in domains]
    if data is not None:
        try:
            found.append(human_suite(data / HUMAN_SOLUTIONS, prompts, seed))
        except ValueError as error:
            raise ConfigError(f"--data: {error}") from None
    return found


def bench(judges: Sequence[Path], suites: Sequence[Suite], seed: int) -> Iterable[Measured]:
    """Every judge on every suite. Raises ConfigError if a judge cannot be read, before any is asked."""
    loaded = [load_judge(path) for path in judges]
    return (measure(judge, suite, seed) for suite in suites for judge in loaded)


def render(measured: Sequence[Measured]) -> RichGroup:
    """A table for each suite, with the judges side by side."""
    tables = []
    for suite, group in groupby(measured, key=lambda row: (row.suite, row.prompts, row.responses)):
        name, prompts, responses = suite
        title = f"{safe_text(name)}: {prompts} prompts, {responses} responses"
        table = Table(
            title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True
        )
        for column in ("judge", "ARI", "V", "deg P", "deg R", "self", "bias", "miss", "cost", "s"):
            name = column == "judge"
            table.add_column(column, justify="left" if name else "right", overflow="fold", no_wrap=not name)
        for row in group:
            values = (
                row.ari, row.v_measure, row.degenerate_precision, row.degenerate_recall, row.consistency,
                row.position_bias, row.missing, row.cost_per_1000, row.seconds_per_1000,
            )  # fmt: skip
            table.add_row(Text(safe_text(row.judge)), *(_number(value) for value in values))
        tables.append(table)
    return RichGroup(*tables)


def sheet(root: str, run: str, path: Path, prompts: int, seed: int) -> int:
    """Write a blind sheet of some prompts of a run, each problem at most once; returns its rows.

    Raises:
        ConfigError: the run has no responses, or the sheet is there already or cannot be written.
    """
    opened = open_run(root, run)
    found = rows(connect(root), _RESPONSES, run=run, seed=seed)
    groups = [
        Group(opened.problems[problem_id], [row["response"] for row in group])
        for problem_id, group in groupby(found, key=lambda row: row["problem_id"])
    ]
    if not groups:
        raise ConfigError(f"run {run!r} has no responses under {root!r}")
    chosen = np.random.default_rng(seed).permutation(len(groups))[:prompts]
    try:
        return write_sheet(path, [groups[i] for i in chosen], seed)
    except FileExistsError:
        raise ConfigError(f"{path} exists, and may hold somebody's labels; choose another --output") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None


def _number(value: float) -> str:
    if math.isnan(value):
        return "–"
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"
