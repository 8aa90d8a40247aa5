"""Classes and functions that users bring, and the rule by which code comes to be imported.

A configuration names them by reference, `rewards.py:score` (a file, relative to the configuration's folder) or
`package.module:Class`; or by a bare name that an installed package declares as an entry point of the group
`polyepo.domains`, `polyepo.judges`, `polyepo.objectives` or `polyepo.samplers`.

Only a configuration that the user gives, or an entry point of an installed package, has code imported. The record of a
run, which somebody else may have written, is looked up among what was imported so, by reference and digest of the code;
what is not there stands as it is written, and says what is missing once somebody wants to use it.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points, packages_distributions, version
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError, PydanticKnownError

from polyepo.errors import ConfigError
from polyepo.section import Section, added

Kind = Literal["domain", "judge", "objective", "sampler", "function"]

_GROUPS = {kind: f"polyepo.{kind}s" for kind in ("domain", "judge", "objective", "sampler")}
_REFERENCE = re.compile(r"(?P<where>[^:]+):(?P<name>[A-Za-z_][A-Za-z0-9_]*)")
_MODULE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")


class PluginError(ConfigError):
    """Code that cannot be used; the message names the reference and what would be right."""


class MissingCodeError(PluginError):
    """A run needs code that its maker brought, and nobody here provides it."""


@dataclass(frozen=True)
class Code:
    """What was imported for a reference, and what it was made of."""

    reference: str
    value: Any = field(compare=False, repr=False)
    """The class or function."""
    digest: str
    """SHA-256 of the file; of all names and digests, if it imports others from its own folder."""
    files: dict[str, str]
    """SHA-256 by file name, the module's own first."""
    sources: dict[str, str] = field(compare=False, repr=False)
    """Text by SHA-256: what a run keeps, so that its reader can see what it ran."""
    path: str = ""
    """The module's file."""
    package: str | None = None
    """Distribution that the module belongs to, with its version; None for a file of the user's own."""

    @property
    def record(self) -> dict[str, Any]:
        """What a run's record says of it."""
        return {"digest": self.digest, "files": self.files, "package": self.package}


# What a configuration that the user gave has had imported, by reference; the last one wins.
_provided: dict[str, Code] = {}
_folder: ContextVar[Path | None] = ContextVar("folder", default=None)


@contextmanager
def given_by_user(folder: Path) -> Iterator[None]:
    """While this lasts, references are imported: the configuration in `folder` is the user's own."""
    token = _folder.set(folder)
    try:
        yield
    finally:
        _folder.reset(token)


def is_reference(name: str) -> bool:
    """Whether a name is a reference to code, rather than a bare name."""
    return ":" in name


def find(reference: str, kind: Kind) -> Code | None:
    """The code behind a reference or an entry point's name: imported now, if the user's own configuration is being read
    or an installed package declares it; else what was imported before. None if nobody here provides it.

    Raises:
        PluginError: there is no such file, module or name, or importing it fails.
    """
    if not is_reference(reference):
        return _from_entry_point(reference, kind)
    folder = _folder.get()
    if folder is None:
        return _provided.get(reference)
    _provided[reference] = code = _load(reference, folder)
    return code


def required(reference: str, digest: str | None) -> Code:
    """The code of a reference that a record names.

    Raises:
        MissingCodeError: nobody here provides it, or what is provided is other code.
    """
    code = _provided.get(reference) if is_reference(reference) else _installed(reference)
    if code is None:
        raise MissingCodeError(
            f"{reference!r} is code that the run's maker brought, and it is not imported because a record names it: "
            "give your own configuration that names it: polyepo train FILE --run RUN, or --code FILE of another command"
        )
    if code.digest != digest:
        raise MissingCodeError(
            f"{reference!r} is other code than the run's: the run has SHA-256 {str(digest)[:12]}, "
            f"{_shown(code.path)} has {code.digest[:12]}. Restore it (the run keeps its text under code/), or "
            "go on with the new code: polyepo train FILE --run RUN --allow-changed-code"
        )
    return code


def provided(reference: str) -> Code | None:
    """What was imported for a reference, by a configuration that the user gave."""
    return _provided.get(reference)


def declared_names(kind: Kind) -> list[str]:
    """Bare names that installed packages declare."""
    return sorted(_declared(kind))


def where(value: Any) -> str:
    """File and line of a class or function, for messages."""
    try:
        return f"{_shown(inspect.getsourcefile(value) or '?')}:{inspect.getsourcelines(value)[1]}"
    except (OSError, TypeError):
        return str(getattr(value, "__module__", "?"))


def _shown(path: str | Path) -> str:
    """A path as short as it can be said here."""
    return min(os.path.relpath(path), str(path), key=len)


def _load(reference: str, folder: Path) -> Code:
    found = _REFERENCE.fullmatch(reference)
    if not found:
        raise PluginError(f"{reference!r} must be FILE.py:NAME or package.module:NAME")
    place, name = found["where"], found["name"]
    if place.endswith(".py"):
        return _from_file(reference, (folder / Path(place).expanduser()).resolve(), name)
    if not _MODULE.fullmatch(place):
        raise PluginError(f"{reference!r}: {place!r} is neither a file that ends in .py nor a module such as a.b")
    with _named(reference):
        module = importlib.import_module(place)
    return _code(reference, module, name, _package_of(place))


def _from_file(reference: str, path: Path, name: str) -> Code:
    if not path.is_file():
        raise PluginError(
            f"{reference!r}: no such file {_shown(path)!r} (files are relative to the configuration's folder)"
        )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    # One module per content and place: a file that changed is imported anew.
    module_name = f"polyepo_plugin_{path.stem}_{hashlib.sha256(f'{path}{digest}'.encode()).hexdigest()[:8]}"
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # last: a file of the user's hides no package
    module = sys.modules.get(module_name)
    if module is None:
        spec = importlib.util.spec_from_file_location(module_name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        try:
            with _named(reference):
                spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[module_name]
            raise
    return _code(reference, module, name, None)


@contextmanager
def _named(reference: str) -> Iterator[None]:
    """Whatever importing a user's module raises names the reference, the file and the line."""
    try:
        yield
    except PluginError:
        raise
    except Exception as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) else raised_at(error)
        raise PluginError(f"{reference!r} cannot be imported: {type(error).__name__}: {error}{line}") from error


def raised_at(error: BaseException) -> str:
    """Where in a user's own files an error was raised, in brackets, for messages; nothing if in none."""
    trace = error.__traceback__
    frames = []
    while trace is not None:
        frames.append((trace.tb_frame.f_code.co_filename, trace.tb_lineno))
        trace = trace.tb_next
    own = [
        (file, number)
        for file, number in frames
        if file.endswith(".py") and "importlib" not in file and file != __file__
    ]
    return f" ({_shown(own[-1][0])}, line {own[-1][1]})" if own else ""


def _code(reference: str, module: ModuleType, name: str, package: str | None) -> Code:
    value = getattr(module, name, None)
    if value is None:
        public = sorted(
            n for n, v in vars(module).items() if callable(v) and getattr(v, "__module__", None) == module.__name__
        )
        file = _shown(module.__file__ or "?")
        raise PluginError(f"{reference!r}: {file} has no {name!r}; it has {', '.join(public) or 'nothing'}")
    path = Path(module.__file__ or "")
    contents = {
        file.name if file.parent == path.parent else str(file.relative_to(path.parent)): file.read_bytes()
        for file in _with_neighbours(path)
    }
    files = {file: hashlib.sha256(content).hexdigest() for file, content in contents.items()}
    digest = (
        next(iter(files.values()))
        if len(files) == 1
        else hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()
    )
    sources = {files[file]: content.decode("utf-8", "replace") for file, content in contents.items()}
    return Code(reference, value, digest, files, sources, str(path), package)


def _with_neighbours(path: Path) -> list[Path]:
    """A module's file, and the files of its own folder that it imports, directly or not: read, not run."""
    found: dict[Path, None] = {}
    waiting = [path]
    while waiting:
        file = waiting.pop()
        if file in found or not file.is_file():
            continue
        found[file] = None
        with contextlib.suppress(SyntaxError, ValueError):
            for name in _imported(ast.parse(file.read_bytes()), within_package=path.with_name("__init__.py").exists()):
                inside = path.parent.joinpath(*name.split("."))
                waiting += [inside.with_suffix(".py"), inside / "__init__.py"]
    return list(found)


def _imported(tree: ast.AST, within_package: bool) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and not within_package:
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.level == 1) == within_package:
            yield from [node.module] if node.module else [alias.name for alias in node.names]


@cache
def _declared(kind: Kind) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=_GROUPS[kind])} if kind in _GROUPS else {}


def _installed(name: str) -> Code | None:
    """What an installed package declares under a bare name, of whatever kind."""
    kinds: tuple[Kind, ...] = ("domain", "judge", "objective", "sampler")
    return next((code for kind in kinds if (code := _from_entry_point(name, kind))), None)


def _from_entry_point(name: str, kind: Kind) -> Code | None:
    point = _declared(kind).get(name)
    if point is None:
        return None
    place, _, attribute = point.value.partition(":")
    with _named(f"{point.group}: {name}"):
        module = importlib.import_module(place)
    return _code(name, module, attribute, _package_of(place))


def _package_of(module: str) -> str | None:
    names = packages_distributions().get(module.partition(".")[0], [])
    return f"{names[0]} {version(names[0])}" if names else None


class Coded(Section):
    """A section that a user's own code may stand behind."""

    code: str | None = added(None)
    """SHA-256 of that code, filled in when it is imported: with other code it is another section."""

    @property
    def reference(self) -> str:
        """What the configuration calls that code."""
        return str(getattr(self, "name", ""))


def _tagged(section: type[BaseModel], name: str, value: dict[str, Any]) -> BaseModel:
    """A section of a class; errors say where in it they are, below its name, as those of pydantic's unions do."""
    try:
        return section.model_validate(value)
    except ValidationError as error:
        found = [
            InitErrorDetails(
                type=PydanticCustomError("value_error", "{reason}", {"reason": e["msg"]})
                if e["type"] == "value_error"
                else e["type"],
                loc=(name, *e["loc"]),
                input=e["input"],
                ctx=e.get("ctx", {}),
            )
            for e in error.errors()
        ]
        raise ValidationError.from_exception_data(section.__name__, found) from None


@dataclass(frozen=True)
class Choice:
    """Validator of a section that one of several classes describes, by its `name`: ours, installed, or the user's own.

    A class of the user's own is a subclass of `base`; its fields are the section's keys.
    """

    kind: Kind
    base: type[BaseModel]
    ours: tuple[type[BaseModel], ...]
    missing: type[BaseModel]
    """Stands for code that nobody here provides; keeps the section as it was written."""

    def __call__(self, value: Any) -> Any:
        """The section as an instance of its class.

        Raises:
            ValueError: no such name, code that cannot be used, or fields that the class does not take.
        """
        if isinstance(value, self.base):
            self._check_returns(value)
            return value
        if not isinstance(value, dict):
            raise PydanticKnownError("model_type", {"class_name": self.base.__name__})
        name = value.get("name")
        if not isinstance(name, str):
            raise PydanticKnownError("union_tag_not_found", {"discriminator": "'name'"})
        if name in self._ours:
            if name in declared_names(self.kind):
                raise PluginError(
                    f"an installed package declares a {self.kind} {name!r}, which is ours; rename it there"
                )
            return _tagged(self._ours[name], name, value)
        code = find(name, self.kind)
        if code is not None and value.get("code") in (None, code.digest):
            return self._made(code, {**value, "code": code.digest})
        if value.get("code") is not None:
            return self.missing.model_validate(value)
        if is_reference(name):
            raise PluginError(f"{name!r} is not known here: it is imported for a configuration file that names it")
        known = [*self._ours, *declared_names(self.kind)]
        tags = {"discriminator": "'name'", "tag": name, "expected_tags": ", ".join(map(repr, known))}
        raise PydanticKnownError("union_tag_invalid", tags)

    @property
    def _ours(self) -> dict[str, type[BaseModel]]:
        return {
            cls.model_fields["name"].default or get_args(cls.model_fields["name"].annotation)[0]: cls
            for cls in self.ours
        }

    def _made(self, code: Code, section: dict[str, Any]) -> BaseModel:
        if not (isinstance(code.value, type) and issubclass(code.value, self.base)):
            base = f"{self.base.__module__}.{self.base.__name__}"
            raise PluginError(f"{code.reference!r} ({where(code.value)}) must be a subclass of {base}")
        try:
            return _tagged(code.value, code.reference, section)
        except ValidationError:
            raise
        except Exception as error:
            raise PluginError(
                f"{code.reference!r} cannot be made: {type(error).__name__}: {error}{raised_at(error)}"
            ) from error

    def _check_returns(self, value: BaseModel) -> None:
        """What a configuration holds must come back from its dump as it is."""
        code = find(value.name, self.kind) if type(value) not in (*self.ours, self.missing) else None  # type: ignore[attr-defined]
        if type(value) not in (*self.ours, self.missing) and (code is None or code.value is not type(value)):
            raise PluginError(
                f"{type(value).__name__} is a class of its own, and would come back from a record as another: "
                "name it by reference, FILE.py:CLASS"
            )
