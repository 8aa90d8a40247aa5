"""Polynomial: every field is checked, hidden accepted sets are fair, demonstrations are skewed and noisy."""

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from polyepo.domains import AnyDomain, Polynomial, Problem, Strategy
from polyepo.domains.text import split_problems

DOMAIN = Polynomial()
EVERYTHING = [*DOMAIN.problems("train"), *DOMAIN.problems("heldout")]
PROBLEM = next(p for p in EVERYTHING if p.problem_id == "polynomial:-3:7")
RIGHT = "-2 4 6 10 17"


def independent_reward(b: int, c: int, response: str) -> float:
    """Brute force: is the response the text of one of the right answers?"""
    return float(response in {f"{x} {x * x} {b * x} {x * x + b * x} {x * (x + b) + c}" for x in range(-10, 11)})


def test_example():
    assert PROBLEM.prompt == "-3 x 7 >"
    assert DOMAIN.verify(PROBLEM, RIGHT) == (1.0, "(-2, 17)", None)
    assert DOMAIN.strategy(PROBLEM, RIGHT) == Strategy("evaluate at a point", "x=-2")


@pytest.mark.parametrize("field", [1, 2, 3, 4])
@pytest.mark.parametrize("delta", [-1, 1, 10])
def test_one_wrong_field_is_wrong_but_keeps_its_strategy(field, delta):
    words = RIGHT.split()
    words[field] = str(int(words[field]) + delta)
    response = " ".join(words)
    assert DOMAIN.verify(PROBLEM, response).reward == 0.0
    assert DOMAIN.strategy(PROBLEM, response) == Strategy("evaluate at a point", "x=-2")


@pytest.mark.parametrize(
    "response",
    [
        "",
        " ",
        "x",
        "17",
        "-2 4 6 10",
        f"{RIGHT} {RIGHT}",
        f"{RIGHT} 0",
        f"{RIGHT} junk",
        f"{RIGHT} >",
        "-2 4 6 10 +17",
        "-2 4 6 10 017",
        "-2 4 6 10 17.0",
        "-2 ٤ 6 10 17",
        "-2 4 6 10 1٧",
        "-2 ４ 6 10 17",
        "-2 4² 6 10 17",
        "−2 4 6 10 17",
        "-0 0 0 0 7",
        "0 0 -0 0 7",
        "11 121 -33 88 95",
        "-2 4 6 10 " + "9" * 5000,
        "-2 4 6 10 17" + " " * 20_000,
        "1_0 100 -30 70 77",
        "-2\u00a04 6 10 17",
        "\ud800",
    ],
)
def test_malformed_responses_are_degenerate(response):
    assert DOMAIN.verify(PROBLEM, response) == (0.0, None, None)
    assert DOMAIN.strategy(PROBLEM, response) is None


words = st.one_of(st.integers(-20, 20).map(str), st.sampled_from(["x", ">", "", "007", "٣"]), st.text(max_size=3))


@given(st.one_of(st.text(), st.lists(words, max_size=7).map(" ".join), st.integers(-12, 12).map(str)))
def test_no_text_raises_and_all_agree_with_brute_force(response):
    assert DOMAIN.verify(PROBLEM, response).reward == independent_reward(-3, 7, response)
    DOMAIN.strategy(PROBLEM, response)


@given(st.sampled_from(EVERYTHING), st.integers(-12, 12), st.integers(0, 4), st.integers(-1, 1))
def test_near_right_answers_agree_with_brute_force(problem, x, field, delta):
    b, c = problem.metadata["b"], problem.metadata["c"]
    fields = [x, x * x, b * x, x * x + b * x, x * x + b * x + c]
    fields[field] += delta
    response = " ".join(map(str, fields))
    assert DOMAIN.verify(problem, response).reward == independent_reward(b, c, response)


def test_splits_are_disjoint_cover_everything_and_never_empty():
    train, heldout = DOMAIN.problems("train"), DOMAIN.problems("heldout")
    assert len(train) == 88
    assert len(heldout) == 22
    assert {p.problem_id for p in EVERYTHING} == {f"polynomial:{b}:{c}" for b in range(-5, 6) for c in range(10)}
    assert Polynomial(split_seed=1).problems("heldout") != heldout
    for fraction in (0.001, 0.5, 0.999):
        small = Polynomial(max_abs_b=0, max_c=1, heldout_fraction=fraction)
        assert len(small.problems("train")) == len(small.problems("heldout")) == 1
    with pytest.raises(ValueError, match="1 problem"):
        Polynomial(max_abs_b=0, max_c=0).problems("train")


@given(st.integers(2, 40), st.floats(0.001, 0.999), st.integers(0, 5))
def test_any_split_keeps_order_and_covers(n, fraction, seed):
    problems = [Problem(problem_id=str(i), domain="d", prompt="p") for i in range(n)]
    parts = {s: [int(p.problem_id) for p in split_problems(problems, s, fraction, seed)] for s in ("train", "heldout")}
    assert all(part and part == sorted(part) for part in parts.values())
    assert sorted(parts["train"] + parts["heldout"]) == list(range(n))


def test_splits_and_hidden_sets_are_the_same_in_another_process():
    code = (
        "from polyepo.domains import Polynomial; d = Polynomial(accepted_fraction=.5); p = d.problems('heldout');"
        "print([q.problem_id for q in p], [d.accepts(p[0], x) for x in range(-10, 11)])"
    )
    first, second = (
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    )
    assert first == second
    domain = Polynomial(accepted_fraction=0.5)
    problems = domain.problems("heldout")
    hidden = [domain.accepts(problems[0], x) for x in range(-10, 11)]
    assert first.strip() == f"{[p.problem_id for p in problems]} {hidden}"


def test_hidden_sets_have_the_given_size_and_are_never_empty():
    for fraction in (1e-9, 0.1, 0.5):
        domain = Polynomial(accepted_fraction=fraction)
        counts = [sum(domain.accepts(p, x) for x in range(-10, 11)) for p in EVERYTHING]
        assert min(counts) >= 1
        assert abs(np.mean(counts) / 21 - max(fraction, 1 / 21)) < 0.04
    domain, other = Polynomial(accepted_fraction=0.5), Polynomial(accepted_fraction=0.5, accept_seed=1)
    accepted = [x for x in range(-10, 11) if domain.accepts(PROBLEM, x)]
    assert accepted != [x for x in range(-10, 11) if other.accepts(PROBLEM, x)]
    right = {x for x in range(-10, 11) if domain.verify(PROBLEM, _work(x)).reward == 1}
    assert right == set(accepted)


def _work(x: int) -> str:
    return f"{x} {x * x} {-3 * x} {x * x - 3 * x} {x * x - 3 * x + 7}"


def test_demonstrations_are_mostly_right_skewed_and_covered_by_the_vocabulary():
    rng = np.random.default_rng(0)
    vocabulary = DOMAIN.vocabulary()
    assert len(vocabulary) == len(set(vocabulary))
    shown = [(p, DOMAIN.demonstration(p, rng)) for _ in range(40) for p in EVERYTHING]
    assert {w for p, text in shown for w in [*p.prompt.split(), *text.split()]} <= set(vocabulary)
    strategies = Counter(DOMAIN.strategy(p, text) for p, text in shown)
    assert None not in strategies
    assert len(strategies) == 21
    assert strategies.most_common(1)[0][0].micro == "x=2"
    ratio = strategies[Strategy("evaluate at a point", "x=5")] / strategies[Strategy("evaluate at a point", "x=2")]
    assert abs(ratio - np.exp(-1)) < 0.08
    assert 0.55 < np.mean([DOMAIN.verify(p, text).reward for p, text in shown]) < 0.70


@pytest.mark.parametrize("settings", [{"spread": 1e-6}, {"favourite_x": 10**6}, {"max_abs_x": 1}])
def test_extreme_demonstration_settings_still_work(settings):
    domain = Polynomial(**settings)
    assert domain.strategy(PROBLEM, domain.demonstration(PROBLEM, np.random.default_rng(0))) is not None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("heldout_fraction", 0.0),
        ("heldout_fraction", 1.0),
        ("heldout_fraction", float("nan")),
        ("accepted_fraction", 0.0),
        ("accepted_fraction", 1.1),
        ("max_abs_x", 0),
        ("max_abs_b", -1),
        ("spread", 0.0),
        ("error_rate", 2.0),
        ("name", "multiplication"),
        ("unknown", 1),
    ],
)
def test_bad_settings_are_named(field, value):
    with pytest.raises(ValidationError) as raised:
        Polynomial(**{field: value})
    assert raised.value.errors()[0]["loc"] == (field,)


def test_domains_are_told_apart_by_name_and_import_light():
    adapter = TypeAdapter(AnyDomain)
    for settings in ({"name": "polynomial"}, {"name": "multiplication"}, {"name": "countdown"}):
        assert adapter.validate_python(settings).name == settings["name"]
    assert adapter.validate_python({"name": "maths", "path": "x"}).name == "maths"
    with pytest.raises(ValidationError, match="nonsense"):
        adapter.validate_python({"name": "nonsense"})
    heavy = "{'torch', 'transformers', 'pyarrow', 'math_verify', 'sympy'}"
    code = f"import sys, polyepo.domains; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, check=True)
