"""The catalog, narrowed to a report's runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import duckdb
import numpy as np

from polyepo.report import Series
from storage import connect
from tasks.runs.run import Run

_MAX_POINTS = 1_500


class Source:
    """The catalog, narrowed to the report's runs: small tables are read once, under their own names."""

    def __init__(self, root: str, runs: Sequence[Run]) -> None:
        self.connection: duckdb.DuckDBPyConnection = connect(root, [run.name for run in runs])
        self.names = [run.name for run in runs]
        self.where = f"run IN ({', '.join(map(quote, self.names))})"
        self.labels = short_names(self.names)
        self.judges = {run.name: run.config.judge.judge_id for run in runs}
        # Rows in one order, added up by one thread: the same artifacts make the same page, to the last digit.
        self.connection.execute("SET preserve_insertion_order = true")
        self.connection.execute("SET threads = 1")  # which opens thousands of small files faster, too
        # A temporary table stands before the view of its name, so what is run here is, word for word, what is shown.
        for name in ("runs", "updates", "evals", "scores", "labels", "judge_calls"):
            self.connection.execute(f"CREATE TEMP TABLE taken AS SELECT * FROM {name} WHERE {self.where}")  # noqa: S608
            self.connection.execute(f"DROP VIEW IF EXISTS temp.{name}")  # where views of object storage are
            self.connection.execute(f"ALTER TABLE taken RENAME TO {name}")
        self.benchmarks = [
            b
            for (b,) in self.rows("SELECT DISTINCT benchmark FROM evals ORDER BY benchmark = 'heldout' DESC, benchmark")
        ]

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """What a query returns."""
        return self.connection.execute(sql).fetchall()

    def records(self, sql: str, **values: Any) -> list[dict[str, Any]]:
        """What a query with parameters returns, by column."""
        found = self.connection.execute(sql, values)
        columns = [column[0] for column in found.description or ()]
        return [dict(zip(columns, row, strict=True)) for row in found.fetchall()]

    def judge_pairs(self) -> list[tuple[str, str]]:
        """A run's own judge and another that labelled it too."""
        both = "labels l JOIN runs r USING (run)"
        sql = f"SELECT DISTINCT r.judge, l.judge FROM {both} WHERE l.judge <> r.judge ORDER BY ALL"  # noqa: S608
        return [(own, other) for own, other in self.rows(sql)]

    def label(self, run: str) -> str:
        """What figures call a run."""
        return self.labels[run]


def quote(text: str) -> str:
    """A SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Names of runs without the words that all begin with."""
    if len(names) < 2:
        return {name: name for name in names}
    words = [name.split("-") for name in names]
    shared = 0
    while all(len(w) > shared + 1 and w[: shared + 1] == words[0][: shared + 1] for w in words):
        shared += 1
    return {name: "-".join(w[shared:]) for name, w in zip(names, words, strict=True)}


def series_of(source: Source, rows: Iterable[Sequence[Any]], part: str | None = None) -> list[Series]:
    """Rows of (run, step, value) as one line per run."""
    by_run: dict[str, list[tuple[float, float | None]]] = {name: [] for name in source.names}
    for run, step, value in rows:
        by_run[run].append((step, None if value is None or not np.isfinite(value) else float(value)))
    lines = {run: evenly(points, _MAX_POINTS) for run, points in by_run.items()}
    return [
        Series(source.label(run), [x for x, _ in points], [y for _, y in points], part=part)
        for run, points in lines.items()
        if points
    ]


def evenly(items: list[Any], limit: int) -> list[Any]:
    """At most so many, evenly spaced, with the first and the last."""
    if len(items) <= limit:
        return items
    return [items[i] for i in np.linspace(0, len(items) - 1, limit).round().astype(int)]
