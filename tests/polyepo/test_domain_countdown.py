"""Countdown: exact arithmetic on hostile text, one normal form per way of solving, every solvable problem once."""

import ast
import operator
from collections import Counter
from fractions import Fraction
from itertools import permutations, product

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from polyepo.domains import Countdown, Problem
from polyepo.domains.expressions import all_expressions, parse

DOMAIN = Countdown()
OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}


def puzzle(*numbers: int, target: int) -> Problem:
    return Problem(problem_id="p", domain="countdown", prompt="", metadata={"numbers": list(numbers), "target": target})


PROBLEM = puzzle(3, 5, 8, target=64)
TWENTY_FOUR = Countdown(path="unread.csv", target=24, operators="+-*/")


def python_value(text: str) -> Fraction:
    """An independent evaluation, by Python's own parser."""
    signs = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}

    def value(node: ast.expr) -> Fraction:
        if isinstance(node, ast.Constant):
            return Fraction(node.value)
        assert isinstance(node, ast.BinOp)
        return signs[type(node.op)](value(node.left), value(node.right))

    return value(ast.parse(text, mode="eval").body)


def reachable(numbers: tuple[int, ...], operators: str) -> set[Fraction]:
    """Values by brute force over orders, operators and shapes of three numbers."""
    values = set()
    for a, b, c in permutations(map(Fraction, numbers)):
        for first, second in product(operators, repeat=2):
            f, g = OPERATIONS[first], OPERATIONS[second]
            values |= {g(f(a, b), c), f(a, g(b, c))}
    return values


@pytest.mark.parametrize(
    "response",
    [
        "( 3 + 5 ) * 8",
        "8*(5+3)",
        "(3+5)*8 = 64",
        "Answer: ( 3 + 5 ) × 8",
        "3 + 5 is 8.\nAnswer: (3+5)*8=64",
        "((8))*(3+5)",
    ],
)
def test_right_answers_and_their_one_strategy(response):
    assert DOMAIN.verify(PROBLEM, response).reward == 1.0
    assert DOMAIN.strategy(PROBLEM, response) == DOMAIN.strategy(PROBLEM, "( 3 + 5 ) * 8")


@pytest.mark.parametrize("response", ["3 + 5 * 8", "( 5 - 3 ) * 8", "8 - 5 - 3"])
def test_missing_the_target_is_wrong_but_a_strategy(response):
    assert DOMAIN.verify(PROBLEM, response).reward == 0.0
    assert DOMAIN.strategy(PROBLEM, response) is not None


@pytest.mark.parametrize(
    "response",
    [
        "",
        "64",
        "= 64",
        "8 * 8",
        "( 3 + 5 ) * 8 * 1",
        "( 3 + 5 ) * 8 + 8 - 8",
        "35 + 8",
        "( 3 + 5 ) * 8 = 63",
        "( 3 + 5 ) * 8 = 64 = 64",
        "( 3 + 5 ) * 8 junk",
        "( 3 + 5 ) * 8 ( 3 + 5 ) * 8",
        "Answer: 3 + 5 * 8 Answer: ( 3 + 5 ) * 8",
        "( 3 + 5 ) * 8 or 3 + 5 * 8",
        "( 3 + 5 * 8",
        "3 + 5 ) * 8",
        "( 3 + 5 ) ** 8",
        "( 3 + 5 ) 8",
        "- 3 + 5 + 8",
        "+3 + 5 + 8",
        "(03 + 5) * 8",
        "(3.0 + 5) * 8",
        "(3e0 + 5) * 8",
        "(٣ + 5) * 8",
        "(３ + 5) * 8",
        "(3 + 5) // 8",
        "3 / 5 / 8",  # division is not among this domain's operators
        "3 ÷ 5 + 8",
        "__import__('os').abort()",
        "(" * 5000 + "3" + ")" * 5000,
        "9" * 100_000,
        "1+" * 4000 + "1",
        "8 " * 9000,
        "\ud800",
        "\x00",
    ],
)
def test_everything_else_is_degenerate(response):
    assert DOMAIN.verify(PROBLEM, response).reward == 0.0
    assert DOMAIN.strategy(PROBLEM, response) is None


def test_division_is_exact_and_by_zero_malformed():
    problem = puzzle(3, 3, 8, 8, target=24)
    assert TWENTY_FOUR.verify(problem, "8 / ( 3 - 8 / 3 )").reward == 1.0
    assert TWENTY_FOUR.verify(problem, "8 / (3 - 3) + 8") == (0.0, None, None)
    assert TWENTY_FOUR.strategy(problem, "8 / (8 - 8) + 3") is None
    assert Countdown().verify(problem, "8 / ( 3 - 8 / 3 )").reward == 0.0


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("1 + 2 + 3", "3 + ( 2 + 1 )", True),
        ("1 - 2 + 3", "3 - ( 2 - 1 )", True),
        ("8 / 4 * 2", "2 * 8 / 4", True),
        ("8 / ( 4 / 2 )", "8 * 2 / 4", True),
        ("( 1 + 2 ) * 3", "3 * ( 2 + 1 )", True),
        ("1 - 2 - 3", "1 - ( 2 + 3 )", True),
        ("2 * 3 - 1", "1 - 2 * 3", False),
        ("( 1 + 2 ) * 3", "1 * 3 + 2 * 3", False),
        ("2 + 2", "2 * 2", False),
        ("1 - 2 + 3", "1 + 2 - 3", False),
    ],
)
def test_normal_form(one, other, same):
    assert (parse(one).key == parse(other).key) == same


hostile = st.sampled_from([*"358+-*/()=", "64", "Answer:", "answer", "\n", "x", "٣", "  "])


@given(st.one_of(st.text(), st.text("358+-*/() =Answer:64\n"), st.lists(hostile, max_size=14).map(" ".join)))
@settings(max_examples=200)
def test_no_text_raises_and_nothing_wrong_is_rewarded(response):
    reward = DOMAIN.verify(PROBLEM, response).reward
    DOMAIN.strategy(PROBLEM, response)
    if reward:
        text = response.lower().split("answer")[-1].split("=")[0].replace(":", "").strip()
        assert python_value(text) == 64
        assert Counter(c for c in text if c.isdigit()) == Counter("358")


trees = st.recursive(
    st.integers(1, 9).map(str),
    lambda t: st.tuples(t, st.sampled_from("+-*/"), t).map(lambda x: f"( {x[0]} {x[1]} {x[2]} )"),
    max_leaves=6,
)


@given(trees)
def test_values_agree_with_python(text):
    try:
        expected = python_value(text)
    except ZeroDivisionError:
        assert parse(text) is None
        return
    parsed = parse(text)
    assert parsed.value == expected
    assert parse(text.replace(" ", "")) == parsed
    assert parse(text.removeprefix("( ").removesuffix(" )") if text[0] == "(" else text).key == parsed.key


@pytest.mark.parametrize(("n", "num_values"), [(1, 1), (2, 6), (3, 68), (4, 1170)])
def test_enumeration_finds_every_expression_once(n, num_values):
    """Numbers in general position have 1, 6, 68, 1170, ... values (OEIS A140606).  # noqa: E501

    There are more expressions than values: a - b * (c - d) and a + b * (d - c) are equal but built differently.
    """
    found = list(all_expressions((101, 211, 307, 401)[:n], "+-*/"))
    assert len({e.value for e, _ in found}) == num_values
    assert len({e.key for e, _ in found}) == len(found) == {4: 1260}.get(n, num_values)
    assert all(parse(text).key == e.key and parse(text).value == e.value for e, text in found)


@given(st.lists(st.integers(1, 9), min_size=3, max_size=3))
@settings(max_examples=25)
def test_enumeration_reaches_every_value(numbers):
    assert {e.value for e, _ in all_expressions(tuple(numbers), "+-*")} == reachable(tuple(numbers), "+-*")


def test_generated_problems_are_all_the_solvable_ones():
    small = Countdown(max_number=4, max_target=20)
    ids = [p.problem_id for s in ("train", "heldout") for p in small.problems(s)]
    expected = {
        f"countdown:{a}-{b}-{c}:{t}"
        for a, b, c in product(range(1, 5), repeat=3)
        if a <= b <= c
        for t in range(1, 21)
        if t in reachable((a, b, c), "+-*")
    }
    assert set(ids) == expected
    assert len(ids) == len(expected)
    train, heldout = DOMAIN.problems("train"), DOMAIN.problems("heldout")
    assert (len(train), len(heldout)) == (1491, 373)
    example = next(p for p in train + heldout if p.problem_id == "countdown:3-5-8:64")
    assert example.prompt == "3 5 8 = 64 >"


def test_a_cap_chooses_the_same_problems_every_time():
    capped = Countdown(num_problems=50)
    chosen = [p.problem_id for s in ("train", "heldout") for p in capped.problems(s)]
    assert len(chosen) == len(set(chosen)) == 50
    assert [p.problem_id for s in ("train", "heldout") for p in Countdown(num_problems=50).problems(s)] == chosen
    other = Countdown(num_problems=50, split_seed=1)
    assert {p.problem_id for s in ("train", "heldout") for p in other.problems(s)} != set(chosen)


def test_demonstrations_are_diverse_mostly_wrong_and_covered_by_the_vocabulary():
    rng = np.random.default_rng(0)
    problems = DOMAIN.problems("train")
    vocabulary = DOMAIN.vocabulary()
    assert len(vocabulary) == len(set(vocabulary))
    shown = [(p, DOMAIN.demonstration(p, rng)) for p in problems for _ in range(4)]
    assert {w for p, text in shown for w in [*p.prompt.split(), *text.split()]} <= set(vocabulary)
    assert all(DOMAIN.strategy(p, text) is not None for p, text in shown)
    assert 0.12 < np.mean([DOMAIN.verify(p, text).reward for p, text in shown]) < 0.30
    assert len({DOMAIN.strategy(PROBLEM, DOMAIN.demonstration(PROBLEM, rng)) for _ in range(200)}) > 20
    solved = Countdown(solved_rate=1)
    assert all(solved.verify(p, solved.demonstration(p, rng)).reward == 1.0 for p in problems[::20])


@pytest.mark.parametrize(
    ("given_settings", "message"),
    [
        ({"path": "x.csv"}, "path is 'x.csv', target is None"),
        ({"target": 24}, "path is None, target is 24"),
        ({"operators": "+^"}, r"operators '\+\^'"),
        ({"operators": "++"}, "operators"),
        ({"operators": ""}, "operators"),
        ({"num_numbers": 9}, "num_numbers"),
        ({"num_problems": 1}, "num_problems"),
        ({"solved_rate": 1.5}, "solved_rate"),
    ],
)
def test_bad_settings_are_named(given_settings, message):
    with pytest.raises(ValidationError, match=message):
        Countdown(**given_settings)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        (b"", "holds no puzzles"),
        (b"Puzzles\n", "holds no puzzles"),
        (b"Numbers\n1 2\n", "line 2: column Puzzles"),
        (b"Puzzles\n1 2 3\n1 x 3\n", "line 3.*'1 x 3'"),
        (b"Puzzles\n1 -2 3\n", "'1 -2 3'"),
        (b"Puzzles\n1 2 3\n1 2 3\n", "line 3: puzzle '1 2 3' occurs twice"),
        (b"Puzzles\n1 2 \xff\n", "cannot be read"),
        (b"Puzzles\n1 2 3\n", "1 problem"),
    ],
)
def test_files_that_are_no_puzzles_are_named(tmp_path, content, message):
    path = tmp_path / "24.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        Countdown(path=str(path), target=24, operators="+-*/").problems("train")


def test_the_real_game_of_24(real_data):
    folder = real_data / "game24_gpt4_100x100"
    domain = Countdown(path=str(folder / "24.csv"), target=24, operators="+-*/", solved_rate=1)
    problems = [*domain.problems("train"), *domain.problems("heldout")]
    assert len(problems) == 1362
    rng = np.random.default_rng(0)
    for problem in problems[::40]:  # every puzzle can be solved, and the solver finds how
        assert domain.verify(problem, domain.demonstration(problem, rng)).reward == 1.0
    by_numbers = {tuple(p.metadata["numbers"]): p for p in problems}
    labels: dict[tuple[str, str], set[str]] = {}
    ours: dict[tuple[str, str], set[str]] = {}
    disagreements = []
    for row in pq.read_table(folder / "rollouts.parquet").to_pylist():
        problem = by_numbers[tuple(map(int, row["numbers"].split()))]
        if domain.verify(problem, row["response"]).reward != row["reward"]:
            disagreements.append(row["response"])
        strategy = domain.strategy(problem, row["response"])
        if strategy and row["strategy_key"]:
            labels.setdefault((problem.problem_id, row["strategy_key"]), set()).add(strategy.micro)
            ours.setdefault((problem.problem_id, strategy.micro), set()).add(row["strategy_key"])
    # One of 10,000: its expression is right, but it says "= 48", which we do not reward.
    assert [r.splitlines()[-1] for r in disagreements] == ["Answer: (13 - 9) * (12 - 6) = 48"]
    assert len(labels) > 300
    assert all(len(keys) == 1 for keys in [*labels.values(), *ours.values()]), "the two partitions differ"
