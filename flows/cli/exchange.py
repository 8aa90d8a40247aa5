"""Commands for other programs' rollouts, and ours for them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from flows.cli.base import ExistingRoot, RootOption, app, fail, progress, shell_command


@app.command(name="import")
def import_(
    files: Annotated[list[Path], typer.Argument(help="JSONL, JSON or Parquet files of rollouts.")],
    form: Annotated[
        Literal["auto", "verl", "trl", "generic"], typer.Option("--format", help="Who wrote the files.")
    ] = "auto",
    mapping: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            help="FIELD=COLUMN: problem, response, answer, reward, id, step, advantage; repeatable. "
            "Several reward columns add up; FIELD= if the files do not have it.",
        ),
    ] = None,
    domain: Annotated[
        Literal["maths", "countdown", "ungraded"],
        typer.Option(help="Who verifies when re-scoring; ungraded keeps the rewards that the files have."),
    ] = "maths",
    target: Annotated[int | None, typer.Option(help="countdown: the target of every puzzle, such as 24.")] = None,
    run: Annotated[str | None, typer.Option(help="Name of the run; made from the file's name if not given.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse files with malformed rows.")] = False,
    root: RootOption = "artifacts",
) -> None:
    """Make a run of rollouts that others made: verl's dumps, TRL's completion tables, or any table of responses."""
    from flows.views.terminal import safe_text
    from polyepo.config import ConfigError, validated
    from polyepo.domains import AnyDomain
    from polyepo.imports import Columns
    from storage import StoreError
    from tasks.runs.imports import import_rollouts

    console = Console()
    settings: dict[str, Any] = {"name": domain}
    if domain == "maths":
        settings["path"] = files[0].name
    if domain == "countdown":
        settings |= {"path": files[0].name, "target": target, "operators": "+-*/"}
    try:
        columns = Columns.parse(mapping or [])
        found = import_rollouts(root, files, form, columns, validated(AnyDomain, settings, "domain"), run, strict)
    except (ConfigError, StoreError, ValueError) as error:
        fail(console, safe_text(error), code=2)
    for bad in found.bad[:20]:
        console.print(f"{safe_text(bad.file)}, row {bad.row}: {safe_text(bad.reason)}", markup=False, soft_wrap=True)
    if len(found.bad) > 20:
        console.print(f"… and {len(found.bad) - 20} more malformed rows")
    console.print(
        f"{'there already' if found.existed else 'imported'}: run {found.run}, {found.num_responses:,} responses "
        f"({found.num_graded:,} graded) to {found.num_problems:,} problems, {len(found.bad):,} malformed rows left out",
        highlight=False,
        soft_wrap=True,
    )
    judge = "configs/judges/answer.yaml"
    label = ["prefect", "deployment", "run", "poly-epo/rescore", "--param", f"run={found.run}", "--param"]
    typer.echo(
        f"\nNext:\n  {shell_command('polyepo', 'show', found.run, '--root', root)}\n      one problem's responses"
        f"\n  {shell_command(*label, f'judge={judge}', '--param', f'root={root}')}\n      label and score them"
    )


@app.command()
def export(
    run: str,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder to make; RUN-export if not given.")
    ] = None,
    form: Annotated[Literal["parquet", "jsonl"], typer.Option("--format")] = "parquet",
    scoring: Annotated[str | None, typer.Option(help="Id of the scoring; the run's own if not given.")] = None,
    step: Annotated[list[int] | None, typer.Option(help="A step to write, repeatable; all if not given.")] = None,
    root: ExistingRoot = "artifacts",
) -> None:
    """Write a run's responses, rewards, clusters and advantages as one table, in a folder that `datasets` loads."""
    from flows.views.export import export_run
    from polyepo.config import ConfigError

    console = Console()
    folder = output or Path(f"{run}-export")
    try:
        with progress("steps written") as tell:
            rows = export_run(root, run, folder, form, scoring, step, tell)
    except ConfigError as error:
        fail(console, str(error), code=2)
    typer.echo(f"{rows:,} responses in {folder}\n\nNext:\n  datasets.load_dataset({str(folder)!r})")
