"""Functions that users bring, `rewards.py:score`: called in worker processes, so that one that hangs, forks, prints or
takes the process down costs its own response's grade, and nothing else.

Run as a module, this is the worker: it imports the function once, and then answers requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import math
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator, model_validator

from polyepo import plugins
from polyepo.plugins import Code, Coded, PluginError
from polyepo.workers import WorkerPool

_ASYNC_AT_A_TIME = 16


class Outcome(NamedTuple):
    """What a function returned for one item; or why it returned nothing that can be used."""

    value: Any
    failure: str | None = None


class Function(Coded):
    """A function by reference, and the digest of its code."""

    function: str

    @property
    def reference(self) -> str:
        """What the configuration calls the function."""
        return self.function

    @model_validator(mode="before")
    @classmethod
    def _with_code(cls, value: Any) -> Any:
        if not isinstance(value, dict) or not isinstance(value.get("function"), str):
            return value
        if not plugins.is_reference(value["function"]):
            raise PluginError(f"{value['function']!r} must be FILE.py:FUNCTION or package.module:FUNCTION")
        code = plugins.find(value["function"], "function")
        if code is not None and not callable(code.value):
            raise PluginError(f"{value['function']!r} is a {type(code.value).__name__}, and must be a function")
        if code is None and value.get("code") is None:
            raise PluginError(f"{value['function']!r} is not known here")
        return {**value, "code": value.get("code") or (code and code.digest)}

    def load(self) -> Code:
        """The function itself. Raises MissingCodeError if nobody here provides it."""
        return plugins.required(self.function, self.code)


def _by_name(value: Any) -> Any:
    return {"function": value} if isinstance(value, str) else value


AnyFunction = Annotated[Function, BeforeValidator(_by_name)]
"""In a configuration: `rewards.py:score`."""


def call(function: Function, items: Sequence[dict[str, Any]], num_workers: int, timeout_s: float) -> list[Outcome]:
    """What a function returns for each item, in their order.

    A function whose first parameter is in the plural (`problems`) is called once, with lists of all items; any other
    once for each, several at a time if it is `async`.

    Args:
        function: a function by reference.
        items: keyword arguments that JSON can hold; all with the same keys, such as problem and response.
        num_workers: processes.
        timeout_s: seconds that a call may take.

    Raises:
        MissingCodeError: nobody here provides the function.
    """
    code = function.load()
    at_a_time = _ASYNC_AT_A_TIME if inspect.iscoroutinefunction(code.value) else 1
    size = max(1, len(items)) if is_batch(code.value) else at_a_time
    chunks = [list(items[i : i + size]) for i in range(0, len(items), size)]
    replies = _pool(code.reference, code.path, code.reference.rpartition(":")[2], num_workers, timeout_s).ask(chunks)
    found: list[Outcome] = []
    for chunk, reply in zip(chunks, replies, strict=True):
        if reply.failure is not None:
            why = f"{function.function}: {_FAILURES[reply.failure].format(timeout_s=timeout_s)}"
            found += [Outcome(None, why)] * len(chunk)
        else:
            found += [Outcome(value, why and f"{function.function}: {why}") for value, why in reply.value]
    return found


_FAILURES = {
    "timeout": "no answer within timeout_s {timeout_s:g}",
    "memory": "out of memory",
    "crashed": "its process ended without an answer",
}


def is_batch(function: Callable[..., Any]) -> bool:
    """Whether a function takes lists: its first parameter is in the plural."""
    return next(iter(inspect.signature(function).parameters), "").endswith("s")


def number(value: Any) -> float:
    """A finite number that a function returned. Raises ValueError saying what it is instead."""
    if isinstance(value, bool | int | float) and math.isfinite(value):
        return float(value)
    raise ValueError(f"must be a finite number, but is {value!r}")


@lru_cache(maxsize=8)
def _pool(reference: str, path: str, name: str, num_workers: int, timeout_s: float) -> WorkerPool:
    place = path if reference.partition(":")[0].endswith(".py") else reference.partition(":")[0]
    return WorkerPool([sys.executable, "-m", "polyepo.functions", place, name], num_workers, timeout_s)


def _serve(place: str, name: str) -> None:
    """Answer requests until the parent goes. Whatever the function prints is no reply."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    with plugins.given_by_user(Path(place).parent):
        reference = f"{Path(place).name}:{name}" if place.endswith(".py") else f"{place}:{name}"
        code = plugins.find(reference, "function")
    assert code is not None
    for line in sys.stdin.buffer:
        try:
            reply: dict[str, Any] = {"value": _called(code.value, json.loads(line))}
        except MemoryError:
            reply = {"failure": "memory"}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def _called(function: Callable[..., Any], items: list[dict[str, Any]]) -> list[tuple[Any, str | None]]:
    """(value, failure) of each item."""
    arguments = [{name: _argument(name, value) for name, value in item.items()} for item in items]
    if is_batch(function):
        together = {name + "s": [each[name] for each in arguments] for name in arguments[0]}
        try:
            if inspect.iscoroutinefunction(function):
                values = list(asyncio.run(function(**together)))
            else:
                values = list(function(**together))
        except MemoryError:
            raise
        except Exception as error:
            return [(None, _described(error))] * len(items)
        if len(values) != len(items):
            return [(None, f"returned {len(values)} values for {len(items)} responses")] * len(items)
        return [_plain(value) for value in values]
    if inspect.iscoroutinefunction(function):
        return asyncio.run(_gathered(function, arguments))
    found = []
    for each in arguments:
        try:
            found.append(_plain(function(**each)))
        except MemoryError:
            raise
        except Exception as error:
            found.append((None, _described(error)))
    return found


async def _gathered(function: Callable[..., Any], arguments: list[dict[str, Any]]) -> list[tuple[Any, str | None]]:
    values = await asyncio.gather(*(function(**each) for each in arguments), return_exceptions=True)
    return [(None, _described(v)) if isinstance(v, BaseException) else _plain(v) for v in values]


def _argument(name: str, value: Any) -> Any:
    if name != "problem":
        return value
    from polyepo.domains.base import Problem

    return Problem.model_validate(value)


def _plain(value: Any) -> tuple[Any, str | None]:
    """A value as JSON can hold it: numpy's numbers are numbers; what is no plain value is a failure that shows it."""
    if hasattr(value, "item") and not hasattr(value, "requires_grad") and getattr(value, "shape", None) == ():
        value = value.item()
    with contextlib.suppress(TypeError, ValueError):
        json.dumps(value, allow_nan=False)
        return value, None
    return None, f"returned {type(value).__name__} {str(value)[:60]}, which is no plain value"


def _described(error: BaseException) -> str:
    """The error with the line of the user's own file that raised it."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__]
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {str(error)[:200]}{place}"


if __name__ == "__main__":
    _serve(*sys.argv[1:3])
