"""A run's record: what is written once when it is made, and what may be another when it is resumed."""

from __future__ import annotations

import json
import platform
import shlex
from dataclasses import asdict
from functools import reduce
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

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


class Parent(BaseModel):
    """The run that another was forked from, and the step up to which they are one."""

    model_config = ConfigDict(frozen=True)

    run: str
    step: int
    changes: list[str] = []
    """What of the settings is another from there on, one line each."""


class ImportRecord(BaseModel):
    """Where the rollouts of an imported run are from."""

    model_config = ConfigDict(frozen=True)

    digest: str
    """SHA-256 of all that decides what the import makes."""
    files: list[str]
    malformed_rows: int


class RunRecord(BaseModel):
    """What was written when a run was made, with what was replaced since. What a version did not write is None."""

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())

    run: str | None = None
    config: Any = None
    """As it was written; `run_config` reads it."""
    config_hash: str | None = None
    judge: str | None = None
    scoring: str | None = None
    """What the run's own labels and scores are called, for readers that know no configurations."""
    group: str | None = None
    arm: str | None = None
    arms: list[str] = []
    parent: Parent | None = None
    imported: ImportRecord | None = None
    """Of a run that was imported: it has responses, but no policy."""
    model: dict[str, str] | None = None
    """Commit or digest of the files of the model that the run began with."""
    device: str | None = None
    """The kind that it was trained on."""
    code: dict[str, Any] | None = None
    """Of the maker's own code, by reference: digest, files, package."""
    code_version: str | None = None
    python: str | None = None
    packages: dict[str, str] | None = None

    @property
    def knows_groups(self) -> bool:
        """Whether the version that wrote it recorded which runs are arms of one configuration."""
        return "group" in self.model_fields_set

    @property
    def place(self) -> Arm | None:
        """The run's place among the arms of its configuration."""
        return Arm(self.group, self.arm or "", self.arms) if self.group else None

    def run_config(self, name: str) -> RunConfig:
        """The configuration, with the latest settings; a hub id's revision is the commit the run began with.

        Raises:
            ConfigError: this version cannot read it.
        """
        config: RunConfig = validated(RunConfig, self.config, f"the record of run {name!r}")
        revision = (self.model or {}).get("revision")
        if revision is None:
            return config
        return config.model_copy(update={"policy": config.policy.model_copy(update={"revision": revision})})

    def written(self) -> dict[str, Any]:
        """The record as it is stored: what nobody set is left out."""
        return self.model_dump(mode="json", exclude_unset=True)


def new_record(name: str, config: RunConfig, arm: Arm | None = None, parent: Parent | None = None) -> RunRecord:
    """What is written when a run is made."""
    config = config.begun()
    known: dict[str, Any] = asdict(arm) if arm else {"group": None}
    if parent is not None:
        known["parent"] = parent
    return RunRecord(
        run=name,
        config=config.model_dump(mode="json"),
        config_hash=config.digest,
        judge=config.judge.judge_id,
        scoring=config.scoring_id,
        code_version=code_version(),
        python=platform.python_version(),
        packages={package: version(package) for package in ("torch", "transformers", "numpy", "pyarrow", "prefect")},
        **known,
        **code_record(config),
    )


def trained_record(config: RunConfig) -> dict[str, Any]:
    """What a record says of a run that has a policy: its model and the kind of device. Raises ConfigError."""
    return {"model": identify(config.policy), "device": device_kind(config.policy.device)}


def read_record(store: Store, name: str) -> RunRecord | None:
    """A run's record; None if there is no such run.

    Raises:
        ConfigError: it is none.
        CorruptArtifactError: it cannot be read.
    """
    stored = store.run_record(name)
    return None if stored is None else as_record(name, stored)


def as_record(name: str, stored: dict[str, Any]) -> RunRecord:
    """What the store holds as a run's record. Raises ConfigError if it is none."""
    record: RunRecord = validated(RunRecord, stored, f"the record of run {name!r}")
    return record


def check_resume(
    store: Store,
    name: str,
    record: RunRecord,
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
    before = record.run_config(name)
    wanted = _pinned(before, wanted.gone_on_from(before), record)
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


def _pinned(before: RunConfig, wanted: RunConfig, record: RunRecord) -> RunConfig:
    """The revision asked for, unless it is the one the run was begun with in other words: then the commit that it has.

    A branch moves on; the run does not.
    """
    given = record.config.get("policy", {}).get("revision")
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


def _check_device(there: str, record: RunRecord, before: RunConfig, wanted: RunConfig) -> None:
    """Raise RunExistsError if the run would go on with another kind of device than the one it was trained on."""
    was = record.device or before.policy.device.split(":")[0]  # versions that recorded none
    if was == "auto" or (wanted.policy.device == "auto" and record.device is None):
        return
    now = device_kind(wanted.policy.device)
    if now != was:
        raise RunExistsError(
            f"{there} and was trained on {was}: on policy.device {wanted.policy.device!r}, here {now}, its results "
            f"would be others; set policy.device to {was}, on a machine that has it"
        )


def _check_files(there: str, record: RunRecord, wanted: RunConfig) -> None:
    """Raise RunExistsError if the directory that the run's model was read from holds another by now."""
    digest = (record.model or {}).get("files")
    folder = Path(wanted.policy.model or "")
    if digest and folder.is_dir() and files_digest(folder) != digest:
        raise RunExistsError(
            f"{there} and began with another model than policy.model {wanted.policy.model!r} holds now (the sizes of "
            "its weights, its configuration or its tokenizer differ): put that one back, or give this one another run "
            "name"
        )
