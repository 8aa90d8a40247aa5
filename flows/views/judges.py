"""What the command line does with judges: measure them side by side, and write a sheet for labelling by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
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
from polyepo.judges import Group, Judge
from polyepo.judges.bench import BenchCalls, Measured, Suite, domain_suite, human_suite, measure
from polyepo.judges.llm.limits import JudgeError
from polyepo.judges.sheet import write_sheet
from polyepo.section import digest
from storage import connect, rows
from tasks.runs.run import open_run

KEPT = Path(".polyepo/judge-bench")
"""Calls of judges that were measured."""
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


def bench(judges: Sequence[Path], suites: Sequence[Suite], seed: int, say: Callable[[str], None]) -> Iterator[Measured]:
    """Every judge on every suite, as they come. What a judge's calls were answered is kept under KEPT, and used again.

    Args:
        judges: YAML files.
        suites: sets of responses.
        seed: of the second order.
        say: told how far a judge is, after each call.

    Raises:
        ConfigError: a judge cannot be read; raised before any is asked.
        JudgeError: a judge cannot go on, or gave no label at all.
    """
    loaded = [(path, load_judge(path)) for path in judges]
    return (_measured(path, judge, suite, seed, say) for suite in suites for path, judge in loaded)


def _measured(path: Path, judge: Judge, suite: Suite, seed: int, say: Callable[[str], None]) -> Measured:
    # One model may be served in two places, and the point may be to tell them apart.
    content = [judge.judge_id, getattr(judge, "base_url", "")]
    kept = KEPT / f"{judge.judge_id}-{digest(content)[:8]}.jsonl" if judge.makes_calls else None

    def calls_of(name: str, expected: int) -> BenchCalls:
        def tell(made: int) -> None:
            say(f"{name}: {made} of about {max(made, expected)} calls")

        if expected:
            tell(0)
        return BenchCalls(kept, tell)

    try:
        return measure(judge, suite, seed, calls_of)
    except JudgeError as error:
        raise JudgeError(f"{path}: {error}") from error


def summary(row: Measured) -> str:
    """One line about a measurement that is done."""
    return safe_text(
        f"{row.suite}, {row.judge}: ARI {_number(row.ari)}, self {_number(row.consistency)}, "
        f"miss {_number(row.missing)}, {row.responses} responses"
    )


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
