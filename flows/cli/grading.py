"""The command that tries the verifier on a table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from flows.cli.base import app, fail


@app.command(name="grade-check")
def grade_check(
    file: Annotated[Path, typer.Argument(help="JSONL, CSV or Parquet with columns reference, response and expected.")],
    mapping: Annotated[
        list[str] | None,
        typer.Option("--map", help="FIELD=COLUMN: reference, response or expected; repeatable."),
    ] = None,
    boxes: Annotated[
        Literal["last", "agree"], typer.Option(help="Of several answers the last counts, or all must agree.")
    ] = "last",
) -> None:
    """Grade a table of references and responses as mathematics, and print where the reward is not the expected one."""
    from flows.views.terminal import safe_text
    from polyepo.domains import Maths
    from polyepo.grading import differences, parse_mapping, read_cases

    console = Console()
    try:
        cases = read_cases(str(file), parse_mapping(mapping or []))
    except ValueError as error:
        fail(console, safe_text(error), code=2)
    found = differences(Maths(path=file.name, boxes=boxes), cases)
    for case, reward, answer, ungraded in found:
        given = f"no reward ({ungraded})" if reward is None else f"{reward:g}"
        typer.echo(
            f"row {case.row}: {given}, expected {case.expected:g}\n"
            f"  reference  {safe_text(case.reference, 200)}\n"
            f"  answer     {'none was read' if answer is None else safe_text(answer, 200)}\n"
            f"  response   … {safe_text(case.response[-200:])}"
        )
    typer.echo(f"{len(cases) - len(found):,} of {len(cases):,} as expected, {len(found):,} differ")
    if found:
        raise typer.Exit(1)
