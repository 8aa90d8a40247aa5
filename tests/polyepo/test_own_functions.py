"""Rewards, strategies and labels by functions of one's own, up to a configuration."""

from __future__ import annotations

import json
import sys
import textwrap

import pytest
import yaml

from polyepo import plugins
from polyepo.config import ConfigError, load_config
from polyepo.judges import Group
from polyepo.plugins import MissingCodeError
from tests.support.config import small_config

CODE = """
def score(problem, response):
    if response == "bad":
        raise ValueError("no grade")
    if response == "none":
        return None
    if response == "nan":
        return float("nan")
    return float(response == problem.metadata["wanted"])

def strategy(problem, response):
    return response[:1] or None

def odd(problem, response):
    return [response]

def cluster(problem, responses):
    if problem.problem_id == "b":
        return ["too few"]
    return [None if r == "bad" else len(r) for r in responses]
"""


@pytest.fixture
def load(tmp_path, monkeypatch):
    monkeypatch.setattr(plugins, "_provided", {})
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "mine.py").write_text(textwrap.dedent(CODE))
    rows = [{"id": i, "problem": f"say {w}", "wanted": w} for i, w in (("a", "x"), ("b", "yy"), ("c", "z"))]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def loaded(judge=None, **changes):
        raw = small_config(evaluation=None)
        raw["domain"] = {"name": "dataset", "path": str(tmp_path / "rows.jsonl"), "verify": "mine.py:score",
                         "heldout_fraction": 0.34, "timeout_s": 5, **changes}  # fmt: skip
        raw["policy"] = {"model": "any"}
        raw["judge"] = judge or {"name": "program"}
        raw["sampling"]["prompts_per_step"] = 2
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(raw))
        return load_config(tmp_path / "mine.yaml").runs("r")["r"]

    return loaded


def problem_of(config, problem_id):
    both = [*config.domain.problems("train"), *config.domain.problems("heldout")]
    return next(p for p in both if p.problem_id == problem_id)


def test_rewards_and_why_there_is_none(load):
    config = load(template="Please {problem}!")
    problem = problem_of(config, "b")
    assert problem.prompt == "Please say yy!"
    assert problem.metadata == {"id": "b", "problem": "say yy", "wanted": "yy"}
    found = config.domain.verify_batch([problem] * 5, ["yy", "x", "bad", "none", "nan"])
    assert [verdict.reward for verdict in found] == [1.0, 0.0, None, None, None]
    assert "ValueError: no grade (mine.py, line 4)" in found[2].ungraded
    assert "must be a finite number, but is None" in found[3].ungraded
    assert "float nan" in found[4].ungraded


def test_strategies(load):
    config = load(strategy="mine.py:strategy")
    problem = problem_of(config, "a")
    (found,) = config.domain.strategies([(problem, ["xa", "xb", "y", ""])])
    assert found[0] == found[1] != found[2]
    assert found[3] is None
    (labels,) = config.judge.label(config.domain, [Group(problem, ["xa", "xb", "y", ""])])
    assert [label.cluster for label in labels] == [0, 0, 1, None]
    (plain,) = load().domain.strategies([(problem, ["u", "v", "u", " "])])
    assert [s and s.micro for s in plain] == ["u", "v", "u", None]
    with pytest.raises(ValueError, match=r"mine.py:odd returned \['xa'\].*for the response 'xa'"):
        load(strategy="mine.py:odd").domain.strategies([(problem, ["xa"])])


def test_a_judge_that_is_a_function(load):
    config = load(judge={"name": "function", "function": "mine.py:cluster"})
    groups = [Group(problem_of(config, i), ["u", "vv", "w", "bad"]) for i in ("a", "b")]
    first, second = config.judge.label(config.domain, groups)
    assert [label.cluster for label in first] == [0, 1, 0, None]
    assert [label.degenerate for label in first] == [False, False, False, True]
    assert {(label.cluster, label.degenerate, label.status) for label in second} == {(None, False, "parse_failed")}
    assert "a label for each of 4 responses" in second[0].rationale
    assert config.judge.judge_id.startswith("function-cluster-")


def test_dumps_come_back_and_records_bring_no_code(load, monkeypatch):
    config = load(strategy="mine.py:strategy", judge={"name": "function", "function": "mine.py:cluster"})
    dump = config.model_dump(mode="json")
    assert dump["domain"]["verify"]["function"] == "mine.py:score"
    assert type(config).model_validate(dump) == config
    monkeypatch.setattr(plugins, "_provided", {})
    opened = type(config).model_validate(dump)
    assert opened.model_dump(mode="json") == dump
    assert opened.judge.judge_id == config.judge.judge_id
    with pytest.raises(MissingCodeError):
        opened.domain.verify_batch([problem_of(config, "a")], ["x"])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"verify": "mine.py:nothing"}, "has no 'nothing'; it has cluster, odd, score, strategy"),
        ({"verify": "score"}, "must be FILE.py:FUNCTION"),
        ({"verify": None}, "domain.verify"),
        ({"strategy": "other.py:f"}, "no such file"),
        ({"judge": {"name": "function", "function": "mine.py:nothing"}}, "judge.function"),
    ],
)
def test_what_cannot_be_is_named(load, changes, says):
    with pytest.raises(ConfigError, match=says):
        load(**changes)


def test_rows_that_cannot_be_used(load, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"id": "a", "problem": "x"}\n{"id": "a", "problem": "y"}\n')
    with pytest.raises(ValueError, match="row 2: an earlier row has problem_id 'a'"):
        load().domain.problems("train")
    (tmp_path / "rows.jsonl").write_text('{"question": "x"}\n')
    with pytest.raises(ValueError, match=r"no column 'problem' among question; set domain\.problem_column"):
        load().domain.problems("train")
