"""What is always wrong with code of one's own is said before there is a run, with file, line and value."""

import json
import sys
import textwrap

import pytest
import yaml

from polyepo import plugins
from polyepo.config import ConfigError, load_config
from storage import open_store
from tasks.runs.preflight import check, describe
from tasks.runs.scores import grade
from tests.support.byte_model import byte_tokenizer, save_byte_model
from tests.support.config import small_config

CODE = """
import os, time
from polyepo.domains import Polynomial, Verdict
from polyepo.judges import Judge

good = lambda problem, response: 0.5
def fine(problem, response): return float(response == problem.answer)
def only_answers(problem, response): return None if not response else 1.0
def raises(problem, response):
    return problem.metadata["misspelt"]
def nan(problem, response): return float("nan")
def none(problem, response): return None
def text(problem, response): return "right"
def two(problem, response): return 2.0
def negative(problem, response): return -1.0
def listed(problem, response): return [1.0]
def hangs(problem, response): time.sleep(60)
def leaves(problem, response): os._exit(0)
def prints(problem, response):
    print("hello", flush=True)
    return 1
class Tensor:
    requires_grad = True
def tensor(problem, response): return Tensor()
def strategy(problem, response): return response[:1] or None
def odd_strategy(problem, response): return 1.5
def cluster(problem, responses): return [0 for _ in responses]
def too_few(problem, responses): return [0]
def lost(problem, responses): return {}["x"]

class Raising(Polynomial):
    name: str
    def verify(self, problem, response):
        raise KeyError("oops")
class Odd(Polynomial):
    name: str
    def verify(self, problem, response):
        return Verdict("1", None)
class Paid(Judge):
    @property
    def makes_calls(self):
        return True
    def label(self, domain, groups, calls=None):
        raise AssertionError("this would have been paid for")
class Blind(Judge):
    def label(self, domain, groups, calls=None):
        return [[None] for _ in groups]
"""


RAISING = """
from polyepo.domains import Polynomial, Verdict

class Mine(Polynomial):
    name: str
    def verify(self, problem, response):
        if response == "bad":
            raise KeyError("oops")
        return Verdict(1.0, response)
"""
BATCH = """
    def verify_batch(self, problems, responses):
        return [self.verify(p, r) for p, r in zip(problems, responses)]
"""


@pytest.fixture
def checked(tmp_path, monkeypatch):
    monkeypatch.setattr(plugins, "_provided", {})
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "mine.py").write_text(textwrap.dedent(CODE))
    rows = [{"problem": f"number {i}", "answer": str(i)} for i in range(8)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    save_byte_model(tmp_path / "model", byte_tokenizer())

    def run(verify="mine.py:fine", judge=None, domain=None, **more):
        rows = {"name": "dataset", "path": str(tmp_path / "rows.jsonl"), "heldout_fraction": 0.25, "timeout_s": 3}
        config = small_config(
            domain=domain or {**rows, "verify": verify, **more}, judge=judge or {"name": "answer"}, evaluation=None,
            sampling={"max_prompt_tokens": 64},
        )  # fmt: skip
        if domain is None:
            config["policy"] = {"model": str(tmp_path / "model"), "device": "cpu"}
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump(config))
        root = str(tmp_path / "store")
        check(root, describe(root, path, "run", None))

    yield run
    assert open_store(str(tmp_path / "store")).runs() == [], "there is no run"


@pytest.mark.parametrize("verify", ["good", "fine", "only_answers", "prints"])
def test_a_verifier_that_works(checked, verify):
    checked(f"mine.py:{verify}", judge={"name": "function", "function": "mine.py:cluster"}, strategy="mine.py:strategy")


@pytest.mark.parametrize(
    ("verify", "said"),
    [
        ("raises", r"KeyError: 'misspelt' \(mine.py, line 10\)"),
        ("nan", "nan"),
        ("none", "must be a finite number, but is None"),
        ("text", "must be a finite number, but is 'right'"),
        ("two", r"2 is outside of domain.reward_range \[0, 1\]: set it if that is meant"),
        ("negative", r"-1 is outside of domain.reward_range"),
        ("listed", "must be a finite number, but is"),
        ("hangs", "no answer within timeout_s 3"),
        ("leaves", "its process ended without an answer"),
        ("tensor", "returned Tensor"),
    ],
)
def test_a_verifier_that_never_grades_is_refused(checked, verify, said):
    with pytest.raises(ConfigError, match=said) as refused:
        checked(f"mine.py:{verify}")
    for word in (f"mine.py:{verify}", "was tried on problem", "cannot be used"):
        assert word in str(refused.value)


def test_the_remedy_for_other_rewards_works(checked):
    checked("mine.py:two", reward_range=[0, 2])
    with pytest.raises(ConfigError, match=r"reward_range.*the first must be below the second"):
        checked("mine.py:two", reward_range=[2, 0])


@pytest.mark.parametrize(
    ("judge", "said"),
    [
        ({"name": "function", "function": "mine.py:too_few"}, "must return a label for each of 2 responses"),
        ({"name": "function", "function": "mine.py:lost"}, r"KeyError: 'x' \(mine.py, line \d+\)"),
        ({"name": "mine.py:Blind"}, "it gave"),
    ],
)
def test_a_judge_that_labels_nothing_is_refused(checked, judge, said):
    with pytest.raises(ConfigError, match=said):
        checked(judge=judge)


def test_a_judge_whose_calls_may_cost_money_is_not_tried(checked):
    checked(judge={"name": "mine.py:Paid"})


def test_a_strategy_that_is_none_is_refused(checked):
    with pytest.raises(ConfigError, match=r"mine.py:odd_strategy returned 1.5, which is neither text nor None"):
        checked(judge={"name": "program"}, strategy="mine.py:odd_strategy")


@pytest.mark.parametrize(
    ("name", "said"),
    [("Raising", r"KeyError: 'oops' \(.*mine.py, line \d+\)"), ("Odd", "must be a finite number, not str 1")],
)
def test_a_domain_that_cannot_verify_is_refused(checked, name, said):
    with pytest.raises(ConfigError, match=said):
        checked(domain={"name": f"mine.py:{name}", "max_abs_b": 2, "max_c": 3})


@pytest.mark.parametrize(("batch", "graded"), [("", [1.0, None]), (BATCH, [None, None])])
def test_a_class_that_raises_costs_the_grade_of_what_it_was_asked(tmp_path, monkeypatch, batch, graded):
    monkeypatch.setattr(plugins, "_provided", {})
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "mine.py").write_text(RAISING + batch)
    config = small_config(domain={"name": "mine.py:Mine", "max_abs_b": 2, "max_c": 3})
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config))
    domain = load_config(tmp_path / "mine.yaml").runs("run")["run"].domain
    problem = domain.problems("train")[0]
    rows = [{"problem_id": problem.problem_id, "sample": i, "response": r} for i, r in enumerate(("fine", "bad"))]
    verdicts = grade(domain, [problem] * 2, rows, 1)
    assert [verdict.reward for verdict in verdicts] == graded
    assert "KeyError: 'oops' (" in verdicts[1].ungraded
    assert "mine.py, line" in verdicts[1].ungraded
