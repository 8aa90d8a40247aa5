"""`polyepo plan`: what a configuration would take, and what of it will not work, before anything starts."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from flows.plan.amounts import Amounts, Memory, Problems, amounts, memory
from flows.plan.facts import MissingError, ModelFacts, UnknownError
from flows.plan.findings import findings, gigabytes
from flows.plan.surroundings import Device, check_root, find_device, find_missing
from polyepo.config import Config, RunConfig
from polyepo.findings import Finding, Severity
from tasks.runs.run import read_splits


@dataclass(frozen=True)
class RunPlan:
    """What the runs take that are alike: the arms of a configuration usually differ in their scoring alone."""

    runs: list[str]
    config: RunConfig
    amounts: Amounts
    model: ModelFacts | None
    memory: Memory | None
    device: Device
    findings: list[Finding]
    """Worst first."""


@dataclass(frozen=True)
class Plan:
    """A configuration's runs, and what concerns all of them."""

    runs: list[RunPlan]
    storage: int
    free_storage: int | None
    """On the root's disk; None for object storage."""
    findings: list[Finding]

    @property
    def fits(self) -> bool:
        """Whether nothing is known that would stop a run or make it pointless."""
        every = [*self.findings, *(finding for run in self.runs for finding in run.findings)]
        return not any(finding.severity == Severity.FATAL for finding in every)


def make_plan(config: Config, name: str, root: str) -> Plan:
    """What the runs of a configuration would take under a root. Nothing stays written.

    Raises:
        ConfigError: the domain's problems cannot be used.
    """
    planned: list[RunPlan] = []
    for run, run_config in config.runs(name).items():
        plan = _plan_run(run, run_config)
        for i, other in enumerate(planned):
            if (other.amounts, other.memory, other.findings) == (plan.amounts, plan.memory, plan.findings):
                planned[i] = replace(other, runs=[*other.runs, run])
                break
        else:
            planned.append(plan)
    # Arms that warm-start alike share the model; it is small, and counted once for each group.
    storage = sum(len(plan.runs) * plan.amounts.storage for plan in planned)
    storage += sum(plan.model.weights for plan in planned if plan.model and plan.config.policy.warm_start)
    free = _free_disk(root)
    return Plan(planned, storage, free, [*check_root(root), *_disk(planned, storage, root, free)])


def _plan_run(name: str, config: RunConfig) -> RunPlan:
    splits = read_splits(config)
    problems = Problems(splits["train"], splits["heldout"], None)
    device, found = find_device(config)
    found += find_missing(config)
    tokenizer, model, held = None, None, None
    if not any(finding.severity == Severity.FATAL for finding in found):
        # Imported here: torch takes seconds, and is not needed to say that there is no such model.
        from flows.plan.model import load_model, load_tokenizer, prompt_lengths

        try:
            tokenizer = load_tokenizer(config)
            problems = replace(problems, lengths=prompt_lengths(tokenizer, config, splits))
        except UnknownError as error:
            found.append(_not_known("lengths of the prompts", error))
        try:
            model = load_model(config.policy, tokenizer)
            held = memory(config, problems, model)
        except UnknownError as error:
            found.append(_not_known("memory", error))
    taken = amounts(config, problems, model, tokenizer)
    found += findings(config, problems, model, taken, held, device.free)
    return RunPlan([name], config, taken, model, held, device, sorted(found, key=lambda f: -f.severity))


def _not_known(what: str, error: UnknownError) -> Finding:
    if isinstance(error, MissingError):
        return Finding(Severity.FATAL, error.what, error.remedy)
    return Finding(Severity.UNKNOWN, f"{what}: {error.what}", error.remedy)


def _free_disk(root: str) -> int | None:
    if "://" in root and not root.startswith("file://"):
        return None
    folder = Path(root.removeprefix("file://")).expanduser().absolute()
    existing = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    return shutil.disk_usage(existing).free


def _disk(planned: Iterable[RunPlan], storage: int, root: str, free: int | None) -> Iterable[Finding]:
    if free is not None and storage > free:
        yield Finding(
            Severity.FATAL,
            f"root {root!r} has {gigabytes(free)} free, and the runs need up to {gigabytes(storage)}",
            "raise checkpoint_every, or choose another root",
        )
    scratch = shutil.disk_usage(tempfile.gettempdir()).free
    if (largest := max(plan.amounts.checkpoint or 0 for plan in planned)) > scratch:
        yield Finding(
            Severity.FATAL,
            f"a checkpoint of {gigabytes(largest)} is first written to {tempfile.gettempdir()!r}, which has "
            f"{gigabytes(scratch)} free",
            "set TMPDIR to a larger disk",
        )
