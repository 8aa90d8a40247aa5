"""`polyepo runs`: what is there. It loads little, as it is asked often."""

from __future__ import annotations

import fnmatch

from rich.table import Table
from rich.text import Text

from flows.views.terminal import safe_text
from storage import Catalog, rows

# Steps are spelt out, so that only their files are opened: a run's last one.
_RUNS = """
SELECT r.run, r.state, r.domain, r.scoring, r.steps_done, r.steps, r.bytes, r.last_commit,
       u.reward_mean, u.distinct_successful
FROM runs r LEFT JOIN (
    SELECT run, arg_max(reward_mean, step) AS reward_mean, arg_max(distinct_successful, step) AS distinct_successful
    FROM updates WHERE step IN ({last_steps}) GROUP BY run
) u USING (run)
ORDER BY r.created_at, r.run
"""

# Columns that go first where a terminal is narrow. A run's name is never broken: it is what one types next.
_LESS = ("domain", "MB", "scoring", "distinct", "state", "reward")


def runs_table(root: str, width: int, like: str | None = None) -> Table:
    """One line per run: state, steps, the last step's reward and successful strategies, size.

    Args:
        root: where the runs are.
        width: columns of the terminal; what does not fit is left out, the least telling first. Name and steps stay.
        like: runs whose names hold this text, or match it as a pattern with * and ?.
    """
    catalog = Catalog(root)
    last = catalog.last_steps("updates")
    listed = rows(catalog, _RUNS.format(last_steps=", ".join(map(str, sorted({*last.values()}))) or "NULL"))
    found = [row for row in listed if like is None or _is_like(row["run"], like)]
    columns = {
        "run": [safe_text(row["run"]) for row in found],
        "state": [safe_text(row["state"] or "") for row in found],
        "domain": [safe_text(row["domain"] or "", limit=30) for row in found],
        "scoring": [safe_text((row["scoring"] or "").rsplit("-", 1)[0], limit=20) for row in found],
        "steps": [f"{row['steps_done']}/{row['steps'] or 0}" for row in found],
        "reward": ["" if row["reward_mean"] is None else f"{row['reward_mean']:.2f}" for row in found],
        "distinct": [
            "" if row["distinct_successful"] is None else f"{row['distinct_successful']:.2f}" for row in found
        ],
        "MB": [f"{row['bytes'] / 1e6:.1f}" for row in found],
    }
    widths = {name: max(map(len, [name, *cells])) for name, cells in columns.items()}
    dropped = iter(_LESS)
    while (total := sum(widths[name] + 1 for name in columns) - 1) > width and (name := next(dropped, None)):
        del columns[name]
    # Of this width even where the terminal is narrower: then it breaks the line, and what one copies is still the name.
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), width=total)
    for name in columns:
        left = name in ("run", "state", "domain", "scoring")
        table.add_column(name, justify="left" if left else "right", no_wrap=True, min_width=widths[name])
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*map(Text, cells))
    return table


def _is_like(name: str, like: str) -> bool:
    return fnmatch.fnmatchcase(name, like) if set(like) & set("*?[") else like in name
