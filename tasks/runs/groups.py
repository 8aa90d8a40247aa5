"""Which runs belong together: the arms of a configuration, as their records say."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from polyepo.config import RUN_NAME, ConfigError
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


def members(root: str, name: str) -> list[str]:
    """A run, or the arms of a configuration in its order. Raises ConfigError if there is neither."""
    store = open_store(root)
    if store.run_record(name) is not None:
        return [name]
    if found := arms_of(store, name):
        return found
    raise no_such_run(store, name)


def exists(root: str, name: str) -> bool:
    """Whether a run, or a configuration with arms, has a name."""
    store = open_store(root)
    return store.run_record(name) is not None or bool(arms_of(store, name))


def arms_of(store: Store, group: str) -> list[str]:
    """Runs that are arms of a configuration, in its order; none if there is no such configuration."""
    names = [run for run in _names(store) if run.startswith(f"{group}-")]
    with ThreadPoolExecutor(16) as pool:
        records = {run: record for run, record in zip(names, pool.map(store.run_record, names), strict=True) if record}
    own = {run: record for run, record in records.items() if record.get("group") == group}
    if not own:
        return _legacy_arms({run: record for run, record in records.items() if "group" not in record}, group)
    newest = max(own.values(), key=lambda record: str(record.get("created_at")))
    order = [f"{group}-{arm}" for arm in newest.get("arms", [])]
    return sorted(own, key=lambda run: (order.index(run) if run in order else len(order), run))


def no_such_run(store: Store, name: str) -> ConfigError:
    """What to say of a name that no run has."""
    if RUN_NAME.fullmatch(name) and (arms := arms_of(store, name)):
        return ConfigError(f"{name!r} has several arms: name one of {', '.join(arms)}")
    names = _names(store)
    known = {*names, *(run.rsplit("-", 1)[0] for run in names if "-" in run)} - {name}
    near = did_you_mean(name, sorted(known)) or "; `polyepo runs` lists what there is"
    return ConfigError(f"run {name!r} does not exist under {store.root!r}{near}")


def _names(store: Store) -> list[str]:
    return [name for name in store.files.names("runs") if RUN_NAME.fullmatch(name)]


def _legacy_arms(records: dict[str, dict[str, Any]], group: str) -> list[str]:
    """Runs of versions that recorded no groups: named after the configuration, and made together.

    Names alone would take the arms of a configuration `{group}-2` for this one's.
    """
    batches: list[list[str]] = []
    last = None
    for made, run in sorted((_created(record), run) for run, record in records.items() if "created_at" in record):
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
