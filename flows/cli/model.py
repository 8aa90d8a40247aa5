"""A model to take home: the policy after any step of a run as a Hugging Face directory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.base import ExistingRoot, app, progress, shell_command


@app.command()
def model(
    run: str,
    step: Annotated[int | None, typer.Argument(help="The policy after this step; the last if not given.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder to make; RUN-step-STEP if not given.")
    ] = None,
    root: ExistingRoot = "artifacts",
) -> None:
    """Write a run's policy as a Hugging Face directory, with its tokenizer; rebuilt if the step has no checkpoint."""
    from tasks.runs.evaluations import choose_step
    from tasks.runs.exporting import check_output, export_policy
    from tasks.runs.run import open_run

    opened = open_run(root, run)
    chosen = choose_step(opened, step)
    folder = output or Path(f"{run}-step-{chosen}")
    check_output(folder)
    with progress(f"the policy after step {chosen}: updates applied") as tell:
        export_policy(opened, chosen, folder, tell)
    size = sum(file.stat().st_size for file in folder.iterdir())
    evaluate = shell_command("polyepo", "evaluate", "--model", str(folder), "--benchmark", "FILE.jsonl")
    typer.echo(
        f"{folder}: {size / 1e6:.1f} MB\n\nNext:\n  transformers.AutoModelForCausalLM.from_pretrained({str(folder)!r})"
        f"\n  {evaluate}\n      its samples, graded, of a file of mathematics"
    )
