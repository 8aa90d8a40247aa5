"""A group of processes that update one policy together: started by torchrun, driven by this process, gone with it."""

from __future__ import annotations

import contextlib
import json
import re
import select
import signal
import socket
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from polyepo.config import PolicyConfig, SamplingConfig, TrainerResources, UpdateConfig
from polyepo.errors import ConfigError, PolyepoError
from polyepo.policy.code import CODE
from polyepo.policy.language import load_language
from polyepo.policy.messages import from_batch
from polyepo.policy.model import Policy, compute_dtype, load_policy
from polyepo.policy.nodes import environment, torchrun
from polyepo.policy.source import check_trainer, device_kind
from polyepo.policy.update import Batch, NonFiniteError, UpdateMetrics
from polyepo.samplers.base import Sample
from polyepo.samplers.transformers import TransformersSampler
from polyepo.supervised import Supervised

_STARTUP_S = 300.0
_JOIN_S = 60.0
_ENDING_S = 10.0
_ANSWERED: dict[str, type[PolyepoError]] = {"NonFiniteError": NonFiniteError, "ConfigError": ConfigError}
_FAILURE = re.compile(r"\brank\s*:\s*(\d+) .*\n\s*exitcode\s*:\s*(-?\d+)")
_LESS_MEMORY = (
    "lower update.micro_batch_tokens, set update.gradient_checkpointing or resources.trainer.offload, or raise "
    "resources.trainer.processes"
)


class GroupError(PolyepoError, RuntimeError):
    """The trainer group has ended; what is committed is not harmed, and a new group goes on from it."""

    def __init__(self, message: str, killed: bool) -> None:
        super().__init__(message)
        self.killed = killed
        """Whether something from outside ended it, so that the same work may well succeed when it is done again."""


class TrainerGroup:
    """Ranks that hold one policy at a time. They start when one is loaded first, and again after they have ended.

    Args:
        resources: how many, where their log goes, and whether weights stay in CPU memory.
        device: the kind that each has one of: cpu or cuda.
    """

    def __init__(self, resources: TrainerResources, device: str) -> None:
        self.resources, self._device = resources, device
        self._torchrun = Supervised("trainer", resources.logs, grace_s=0)  # nothing of it is worth a goodbye
        self._connection: socket.socket | None = None
        self.loads = 0
        """Policies that were loaded: whose number is not the last has none any more."""

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        # Nobody has asked for anything: what can be read then is the end of the connection.
        return self._connection is not None and not select.select([self._connection], [], [], 0)[0]

    @property
    def scratch(self) -> Path:
        """Its folder, which is in the command line of each of its processes."""
        return self._torchrun.scratch

    def load(self, **arguments: Any) -> int:
        """Have a policy loaded in place of the last one, by a new group if there is none; returns its version."""
        self.loads += 1
        if not self.alive:
            self.stop()
            try:
                self._connection = self._start()
            except BaseException:
                self.stop()
                raise
        return self.ask("load", **arguments)

    def ask(self, request: str, **arguments: Any) -> Any:
        """What all ranks have done together, by the name of a method of `polyepo.policy.worker.Worker`.

        Raises:
            NonFiniteError, ConfigError: all ranks met it; the group lives on.
            GroupError: the group has ended.
        """
        if self._connection is None:
            raise GroupError("the trainer group has ended", killed=True)
        reply = self._exchange(self._connection, {"request": request, **arguments})
        if reply is None:
            raise self._ended(f"while it was asked to {request}")
        if "error" in reply:
            raise _ANSWERED[reply["error"]](reply["message"])
        return reply["value"]

    def stop(self) -> None:
        """End the group."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._torchrun.stop()

    def _exchange(self, connection: socket.socket, message: dict[str, Any]) -> dict[str, Any] | None:
        """Send a request and wait for the reply; None if the group ends first."""
        try:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(json.dumps(message).encode() + b"\n")
                return _read(connection)
        except BaseException:  # an interrupted exchange would leave its reply to the next
            self.stop()
            raise
        return None

    def _start(self) -> socket.socket:
        """Start torchrun and wait until the first rank has called."""
        self._torchrun.prepare()
        address = self._torchrun.scratch / "socket"
        with socket.socket(socket.AF_UNIX) as listening:
            try:
                listening.bind(str(address))
            except OSError as error:  # names of sockets are at most about 100 bytes long
                raise ConfigError(
                    f"no socket can be made at {str(address)!r} ({error}): set TMPDIR to another folder"
                ) from None
            listening.listen()
            command = torchrun(self.resources, 0, self.scratch, str(address), self._device)
            self._torchrun.start(command, environment())
            connection = self._wait_for_call(listening)
        hello = _read(connection)
        if hello is None:
            raise self._ended("when it had just been started")
        check_codes(hello["codes"])
        return connection

    def _wait_for_call(self, listening: socket.socket) -> socket.socket:
        limit = _STARTUP_S if self.resources.nodes == 1 else _JOIN_S
        deadline = time.monotonic() + limit
        listening.settimeout(0.2)
        while True:
            with contextlib.suppress(TimeoutError):
                connection, _ = listening.accept()
                connection.settimeout(None)
                return connection
            if not self._torchrun.alive:
                raise self._ended("before it was ready")
            if time.monotonic() > deadline:
                raise GroupError(self._not_ready(limit), killed=False)

    def _not_ready(self, limit: float) -> str:
        found = self.resources
        late = f"the trainer group was not ready within {limit:.0f} s"
        if found.nodes == 1:
            return f"{late} (its log: {self._torchrun.log})"
        numbers = "1" if found.nodes == 2 else f"1 to {found.nodes - 1}"
        command = f"polyepo join {found.master} --node {numbers} --nodes {found.nodes} --processes {found.processes}"
        return f"{late}: start `{command}` on the other nodes and leave it running, or set resources.trainer.nodes to 1"

    def _ended(self, when: str) -> GroupError:
        """What has happened, by the log: torchrun writes there which rank ended first, and how."""
        deadline = time.monotonic() + _ENDING_S
        while self._torchrun.alive and time.monotonic() < deadline:
            time.sleep(0.05)
        log = self._torchrun.log.read_text(errors="replace")
        self.stop()
        cause, killed = _cause(log)
        return GroupError(f"the trainer group ended {when}: {cause}\n(its log: {self._torchrun.log})", killed)


def check_codes(codes: Sequence[str]) -> None:
    """Raise ConfigError unless every rank has the code that this process has."""
    for rank, code in enumerate(codes):
        if code != CODE:
            raise ConfigError(
                f"rank {rank} of the trainer group has other code, or another version of torch or transformers, than "
                "the run: install the same everywhere, and start the run again if its own has changed meanwhile"
            )


def _cause(log: str) -> tuple[str, bool]:
    """Why a group has ended, and whether it was killed from outside."""
    errors = re.findall(r"\[rank(\d+)\]: (?:\w+\.)*(\w+(?:Error|Exception)\b.*)", log)
    for rank, error in errors:
        if "OutOfMemoryError" in error:
            return f"rank {rank} has run out of the GPU's memory: {_LESS_MEMORY}", False
    failures = [(rank, int(code)) for rank, code in _FAILURE.findall(log)]
    # torchrun ends the others with SIGTERM, and some may have failed for want of the one that was killed.
    for rank, code in failures:
        if code < 0 and code != -signal.SIGTERM:
            name = signal.Signals(-code).name
            why = f", which may be for want of memory: {_LESS_MEMORY}" if name == "SIGKILL" else ""
            return f"rank {rank} was killed by {name}{why}", True
    if not failures:
        said = re.findall(r"^\w+(?:Error|Exception)\b.*", log, re.MULTILINE)
        return (f"torchrun failed: {said[-1]}", False) if said else ("torchrun was killed", True)
    if lost := [rank for rank, error in errors if re.search("Connection (closed|reset) by peer", error)]:
        return f"rank {lost[0]} has lost its connection to another, as when that one's node is gone", True
    rank, _ = failures[-1]  # that which failed first comes last
    said = [error for where, error in errors if where == rank] or ["see its log"]
    return f"rank {rank} failed: {said[-1]}", False


def _read(connection: socket.socket) -> dict[str, Any] | None:
    """The next line; None if the other end closes before it is whole."""
    with connection.makefile("rb") as lines:
        line = lines.readline()
    return json.loads(line) if line.endswith(b"\n") else None


_groups: dict[str, TrainerGroup] = {}


def group_of(resources: TrainerResources, device: str) -> TrainerGroup:
    """This process's group, which stays from policy to policy; one of other resources is ended first."""
    key = f"{device} {resources.model_dump_json()}"
    if key not in _groups:
        stop_groups()
        _groups[key] = TrainerGroup(resources, device)
    return _groups[key]


def stop_groups() -> None:
    """End this process's group. It ends with the process in any case."""
    for group in _groups.values():
        group.stop()
    _groups.clear()


class GroupTrainer:
    """A `polyepo.policy.trainer.Trainer` whose policy is spread over a group. A group holds one policy at a time.

    Args:
        group: who holds the policy; it gives up the one that it held.
        source: a Hugging Face model directory or hub id.
        config: how it is loaded.
        update: what its optimizer is made with.
        resume: whether the source is a checkpoint to go on from.

    Raises:
        ConfigError: there is no usable model.
        GroupError: the group has ended; so do all methods below.
    """

    def __init__(
        self,
        group: TrainerGroup,
        source: str | Path,
        config: PolicyConfig,
        update: UpdateConfig,
        resume: bool = False,
    ) -> None:
        self._group, self._config, self._update = group, config, update
        self._sampling: Policy | None = None
        check_trainer(group.resources, config.device)
        self.language = load_language(source, config)
        self.device = device_kind(config.device)
        self.dtype: str = str(compute_dtype(config) or config.dtype).removeprefix("torch.")
        self.version = self._group.load(
            source=str(source),
            policy=config.model_dump(mode="json"),
            update=update.model_dump(mode="json"),
            resume=resume,
            offload=group.resources.offload,
        )
        self._number = group.loads

    @property
    def alive(self) -> bool:
        """Whether the group still holds the policy."""
        return self._group.alive and self._group.loads == self._number

    @property
    def processes(self) -> int:
        """The group's."""
        return self._group.resources.num_ranks

    def update(self, batch: Batch, config: UpdateConfig, sampling: SamplingConfig, seed: int) -> UpdateMetrics:
        """One training step. Raises NonFiniteError."""
        self._sampling = None
        settings = {"config": config.model_dump(mode="json"), "sampling": sampling.model_dump(mode="json")}
        measured = self._ask("update", batch=from_batch(batch), **settings, seed=seed)
        self.version += 1
        return UpdateMetrics(**measured)

    def logprobs(
        self,
        prompts: Sequence[Sequence[int]],
        responses: Sequence[Sequence[int]],
        temperature: float,
        micro_batch_tokens: int = 16384,
    ) -> list[np.ndarray]:
        """Of each response, the log-probabilities of its tokens."""
        rows = {"prompts": [list(row) for row in prompts], "responses": [list(row) for row in responses]}
        settings = {"temperature": temperature, "micro_batch_tokens": micro_batch_tokens}
        return [np.array(row) for row in self._ask("logprobs", **rows, **settings)]

    def sample(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]], sampling: SamplingConfig
    ) -> list[list[Sample]]:
        """For each prompt, one sample per seed, by a copy of the weights in this process."""
        if self._sampling is None:
            with tempfile.TemporaryDirectory() as folder:
                self.export(Path(folder))
                self._sampling = load_policy(folder, self._config, self._update)
        return TransformersSampler(self._sampling, sampling).sample(prompts, seeds)

    def save(self, folder: Path) -> None:
        """Write a checkpoint."""
        self._ask("save", folder=str(folder.absolute()))

    def export(self, folder: Path, dtype: str | None = None, head_apart: bool = False) -> None:
        """Write a Hugging Face model directory."""
        self._ask("export", folder=str(folder.absolute()), dtype=dtype, head_apart=head_apart)

    def close(self) -> None:
        """Give up the weights; the group waits for the next policy."""
        self._sampling = None
        if self.alive:
            self._ask("release")

    def _ask(self, request: str, **arguments: Any) -> Any:
        assert self._group.loads == self._number, "the group holds another policy by now"
        return self._group.ask(request, **arguments)
