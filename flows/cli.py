"""The console script `polyepo`. Whatever takes long to import is imported by the command that needs it."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer
from rich.console import Console
from typer.core import TyperGroup


class _Commands(TyperGroup):
    """All commands; a store that cannot be used is one message, whichever of them finds out."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            from flows.terminal import safe_text
            from storage import StoreError

            if isinstance(error, StoreError):
                _fail(Console(), safe_text(error))
            raise


app = typer.Typer(cls=_Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

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
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="Replace a setting of the config, such as seed=1; repeatable.")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the run's log at the end.")] = False,
) -> None:
    """Start or reuse a local Prefect server and worker, run the deployment poly-epo/train, and follow it."""
    console = Console()
    from polyepo.config import ConfigError, load_config

    try:
        settings = _settings(changes or [])
        load_config(config, settings)
    except ConfigError as error:
        _fail(console, str(error), code=2)
    from flows import follow, local_stack
    from storage import open_store

    open_store(root).check()

    def say(line: str) -> None:
        console.print(f"· {line}", highlight=False, markup=False, soft_wrap=True)

    name = run or config.stem
    sets = [word for change in changes or [] for word in ("--set", change)]
    again = _command("polyepo", "train", str(config), "--run", name, "--root", root, *sets)
    flow_run_id = ""
    try:
        local_stack.start(say)
        ui = local_stack.api_url().removesuffix("/api")
        if unfinished := follow.find_unfinished(name, root):
            say(f"run {name} is going on already: following it")
        parameters = {"config": str(config), "run": name, "root": root, "settings": settings}
        flow_run_id = unfinished or follow.run_deployment(local_stack.DEPLOYMENT, parameters)
        say(f"flow run {flow_run_id}: {ui}/runs/flow-run/{flow_run_id}")
        state = follow.follow(flow_run_id, console)
    except local_stack.StackError as error:
        _fail(console, str(error))
    except KeyboardInterrupt:
        if flow_run_id:
            cancel = _command("prefect", "flow-run", "cancel", flow_run_id)
            say(f"the run goes on\n  follow it again: {again}\n  cancel it: {cancel}")
        raise typer.Exit(130) from None
    completed = state["type"] == "COMPLETED"
    if verbose or not completed:
        for line in follow.last_logs(flow_run_id, 200 if verbose else 15):
            console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
    if not completed:
        _fail(
            console,
            f"{state['type'].lower()}: {state.get('message') or ''}\n"
            f"Logs: {ui}/runs/flow-run/{flow_run_id} and {local_stack.STATE / 'gpu-worker.log'}\n"
            f"Nothing committed is lost. Resume: {again}",
        )
    try:
        _print_summary(console, root, name)
    except ConfigError as error:  # a config without evaluation trains all the same
        say(f"no summary: {error}")
    afresh = _command("polyepo", "train", str(config), "--run", f"{name}-2", "--root", root, *sets)
    typer.echo(
        f"\nNext:\n  {_command('polyepo', 'summary', name, '--root', root)}\n      this table again"
        f"\n  {_command('polyepo', 'report', name, '--root', root)}\n      figures and responses as a page"
        f"\n  {afresh}\n      the same again, from scratch"
        f"\n  {ui}\n      every step in the Prefect UI"
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
    from polyepo.config import ConfigError, load_config

    console = Console()
    _quiet_prefect()
    try:
        loaded = load_config(config, _settings(changes or []))
        with console.status("planning") if console.is_terminal else contextlib.nullcontext():
            from flows.plan import make_plan
            from flows.plan.render import render

            made = make_plan(loaded, config.stem, root)
    except ConfigError as error:
        _fail(console, str(error), code=2)
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
    from polyepo.config import ConfigError, load_config
    from polyepo.experiment import load_experiment

    console = Console()
    try:
        loaded = load_experiment(file, name)
    except ConfigError as error:
        _fail(console, str(error), code=2)
    _quiet_prefect()
    from flows import experiment as experiments
    from flows.local_stack import StackError
    from storage import open_store

    def say(line: str) -> None:
        console.print(f"· {line}", highlight=False, markup=False, soft_wrap=True)

    again = _command("polyepo", "experiment", str(file), "--name", loaded.name, "--root", root)
    try:
        if not compare_only:
            open_store(root).check()
            threads = load_config(loaded.config).policy.num_threads
            count = jobs or experiments.parallel_runs(threads)
            experiments.run_experiment(loaded, root, count, console, say)
        found = experiments.compare_arms(loaded, root)
    except StackError as error:
        _fail(console, f"{error}\nNothing committed is lost. Resume: {again}")
    except ConfigError as error:
        _fail(console, str(error), code=2)
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
        f"\n  {_command('polyepo', 'report', first, '--root', root)}\n      the curves of a seed, as a page"
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
def sql(
    command: Annotated[str | None, typer.Option("--command", "-c", help="Run this and leave.")] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="Run this file and leave.")] = None,
    form: Annotated[
        Literal["table", "csv", "json", "parquet", "markdown"], typer.Option("--format", help="Of the results.")
    ] = "table",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write here; tables go to the screen.")] = None,
    print_init: Annotated[
        bool, typer.Option("--print-init", help="Print SQL that makes the same views in any DuckDB.")
    ] = False,
    root: RootOption = "artifacts",
) -> None:
    """Ask a root's artifacts in SQL: views of every table, and a query for each usual question (.help lists them)."""
    console = Console()
    if command and file:
        _fail(console, "--command and --file cannot both be given", code=2)
    try:
        text = file.read_text(encoding="utf-8") if file else command
    except (OSError, UnicodeDecodeError) as error:
        _fail(console, f"--file {str(file)!r} cannot be read: {error}", code=2)
    from flows.sql import SQLError, execute, prompt
    from storage import Catalog

    catalog = Catalog(root)
    if print_init:
        typer.echo(catalog.init_sql())
    elif text is None and sys.stdin.isatty():
        prompt(catalog, form, console)
    else:
        try:
            execute(catalog, sys.stdin.read() if text is None else text, form, output, console)
        except SQLError as error:
            _fail(console, str(error))


@app.command()
def runs(root: RootOption = "artifacts") -> None:
    """List the runs under a root."""
    from flows.show import runs_table

    Console().print(runs_table(root))


@app.command()
def show(
    run: str,
    step: Annotated[int | None, typer.Argument(help="The last step if not given.")] = None,
    problem: Annotated[str | None, typer.Argument(help="The first problem of the step if not given.")] = None,
    root: RootOption = "artifacts",
) -> None:
    """Print a prompt's responses, cluster by cluster."""
    from flows.show import show_prompt
    from polyepo.config import ConfigError

    console = Console()
    try:
        console.print(show_prompt(root, run, step, problem))
    except ConfigError as error:
        _fail(console, str(error), code=2)


@app.command()
def verify(run: str, root: RootOption = "artifacts") -> None:
    """Check every artifact of a run against its manifest: hashes, rows, keys and lineage."""
    from rich.progress import track

    from flows.terminal import safe_text
    from storage import open_store
    from storage.verify import manifests, verify_artifact

    console = Console()
    store = open_store(root)
    if store.run_record(run) is None:
        _fail(console, f"run {run!r} does not exist under {root!r}", code=2)
    paths = manifests(store, run)
    found = []
    for path in track(paths, "verifying", console=Console(stderr=True), transient=True):
        found += list(verify_artifact(store, path))
    for finding in found:
        console.print(f"{safe_text(finding.path)}: {safe_text(finding.message)}", markup=False, soft_wrap=True)
    if found:
        _fail(console, f"{len(found)} findings in {len(paths)} artifacts of run {run}")
    console.print(f"{len(paths)} artifacts of run {run} are as their manifests say")


@app.command()
def gc(
    older_than: Annotated[str, typer.Option(help="Age of an attempt's newest file: 90s, 30m, 12h or 7d.")] = "1d",
    yes: Annotated[bool, typer.Option("--yes", help="Delete without asking.")] = False,
    root: RootOption = "artifacts",
) -> None:
    """List what writers that died have left under a root, and delete it; never what a manifest names."""
    from flows.terminal import safe_text
    from storage import open_store
    from storage.gc import find_garbage, remove_garbage

    console = Console()
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    number, unit = older_than[:-1], older_than[-1:]
    if unit not in units or not number.isdecimal():
        _fail(console, f"--older-than {older_than!r} must be like 90s, 30m, 12h or 7d", code=2)
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
    _quiet_prefect()
    from flows.terminal import safe_text
    from polyepo.config import ConfigError, validated
    from polyepo.domains import AnyDomain
    from polyepo.imports import Columns
    from storage import StoreError
    from tasks.imports import import_rollouts

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
        _fail(console, safe_text(error), code=2)
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
        f"\nNext:\n  {_command('polyepo', 'show', found.run, '--root', root)}\n      one problem's responses"
        f"\n  {_command(*label, f'judge={judge}', '--param', f'root={root}')}\n      label and score them"
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
    root: RootOption = "artifacts",
) -> None:
    """Write a run's responses, rewards, clusters and advantages as one table, in a folder that `datasets` loads."""
    from flows.export import export_run
    from polyepo.config import ConfigError

    console = Console()
    folder = output or Path(f"{run}-export")
    try:
        rows = export_run(root, run, folder, form, scoring, step)
    except ConfigError as error:
        _fail(console, str(error), code=2)
    typer.echo(f"{rows:,} responses in {folder}\n\nNext:\n  datasets.load_dataset({str(folder)!r})")


@app.command()
def compare(
    run: str,
    judge_a: Annotated[str, typer.Argument(help="A judge, or one scoring of its labels.")],
    judge_b: Annotated[str, typer.Argument(help="Another judge, or another scoring.")],
    root: RootOption = "artifacts",
) -> None:
    """Compare two judges of the same rollouts: agreement, clusters, advantages, the prompts that differ most."""
    from polyepo.config import ConfigError

    console = Console()
    _quiet_prefect()
    try:
        from flows.compare import compare as compare_judges
        from flows.compare import render

        console.print(render(compare_judges(root, run, (judge_a, None), (judge_b, None))))
    except ConfigError as error:
        _fail(console, str(error), code=2)


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
    """Measure judges on responses whose strategies are known: agreement, consistency, position bias, cost, time."""
    from rich.progress import track

    from flows.judges import bench, render, suites
    from polyepo.config import ConfigError
    from polyepo.judges.llm.limits import JudgeError

    console = Console()
    try:
        sets = suites(data, prompts, responses, seed)
        total, quiet = len(sets) * len(judges), not console.is_terminal
        work = track(bench(judges, sets, seed), "asking", total, console=console, transient=True, disable=quiet)
        measured = list(work)
    except ConfigError as error:
        _fail(console, str(error), code=2)
    except (JudgeError, ImportError) as error:
        _fail(console, str(error))
    console.print(render(measured))
    typer.echo(
        "ARI, V: agreement with the known strategies (1 is perfect); deg P, R: precision and recall of degenerate;\n"
        "self: pair agreement with itself in another order; bias: how much oftener neighbours in the request are\n"
        "wrongly put together; miss: share without label; cost and seconds: per 1,000 responses."
    )


@app.command(name="judge-sheet")
def judge_sheet(
    run: str,
    output: Annotated[Path, typer.Option("--output", "-o", help="The CSV file to write.")] = Path("sheet.csv"),
    prompts: Annotated[int, typer.Option(min=1, help="Prompts in the sheet, each problem at most once.")] = 50,
    seed: int = 0,
    root: RootOption = "artifacts",
) -> None:
    """Write a blind sheet of a run's responses for labels by hand, which is then a judge like any other."""
    from polyepo.config import ConfigError

    console = Console()
    _quiet_prefect()
    from flows.judges import sheet

    try:
        found = sheet(root, run, output, prompts, seed)
    except ConfigError as error:
        _fail(console, str(error), code=2)
    judge = output.with_suffix(".yaml")
    judge.write_text(f"name: sheet\npath: {json.dumps(str(output.absolute()))}\n", encoding="utf-8")
    rescore = _command("prefect", "deployment", "run", "poly-epo/rescore", "--param", f"run={run}",
                       "--param", f"judge={judge}", "--param", f"root={root}")  # fmt: skip
    typer.echo(
        f"{found:,} responses in {output}. Under `cluster`, give responses to a problem that go about it in the same "
        f"way the\nsame number or name; x for no reasoning at all; leave empty what you cannot tell.\n\n"
        f"Next:\n  {rescore}\n      label the run by the sheet, once it is filled in"
    )


@app.command()
def report(
    runs: Annotated[list[str], typer.Argument(help="Runs, or configurations: then all of their arms.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The HTML file to write.")] = Path("report.html"),
    root: RootOption = "artifacts",
) -> None:
    """Write runs' figures and responses as one HTML page that works offline."""
    from polyepo.config import ConfigError

    console = Console()
    _quiet_prefect()
    with console.status("reading") if console.is_terminal else contextlib.nullcontext():
        from flows.report import write_report

        try:
            size = write_report(root, runs, output)
        except ConfigError as error:
            _fail(console, str(error), code=2)
        except OSError as error:
            _fail(console, f"{output} cannot be written: {error.strerror or error}")
    typer.echo(f"{output}: {size / 1e6:.1f} MB\n\nNext:\n  {output.absolute().as_uri()}\n      open it in a browser")


@app.command()
def watch(
    run: Annotated[str, typer.Argument(help="A run, or a configuration: then all of its arms.")],
    root: RootOption = "artifacts",
) -> None:
    """Watch a run in the terminal until it ends: step, stage, curves and the latest clusters."""
    from polyepo.config import ConfigError

    console = Console()
    _quiet_prefect()
    from flows.watch import watch as watch_run

    try:
        watch_run(root, run, console)
    except ConfigError as error:
        _fail(console, str(error), code=2)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    typer.echo(
        f"\nNext:\n  {_command('polyepo', 'report', run, '--root', root)}\n      all of it, as a page for the browser"
    )


@app.command()
def stop() -> None:
    """Stop the local Prefect server and workers that `train` started."""
    from flows import local_stack

    stopped = local_stack.stop()
    typer.echo("stopped " + ", ".join(stopped) if stopped else "nothing was running")


stack = typer.Typer(no_args_is_help=True, help="The whole stack on this machine: PostgreSQL, S3, Prefect, workers.")
app.add_typer(stack, name="stack")


@stack.command(name="start")
def stack_start() -> None:
    """Start what does not run yet, and print the environment in which to use it: eval "$(polyepo stack start)"."""
    from flows import full_stack

    console = Console(stderr=True)
    try:
        environment = full_stack.start(lambda line: console.print(f"· {line}", highlight=False, markup=False))
    except full_stack.StackError as error:
        _fail(console, str(error))
    console.print(
        "The S3 server is for trying out: it keeps all in memory. STOPPING IT LOSES EVERY RUN.", soft_wrap=True
    )
    for name, value in environment.items():
        typer.echo(f"export {name}={shlex.quote(value)}")


@stack.command(name="stop")
def stack_stop() -> None:
    """Stop all of it; the database stays, what is on the S3 server is lost."""
    from flows import full_stack

    stopped = full_stack.stop()
    typer.echo("stopped " + ", ".join(stopped) if stopped else "nothing was running")


@stack.command(name="status")
def stack_status() -> None:
    """Say what runs."""
    from flows import full_stack

    for name, text in full_stack.status().items():
        typer.echo(f"{name:<11} {text}")


@app.command()
def register() -> None:
    """Give the Prefect server its work pools, deployments and automations, and make the bucket of $POLYEPO_ROOT.

    $POLYEPO_GPU_SLOTS is the number of GPU workers: so many flow runs at a time get a GPU.
    """
    from flows import local_stack, services

    console = Console()
    try:
        local_stack.STATE.mkdir(exist_ok=True)
        local_stack.register(typer.echo)
        services.make_bucket(os.environ.get("POLYEPO_ROOT", ""))
    except local_stack.StackError as error:
        _fail(console, str(error))


def _settings(changes: list[str]) -> dict[str, Any]:
    """Dotted names and values, these read as YAML: 1 is a number, null is nothing."""
    import yaml

    from polyepo.config import ConfigError

    settings = {}
    for change in changes:
        name, equals, value = change.partition("=")
        if not name or not equals:
            raise ConfigError(f"--set {change!r} must be name=value, such as seed=1")
        settings[name] = yaml.safe_load(value)
    return settings


def _quiet_prefect() -> None:
    """Called before Prefect is imported, which reads it then: commands that train nothing have no log to show."""
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "WARNING")


def _print_summary(console: Console, root: str, run: str) -> None:
    _quiet_prefect()
    from flows.summary import render, summarize

    console.print(render(summarize(root, run)))


def _command(program: str, *arguments: str) -> str:
    """A command that can be typed here: with its folder, unless the virtual environment is active."""
    folder = Path(sys.executable).parent
    found = shutil.which(program)
    if found and Path(found).parent == folder:
        return shlex.join([program, *arguments])
    path = folder / program
    return shlex.join([str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path), *arguments])


def _fail(console: Console, message: str, code: int = 1) -> NoReturn:
    console.print(message, style="red", highlight=False, markup=False, soft_wrap=True)
    raise typer.Exit(code)
