"""One rank of a trainer group: does what the run says until the run is gone.

    torchrun --nproc-per-node 4 -m polyepo.policy.rank SOCKET cuda

The first rank hears the run's requests, a line of JSON each, over a Unix socket, and tells them to the others; all
carry them out, and the first answers. An error that all ranks meet alike is answered. Any other ends the rank that
meets it, and torchrun then ends the rest: a rank that went on alone would wait for the others for ever.
"""

from __future__ import annotations

import io
import json
import os
import socket
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from polyepo.config import PolicyConfig, SamplingConfig, UpdateConfig
from polyepo.errors import ConfigError
from polyepo.policy.code import CODE
from polyepo.policy.messages import to_batch
from polyepo.policy.model import Policy
from polyepo.policy.ranks import Ranks
from polyepo.policy.sharded import export_sharded, load_sharded, save_sharded
from polyepo.policy.update import NonFiniteError, compute_logprobs
from polyepo.policy.update import update as update_policy

_ALIKE = (NonFiniteError, ConfigError)
"""Errors that are decided on what all ranks know, so that all ranks raise them."""
_IDLE = timedelta(days=365)
"""How long the ranks may wait for the run's next request: sampling and judging take their time."""


class Worker:
    """What one rank holds, and what it can be asked; each method takes and returns JSON values."""

    def __init__(self, ranks: Ranks, device: torch.device) -> None:
        self._ranks = ranks
        self._device = device
        self._policy: Policy | None = None

    @property
    def policy(self) -> Policy:
        """The policy that was loaded last."""
        assert self._policy is not None, "the first request is to load"
        return self._policy

    def load(self, source: str, policy: dict[str, Any], update: dict[str, Any], resume: bool, offload: bool) -> int:
        """Take a policy's share into memory, in place of the last one's; returns its version."""
        self._policy = None
        config, optimizer = PolicyConfig.model_validate(policy), UpdateConfig.model_validate(update)
        self._policy = load_sharded(source, config, optimizer, self._ranks, self._device, resume, offload)
        return self._policy.version

    def update(
        self, batch: dict[str, Any], config: dict[str, Any], sampling: dict[str, Any], seed: int
    ) -> dict[str, Any]:
        """One training step; what it measured."""
        configs = UpdateConfig.model_validate(config), SamplingConfig.model_validate(sampling)
        return asdict(update_policy(self.policy, to_batch(batch), *configs, seed))

    def logprobs(
        self, prompts: list[list[int]], responses: list[list[int]], temperature: float, micro_batch_tokens: int
    ) -> list[list[float]]:
        """Of each response, the log-probabilities of its tokens."""
        found = compute_logprobs(self.policy, prompts, responses, temperature, micro_batch_tokens)
        return [row.tolist() for row in found]

    def save(self, folder: str) -> None:
        """Write a checkpoint."""
        save_sharded(self.policy, Path(folder))

    def export(self, folder: str, dtype: str | None, head_apart: bool) -> None:
        """Write a Hugging Face model directory."""
        export_sharded(self.policy, Path(folder), dtype, head_apart)

    def release(self) -> None:
        """Give up the policy."""
        self._policy = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def serve(worker: Worker, ranks: Ranks, connection: socket.socket | None) -> None:
    """Carry out the run's requests until it closes the connection, which the first rank has."""
    # NCCL would keep a GPU busy while it waits, and gives up after minutes.
    idle = dist.new_group(backend="gloo", timeout=_IDLE)
    lines = connection.makefile("rwb") if connection is not None else None
    while (request := ranks.tell(_next(lines), idle)) is not None:
        try:
            reply = {"value": getattr(worker, request.pop("request"))(**request)}
        except _ALIKE as error:
            reply = {"error": type(error).__name__, "message": str(error)}
        if lines is not None:
            lines.write(json.dumps(reply).encode() + b"\n")
            lines.flush()


def _next(lines: io.BufferedRWPair | None) -> Any:
    """The next request; None if there is none to come, or if it is for another rank to hear."""
    line = lines.readline() if lines is not None else b""
    return json.loads(line) if line else None


def main(address: str, kind: str) -> None:
    """Join the other ranks, each on a device of a kind (cpu, cuda), and serve the run that listens at a Unix socket."""
    device = torch.device(f"cuda:{os.environ['LOCAL_RANK']}" if kind == "cuda" else kind)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # What is on the CPU, such as sums to decide by, goes over gloo on machines with GPUs as well.
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    ranks = Ranks(dist.get_rank(), dist.get_world_size(), int(os.environ["LOCAL_WORLD_SIZE"]))
    codes = ranks.gather(CODE)
    connection = None
    if ranks.rank == 0:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(address)
        connection.sendall(json.dumps({"codes": codes}).encode() + b"\n")
    serve(Worker(ranks, device), ranks, connection)
    dist.destroy_process_group()
