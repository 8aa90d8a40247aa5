"""The command that lets a machine take part in the update of a run on another."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.cli.base import app


@app.command()
def join(
    master: Annotated[str, typer.Argument(help="HOST:PORT, the run's resources.trainer.master.")],
    node: Annotated[int, typer.Option(help="This machine's number, from 1; the run's own is 0.")],
    nodes: Annotated[int, typer.Option(help="The run's resources.trainer.nodes.")],
    processes: Annotated[int, typer.Option(help="The run's resources.trainer.processes.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda: the run's policy.device.")] = "auto",
) -> None:
    """Take part in the updates of a run on another machine, until this is stopped."""
    from polyepo.config import TrainerResources, validated
    from polyepo.policy import nodes as joining
    from polyepo.policy.source import device_kind

    asked = {"master": master, "nodes": nodes, "processes": processes}
    resources = validated(TrainerResources, asked, "what is to be joined")
    joining.join(resources, node, device_kind(device), typer.echo)
