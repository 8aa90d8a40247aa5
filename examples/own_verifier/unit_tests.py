"""Reward: the share of a problem's unit tests that a generated Python function passes. Strategy: how it goes about it.

What a model writes is run in a process of its own that has no network, an empty folder, and limits on time, memory and
files. The expected values never go there: it prints what it computed, and is compared here.
"""

from __future__ import annotations

import ast
import ctypes
import json
import re
import resource
import subprocess
import sys
import tempfile

from polyepo.domains import Problem

PROCESSOR_S, MEMORY, FILE_BYTES = 2, 512 * 2**20, 2**16
_NEW_USER, _NEW_NETWORK = 0x10000000, 0x40000000  # see unshare(2)
_FENCED = re.compile(r"```(?:python|py)?\n(.*?)```", re.DOTALL)
_RUN = """
import contextlib, io, json, sys
code, name, calls = json.load(sys.stdin)
space, results = {}, []
with contextlib.redirect_stdout(io.StringIO()):
    exec(code, space)
    for arguments in calls:
        try:
            results.append([space[name](*arguments)])
        except Exception:
            results.append([])
json.dump(results, sys.stdout)
"""


def score(problem: Problem, response: str) -> float:
    """The share of `problem.metadata["tests"]`, pairs of arguments and result, that the response's function passes."""
    tests = problem.metadata["tests"]
    found = results(code_of(response), problem.metadata["function"], [arguments for arguments, _ in tests])
    return sum(result == [expected] for result, (_, expected) in zip(found, tests, strict=True)) / len(tests)


def strategy(problem: Problem, response: str) -> str | None:
    """Recursion, a loop, a comprehension, or built-in functions alone; None for what is no Python function."""
    name = problem.metadata["function"]
    try:
        tree = ast.parse(code_of(response))
    except (SyntaxError, ValueError, RecursionError):
        return None
    nodes = list(ast.walk(tree))
    if not any(isinstance(node, ast.FunctionDef) and node.name == name for node in nodes):
        return None
    calls = {node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    if name in calls:
        return "recursion"
    if any(isinstance(node, ast.For | ast.While) for node in nodes):
        return "loop"
    if any(isinstance(node, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp) for node in nodes):
        return "comprehension"
    return "built-in functions: " + ", ".join(sorted(calls)) if calls else "an expression"


def code_of(response: str) -> str:
    """The last fenced block of a response, or all of it."""
    blocks = _FENCED.findall(response)
    return blocks[-1] if blocks else response


def results(code: str, function: str, calls: list[list[object]]) -> list[list[object]]:
    """[value] for each call, [] for one that failed; all [] if the code does not come to an end within its limits."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-c", _RUN],
                input=json.dumps([code, function, calls]),
                capture_output=True,
                text=True,
                cwd=folder,
                env={},
                timeout=10 * PROCESSOR_S,
                preexec_fn=_confine,
                check=True,
            )
            found = json.loads(done.stdout)
        except (subprocess.SubprocessError, ValueError):
            return [[]] * len(calls)
    return found if isinstance(found, list) and len(found) == len(calls) else [[]] * len(calls)


def _confine() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEW_USER | _NEW_NETWORK) and libc.unshare(_NEW_NETWORK):
        raise OSError(ctypes.get_errno(), "no process without network can be made here")
    resource.setrlimit(resource.RLIMIT_CPU, (PROCESSOR_S, PROCESSOR_S))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
