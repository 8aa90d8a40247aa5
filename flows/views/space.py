"""`polyepo du`: what takes how much room under a root."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from rich import box
from rich.table import Table

from flows.views.tables import fill
from flows.views.terminal import safe_text
from storage import open_store
from storage.files import FoundFile
from tasks.runs.groups import members

_KINDS = ("rollouts", "labels", "scores", "evals", "checkpoints")
_OTHER = "other"
_MODELS = "(base models)"
"""What runs begin with, and share: not a name that a run can have."""


def space_used(root: str, names: Iterable[str] = ()) -> dict[str, Counter[str]]:
    """Bytes by run, then by kind of artifact, of all files that are there: unfinished ones too.

    Args:
        root: where the runs are.
        names: runs, or configurations, then all of their arms; everything under the root if none is given.

    Raises:
        ConfigError: there is no run of such a name.
    """
    store = open_store(root)
    runs = [run for name in names for run in members(root, name, unreadable=True)]
    found = {run: _by_kind(store.files.find(f"runs/{run}")) for run in runs or store.run_names()}
    if not runs and (models := sum(file.size for file in store.files.find("models"))):
        found[_MODELS] = Counter({_OTHER: models})
    return found


def space_table(root: str, names: Iterable[str] = ()) -> Table:
    """The same as a table of megabytes, and their sum. Raises ConfigError as `space_used`."""
    used = space_used(root, names)
    rows = [["run", *_KINDS, _OTHER, "all"], *([safe_text(run), *_cells(sizes)] for run, sizes in used.items())]
    if len(used) > 1:
        rows.append(["all", *_cells(sum(used.values(), Counter()))])
    table = Table(box=box.SIMPLE_HEAD, title="MB", title_justify="left", padding=(0, 1, 0, 0), pad_edge=False)
    return fill(table, rows)


def _by_kind(files: Iterable[FoundFile]) -> Counter[str]:
    sizes: Counter[str] = Counter()
    for file in files:
        kind = file.path.split("/")[2]
        sizes[kind if kind in _KINDS else _OTHER] += file.size
    return sizes


def _cells(sizes: Counter[str]) -> list[str]:
    numbers = [*(sizes[kind] for kind in (*_KINDS, _OTHER)), sizes.total()]
    return [f"{number / 1e6:,.1f}" if number else "–" for number in numbers]
