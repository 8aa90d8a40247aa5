"""An experiment: the arms of a configuration, each with the same seeds, read from YAML."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from polyepo.config import RUN_NAME, ConfigError, RunConfig, Section, load_config, read_yaml, validated


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
    """Runs by seed and arm: `{name}-seed{seed}-{arm}`."""

    name: str
    seeds: list[int]
    arms: list[str]
    configs: dict[str, RunConfig]
    """By the run's name."""

    def run(self, seed: int, arm: str) -> str:
        """The name of a run."""
        return f"{self.name}-seed{seed}-{arm}"


def load_experiment(path: Path, name: str | None = None) -> Experiment:
    """Read an experiment; its name is the file's if not given.

    Raises:
        ConfigError: a file is missing or no YAML mapping, a field is unknown or cannot be, there are no arms, or the
            configuration has no evaluation.
    """
    name = name or path.stem
    if not RUN_NAME.fullmatch(name):
        raise ConfigError(f"experiment name {name!r} must be letters, digits, '.', '_' and '-'")
    file = validated(ExperimentFile, read_yaml(path), str(path))
    base = path.parent / file.config
    configs: dict[str, RunConfig] = {}
    arms = list(file.arms)
    for seed in file.seeds:
        settings = {**file.settings, "seed": seed}
        if "warm_start" in (read_yaml(base).get("policy") or {}):
            settings["policy.warm_start.seed"] = seed
        if file.arms:
            settings["arms"] = file.arms
        config = load_config(base, settings)
        if not config.arms:
            raise ConfigError(f"{path}: arms are missing: neither it nor {base} has any")
        if config.evaluation is None:
            raise ConfigError(f"{path}: {base} has no section evaluation, so there would be nothing to compare")
        arms = list(config.arms)
        configs |= config.runs(f"{name}-seed{seed}")
    return Experiment(name, file.seeds, arms, configs)
