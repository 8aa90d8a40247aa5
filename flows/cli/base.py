"""What all commands share."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from typer.core import TyperGroup

from polyepo.errors import ConfigError, PolyepoError


class _Commands(TyperGroup):
    """All commands; an error of ours is one message and an exit code, whichever of them finds out."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except PolyepoError as error:
            from flows.views.terminal import safe_text

            fail(Console(), "\n".join(map(safe_text, str(error).splitlines())), error.exit_code)


app = typer.Typer(cls=_Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def _existing(root: str) -> str:
    """A root that can be read. A bucket answers for itself."""
    path = root.removeprefix("file://")
    if "://" not in path and not Path(path).expanduser().is_dir():
        what = "is a file" if Path(path).expanduser().exists() else "does not exist"
        fail(Console(), f"root {root!r} {what}: give the folder of a store by --root or POLYEPO_ROOT", code=2)
    return root


_ROOT: dict[str, Any] = {"help": "Where artifacts are: a path or s3://bucket/prefix.", "envvar": "POLYEPO_ROOT"}
RootOption = Annotated[str, typer.Option(**_ROOT)]
"""Of commands that make the root."""
CodeOption = Annotated[
    Path | None, typer.Option(help="A configuration of yours: runs made with code that it names may use it.")
]
ExistingRoot = Annotated[str, typer.Option(**_ROOT, callback=_existing)]
"""Of commands that read what is there."""


def _version(wanted: bool) -> None:
    if wanted:
        from tasks.runs.version import code_version

        typer.echo(f"polyepo {code_version()}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and leave.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Train language models to explore."""


def parse_settings(changes: list[str]) -> dict[str, Any]:
    """Dotted names and values, these read as YAML: 1 is a number, null is nothing."""
    import yaml

    settings = {}
    for change in changes:
        name, equals, value = change.partition("=")
        if not name or not equals:
            raise ConfigError(f"--set {change!r} must be name=value, such as seed=1")
        try:
            settings[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"--set {change!r}: {value!r} is no YAML value: {reason}") from None
    return settings


def quiet_prefect() -> None:
    """Called before Prefect is imported, which reads it then: commands that train nothing have no log to show."""
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "WARNING")


def shell_command(program: str, *arguments: str) -> str:
    """A command that can be typed here: with its folder, unless the virtual environment is active."""
    folder = Path(sys.executable).parent
    found = shutil.which(program)
    if found and Path(found).parent == folder:
        return shlex.join([program, *arguments])
    path = folder / program
    return shlex.join([str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path), *arguments])


@contextmanager
def progress(words: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error, while the block tells it how much is done of how much; nothing where nobody looks."""
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(words, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def fail(console: Console, message: str, code: int = 1) -> NoReturn:
    """Say what is wrong and leave: 2 is the exit code of a wrong command or configuration, 1 of what failed."""
    console.print(message, style="red", highlight=False, markup=False, soft_wrap=True)
    raise typer.Exit(code)
