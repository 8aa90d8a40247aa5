"""Every command, from the typer application."""

from __future__ import annotations

import inspect
from typing import Any, Literal, get_args, get_origin, get_type_hints

import typer

from flows.cli import app

_HEAD = """# Commands

`polyepo COMMAND --help` says the same. Where a root is named it may be a local path or `s3://bucket/prefix`; `POLYEPO_ROOT` in the
environment stands for `--root`. Exit codes: 0 done; 1 failed, or something was found; 2 a wrong command or configuration; 130
interrupted.
"""


def page() -> str:
    """The page, in Markdown."""
    return "\n".join([_HEAD, *_commands(typer.main.get_command(app), "polyepo")])


def _commands(command: Any, name: str) -> list[str]:
    below = getattr(command, "commands", None)
    if below is None:
        return _command(command, name)
    return [line for word, each in below.items() for line in _commands(each, f"{name} {word}")]


def _command(command: Any, name: str) -> list[str]:
    hints = get_type_hints(inspect.unwrap(command.callback))
    arguments = [_argument(each) for each in command.params if each.param_type_name == "argument"]
    usage = " ".join([name, *(word if each.required else f"[{word}]" for each, word in arguments), "[OPTIONS]"])
    rows = [_row(each, hints[each.name]) for each in command.params if each.name in hints]
    table = ["| | | default |\n|---|---|---|", *rows, ""] if rows else []
    return [f"## {name}\n", f"`{usage}`\n", inspect.cleandoc(command.help or "") + "\n", *table]


def _argument(parameter: Any) -> tuple[Any, str]:
    return parameter, parameter.name.upper().rstrip("_") + ("..." if parameter.nargs == -1 else "")


def _row(parameter: Any, hint: Any) -> str:
    names = [_argument(parameter)[1]] if parameter.param_type_name == "argument" else parameter.opts
    said = (parameter.help or "").replace("|", "\\|")
    if choices := _choices(hint):
        said += f" One of {', '.join(choices)}."
    default = "required" if parameter.required else "" if not parameter.default else f"`{parameter.default}`"
    return f"| `{'`, `'.join(names)}` | {said.strip()} | {default} |"


def _choices(hint: Any) -> list[str]:
    if get_origin(hint) is Literal:
        return list(map(str, get_args(hint)))
    return [choice for member in get_args(hint) for choice in _choices(member)]
