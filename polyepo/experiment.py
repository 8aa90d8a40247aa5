"""An experiment: the arms of a configuration, each with the same seeds, read from a YAML file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from polyepo.config import ConfigError, Section, load_config, read_yaml, validated
from polyepo.names import is_name


class ExperimentFile(Section):
    """What the file says."""

    config: str
    """Path of the configuration that all runs start from, relative to this file."""
    seeds: list[int] = Field(min_length=1)
    """Each seeds a base model, shared by its arms, and everything that is sampled."""
    arms: dict[str, dict[str, Any]] = Field({})
    """What each arm overrides; the configuration's own arms if not given. The others are compared with the first."""
    settings: dict[str, Any] = Field({})
    """Values that replace the configuration's in every arm, by dotted name."""

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"each seed must stand there once, but they are {seeds}")
        return seeds


@dataclass(frozen=True)
class Experiment:
    """A configuration's training for each seed; its runs are called `{name}-seed{seed}-{arm}`."""

    name: str
    config: Path
    seeds: list[int]
    arms: list[str]
    settings: dict[int, dict[str, Any]]
    """By seed: what replaces the configuration's values, as `poly-epo/train` takes it."""

    def run(self, seed: int) -> str:
        """The name that a seed's arms begin with."""
        return f"{self.name}-seed{seed}"


def load_experiment(path: Path, name: str | None = None) -> Experiment:
    """Read an experiment; its name is the file's if not given.

    Raises:
        ConfigError: a file is missing or no YAML mapping, a field is unknown or cannot be, there are no arms, or the
            configuration has no evaluation.
    """
    name = name or path.stem
    if not is_name(name):
        raise ConfigError(f"experiment name {name!r} must be letters, digits, '.', '_' and '-'")
    file = validated(ExperimentFile, read_yaml(path), str(path))
    config = Path(os.path.normpath(path.parent / file.config))
    warm_started = "warm_start" in (read_yaml(config).get("policy") or {})
    settings: dict[int, dict[str, Any]] = {}
    arms: list[str] = []
    for seed in file.seeds:
        settings[seed] = {**file.settings, "seed": seed}
        if warm_started:
            settings[seed]["policy.warm_start.seed"] = seed
        if file.arms:
            settings[seed]["arms"] = file.arms
        loaded = load_config(config, settings[seed])
        arms = list(loaded.arms)
        if not arms:
            raise ConfigError(f"{path}: arms are missing: neither it nor {config} has any")
        if loaded.evaluation is None:
            raise ConfigError(f"{path}: {config} has no section evaluation, so there would be nothing to compare")
    return Experiment(name, config, file.seeds, arms, settings)
