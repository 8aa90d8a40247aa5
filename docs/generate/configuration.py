"""Every key of a configuration, from the sections of pydantic and the docstrings below their fields."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from polyepo.config import Config
from polyepo.experiment import ExperimentFile
from polyepo.section import operational

_HEAD = """# Configuration

A run is described by one YAML file, whose keys are these; unknown keys are errors, and `polyepo plan FILE` tries a file without
starting anything. Sections that come in kinds (`domain`, `judge`, `scoring`, `sampler`) have the keys of the kind that
their `name` or `method` says.

A setting that **changes results** is part of the run: it is in the digest, and a run that exists is not resumed with another
value (fork it instead). One that is **operational** may be another whenever a run goes on; the change is recorded.
"""


_FILES: dict[type[BaseModel], str] = {Config: "A run's file", ExperimentFile: "An experiment's file"}


def page() -> str:
    """The page, in Markdown."""
    parts = [*_section("", Config), *_section("", ExperimentFile)]
    return "\n".join([_HEAD, *dict.fromkeys(parts)])  # what several kinds of a section share stands there once


def _section(path: str, section: type[BaseModel], marked: bool = False) -> Iterator[str]:
    """A section's heading, docstring and table of keys; then the sections below it.

    Args:
        path: its dotted name.
        section: it.
        marked: whether all of it is operational.
    """
    lines = [f"{f'### `{path}`' if path else f'## {_FILES[section]}'}{_kind(section)}\n"]
    lines += [prose(inspect.getdoc(section) or "") + "\n", "| key | type | default | | |\n|---|---|---|---|---|"]
    unmarked = operational(section)
    for name, field in section.model_fields.items():
        if name == "code":  # filled in when code is imported; no file sets it
            continue
        effect = "operational" if marked or name in unmarked else "changes results"
        said = prose(docstrings(section).get(name, "")).replace("\n", " ").replace("|", "\\|")
        lines.append(
            f"| `{name}` | {_type(field.annotation)}{_bounds(field)} | {_default(field)} | {effect} | {said} |"
        )
    yield "\n".join([*lines, ""])
    for name, field in section.model_fields.items():
        for below in _sections(field.annotation):
            yield from _section(f"{path}.{name}" if path else name, below, marked or name in unmarked)


def _kind(section: type[BaseModel]) -> str:
    """`, name: maths` of one kind among several."""
    for tag in ("name", "method"):
        field = section.model_fields.get(tag)
        if field is not None and get_origin(field.annotation) is Literal:
            return f", {tag}: {get_args(field.annotation)[0]}"
    return ""


def _sections(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a type allows; of those that users subclass, ours with a kind alone."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        has_kind = not {"name", "method"} & annotation.model_fields.keys() or _kind(annotation)
        return [annotation] if has_kind else []
    return [found for member in get_args(annotation) for found in _sections(member)]


@cache
def docstrings(section: type[BaseModel]) -> dict[str, str]:
    """What stands below a section's fields, its bases' included."""
    found: dict[str, str] = {}
    for base in reversed(section.__mro__):
        if not issubclass(base, BaseModel) or base is BaseModel:
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(tree, ast.ClassDef)
        for field, said in zip(tree.body, tree.body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(said, ast.Expr)
                and isinstance(said.value, ast.Constant)
                and isinstance(said.value.value, str)
            ):
                found[field.target.id] = inspect.cleandoc(said.value.value)
    return found


def prose(text: str) -> str:
    """A docstring as Markdown: what looks like a setting's value stands as code."""
    return re.sub(r"(?<![`\w])(\{[^{}`]*\}|<[^<>`]*>)(?!`)", r"`\1`", text)


def _type(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (Union, UnionType):
        if any(_sections(member) for member in arguments):
            return "section" + (" or nothing" if NoneType in arguments else "")
        return " or ".join(dict.fromkeys(_type(member) for member in arguments))
    if annotation is NoneType:
        return "nothing"
    if origin in (list, tuple):
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return "mapping"
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return "section"
    names = {int: "whole number", float: "number", str: "text", bool: "true or false"}
    return names.get(annotation, "anything")


def _bounds(field: FieldInfo) -> str:
    signs = {Ge: ("≥", "ge"), Gt: (">", "gt"), Le: ("≤", "le"), Lt: ("<", "lt")}
    marks = [f"{signs[type(m)][0]} {getattr(m, signs[type(m)][1])}" for m in field.metadata if type(m) in signs]
    return f", {' and '.join(marks)}" if marks else ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None or value is PydanticUndefined:
        return ""
    if isinstance(value, BaseModel):
        return "its own"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{list(value) if isinstance(value, tuple) else value}`"
