"""A run's record: what is written once when it is made, and what may be another when it is resumed."""

from __future__ import annotations

import json
import platform
import shlex
from dataclasses import asdict, dataclass
from functools import reduce
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any

from polyepo.changes import as_settings, differences
from polyepo.config import ConfigError, RunConfig, validated
from polyepo.policy.source import device_kind, files_digest, identify
from polyepo.section import results_only
from storage import Store
from tasks.runs.code import code_record
from tasks.runs.groups import Arm
from tasks.runs.version import code_version

# What a fork has from its parent, so that it cannot be another.
NOT_FORKED = ("policy.model", "policy.revision", "policy.warm_start", "policy.dtype", "domain")


class RunExistsError(ConfigError):
    """A run of this name exists, and what is asked for would be another."""


@dataclass(frozen=True)
class Parent:
    """The run that another was forked from, and the step up to which they are one."""

    run: str
    step: int


def run_record(name: str, config: RunConfig, arm: Arm | None = None, parent: Parent | None = None) -> dict[str, Any]:
    """What is written when a run is made."""
    return {
        "run": name,
        "config": config.model_dump(mode="json"),
        "config_hash": config.digest,
        # What the run's own labels and scores are called, for readers that know no configurations.
        "judge": config.judge.judge_id,
        "scoring": config.scoring_id,
        **(asdict(arm) if arm else {"group": None}),
        **({"parent": asdict(parent)} if parent else {}),
        **code_record(config),
        "code_version": code_version(),
        "python": platform.python_version(),
        "packages": {package: version(package) for package in ("torch", "transformers", "numpy", "pyarrow", "prefect")},
    }


def trained_record(config: RunConfig) -> dict[str, Any]:
    """What a record says of a run that has a policy: its model and the kind of device. Raises ConfigError."""
    return {"model": identify(config.policy), "device": device_kind(config.policy.device)}


def recorded_config(name: str, record: dict[str, Any]) -> RunConfig:
    """A run's configuration as recorded, with the latest settings; a hub id's revision is the commit it began with.

    Raises:
        ConfigError: this version cannot read it.
    """
    config: RunConfig = validated(RunConfig, record.get("config"), f"the record of run {name!r}")
    revision = (record.get("model") or {}).get("revision")
    if revision is None:
        return config
    return config.model_copy(update={"policy": config.policy.model_copy(update={"revision": revision})})


def recorded_arm(record: dict[str, Any]) -> Arm | None:
    """The run's place among the arms of its configuration."""
    return Arm(record["group"], record["arm"], record["arms"]) if record.get("group") else None


def recorded_parent(record: dict[str, Any]) -> Parent | None:
    """The run that this one was forked from."""
    parent = record.get("parent")
    return Parent(parent["run"], parent["step"]) if parent else None


def check_resume(
    store: Store,
    name: str,
    record: dict[str, Any],
    wanted: RunConfig,
    steps_done: int,
    allow_changed_code: bool = False,
) -> list[str]:
    """What of an existing run's settings is another from now on, one line each.

    Settings that change no result may differ; `steps` and `evaluation.num_samples` may grow. Code that the run's maker
    brought may have changed, if that is allowed.

    Raises:
        RunExistsError: something that changes results differs; the message shows it.
    """
    before = recorded_config(name, record)
    wanted = _pinned(before, wanted, record)
    there = f"run {name!r} exists under {store.root!r}"
    changed = differences(results_only(before), results_only(wanted))
    if changed and not (allow_changed_code and all(line.split(": ")[0].endswith(".code") for line in changed)):
        raise RunExistsError(_refusal(store, name, there, before, wanted, steps_done))
    if wanted.steps < steps_done:
        raise RunExistsError(f"{there} with {steps_done} committed steps: steps {wanted.steps} must not be fewer")
    if before.evaluation and wanted.evaluation and wanted.evaluation.num_samples < before.evaluation.num_samples:
        raise RunExistsError(
            f"{there} with {before.evaluation.num_samples} samples per held-out problem: evaluation.num_samples "
            f"{wanted.evaluation.num_samples} must not be fewer"
        )
    _check_device(there, record, before, wanted)
    _check_files(there, record, wanted)
    return differences(before.model_dump(mode="json"), wanted.model_dump(mode="json"))


def _pinned(before: RunConfig, wanted: RunConfig, record: dict[str, Any]) -> RunConfig:
    """The revision asked for, unless it is the one the run was begun with in other words: then the commit that it has.

    A branch moves on; the run does not.
    """
    given = record["config"].get("policy", {}).get("revision")
    if before.policy.model != wanted.policy.model or wanted.policy.revision not in (None, given):
        return wanted
    return wanted.model_copy(update={"policy": wanted.policy.model_copy(update={"revision": before.policy.revision})})


def _refusal(store: Store, name: str, there: str, before: RunConfig, wanted: RunConfig, steps_done: int) -> str:
    """What differs, and how to have it all the same."""
    changed = differences(results_only(before), results_only(wanted))
    lines = [f"{there} with another configuration:", *(f"  {line}" for line in changed)]
    lines.append("Give this one another run name, or restore the old values to resume it.")
    if all(line.split(": ")[0].endswith(".code") for line in changed):
        lines.append("To go on with the new code, which is noted in the run's record: --allow-changed-code")
        return "\n".join(lines)
    if steps_done and not any(line.startswith(NOT_FORKED) for line in changed):
        free = next(run for n in count(2) if store.run_record(run := f"{name}-{n}") is None)
        whole = wanted.model_dump(mode="json")  # a section that is given as a whole has its operational settings
        keys = as_settings(results_only(before), results_only(wanted))
        values = {key: json.dumps(reduce(dict.__getitem__, key.split("."), whole)) for key in keys}
        sets = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
        command = ["polyepo", "fork", name, "--at", str(steps_done), "--run", free, *sets, "--root", store.root]
        lines.append(f"To go on from step {steps_done} with the new values, fork it:\n  {shlex.join(command)}")
    return "\n".join(lines)


def _check_device(there: str, record: dict[str, Any], before: RunConfig, wanted: RunConfig) -> None:
    """Raise RunExistsError if the run would go on with another kind of device than the one it was trained on."""
    was = record.get("device") or before.policy.device.split(":")[0]  # versions that recorded none
    if was == "auto" or (wanted.policy.device == "auto" and "device" not in record):
        return
    now = device_kind(wanted.policy.device)
    if now != was:
        raise RunExistsError(
            f"{there} and was trained on {was}: on policy.device {wanted.policy.device!r}, here {now}, its results "
            f"would be others; set policy.device to {was}, on a machine that has it"
        )


def _check_files(there: str, record: dict[str, Any], wanted: RunConfig) -> None:
    """Raise RunExistsError if the directory that the run's model was read from holds another by now."""
    digest = (record.get("model") or {}).get("files")
    folder = Path(wanted.policy.model or "")
    if digest and folder.is_dir() and files_digest(folder) != digest:
        raise RunExistsError(
            f"{there} and began with another model than policy.model {wanted.policy.model!r} holds now (the sizes of "
            "its weights, its configuration or its tokenizer differ): put that one back, or give this one another run "
            "name"
        )
