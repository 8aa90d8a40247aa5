"""Commands for the processes that runs need: started by hand, stopped, registered with."""

from __future__ import annotations

import os
import shlex

import typer
from rich.console import Console

from flows.cli.base import app, fail


@app.command()
def stop() -> None:
    """Stop the local Prefect server and workers that `train` started."""
    from flows.services import local_stack

    stopped = local_stack.stop()
    typer.echo("stopped " + ", ".join(stopped) if stopped else "nothing was running")


stack = typer.Typer(no_args_is_help=True, help="The whole stack on this machine: PostgreSQL, S3, Prefect, workers.")
app.add_typer(stack, name="stack")


@stack.command(name="start")
def stack_start() -> None:
    """Start what does not run yet, and print the environment in which to use it: eval "$(polyepo stack start)"."""
    from flows.services import full_stack

    console = Console(stderr=True)
    try:
        environment = full_stack.start(lambda line: console.print(f"· {line}", highlight=False, markup=False))
    except full_stack.StackError as error:
        fail(console, str(error))
    console.print(
        "The S3 server is for trying out: it keeps all in memory. STOPPING IT LOSES EVERY RUN.", soft_wrap=True
    )
    for name, value in environment.items():
        typer.echo(f"export {name}={shlex.quote(value)}")


@stack.command(name="stop")
def stack_stop() -> None:
    """Stop all of it; the database stays, what is on the S3 server is lost."""
    from flows.services import full_stack

    stopped = full_stack.stop()
    typer.echo("stopped " + ", ".join(stopped) if stopped else "nothing was running")


@stack.command(name="status")
def stack_status() -> None:
    """Say what runs."""
    from flows.services import full_stack

    for name, text in full_stack.status().items():
        typer.echo(f"{name:<11} {text}")


@app.command()
def register() -> None:
    """Give the Prefect server its work pools, deployments and automations, and make the bucket of $POLYEPO_ROOT.

    $POLYEPO_GPU_SLOTS is the number of GPU workers: so many flow runs at a time get a GPU.
    """
    from flows.services import local_stack, servers

    console = Console()
    try:
        local_stack.STATE.mkdir(exist_ok=True)
        local_stack.register(typer.echo)
        servers.make_bucket(os.environ.get("POLYEPO_ROOT", ""))
    except local_stack.StackError as error:
        fail(console, str(error))
