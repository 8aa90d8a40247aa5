"""What is asked to be trained, and everything about it that can be refused before any work starts.

The command checks before there is a flow run, and the flow checks again by the same function.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyepo.config import ConfigError, RunConfig, load_config, parse_run, with_settings
from polyepo.domains import Demonstrated, Problem
from polyepo.policy.language import load_language
from polyepo.policy.source import check_device, check_trainer, identify
from storage import Store, open_store
from storage.layout import check_name
from tasks.runs.code import check_provided
from tasks.runs.curves import check_metrics
from tasks.runs.groups import Arm, arms_of, members
from tasks.runs.probing import probe
from tasks.runs.record import RunExistsError, RunRecord, check_resume, read_record
from tasks.runs.run import Run, check_arm, create_or_resume, open_run, read_splits


@dataclass(frozen=True)
class Training:
    """What is asked to be trained: one run, or the arms of a configuration."""

    name: str
    runs: dict[str, RunConfig]
    arms: dict[str, Arm | None]
    """By run, its place among the arms."""


def describe(root: str, config: str | Path | None, run: str | None, settings: dict[str, Any] | None) -> Training:
    """What a configuration describes, or without one what the records of existing runs say.

    Args:
        root: where artifacts are.
        config: path of a YAML file; None to go on with runs that exist.
        run: name of the run or of what its arms' names begin with; the file's name if not given.
        settings: values that replace the configuration's, by dotted name.

    Raises:
        ConfigError: the configuration cannot be used, or there is none and no such run.
    """
    if config is not None:
        loaded = load_config(config, settings)
        name = run or Path(config).stem
        runs = loaded.runs(name)
        named = {f"{name}-{arm}": Arm(name, arm, list(loaded.arms)) for arm in loaded.arms}
        return Training(name, runs, {run: named.get(run) for run in runs})
    if run is None:
        raise ConfigError("give a configuration, or the name of a run that exists")
    found = {name: read_record(open_store(root), name) for name in members(root, run)}
    records = {name: record for name, record in found.items() if record is not None}
    arms = {name: record.place for name, record in records.items()}
    configs = {name: _recorded(name, records[name], arms[name], settings or {}) for name in records}
    return Training(run, configs, arms)


def check(root: str, training: Training, allow_changed_code: bool = False) -> None:
    """Refuse what cannot be trained; nothing is written but a probe of the root.

    Args:
        root: where artifacts are.
        training: what is asked for.
        allow_changed_code: whether code that a run's maker brought may be other than it was.

    Raises:
        ConfigError: a name, setting, file, model, device, package or key is not what it must be. What only the weights
            tell is left to the flow.
        StoreError: the root cannot be written.
    """
    store = open_store(root)
    for name in (training.name, *training.runs):
        check_name("run", name)
    store.check()
    _check_group(store, training)
    for name, config in training.runs.items():
        check_provided(config)
        check_metrics(store, config)
        record = read_record(store, name)
        if record is not None:
            check_arm(name, record, training.arms[name])
            check_resume(store, name, record, config, open_run(root, name).last_step(), allow_changed_code)
        check_here(config, trained_on=record.device if record else None)
        if record is None:
            problems = [problem for split in read_splits(config).values() for problem in split]
            check_model(config, problems)
            probe(config, problems)


def prepare(root: str, training: Training) -> list[Run]:
    """Check, then make or open the runs. Raises as `check`."""
    check(root, training)
    return [create_or_resume(root, name, config, training.arms[name]) for name, config in training.runs.items()]


def accept_changed_code(root: str, training: Training) -> None:
    """Note in the records of existing runs that they go on with other code than they were begun with."""
    for name, config in training.runs.items():
        if open_store(root).run_record(name) is not None:
            create_or_resume(root, name, config, training.arms[name], allow_changed_code=True)


def check_here(config: RunConfig, trained_on: str | None = None) -> None:
    """Raise ConfigError if this machine lacks what a run works with: device, judge's key or package, sampler's program.

    Args:
        config: the run's.
        trained_on: the kind of device that it was trained on so far, if it exists.
    """
    if trained_on not in (None, "cpu"):
        check_device(config.policy.device, f"the run was trained on {trained_on} and goes on where there is one")
    else:
        check_device(config.policy.device)
    check_trainer(config.resources.trainer, config.policy.device)
    config.judge.check_ready()
    config.sampler.check_ready()


def check_model(config: RunConfig, problems: Iterable[Problem]) -> None:
    """Raise ConfigError if there is no such model, or prompts and limits do not fit it; its weights are not loaded."""
    policy = config.policy
    if policy.warm_start and isinstance(config.domain, Demonstrated):
        from polyepo.policy.warm_start import language_of  # takes seconds to import

        language = language_of(config.domain, policy.warm_start)
    else:
        pinned = policy.model_copy(update={"revision": identify(policy).get("revision")})
        language = load_language(str(policy.model), pinned)
    language.check_context(config.sampling)
    language.check_prompts(problems, config.sampling, "domain")


def _recorded(name: str, record: RunRecord, arm: Arm | None, settings: dict[str, Any]) -> RunConfig:
    """A run's configuration as recorded, with settings replaced; `arms.{arm}.` before a name means one arm alone."""
    if not settings:
        return record.run_config(name)
    own = {}
    for key, value in settings.items():
        whose = next((a for a in (arm.arms if arm else []) if key.startswith(f"arms.{a}.")), None)
        if whose is None or (arm and whose == arm.arm):
            own[key.removeprefix(f"arms.{whose}.")] = value
    return parse_run(with_settings(record.config, own), f"run {name!r} with these settings")


def _check_group(store: Store, training: Training) -> None:
    """Raise RunExistsError if a name would stand for a run and for a configuration with arms."""
    if any(store.run_record(name) is not None for name in training.runs):
        return  # it does already, or will not
    arms = arms_of(store, training.name)
    if arms and not any(training.arms.values()):
        raise RunExistsError(
            f"{training.name!r} is the name of a configuration with arms under {store.root!r} ({', '.join(arms)}); "
            "choose another --run"
        )
    if training.name not in training.runs and store.run_record(training.name) is not None:
        raise RunExistsError(
            f"run {training.name!r} exists under {store.root!r} and is no configuration with arms; choose another --run"
        )
