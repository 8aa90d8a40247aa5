"""`polyepo plan`: what a configuration would take, and what of it will not work, before anything starts."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from flows.plan.amounts import Amounts, Memory, Problems, amounts, memory
from flows.plan.findings import Finding, findings, gigabytes
from flows.plan.model import ModelFacts, UnknownError, load_model, load_tokenizer
from polyepo.config import Config, RunConfig
from polyepo.policy.model import encode_prompt
from tasks.runs.run import read_splits


@dataclass(frozen=True)
class Device:
    """Where the policy would be, and how much memory is free there, if that can be told."""

    name: str
    free: int | None


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
    unknown: list[str]


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
        return not any(finding.fatal for finding in every)


def make_plan(config: Config, name: str, root: str) -> Plan:
    """What the runs of a configuration would take under a root. Nothing is written.

    Raises:
        ConfigError: the domain's problems cannot be used.
    """
    planned: list[RunPlan] = []
    for run, run_config in config.runs(name).items():
        plan = _plan_run(run, run_config)
        for i, other in enumerate(planned):
            if (other.amounts, other.memory, other.findings) == (plan.amounts, plan.memory, plan.findings):
                planned[i] = RunPlan(**{**vars(other), "runs": [*other.runs, run]})
                break
        else:
            planned.append(plan)
    # Arms that warm-start alike share the model; it is small, and counted once for each group.
    storage = sum(len(plan.runs) * plan.amounts.storage for plan in planned)
    storage += sum(plan.model.weights for plan in planned if plan.model and plan.config.policy.warm_start)
    free = _free_disk(root)
    return Plan(planned, storage, free, list(_disk(planned, storage, root, free)))


def _plan_run(name: str, config: RunConfig) -> RunPlan:
    unknown: list[str] = []
    splits = read_splits(config)
    tokenizer, lengths, model, held = None, None, None, None
    try:
        tokenizer = load_tokenizer(config)
        every_problem = (problem for split in splits.values() for problem in split)
        kwargs = config.policy.chat_template_kwargs
        lengths = {problem.problem_id: len(encode_prompt(tokenizer, problem, kwargs)) for problem in every_problem}
    except UnknownError as error:
        unknown.append(f"lengths of the prompts: {error}")
    problems = Problems(splits["train"], splits["heldout"], lengths)
    try:
        model = load_model(config.policy, tokenizer)
        held = memory(config, problems, model)
    except UnknownError as error:
        unknown.append(f"memory: {error}")
    device = _device(config)
    found = amounts(config, problems, model, tokenizer)
    every = findings(config, problems, model, found, held, device.free)
    return RunPlan([name], config, found, model, held, device, every, unknown)


def _device(config: RunConfig) -> Device:
    name = config.policy.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return Device("RAM", _available_memory())
    if name.startswith("cuda") and torch.cuda.is_available():
        device = torch.device(name)
        return Device(torch.cuda.get_device_name(device), torch.cuda.mem_get_info(device)[0])
    return Device(f"{name} (this machine has none)", None)


def _available_memory() -> int | None:
    """RAM that a new process may take: what is free or can be freed, within the container's limit; Linux only."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    except OSError:
        return None
    available = 1024 * int(lines["MemAvailable"].split()[0])
    try:
        limit, used = (Path(f"/sys/fs/cgroup/memory.{name}").read_text().strip() for name in ("max", "current"))
        return available if limit == "max" else min(available, int(limit) - int(used))
    except (OSError, ValueError):
        return available


def _free_disk(root: str) -> int | None:
    if "://" in root and not root.startswith("file://"):
        return None
    folder = Path(root.removeprefix("file://")).expanduser().absolute()
    existing = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    return shutil.disk_usage(existing).free


def _disk(planned: Iterable[RunPlan], storage: int, root: str, free: int | None) -> Iterable[Finding]:
    if free is not None and storage > free:
        yield Finding(
            True,
            f"root {root!r} has {gigabytes(free)} free, and the runs need up to {gigabytes(storage)}: raise "
            "checkpoint_every, or choose another root",
        )
    scratch = shutil.disk_usage(tempfile.gettempdir()).free
    if (largest := max(plan.amounts.checkpoint or 0 for plan in planned)) > scratch:
        yield Finding(
            True,
            f"a checkpoint of {gigabytes(largest)} is first written to {tempfile.gettempdir()!r}, which has "
            f"{gigabytes(scratch)} free: set TMPDIR to a larger disk",
        )
