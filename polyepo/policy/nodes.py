"""Trainer groups over several machines: the run's own is node 0, and each other joins it by `polyepo join`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from polyepo.config import ConfigError, TrainerResources
from polyepo.policy.source import check_trainer
from polyepo.supervised import Supervised

_ROOT = Path(__file__).parents[2]


def torchrun(resources: TrainerResources, node: int, scratch: Path, *arguments: str) -> list[str]:
    """The command that starts a node's ranks: `polyepo.policy.rank` with these arguments."""
    if resources.nodes == 1:
        place = ["--standalone"]
    else:
        host, _, port = str(resources.master).rpartition(":")
        place = ["--nnodes", str(resources.nodes), "--node-rank", str(node), "--master-addr", host,
                 "--master-port", port]  # fmt: skip
    # It makes folders that it does not remove, in `scratch`.
    command = [sys.executable, "-m", "torch.distributed.run", *place, "--log-dir", str(scratch)]
    return [*command, "--nproc-per-node", str(resources.processes), "-m", "polyepo.policy.rank", *arguments]


def environment() -> dict[str, str]:
    """Ours, in which the ranks import what this process did, wherever that lies."""
    path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path}


def join(resources: TrainerResources, node: int, device: str, say: Callable[[str], None]) -> None:
    """Take part in the groups of a run on another machine, one after the other, until this process is ended.

    Args:
        resources: as in the run's configuration.
        node: this machine's number, from 1.
        device: the kind that each rank has one of: cpu or cuda.
        say: told what happens.

    Raises:
        ConfigError: there is no such node, or too few GPUs.
    """
    if not 1 <= node < resources.nodes:
        raise ConfigError(f"--node {node} must lie between 1 and {resources.nodes - 1}: the run's machine is node 0")
    check_trainer(resources, device)
    ranks = Supervised("trainer", resources.logs, grace_s=0)
    try:
        while True:
            ranks.prepare()
            ranks.start(torchrun(resources, node, ranks.scratch, "none", device), environment(), label=f"node{node}")
            say(f"node {node} of {resources.nodes}: waiting for the run at {resources.master} (log: {ranks.log})")
            while ranks.alive:
                time.sleep(0.2)
            say("the group has ended")
    finally:
        ranks.stop()
