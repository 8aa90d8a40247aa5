"""A run with an LLM judge through real flows: the key is nowhere, and an estimate asks nothing."""

import os
from pathlib import Path

import pytest
import yaml

from polyepo.config import load_judge
from polyepo.testing.judge_server import JudgeServer, clusters_of, completion, error
from tests.support.config import small_config
from tests.support.processes import finish, start

pytestmark = pytest.mark.slow

CANARY = "sk-canary-0123456789abcdef"


def holding_the_key(folder):
    return [path for path in Path(folder).rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()]


def test_the_key_reaches_the_server_and_nothing_else(server, tmp_path):
    state = {"broken": True}

    def behave(number, body):
        if state["broken"] and number >= 2:
            return error(401, f"Incorrect API key provided: {CANARY}")
        return error(500, f"at {CANARY}") if number % 5 == 1 else completion(clusters_of(body))

    environment = {**server, "CANARY_KEY": CANARY, "PREFECT_LOGGING_LEVEL": "DEBUG"}
    root = tmp_path / "root"
    with JudgeServer(behave) as judge:
        llm = {"name": "llm", "model": "m", "base_url": judge.url, "api_key_env": "CANARY_KEY"}
        prices = {"price_per_million_input": 1.0, "price_per_million_output": 1.0}
        config = tmp_path / "llm.yaml"
        config.write_text(yaml.safe_dump(small_config(steps=2, judge=llm)))
        priced = tmp_path / "judge.yaml"
        priced.write_text(yaml.safe_dump({**llm, **prices, "votes": 2}))
        train = f"from flows.train import train; train({str(config)!r}, run='run', root={str(root)!r})"
        output = start(environment, train).communicate(timeout=200)[0]
        assert "the server refuses the API key" in output
        state["broken"] = False
        output += finish(start(environment, train))
        asked = len(judge.bodies)
        assert all(CANARY in headers["authorization"] for headers in judge.headers)
        estimate = f"rescore('run', judge={str(priced)!r}, root={str(root)!r}, estimate=True)"
        said = finish(start(environment, f"from flows.rescore import rescore; {estimate}"))
        assert len(judge.bodies) == asked
    assert "calls with about" in said
    assert CANARY not in output + said
    assert os.listdir(root / "runs/run/judge_calls")
    assert holding_the_key(root) == []
    assert not os.path.exists(root / f"runs/run/labels/judge={load_judge(priced).judge_id}"), (
        "an estimate labels nothing"
    )
    # Prefect's database: parameters, logs, states and artifacts.
    assert list(Path(server["PREFECT_HOME"]).glob("*.db"))
    assert holding_the_key(server["PREFECT_HOME"]) == []
