"""Users' functions in worker processes: what they return, and what they do to their process."""

from __future__ import annotations

import gc
import os
import sys
import textwrap
import time

import pytest
from pydantic import BaseModel, ValidationError

from polyepo import plugins
from polyepo.domains.base import Problem
from polyepo.functions import AnyFunction, Function, call
from polyepo.plugins import MissingCodeError, given_by_user
from polyepo.workers import WorkerPool

FILE = """
import asyncio, os, sys, time

def length(problem, response):
    print("this is no reply")
    return len(response) / problem.metadata["scale"]

async def later(problem, response):
    await asyncio.sleep(0.01)
    if response == "bad":
        raise RuntimeError("no " + response)
    return 1.0

def together(problems, responses):
    return [float(len(set(responses)))] * len(responses)

def too_few(problems, responses):
    return [1.0]

def odd(problem, response):
    if response == "raise":
        raise ValueError("cannot read " + response)
    if response == "exit":
        os._exit(3)
    if response == "stdout":
        os.write(1, b'{"value": [[1.0, null]]}\\n')
    if response == "hang":
        time.sleep(1000)
    if response == "fork":
        pid = os.fork()
        if pid == 0:
            time.sleep(1000)
        open(problem.metadata["pids"], "a").write(f"{pid}\\n")
        time.sleep(1000)
    if response == "object":
        return object()
    if response == "nan":
        return float("nan")
    if response == "numpy":
        import numpy
        return numpy.float32(0.5)
    return 1.0

value = 3
"""


@pytest.fixture
def function(tmp_path, monkeypatch):
    monkeypatch.setattr(plugins, "_provided", {})
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "rewards.py").write_text(textwrap.dedent(FILE))

    def made(name: str) -> Function:
        with given_by_user(tmp_path):
            return Section.model_validate({"verify": f"rewards.py:{name}"}).verify

    return made


class Section(BaseModel):
    verify: AnyFunction


def items(*responses: str, **metadata) -> list[dict]:
    problem = Problem(problem_id="p", domain="d", prompt="x", metadata={"scale": 2, **metadata}).model_dump(mode="json")
    return [{"problem": problem, "response": response} for response in responses]


def test_values_come_back_in_order(function):
    assert call(function("length"), items("a", "bb", "", "cccc"), 2, 30) == [
        (0.5, None), (1.0, None), (0.0, None), (2.0, None)
    ]  # fmt: skip
    assert call(function("length"), [], 2, 30) == []


def test_an_async_function_and_one_for_the_whole_batch(function):
    found = call(function("later"), items(*["good"] * 20, "bad"), 2, 30)
    assert [value for value, _ in found[:-1]] == [1.0] * 20
    assert found[-1].failure == "rewards.py:later: RuntimeError: no bad (rewards.py, line 11)"
    assert [v for v, _ in call(function("together"), items("a", "b", "a"), 2, 30)] == [2.0] * 3
    assert (
        call(function("too_few"), items("a", "b"), 2, 30)[1].failure
        == "rewards.py:too_few: returned 1 values for 2 responses"
    )


def test_what_a_function_does_to_one_response_is_nothing_to_the_others(function, tmp_path):
    bad = ["raise", "exit", "hang", "object", "nan", "stdout"]
    found = call(function("odd"), items("good", *bad, "numpy", "good"), 2, 2)
    assert [value for value, _ in found] == [1.0, None, None, None, None, None, 1.0, 0.5, 1.0]
    failures = [failure for _, failure in found]
    assert "ValueError: cannot read raise (rewards.py, line 22)" in failures[1]
    assert "ended without an answer" in failures[2]
    assert "no answer within timeout_s 2" in failures[3]
    assert "returned object" in failures[4]
    assert "returned float nan" in failures[5]


def test_what_a_function_started_ends_with_it(function, tmp_path):
    pids = tmp_path / "pids"
    (found,) = call(function("odd"), items("fork", pids=str(pids)), 1, 2)
    assert "timeout_s" in found.failure
    for pid in map(int, pids.read_text().split()):
        for _ in range(100):
            if pid and not _alive(pid):
                break
            time.sleep(0.05)
        else:
            assert pid == 0, "a process that the function forked is still there"


def _alive(pid: int) -> bool:
    try:
        return open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("reference", ["rewards.py:value", "rewards.py:nothing", "rewards", "nowhere.py:f"])
def test_what_is_no_function_is_refused(function, reference, tmp_path):
    with given_by_user(tmp_path), pytest.raises(ValidationError):
        Section.model_validate({"verify": reference})


def test_a_record_has_no_function_imported(function, tmp_path, monkeypatch):
    dump = Section(verify=function("length")).model_dump(mode="json")
    assert Section.model_validate(dump).verify.load().value is not None
    monkeypatch.setattr(plugins, "_provided", {})
    opened = Section.model_validate(dump)
    assert opened.model_dump(mode="json") == dump
    with pytest.raises(MissingCodeError):
        call(opened.verify, items("a"), 1, 10)
    assert os.path.exists(tmp_path / "rewards.py")


def test_a_pool_that_nobody_has_any_more_takes_its_processes_along():
    echo = "import sys, json\nfor line in sys.stdin:\n    print(json.dumps({'value': 1}), flush=True)"
    pool = WorkerPool([sys.executable, "-c", echo], 2, 30.0)
    assert [reply.value for reply in pool.ask([1, 2])] == [1, 1]
    processes = [worker._process for worker in pool._idle]
    assert [process.poll() for process in processes] == [None, None]
    del pool
    gc.collect()
    assert [process.wait(10) for process in processes] == [-9, -9]
