"""Commands that train: a run, an experiment, and what either would take or has come to."""

from __future__ import annotations

import contextlib
import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from flows.cli.base import CodeOption, ExistingRoot, RootOption, app, fail, parse_settings, quiet_prefect, shell_command

QUICKSTART = Path("configs/quickstart.yaml")


@app.command(name="try")
def try_out(
    config: Annotated[Path, typer.Argument(help="YAML description of a run.")],
    problems: Annotated[int, typer.Option("--problems", "-n", min=1, help="How many problems.")] = 4,
    arm: Annotated[str | None, typer.Option(help="Of a configuration with several; the last if not given.")] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="Replace a setting of the config, such as seed=1; repeatable.")
    ] = None,
    root: Annotated[str, typer.Option(help="Where a base model is kept, for runs as well.")] = "artifacts",
) -> None:
    """Take a few problems from sampling to advantages, and show every response: for whoever writes a verifier."""
    import tempfile

    console = Console()
    from flows.views.trying import trial
    from polyepo.config import load_config
    from tasks.runs.trying import commit_trial, only_arm, trial_of

    name = config.stem
    chosen = only_arm(load_config(config, parse_settings(changes or [])).runs(name), arm, name)

    def say(line: str) -> None:
        console.print(f"· {line}", highlight=False, markup=False, soft_wrap=True)

    from polyepo.policy.group import stop_groups
    from polyepo.samplers.vllm import stop_servers
    from storage import open_store

    try:
        with tempfile.TemporaryDirectory(prefix="polyepo-try-") as scratch:
            console.print(trial(commit_trial(scratch, trial_of(chosen, problems), open_store(root), say)))
    finally:
        stop_servers()
        stop_groups()
    train = shell_command("polyepo", "train", str(config), *(word for c in changes or [] for word in ("--set", c)))
    typer.echo(f"\nNext:\n  {train}\n      train it; of this trial the base model alone is kept")


@app.command()
def train(
    config: Annotated[
        Path | None,
        typer.Argument(help=f"YAML description of the run; if not given that of a --run that exists, or {QUICKSTART}."),
    ] = None,
    run: Annotated[str | None, typer.Option(help="Name of the run; the config's file name if not given.")] = None,
    root: RootOption = "artifacts",
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="Replace a setting of the config, such as seed=1; repeatable.")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the run's log at the end.")] = False,
    allow_changed_code: Annotated[
        bool,
        typer.Option("--allow-changed-code", help="Go on although code that the config names is another; noted."),
    ] = False,
) -> None:
    """Start or reuse a local Prefect server and worker, run the deployment poly-epo/train, and follow it."""
    console = Console()
    settings = parse_settings(changes or [])
    from tasks.runs.groups import exists
    from tasks.runs.preflight import accept_changed_code, check, describe

    if config is None and run is not None and not exists(root, run):
        near = f"to begin it, name a configuration: polyepo train {QUICKSTART} --run {shlex.quote(run)}"
        fail(console, f"run {run!r} does not exist under {root!r}; {near}", code=2)
    config = config or (None if run else QUICKSTART)
    training = describe(root, config, run, settings)
    check(root, training, allow_changed_code)
    if allow_changed_code:
        accept_changed_code(root, training)
    from flows import follow
    from flows.outcome import REFUSED, STOPPED
    from flows.services import local_stack
    from flows.views.findings import of_objectives, render

    if found := of_objectives(training.runs):
        console.print(render(found))

    def say(line: str) -> None:
        console.print(f"· {line}", highlight=False, markup=False, soft_wrap=True)

    name = training.name
    sets = [word for change in changes or [] for word in ("--set", change)]
    given = [str(config)] if config else []
    again = shell_command("polyepo", "train", *given, "--run", name, "--root", root, *sets)
    flow_run_id = ""
    try:
        local_stack.start(say)
        ui = local_stack.api_url().removesuffix("/api")
        if unfinished := follow.find_unfinished(name, root):
            say(f"run {name} is going on already: following it")
        parameters = {"config": config and str(config), "run": name, "root": root, "settings": settings}
        flow_run_id = unfinished or follow.run_deployment(local_stack.DEPLOYMENT, parameters)
        say(f"flow run {flow_run_id}: {ui}/runs/flow-run/{flow_run_id}")
        state = follow.follow(flow_run_id, console)
    except local_stack.StackError as error:
        fail(console, str(error))
    except KeyboardInterrupt:
        if flow_run_id:
            cancel = shell_command("prefect", "flow-run", "cancel", flow_run_id)
            say(f"the run goes on\n  follow it again: {again}\n  cancel it: {cancel}")
        raise typer.Exit(130) from None
    completed = state["type"] == "COMPLETED"
    if state.get("name") == REFUSED:  # by what only the flow could see; the same command would be refused again
        fail(console, str(state.get("message")), code=2)
    if verbose or not completed:
        for line in follow.last_logs(flow_run_id, 200 if verbose else 15):
            console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
    if not completed:
        fail(
            console,
            f"{state['type'].lower()}: {state.get('message') or ''}\n"
            f"Logs: {ui}/runs/flow-run/{flow_run_id} and {local_stack.STATE / 'gpu-worker.log'}\n"
            f"Nothing committed is lost." + ("" if state.get("name") == STOPPED else f" Resume: {again}"),
        )
    from polyepo.errors import ConfigError

    try:
        _print_summary(console, root, name)
    except ConfigError as error:  # a config without evaluation trains all the same
        say(f"no summary: {error}")
        _print_findings(console, root, name)
    # Exit code 0 whatever was found: all that was asked for is done and committed, and "the same command" would not
    # mend it. What the run is worth is said above, in colour.
    last = list(training.runs)[-1]
    afresh = shell_command("polyepo", "train", *given, "--run", f"{name}-2", "--root", root, *sets)
    typer.echo(
        f"\nNext:\n  {shell_command('polyepo', 'summary', name, '--root', root)}\n      this table again"
        f"\n  {shell_command('polyepo', 'report', name, '--root', root)}\n      figures and responses as a page"
        f"\n  {shell_command('polyepo', 'model', last, '--root', root)}\n      its model, as a folder for transformers"
        + (f"\n  {afresh}\n      the same again, from scratch" if config else "")
        + f"\n  {ui}\n      every step in the Prefect UI"
        "\n  make stop\n      stop the server and the workers"
    )


@app.command()
def plan(
    config: Annotated[Path, typer.Argument(help="YAML description of the run.")] = Path("configs/quickstart.yaml"),
    root: RootOption = "artifacts",
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="Replace a setting of the config, such as seed=1; repeatable.")
    ] = None,
) -> None:
    """Say what a run would take and what of it will not work; nothing starts. Exits with 1 if something will not."""
    from polyepo.config import load_config

    console = Console()
    loaded = load_config(config, parse_settings(changes or []))
    with console.status("planning") if console.is_terminal else contextlib.nullcontext():
        from flows.plan import make_plan
        from flows.plan.render import render

        made = make_plan(loaded, config.stem, root)
    console.print(render(made))
    if not made.fits:
        raise typer.Exit(1)


@app.command()
def experiment(
    file: Annotated[Path, typer.Argument(help="YAML: a configuration, seeds, and arms if not the configuration's.")],
    name: Annotated[
        str | None, typer.Option(help="What its runs' names begin with; the file's name if not given.")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Seeds at a time; as many as there are cores for if not given.")
    ] = None,
    compare_only: Annotated[
        bool, typer.Option("--compare-only", help="Print the comparison of what was trained.")
    ] = False,
    form: Annotated[Literal["table", "markdown"], typer.Option("--format", help="Of the comparison.")] = "table",
    root: RootOption = "artifacts",
) -> None:
    """Train every arm with every seed through the local Prefect stack, and compare the arms; resumes what exists."""
    from polyepo.config import load_config
    from polyepo.experiment import load_experiment

    console = Console()
    loaded = load_experiment(file, name)
    quiet_prefect()
    from flows import experiment as experiments
    from flows.services.local_stack import StackError
    from flows.views.findings import of_objectives, render
    from tasks.runs.preflight import check, describe

    def say(line: str) -> None:
        console.print(f"· {line}", highlight=False, markup=False, soft_wrap=True)

    again = shell_command("polyepo", "experiment", str(file), "--name", loaded.name, "--root", root)
    try:
        if not compare_only:
            for seed in loaded.seeds:
                training = describe(root, loaded.config, loaded.run(seed), loaded.settings[seed])
                check(root, training)
            if unwise := of_objectives(training.runs):  # the seeds have one objective
                console.print(render(unwise))
            threads = load_config(loaded.config).policy.num_threads
            count = jobs or experiments.parallel_runs(threads)
            experiments.run_experiment(loaded, root, count, console, say)
        found = experiments.compare_arms(loaded, root)
    except StackError as error:
        fail(console, f"{error}\nNothing committed is lost." + (f" Resume: {again}" if error.resumable else ""))
    except KeyboardInterrupt:
        say(f"what was started goes on\n  follow it again: {again}")
        raise typer.Exit(130) from None
    if form == "markdown":
        typer.echo(experiments.markdown(found))
        return
    console.print(experiments.render(found))
    first = loaded.run(loaded.seeds[0])
    typer.echo(
        f"\nNext:\n  {again} --compare-only --format markdown\n      this comparison again"
        f"\n  {shell_command('polyepo', 'report', first, '--root', root)}\n      the curves of a seed, as a page"
    )


@app.command()
def fork(
    run: Annotated[str, typer.Argument(help="The run to go on from.")],
    at: Annotated[int, typer.Option(min=0, help="Its last step that the new run shares.")],
    name: Annotated[str, typer.Option("--run", help="Name of the new run.")],
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="Replace a setting of the run's, such as update.lr=3e-4; repeatable."),
    ] = None,
    code: CodeOption = None,
    root: ExistingRoot = "artifacts",
) -> None:
    """Make a run with another's weights, optimizer and history up to a step, to be trained on with other settings.

    Nothing is copied: earlier steps are read where they are. SQL and export show each step under the run that made it.
    """
    from tasks.runs.code import provide
    from tasks.runs.forking import fork as make_fork

    provide(str(code) if code else None)
    made = make_fork(root, run, at, name, parse_settings(changes or []))
    given = [str(code)] if code else []  # which names the code again, and what is other than in it
    sets = [word for change in (changes or []) if code for word in ("--set", change)]
    typer.echo(
        f"{name} goes on from step {at} of {run}, to step {made.config.steps}\n\nNext:\n"
        f"  {shell_command('polyepo', 'train', *given, '--run', name, '--root', root, *sets)}\n      train it"
    )


@app.command()
def summary(run: str, root: ExistingRoot = "artifacts") -> None:
    """Print a run's held-out results, next to the base model's; for a config with arms, all of them."""
    from tasks.runs.groups import members

    _print_summary(Console(), root, run)
    last = members(root, run)[-1]
    typer.echo(
        f"\nNext:\n  {shell_command('polyepo', 'report', run, '--root', root)}\n      figures and responses as a page"
        f"\n  {shell_command('polyepo', 'model', last, '--root', root)}\n      its model, as a folder for transformers"
    )


def _print_summary(console: Console, root: str, run: str) -> None:
    from flows.views.summary import render, summarize

    console.print(render(summarize(root, run)))
    _print_findings(console, root, run)


def _print_findings(console: Console, root: str, run: str) -> None:
    """What was wrong with a run, below its table."""
    from flows.views.findings import render, warnings

    if found := warnings(root, run):
        console.print(render(found))
