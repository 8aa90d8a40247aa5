"""The console script `polyepo`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

RootOption = Annotated[
    str, typer.Option(help="Where artifacts are: a path or s3://bucket/prefix.", envvar="POLYEPO_ROOT")
]


@app.callback()
def main() -> None:
    """Train language models to explore."""


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="YAML description of the run.")] = Path("configs/quickstart.yaml"),
    run: Annotated[str | None, typer.Option(help="Name of the run; the config's file name if not given.")] = None,
    root: RootOption = "artifacts",
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the run's log at the end.")] = False,
) -> None:
    """Start or reuse a local Prefect server and worker, run the deployment poly-epo/train, and follow it."""
    console = Console()
    from polyepo.config import ConfigError, load_config

    try:
        load_config(config)
    except ConfigError as error:
        _fail(console, str(error), code=2)
    from flows import follow, stack

    name = run or config.stem
    again = f"polyepo train {config} --run {name} --root {root}"
    try:
        stack.start(lambda line: console.print(f"· {line}", highlight=False))
        flow_run_id = follow.run_deployment("poly-epo/train", {"config": str(config), "run": name, "root": root})
        ui = stack.api_url().removesuffix("/api")
        console.print(f"· flow run {flow_run_id}: {ui}/runs/flow-run/{flow_run_id}", highlight=False, soft_wrap=True)
        state = follow.follow(flow_run_id, console)
    except stack.StackError as error:
        _fail(console, str(error))
    except KeyboardInterrupt:
        console.print(
            f"\nThe run goes on. Follow it again: {again}\nCancel it: prefect flow-run cancel {flow_run_id}",
            highlight=False,
        )
        raise typer.Exit(130) from None
    if verbose or state["type"] != "COMPLETED":
        for line in follow.last_logs(flow_run_id, 200 if verbose else 15):
            console.print(f"  {line}", highlight=False, markup=False)
    if state["type"] != "COMPLETED":
        _fail(
            console,
            f"{state['type'].lower()}: {state.get('message') or ''}\nNothing committed is lost. Resume: {again}",
        )
    _print_summary(console, root, name)
    console.print(
        f"\nNext:\n  polyepo summary {name}          this table again"
        f"\n  polyepo train {config} --run {name}-2      the same again, from scratch"
        f"\n  {ui}     every step in the Prefect UI"
        "\n  make stop                           stop the server and the worker",
        highlight=False,
    )


@app.command()
def summary(run: str, root: RootOption = "artifacts") -> None:
    """Print a run's held-out results, next to the base model's; for a config with arms, all of them."""
    from polyepo.config import ConfigError

    console = Console()
    try:
        _print_summary(console, root, run)
    except ConfigError as error:
        _fail(console, str(error), code=2)


@app.command()
def stop() -> None:
    """Stop the local Prefect server and worker that `train` started."""
    from flows import stack

    stopped = stack.stop()
    Console().print("stopped " + " and ".join(stopped) if stopped else "nothing was running")


def _print_summary(console: Console, root: str, run: str) -> None:
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "WARNING")
    from flows.summary import render, summarize

    console.print(render(summarize(root, run)))


def _fail(console: Console, message: str, code: int = 1) -> None:
    console.print(message, style="red", highlight=False, markup=False)
    raise typer.Exit(code)
