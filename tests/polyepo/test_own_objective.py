"""Set objectives of one's own, by reference."""

from __future__ import annotations

import sys
import textwrap

import numpy as np
import pytest

from polyepo import plugins
from polyepo.config import ConfigError, validated
from polyepo.plugins import MissingCodeError, given_by_user
from polyepo.scoring import AnyScoring, SetScoring

CODE = """
import numpy as np

def best(rewards, clusters):
    return rewards.max(-1)

class Scaled:
    def __init__(self, factor: float = 1.0):
        if factor <= 0:
            raise ValueError("factor must be positive")
        self.factor = factor
    def __call__(self, rewards, clusters):
        return self.factor * rewards.mean(-1)

def one_number(rewards, clusters):
    return 1.0

def wrong_shape(rewards, clusters):
    return rewards

def infinite(rewards, clusters):
    return rewards.sum(-1) / 0

def raises(rewards, clusters):
    return rewards[5]

value = 3
class NotCalled: ...
"""


@pytest.fixture
def scoring(tmp_path, monkeypatch):
    monkeypatch.setattr(plugins, "_provided", {})
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "mine.py").write_text(textwrap.dedent(CODE))

    def made(objective, **changes) -> SetScoring:
        with given_by_user(tmp_path):
            return validated(AnyScoring, {"method": "poly_epo", "objective": objective, **changes}, "scoring")

    return made


@pytest.mark.parametrize(("own", "ours"), [("mine.py:best", "pass_at_n"), ({"name": "mine.py:Scaled"}, "mean_reward")])
@pytest.mark.parametrize("num_sets", [None, 20])
def test_the_same_objective_by_both_ways(scoring, own, ours, num_sets):
    rng = np.random.default_rng(0)
    rewards, clusters = rng.random((5, 8)).round(1), rng.integers(-1, 4, (5, 8))
    mine, theirs = (scoring(o, num_sets=num_sets).advantages(rewards, clusters, 1) for o in (own, ours))
    np.testing.assert_allclose(mine, theirs, atol=1e-12)
    assert np.abs(mine).max() > 0


def test_settings_of_a_class_are_part_of_it(scoring):
    one, two = scoring({"name": "mine.py:Scaled"}), scoring({"name": "mine.py:Scaled", "factor": 2.0})
    rewards, clusters = np.array([[1.0, 0, 0, 1]]), np.array([[0, 1, 2, 3]])
    np.testing.assert_allclose(2 * one.advantages(rewards, clusters, 0), two.advantages(rewards, clusters, 0))
    assert one.model_dump(mode="json") != two.model_dump(mode="json")
    assert validated(AnyScoring, two.model_dump(mode="json"), "scoring") == two
    assert two.objective_name == "mine.py:Scaled"


def test_ours_are_written_as_ever(scoring):
    assert scoring("polychromic").model_dump(mode="json")["objective"] == "polychromic"


@pytest.mark.parametrize(
    ("objective", "says"),
    [
        ("mine.py:one_number", r"mine.py:\d+\) must give finite scores of shape \(2,\).*gives 1.0"),
        ("mine.py:wrong_shape", r"must give finite scores of shape \(2,\)"),
        ("mine.py:infinite", "must give finite scores"),
        ("mine.py:raises", "fails on rewards of shape .*IndexError"),
        ("mine.py:value", "is a int, and must be a function or a class"),
        ("mine.py:NotCalled", "has no __call__"),
        ({"name": "mine.py:Scaled", "factor": -1}, "cannot be made: ValueError: factor must be positive"),
        ({"name": "mine.py:Scaled", "other": 1}, "cannot be made: TypeError"),
        ({"name": "mine.py:best", "factor": 1}, "is a function, and has no setting 'factor'"),
        ("mine.py:nothing", "has no 'nothing'"),
        (
            "polychromatic",
            "none of polychromic, distinct_successful, mean_plus_distinct, lexicographic, pass_at_n, mean_reward",
        ),
        ({"factor": 1}, "must be a name, or a mapping"),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_what_cannot_be_used_is_named(scoring, objective, says):
    with pytest.raises(ConfigError, match=says):
        scoring(objective)


def test_too_many_sets_to_list_are_refused_at_the_start(scoring):
    from polyepo.scoring import check_scoring

    many = scoring("mine.py:best", set_size=8)
    with pytest.raises(ValueError, match=r"set scoring\.num_sets"):
        check_scoring(many, num_responses=64, max_response_tokens=8)
    check_scoring(scoring("mine.py:best", set_size=8, num_sets=100), num_responses=64, max_response_tokens=8)
    check_scoring(scoring("pass_at_n", set_size=8), num_responses=64, max_response_tokens=8)


def test_a_record_alone_brings_no_objective(scoring, monkeypatch):
    dump = scoring("mine.py:best").model_dump(mode="json")
    monkeypatch.setattr(plugins, "_provided", {})
    opened = validated(AnyScoring, dump, "scoring")
    assert opened.model_dump(mode="json") == dump
    with pytest.raises(MissingCodeError):
        opened.advantages(np.array([[1.0, 0, 1, 0]]), np.array([[0, 1, 2, 3]]), 0)
