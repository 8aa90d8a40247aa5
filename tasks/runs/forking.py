"""A fork: a run that goes on from a step of another, with other settings. Its history stays where it is."""

from __future__ import annotations

from typing import Any

from polyepo.changes import differences
from polyepo.config import ConfigError, RunConfig, parse_run, with_settings
from polyepo.section import results_only
from storage import open_store
from storage.layout import check_name
from tasks.runs.record import NOT_FORKED, Parent, RunExistsError, as_record, new_record, read_record
from tasks.runs.run import Run, commit_problems, open_run, read_problems, read_splits


def fork(root: str, parent_name: str, step: int, name: str, settings: dict[str, Any]) -> Run:
    """Make a run that has another's weights, optimizer and history up to a step, or open the one that was made so.

    Args:
        root: where both are.
        parent_name: the run to go on from.
        step: a committed step of it; 0 is its base model.
        name: what the new run is called.
        settings: values that replace the parent's, by dotted name.

    Raises:
        ConfigError: the step is not committed, a setting cannot be, or is one that a fork has from its parent.
        RunExistsError: another run has the name.
        StoreError: the root cannot be written.
    """
    store = open_store(root)
    check_name("run", name)
    parent = open_run(root, parent_name)
    if not 0 <= step <= parent.last_step():
        raise ConfigError(f"--at {step}: run {parent_name!r} has committed steps 0 to {parent.last_step()}")
    theirs = read_record(store, parent_name)
    assert theirs is not None
    if theirs.imported:
        raise ConfigError(f"run {parent_name!r} was imported: it has no weights to go on from")
    if not store.exists(parent.key("problems", 0)):
        raise ConfigError(f"run {parent_name!r} has not begun: train it first")
    config = _config(parent, step, settings)
    store.check()
    changes = differences(results_only(parent.config), results_only(config))
    inherited = theirs.model_dump(include={"model", "device"}, exclude_unset=True)
    forked_from = Parent(run=parent_name, step=step, changes=changes)
    record = new_record(name, config, parent=forked_from).model_copy(update=inherited)
    stored = as_record(name, store.create_run(name, record.written()))
    if stored.parent != record.parent:
        raise RunExistsError(f"run {name!r} exists under {root!r} and is no such fork; choose another --run")
    made = open_run(root, name)
    if not store.exists(made.key("problems", 0)):
        problems = read_problems(store, parent.key("problems", 0))
        commit_problems(store, name, problems, made.provenance(None))
    return made


def _config(parent: Run, step: int, settings: dict[str, Any]) -> RunConfig:
    described = parent.config.model_dump(mode="json")
    config = parse_run(with_settings(described, settings), f"a fork of run {parent.name!r}")
    for change in differences(results_only(parent.config), results_only(config)):
        if change.startswith(NOT_FORKED) and not change.startswith("domain"):
            raise ConfigError(f"a fork has the weights of its parent, so this cannot be another: {change}")
    if config.steps <= step:
        raise ConfigError(f"--at {step} leaves none of {config.steps} steps to train: --set steps={step + 1} or more")
    if config.domain != parent.config.domain:
        theirs = read_problems(parent.store, parent.key("problems", 0))
        if [(split, p) for split, problems in read_splits(config).items() for p in problems] != theirs:
            raise ConfigError(
                f"a fork has the problems of its parent, and domain {config.domain.name!r} with these settings has "
                "others: change how answers are verified alone, or begin a new run"
            )
    return config.begun()
