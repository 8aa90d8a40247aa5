"""Commands that start a deployment, follow it to its end and print its results; and one that cancels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from flows.cli.base import CodeOption, ExistingRoot, RootOption, app, fail, parse_settings, shell_command

JudgeOption = Annotated[Path | None, typer.Option(help="YAML file of a judge; the run's own if not given.")]
ScoringOption = Annotated[str | None, typer.Option(help='Another scoring section, as JSON: \'{"method": "grpo"}\'.')]
ObjectiveOption = Annotated[
    str | None, typer.Option(help="Another set objective, such as pass_at_n or distinct_successful.")
]
SetSizeOption = Annotated[int | None, typer.Option(help="Another n, responses per set.")]


@app.command()
def evaluate(
    run: Annotated[str | None, typer.Argument(help="The run; or give --model.")] = None,
    model: Annotated[str | None, typer.Option(help="A Hugging Face directory or hub id, in place of a run.")] = None,
    step: Annotated[int | None, typer.Option(help="The policy after this step; the last if not given.")] = None,
    benchmark: Annotated[
        str, typer.Option(help='"heldout", the run\'s own problems, or a JSONL or Parquet file of mathematics.')
    ] = "heldout",
    num_samples: Annotated[int, typer.Option("--samples", "-m", help="Samples per problem in all.")] = 64,
    judge: JudgeOption = None,
    config: Annotated[Path | None, typer.Option(help="With --model: domain, sampling and judge.")] = None,
    changes: Annotated[list[str] | None, typer.Option("--set", help="With --config: replace a setting.")] = None,
    code: CodeOption = None,
    root: RootOption = "artifacts",
) -> None:
    """Sample, grade and label a benchmark's problems by a run's policy or any model; adds to what is there."""
    from tasks.runs.code import provide
    from tasks.runs.requests import check_evaluation

    provide(_text(code))

    settings = parse_settings(changes or []) or None
    check_evaluation(root, run, model, step, benchmark, num_samples, _text(judge), _text(config), settings)
    parameters = {"run": run, "model": model, "step": step, "benchmark": benchmark, "num_samples": num_samples,
                  "judge": _text(judge), "config": _text(config), "settings": settings,
                  "root": root, "code": _text(code)}  # fmt: skip
    more = ["polyepo", "evaluate", *([run] if run else ["--model", str(model)]), "--benchmark", benchmark]
    more += [*(["--step", str(step)] if step is not None else []), "--root", root]
    _run(
        "evaluate", parameters, "gpu-worker",
        (shell_command(*more, "--samples", str(4 * num_samples)), "four times as many samples; these count"),
    )  # fmt: skip


@app.command()
def rescore(
    run: str,
    judge: JudgeOption = None,
    scoring: ScoringOption = None,
    objective: ObjectiveOption = None,
    set_size: SetSizeOption = None,
    verifier: Annotated[
        str | None, typer.Option(help="Settings of a domain, as JSON, by which the same texts are graded again.")
    ] = None,
    steps: Annotated[str | None, typer.Option(help="12, 1-50 or 1-50,60; all if not given.")] = None,
    estimate: Annotated[bool, typer.Option("--estimate", help="Only say what the judge's labels would cost.")] = False,
    code: CodeOption = None,
    root: ExistingRoot = "artifacts",
) -> None:
    """Label and score saved rollouts anew, next to what is there, and compare; nothing is sampled."""
    from tasks.runs.code import provide
    from tasks.runs.requests import check_rescoring, parse_section

    provide(_text(code))

    wanted, verified = parse_section("--scoring", scoring), parse_section("--verifier", verifier)
    asked = check_rescoring(root, run, _text(judge), wanted, objective, set_size, verified, steps)
    parameters = {"run": run, "judge": _text(judge), "scoring": wanted, "objective": objective,
                  "set_size": set_size, "verifier": verified, "steps": steps, "estimate": estimate,
                  "root": root, "code": _text(code)}  # fmt: skip
    own = asked.run.config.judge.judge_id
    compare = shell_command("polyepo", "compare", run, own, asked.judge.judge_id, "--root", root)
    again = shell_command("polyepo", "show", run, "--root", root), "one prompt's responses, cluster by cluster"
    _run("rescore", parameters, "cpu-worker", (compare, "both judges again") if asked.judge.judge_id != own else again)


@app.command()
def replay(
    run: str,
    step: int,
    scoring: ScoringOption = None,
    judge: JudgeOption = None,
    objective: ObjectiveOption = None,
    set_size: SetSizeOption = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for the rebuilt policy.")] = None,
    code: CodeOption = None,
    root: ExistingRoot = "artifacts",
) -> None:
    """Rebuild the policy after a step from what was saved; or compare the step's update with another scoring's."""
    from tasks.runs.code import provide
    from tasks.runs.requests import check_replay, parse_section

    provide(_text(code))

    wanted = parse_section("--scoring", scoring)
    check_replay(root, run, step, wanted, _text(judge), objective, set_size, _text(output))
    parameters = {"run": run, "step": step, "scoring": wanted, "judge": _text(judge), "objective": objective,
                  "set_size": set_size, "output": _text(output and output.absolute()), "root": root,
                  "code": _text(code)}  # fmt: skip
    show = shell_command("polyepo", "show", run, str(step), "--root", root)
    _run("replay", parameters, "gpu-worker", (show, "the step's responses, cluster by cluster"))


@app.command()
def cancel(run: str, root: ExistingRoot = "artifacts") -> None:
    """Cancel what is going on with a run, or with a configuration's arms; what is committed stays."""
    from flows import follow
    from flows.services import local_stack
    from tasks.runs.groups import members

    console = Console()
    try:
        healthy = local_stack.is_healthy()
        cancelled = follow.cancel(run, root) if healthy else []
    except local_stack.StackError as error:
        fail(console, str(error))
    if not cancelled:
        members(root, run)  # there may be no such run; one that has just been started has no record yet
        if not healthy:
            fail(console, f"no Prefect server answers at {local_stack.api_url()}: nothing is going on")
        fail(console, f"nothing is going on with run {run!r} under root {root!r}")
    resume = shell_command("polyepo", "train", "--run", run, "--root", root)
    typer.echo(f"cancelled {len(cancelled)} flow run(s)\n\nNext:\n  {resume}\n      go on with it, if it was training")


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _run(deployment: str, parameters: dict[str, Any], worker: str, following: tuple[str, str]) -> None:
    """Start a deployment, follow it, and print its results and the command to come next."""
    from rich.markdown import Markdown

    from flows import follow
    from flows.outcome import REFUSED
    from flows.services import local_stack

    console = Console()

    def say(line: str) -> None:
        console.print(f"· {line}", highlight=False, markup=False, soft_wrap=True)

    flow_run_id = ""
    given = {name: value for name, value in parameters.items() if value is not None}
    try:
        local_stack.start(say)
        ui = local_stack.api_url().removesuffix("/api")
        flow_run_id = follow.run_deployment(f"poly-epo/{deployment}", given)
        say(f"flow run {flow_run_id}: {ui}/runs/flow-run/{flow_run_id}")
        state = follow.follow(flow_run_id, console, worker)
    except local_stack.StackError as error:
        fail(console, str(error))
    except KeyboardInterrupt:
        if flow_run_id:
            say(f"it goes on; cancel it: {shell_command('prefect', 'flow-run', 'cancel', flow_run_id)}")
        raise typer.Exit(130) from None
    if state["type"] != "COMPLETED":
        refused = state.get("name") == REFUSED
        for line in [] if refused else follow.last_logs(flow_run_id):
            console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
        message = str(state.get("message") or "")
        fail(console, message if refused else f"{state['type'].lower()}: {message}", code=2 if refused else 1)
    if text := follow.result(flow_run_id):
        console.print(Markdown(text))
    command, what = following
    typer.echo(f"\nNext:\n  {command}\n      {what}")
