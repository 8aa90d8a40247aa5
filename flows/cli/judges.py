"""Commands about judges: two compared on a run, measured against known strategies, and a person as one."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from flows.cli.base import ExistingRoot, app, fail, shell_command

_SAY_EVERY_S = 10.0


@app.command()
def compare(
    run: str,
    judge_a: Annotated[str, typer.Argument(help="A judge, or one scoring of its labels.")],
    judge_b: Annotated[str, typer.Argument(help="Another judge, or another scoring.")],
    root: ExistingRoot = "artifacts",
) -> None:
    """Compare two judges of the same rollouts: agreement, clusters, advantages, the prompts that differ most."""
    from polyepo.config import ConfigError

    console = Console()
    try:
        from flows.views.compare import compare as compare_judges
        from flows.views.compare import render

        console.print(render(compare_judges(root, run, (judge_a, None), (judge_b, None))))
    except ConfigError as error:
        fail(console, str(error), code=2)


@app.command(name="judge-bench")
def judge_bench(
    judges: Annotated[list[Path], typer.Argument(help="YAML files of judges, such as configs/judges/answer.yaml.")],
    prompts: Annotated[int, typer.Option(min=1, help="Prompts of each set.")] = 50,
    responses: Annotated[int, typer.Option(min=2, help="Responses per prompt.")] = 8,
    data: Annotated[
        Path | None, typer.Option(help="Folder with creativemath/subset.json: human solutions, told twice.")
    ] = None,
    seed: int = 0,
) -> None:
    """Measure judges on responses whose strategies are known: agreement, consistency, position bias, cost, time.

    How far it is, and each result as it comes, goes to stderr; the tables come at the end. What judges were answered is
    kept in .polyepo/judge-bench as it comes: after Ctrl-C or a failure the same command asks only for the rest.
    """
    from flows.views.judges import KEPT, bench, render, suites, summary
    from polyepo.config import ConfigError
    from polyepo.judges.llm.limits import JudgeError

    console, progress = Console(), Console(stderr=True)
    measured = []
    try:
        with _told(progress) as say:
            for row in bench(judges, suites(data, prompts, responses, seed), seed, say):
                measured.append(row)
                progress.print(summary(row), highlight=False, markup=False, soft_wrap=True)
    except ConfigError as error:
        fail(console, str(error), code=2)
    except (JudgeError, ImportError) as error:
        fail(console, str(error))
    except KeyboardInterrupt:
        fail(console, f"ended; answers are kept in {KEPT}: the same command asks only for the rest", code=130)
    console.print(render(measured))
    typer.echo(
        "ARI, V: agreement with the known strategies (1 is perfect); deg P, R: precision and recall of degenerate;\n"
        "self: pair agreement with itself in another order; bias: how much oftener neighbours in the request are\n"
        "wrongly put together; miss: share without label; cost and seconds: per 1,000 responses."
    )


@contextlib.contextmanager
def _told(console: Console) -> Iterator[Callable[[str], None]]:
    """Says how far work is: on a terminal in a line that changes, elsewhere in a new line now and then."""
    if console.is_terminal:
        with console.status("preparing") as status:
            yield lambda text: status.update(Text(text))
        return
    said = -math.inf

    def say(text: str) -> None:
        nonlocal said
        if time.monotonic() - said >= _SAY_EVERY_S:
            said = time.monotonic()
            console.print(text, highlight=False, markup=False, soft_wrap=True)

    yield say


@app.command(name="judge-sheet")
def judge_sheet(
    run: str,
    output: Annotated[Path, typer.Option("--output", "-o", help="The CSV file to write.")] = Path("sheet.csv"),
    prompts: Annotated[int, typer.Option(min=1, help="Prompts in the sheet, each problem at most once.")] = 50,
    seed: int = 0,
    root: ExistingRoot = "artifacts",
) -> None:
    """Write a blind sheet of a run's responses for labels by hand, which is then a judge like any other."""
    from polyepo.config import ConfigError

    console = Console()
    from flows.views.judges import sheet

    judge = output.with_suffix(".yaml")
    if judge == output or (judge.exists() and not output.exists()):
        fail(console, f"{judge} is where the judge of this sheet would be described: give another name, like -o "
             f"{output.stem}-2.csv", code=2)  # fmt: skip
    try:
        found = sheet(root, run, output, prompts, seed)
    except ConfigError as error:
        fail(console, str(error), code=2)
    judge.write_text(f"name: sheet\npath: {json.dumps(str(output.absolute()))}\n", encoding="utf-8")
    rescore = shell_command("polyepo", "rescore", run, "--judge", str(judge), "--root", root)
    typer.echo(
        f"{found:,} responses in {output}. Under `cluster`, give responses to a problem that go about it in the same "
        f"way the\nsame number or name; x for no reasoning at all; leave empty what you cannot tell.\n\n"
        f"Next:\n  {rescore}\n      label the run by the sheet, once it is filled in"
    )
