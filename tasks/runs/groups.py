"""Which runs belong together: the arms of a configuration, as their records say."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from polyepo.config import ConfigError
from polyepo.explain import did_you_mean
from storage import Store, open_store

# Versions that did not record groups made all runs of a configuration one after the other, before any work.
_LEGACY_SECONDS = 60.0


@dataclass(frozen=True)
class Arm:
    """A run's place among the arms of its configuration; it is called `{group}-{arm}`."""

    group: str
    arm: str
    arms: list[str]
    """All of them, in the configuration's order."""


def members(root: str, name: str, unreadable: bool = False) -> list[str]:
    """A run, or the arms of a configuration in its order; with `unreadable` also arms whose record cannot be read.

    Raises:
        ConfigError: there is neither.
    """
    store = open_store(root)
    if store.run_record(name) is not None:
        return [name]
    if found := arms_of(store, name, unreadable):
        return found
    raise no_such_run(store, name)


def exists(root: str, name: str) -> bool:
    """Whether a run, or a configuration with arms, has a name."""
    store = open_store(root)
    return store.run_record(name) is not None or bool(arms_of(store, name))


def arms_of(store: Store, group: str, unreadable: bool = False) -> list[str]:
    """Runs that are arms of a configuration, in its order; none if there is no such configuration.

    Of an arm whose own record cannot be read the others' records tell: `unreadable` lists it too.
    """
    names = [run for run in store.run_names() if run.startswith(f"{group}-")]
    records = store.run_records(names)
    lost = [run for run in names if run not in records] if unreadable else []
    return _arms(records, group, lost)


def _arms(records: dict[str, dict[str, Any]], group: str, lost: Collection[str] = ()) -> list[str]:
    """As `arms_of`; `lost` are the runs whose records could not be read."""
    own = {run: record for run, record in records.items() if record.get("group") == group}
    if not own:
        return _legacy_arms(records, group)
    newest = max(own.values(), key=lambda record: str(record.get("created_at")))
    order = [f"{group}-{arm}" for arm in newest.get("arms", [])]
    own |= {run: {} for run in lost if run in order}
    return sorted(own, key=lambda run: (order.index(run) if run in order else len(order), run))


def no_such_run(store: Store, name: str) -> ConfigError:
    """What to say of a name that no run has."""
    names = store.run_names()
    records = store.run_records(names)
    if arms := _arms(records, name):
        if len(arms) == 1:
            return ConfigError(f"{name!r} has one arm, which is the run to name: {arms[0]}")
        return ConfigError(f"{name!r} has several arms: name one of {', '.join(arms)}")
    near = did_you_mean(name, sorted({*names, *_groups(records)})) or "; `polyepo runs` lists what there is"
    return ConfigError(f"run {name!r} does not exist under {store.root!r}{near}")


def _groups(records: dict[str, dict[str, Any]]) -> set[str]:
    """Names of the configurations that runs are arms of."""
    recorded = {str(record["group"]) for record in records.values() if record.get("group")}
    prefixes = {run[:i] for run in records for i, letter in enumerate(run) if letter == "-"}
    return recorded | {prefix for prefix in prefixes - recorded if _legacy_arms(records, prefix)}


def _legacy_arms(records: dict[str, dict[str, Any]], group: str) -> list[str]:
    """Runs of versions that recorded no groups: named after the configuration, and made together.

    Names alone would take the arms of a configuration `{group}-2` for this one's.
    """
    old = {
        run: record
        for run, record in records.items()
        if run.startswith(f"{group}-") and "group" not in record and "created_at" in record
    }
    batches: list[list[str]] = []
    last = None
    for made, run in sorted((_created(record), run) for run, record in old.items()):
        if last is None or (made - last).total_seconds() > _LEGACY_SECONDS:
            batches.append([])
        batches[-1].append(run)
        last = made
    return [run for batch in batches if len(batch) > 1 and _common_name(batch) == group for run in batch]


def _created(record: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(str(record["created_at"]))


def _common_name(runs: list[str]) -> str:
    """The longest name that all of these could be arms of."""
    first, last = min(runs), max(runs)
    words = first.split("-")
    prefixes = ("-".join(words[:n]) for n in range(len(words) - 1, 0, -1))
    return next((prefix for prefix in prefixes if all(run.startswith(f"{prefix}-") for run in (first, last))), "")
