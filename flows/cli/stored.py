"""Commands that look at what is stored: in SQL, as text, as a page; and keep it in order."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from flows.cli.base import ExistingRoot, app, fail, progress, shell_command


@app.command()
def sql(
    command: Annotated[str | None, typer.Option("--command", "-c", help="Run this and leave.")] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="Run this file and leave.")] = None,
    form: Annotated[
        Literal["table", "csv", "json", "parquet", "markdown"], typer.Option("--format", help="Of the results.")
    ] = "table",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write here; tables go to the screen.")] = None,
    print_init: Annotated[
        bool,
        typer.Option(
            "--print-init",
            help="Print SQL that makes the same views in any DuckDB: a snapshot of what is committed now, with "
            "absolute paths; print it again for what comes later, or on another machine.",
        ),
    ] = False,
    root: ExistingRoot = "artifacts",
) -> None:
    """Ask a root's artifacts in SQL: views of every table, and a query for each usual question (.help lists them)."""
    console = Console()
    if command and file:
        fail(console, "--command and --file cannot both be given", code=2)
    try:
        text = file.read_text(encoding="utf-8") if file else command
    except (OSError, UnicodeDecodeError) as error:
        fail(console, f"--file {str(file)!r} cannot be read: {error}", code=2)
    from flows.views.sql import SQLError, prompt, run_script
    from storage import Catalog

    catalog = Catalog(root)
    if print_init:
        typer.echo(catalog.init_sql())
    elif text is None and sys.stdin.isatty():
        prompt(catalog, form, console)
    else:
        try:
            run_script(catalog, sys.stdin.read() if text is None else text, form, output, console)
        except SQLError as error:
            fail(console, str(error))


@app.command()
def runs(
    like: Annotated[str | None, typer.Option(help="Only names that hold this, or match it: quick, *-grpo.")] = None,
    root: ExistingRoot = "artifacts",
) -> None:
    """List the runs under a root."""
    from flows.views.runs import runs_table

    console = Console()
    # Piped, it is for a program: nothing is left out.
    table = runs_table(root, console.width if console.is_terminal or "COLUMNS" in os.environ else 10_000, like)
    if not table.row_count and like is not None:
        fail(console, f"no run under {root!r} has a name like {like!r}")
    if not table.row_count:
        typer.echo(f"there are no runs under {root} yet; `polyepo train CONFIG --root {shlex.quote(root)}` makes one")
        return
    console.print(table, soft_wrap=True)


@app.command()
def show(
    run: str,
    step: Annotated[int | None, typer.Argument(help="The last step if not given.")] = None,
    problem: Annotated[str | None, typer.Argument(help="The first problem of the step if not given.")] = None,
    root: ExistingRoot = "artifacts",
) -> None:
    """Print a prompt's responses, cluster by cluster."""
    from flows.views.show import show_prompt
    from polyepo.config import ConfigError

    console = Console()
    try:
        console.print(show_prompt(root, run, step, problem))
    except ConfigError as error:
        fail(console, str(error), code=2)


@app.command()
def verify(
    run: Annotated[str, typer.Argument(help="A run, or a configuration: then all of its arms.")],
    root: ExistingRoot = "artifacts",
) -> None:
    """Check every artifact of a run against its manifest: hashes, rows, keys and lineage."""
    from flows.views.terminal import safe_text
    from storage import open_store
    from storage.verify import manifests, verify_artifacts, verify_record
    from tasks.runs.groups import members

    console = Console()
    store = open_store(root)
    broken = list(verify_record(store, run))  # what cannot be read is there all the same
    names = [run] if broken else members(root, run, unreadable=True)
    whose = f"run {names[0]}" if len(names) == 1 else f"runs {', '.join(names)}"
    paths = [path for name in names for path in manifests(store, name)]
    found = broken or [finding for name in names for finding in verify_record(store, name)]
    with progress("artifacts verified") as tell:
        for done, findings in enumerate(verify_artifacts(store, paths), start=1):
            tell(min(done, len(paths)), len(paths))  # the last finding is of the artifacts together
            found += findings
    for finding in found:
        console.print(f"{safe_text(finding.path)}: {safe_text(finding.message)}", markup=False, soft_wrap=True)
    if found:
        fail(console, f"{len(found)} findings in {len(paths)} artifacts of {whose}")
    console.print(f"{len(paths)} artifacts of {whose} are as their manifests say", highlight=False, soft_wrap=True)


@app.command()
def du(
    runs: Annotated[list[str] | None, typer.Argument(help="Runs, or configurations; all of them if not given.")] = None,
    root: ExistingRoot = "artifacts",
) -> None:
    """Say what takes how much room under a root: by run and by kind of artifact."""
    from flows.views.space import space_table

    console = Console()
    console.print(space_table(root, runs or []), soft_wrap=True)


@app.command()
def gc(
    older_than: Annotated[str, typer.Option(help="Age of an attempt's newest file: 90s, 30m, 12h or 7d.")] = "1d",
    yes: Annotated[bool, typer.Option("--yes", help="Delete without asking.")] = False,
    root: ExistingRoot = "artifacts",
) -> None:
    """List what writers that died have left under a root, and delete it; never what a manifest names."""
    from flows.views.terminal import safe_text
    from storage import open_store
    from storage.gc import find_garbage, remove_garbage

    console = Console()
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    number, unit = older_than[:-1], older_than[-1:]
    if unit not in units or not number.isdecimal():
        fail(console, f"--older-than {older_than!r} must be like 90s, 30m, 12h or 7d", code=2)
    store = open_store(root)
    garbage = find_garbage(store, int(number) * units[unit])
    for item in garbage:
        line = f"{safe_text(item.path)}  {item.size:,} bytes, {item.age_s / 3600:.1f} hours old"
        console.print(line, markup=False, soft_wrap=True)
    if not garbage:
        console.print(f"nothing older than {older_than} is unfinished under {root}")
    elif yes or (sys.stdin.isatty() and typer.confirm(f"Delete these {len(garbage)}?")):
        console.print(f"deleted {len(garbage)}, {remove_garbage(store, garbage):,} bytes")
    else:
        console.print("nothing was deleted; --yes deletes these")


@app.command()
def report(
    runs: Annotated[list[str], typer.Argument(help="Runs, or configurations: then all of their arms.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The HTML file to write.")] = Path("report.html"),
    root: ExistingRoot = "artifacts",
) -> None:
    """Write runs' figures and responses as one HTML page that works offline."""
    from polyepo.config import ConfigError

    console = Console()
    from flows.views.report import write_report

    try:
        with progress("parts of the report") as tell:
            size = write_report(root, runs, output, tell)
    except ConfigError as error:
        fail(console, str(error), code=2)
    except OSError as error:
        fail(console, f"{output} cannot be written: {error.strerror or error}")
    typer.echo(f"{output}: {size / 1e6:.1f} MB\n\nNext:\n  {output.absolute().as_uri()}\n      open it in a browser")


@app.command()
def metrics(
    run: Annotated[str, typer.Argument(help="A run, or a configuration: then all of its arms.")],
    folder: Annotated[Path, typer.Argument(help="Where to; each run has a folder in it.")],
    to: Annotated[Literal["tensorboard"], typer.Option("--to", help="What shows them.")] = "tensorboard",
    root: ExistingRoot = "artifacts",
) -> None:
    """Write a run's curves for TensorBoard, named as TRL or verl name them where they mean the same."""
    from tasks.runs.curves import write_curves

    try:
        with progress("steps written") as tell:
            written = write_curves(root, run, to, folder, tell)
    except OSError as error:
        fail(Console(), f"{folder} cannot be written: {error.strerror or error}")
    command = shell_command("tensorboard", "--logdir", str(folder))
    typer.echo(f"{len(written)} runs in {folder}\n\nNext:\n  {command}\n      look at the curves")


@app.command()
def watch(
    run: Annotated[str, typer.Argument(help="A run, or a configuration: then all of its arms.")],
    root: ExistingRoot = "artifacts",
) -> None:
    """Watch a run in the terminal until it ends: step, stage, curves and the latest clusters."""
    from polyepo.config import ConfigError

    console = Console()
    from flows.views.watch import watch as watch_run

    try:
        watch_run(root, run, console)
    except ConfigError as error:
        fail(console, str(error), code=2)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    page = shell_command("polyepo", "report", run, "--root", root)
    typer.echo(f"\nNext:\n  {page}\n      all of it, as a page for the browser")
