"""The report of runs: what the catalog says of them, handed to polyepo.report, which makes the page.

Every number comes from the SQL that the page shows beside it; intervals are bootstrapped from the rows it returns.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from flows.views.report.curves import curves, judge_differences
from flows.views.report.findings import findings
from flows.views.report.heldout import HeldOut
from flows.views.report.prompts import decoders, read_histories, read_problems, read_prompts
from flows.views.report.source import Source
from polyepo.config import ConfigError
from polyepo.report import Report, RunFacts, render
from storage import open_store
from storage.layout import check_name
from tasks.runs.groups import members
from tasks.runs.run import Run, open_run

Progress = Callable[[int, int], None]


def _silent(done: int, total: int) -> None:
    pass


class NothingToReportError(ConfigError):
    """No step and no evaluation of the runs is committed yet."""


_PARTS = 6  # that the work is told to have, each about as long as another


def write_report(root: str, names: Sequence[str], output: Path, progress: Progress = _silent) -> int:
    """Write the report of runs (or of whole configurations: their arms) to a file; returns its size in bytes.

    Args:
        root: where the runs are.
        names: of runs or configurations.
        output: the file.
        progress: told how many parts of the work are done, and of how many.

    Raises:
        ConfigError: there is no such run under the root, or none has taken a step or been evaluated.
    """
    page = render(assemble(root, names, progress=progress)).encode()
    progress(_PARTS, _PARTS)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_bytes(page)
    return len(page)


def publish_report(root: str, title: str, runs: Sequence[str]) -> str:
    """Put the report of runs beside them, under the title as its name; returns its address.

    Reports are views: they are named by their content and never rewritten, and any of them can be deleted.
    """
    page = render(assemble(root, runs, title)).encode()
    files = open_store(root).files
    path = f"reports/{check_name('title', title)}/{hashlib.sha256(page).hexdigest()[:12]}.html"
    files.create(path, page)
    url = files.url(path)
    return url if "://" in url else Path(url).as_uri()


def assemble(root: str, names: Sequence[str], title: str | None = None, progress: Progress = _silent) -> Report:
    """Everything the report of these runs shows. Raises ConfigError as `write_report` does."""
    runs = [open_run(root, run) for run in dict.fromkeys(run for name in names for run in members(root, name))]
    progress(0, _PARTS)
    source = Source(root, runs)
    progress(1, _PARTS)
    if not source.rows("SELECT 1 FROM updates UNION ALL SELECT 1 FROM evals LIMIT 1"):
        raise NothingToReportError(
            f"run {' '.join(names)}: no step and no evaluation is committed yet, so there is no report"
        )
    facts = _facts(runs, source)
    held_out = [HeldOut(source, benchmark) for benchmark in source.benchmarks]
    prompts, coverage_note, sql = read_prompts(source)
    progress(3, _PARTS)
    shown = {prompt.problem_id for prompt in prompts}
    histories, history_sql, history_note = read_histories(source, shown)
    second = judge_differences(source)
    figures = [
        *curves(source),
        *(figure for evaluation in held_out for figure in evaluation.figures()),
        *second,
    ]
    table = held_out[0].table() if held_out else []
    progress(4, _PARTS)
    return Report(
        title=title or ", ".join(names),
        runs=facts,
        findings=findings(source, runs, facts, held_out),
        policies=table,
        policies_note=held_out[0].note if held_out else "",
        policies_sql=held_out[0].sql if held_out else "",
        figures=[figure for figure in figures if any(any(y is not None for y in s.y) for s in figure.series)],
        problems=read_problems(source, shown),
        prompts=prompts,
        histories=histories,
        coverage_note=coverage_note + history_note,
        sql={"history": history_sql, **sql},
        decoders=decoders(runs),
    )


def _facts(runs: Sequence[Run], source: Source) -> list[RunFacts]:
    rows = source.rows("SELECT run, steps_done, state, code_version, config FROM runs")
    by_name = {name: rest for name, *rest in rows}
    facts = []
    for run in runs:
        steps_done, state, version, config = by_name[run.name]
        facts.append(
            RunFacts(
                name=run.name,
                label=source.label(run.name),
                domain=run.config.domain.name,
                judge=run.config.judge.judge_id,
                scoring=run.config.scoring.title(run.config.sampling.num_responses),
                seed=run.config.seed,
                num_responses=run.config.sampling.num_responses,
                steps=run.config.steps,
                steps_done=steps_done,
                finished=state == "finished",
                code_version=version or "",
                config=json.dumps(json.loads(config), indent=1),
            )
        )
    return facts
