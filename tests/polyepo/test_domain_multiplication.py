"""Multiplication: the decomposition and all of its work are checked."""

import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from polyepo.domains import Multiplication, Strategy

DOMAIN = Multiplication()
EVERYTHING = [*DOMAIN.problems("train"), *DOMAIN.problems("heldout")]
PROBLEM = next(p for p in EVERYTHING if p.problem_id == "multiplication:47:6")
SIX = {
    "tens and ones": "40 * 6 + 7 * 6 : 240 + 42 = 282",
    "round up": "50 * 6 - 3 * 6 : 300 - 18 = 282",
    "halve": "23 * 6 + 24 * 6 : 138 + 144 = 282",
    "split the multiplier": "47 * 3 + 47 * 3 : 141 + 141 = 282",
    "from ten times": "47 * 10 - 47 * 4 : 470 - 188 = 282",
    "one less": "47 * 5 + 47 * 1 : 235 + 47 = 282",
}
RIGHT = SIX["tens and ones"]


def independent_check(a: int, b: int, response: str) -> bool:
    """The identities, written as such: the parts make up a * b in one of six ways, and every number is right."""
    shape = r"([0-9]+) \* ([0-9]+) ([+-]) ([0-9]+) \* ([0-9]+) : ([0-9]+) ([+-]) ([0-9]+) = ([0-9]+)"
    found = re.fullmatch(shape, response)
    if found is None or found[3] != found[7]:
        return False
    p, q, r, s, left, right, total = (int(found[i]) for i in (1, 2, 4, 5, 6, 8, 9))
    written = f"{p} * {q} {found[3]} {r} * {s} : {left} {found[3]} {right} = {total}"
    if written != response or (left, right, total) != (p * q, r * s, a * b):
        return False
    if found[3] == "+":
        by_a = q == s == b and p + r == a and (p == a // 10 * 10 or p == a // 2)
        return by_a or (p == r == a and q + s == b and (q == b // 2 or s == 1))
    return (q == s == b and p - r == a and p % 10 == 0 and 0 < r < 10) or (p == r == a and q == 10 and q - s == b)


def test_the_six_decompositions():
    assert PROBLEM.prompt == "47 * 6 >"
    for name, response in SIX.items():
        assert DOMAIN.verify(PROBLEM, response) == (1.0, "282", None)
        assert DOMAIN.strategy(PROBLEM, response) == Strategy("decompose", name)
        assert independent_check(47, 6, response)


@pytest.mark.parametrize(
    "response",
    [
        "40 * 6 + 7 * 6 : 240 + 42 = 281",
        "40 * 6 + 7 * 6 : 241 + 41 = 282",
        "40 * 6 + 7 * 6 : 240 + 43 = 282",
        "50 * 6 - 3 * 6 : 300 - 12 = 282",
    ],
)
def test_wrong_work_keeps_its_strategy(response):
    assert DOMAIN.verify(PROBLEM, response).reward == 0.0
    assert DOMAIN.strategy(PROBLEM, response) is not None


@pytest.mark.parametrize(
    "response",
    [
        "",
        "282",
        "47 * 6 = 282",
        "40 * 6 + 7 * 6 : 240 - 42 = 282",
        "30 * 6 + 17 * 6 : 180 + 102 = 282",  # right, but none of the six
        "7 * 6 + 40 * 6 : 42 + 240 = 282",
        "47 * 6 + 0 * 6 : 282 + 0 = 282",
        "40 * 8 + 7 * 8 : 320 + 56 = 376",  # another problem's
        f"{RIGHT} {RIGHT}",
        f"{RIGHT} ;",
        RIGHT.replace(" ", ""),
        RIGHT.replace("240", "+240"),
        RIGHT.replace("240", "0240"),
        RIGHT.replace("240", "２４０"),
        RIGHT.replace("282", "9" * 5000),
        RIGHT.replace(" + ", " − "),
        "\ud800",
    ],
)
def test_what_is_no_decomposition_of_this_product_is_degenerate(response):
    assert DOMAIN.verify(PROBLEM, response).reward == 0.0
    assert DOMAIN.strategy(PROBLEM, response) is None


tokens = st.sampled_from([*RIGHT.split(), *SIX["round up"].split(), "10", "47", "1", ""])


@given(st.one_of(st.text(), st.lists(tokens, min_size=12, max_size=14).map(" ".join)))
def test_no_text_raises_and_all_agree_with_the_independent_check(response):
    assert DOMAIN.verify(PROBLEM, response).reward == float(independent_check(47, 6, response))
    DOMAIN.strategy(PROBLEM, response)


@given(st.sampled_from(EVERYTHING), st.integers(0, 2**32), st.integers(0, 12), st.integers(-2, 2))
def test_mutated_demonstrations_agree_with_the_independent_check(problem, seed, place, delta):
    words = Multiplication(error_rate=0.2).demonstration(problem, np.random.default_rng(seed)).split()
    if words[place].isdigit():
        words[place] = str(int(words[place]) + delta)
    response = " ".join(words)
    a, b = problem.metadata["a"], problem.metadata["b"]
    assert DOMAIN.verify(problem, response).reward == float(independent_check(a, b, response))


def test_every_problem_once_in_one_split():
    ids = [p.problem_id for p in EVERYTHING]
    assert sorted(ids) == sorted(f"multiplication:{a}:{b}" for a in range(12, 60) for b in (4, 6, 8, 9) if a % 10)
    assert len(DOMAIN.problems("heldout")) == round(0.2 * len(ids))
    assert all(problem.answer == str(problem.metadata["a"] * problem.metadata["b"]) for problem in EVERYTHING)


def test_demonstrations_are_skewed_noisy_and_covered_by_the_vocabulary():
    rng = np.random.default_rng(0)
    vocabulary = DOMAIN.vocabulary()
    assert len(vocabulary) == len(set(vocabulary))
    shown = [(p, DOMAIN.demonstration(p, rng)) for _ in range(20) for p in EVERYTHING]
    assert {w for p, text in shown for w in [*p.prompt.split(), *text.split()]} <= set(vocabulary)
    strategies = Counter(DOMAIN.strategy(p, text) for p, text in shown)
    assert {s.micro for s in strategies} == set(SIX)
    counts = [strategies[Strategy("decompose", name)] for name in SIX]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] > 0.02 * len(shown)
    assert 0.60 < np.mean([DOMAIN.verify(p, text).reward for p, text in shown]) < 0.70


@given(st.integers(0, 2**32))
def test_error_free_demonstrations_are_right(seed):
    rng = np.random.default_rng(seed)
    problem = EVERYTHING[int(rng.integers(len(EVERYTHING)))]
    assert DOMAIN.verify(problem, Multiplication(error_rate=0).demonstration(problem, rng)).reward == 1.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"multipliers": ()}, "multipliers"),
        ({"multipliers": (4, 4)}, "multipliers"),
        ({"multipliers": (4, 12)}, "multipliers"),
        ({"multipliers": (0,)}, "multipliers"),
        ({"min_a": 40, "max_a": 30}, "min_a 40 must not exceed max_a 30"),
        ({"skew": 0}, "skew"),
        ({"error_rate": -0.1}, "error_rate"),
        ({"heldout_fraction": 1}, "heldout_fraction"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValidationError, match=re.escape(message)):
        Multiplication(**settings)
