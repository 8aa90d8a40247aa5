"""What a data set's answer column says: lists, boxes, numbers; and what is no answer to compare with."""

import contextlib
import json
import math
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyepo.domains import Maths
from polyepo.domains.references import MAX_CHARACTERS, number_text, reference_answer

BOTH_ROOTS = r"the two roots are $\boxed{3}$ and $\boxed{4}$."


@pytest.mark.parametrize(
    ("value", "answer"),
    [
        ([r"$\frac{1}{2 n+2}$"], r"$\frac{1}{2 n+2}$"),
        (["$-2,0,2$"], "$-2,0,2$"),
        ([["3"]], "3"),
        ([[["3"]]], "3"),
        (("3", None), "3"),
        ([3], "3"),
        ([3.0], "3"),
        ([1, 2.5], "1, 2.5"),
        (["$f(x)=x$", "$f(x)=2-x$"], "f(x)=x, f(x)=2-x"),
        (["$(1,1)$", "$(2,2)$"], "(1,1), (2,2)"),
        (["1,000", "2,000.5"], "1000, 2000.5"),
        ([r"\$1,000", r"\boxed{2}"], r"\$1000, 2"),
        ([[r"$\sqrt{2}$", r"$-\sqrt{2}$"]], r"\sqrt{2}, -\sqrt{2}"),
        (r'["$\\frac{1}{2}$"]', r"$\frac{1}{2}$"),
        (r'["$\\left[0, \\frac{1}{2}\\right]$"]', r"$\left[0, \frac{1}{2}\right]$"),
        (' ["3"]\n', "3"),
        ('[["3"]]', "3"),
        ('["3", "4"]', "3, 4"),
        ('["3", 4]', "3, 4"),
        ("[18]", "18"),
        (r"['$\\pi$']", r"$\pi$"),
        (r"['$\\pi$', '3']", r"\pi, 3"),
        (r'["$\theta$", "$\frac12$", "$\beta$", "$\nu$", "$\rho$"]', r"\theta, \frac12, \beta, \nu, \rho"),
        ("[0, 1]", "[0, 1]"),
        ("[0, 1)", "[0, 1)"),
        ("[f'(x), g'(x)]", "[f'(x), g'(x)]"),
        ({"ground_truth": '["3"]', "style": "rule"}, "3"),
        ({"ground_truth": ["3", "4"]}, "3, 4"),
    ],
)
def test_lists(value, answer):
    assert reference_answer(value) == answer


@pytest.mark.parametrize(
    ("value", "answer"),
    [
        (3, "3"),
        (3.0, "3"),
        (-0.0, "0"),
        (0.1, "0.1"),
        (1e-5, "0.00001"),
        (-1.5e-7, "-0.00000015"),
        (1e22, "1" + "0" * 22),
        (1.5e20, "15" + "0" * 19),
        (10**30, "1" + "0" * 30),
        (Decimal("2.50"), "2.5"),
        (Decimal("1E+3"), "1000"),
        (True, "True"),
        ("27.0", "27.0"),
    ],
)
def test_numbers_are_written_as_people_do(value, answer):
    assert reference_answer(value) == answer


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_is_written_as_it_is(number):
    text = number_text(number)
    assert float(text) == number
    assert not set(text) - set("-.0123456789")


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        (r"Thus $x = \boxed{\frac{1}{2}}$.", r"\frac{1}{2}"),
        (r"Thus $\boxed 7$.", "7"),
        (r"Thus $\boxed 5.5$.", "5.5"),
        (r"\fbox{7}", "7"),
        (r"\boxed{} so \boxed{7}", "7"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (BOTH_ROOTS, "3, 4"),
        (r"$x=\boxed{3}$, $y=\boxed{1,000}$ or $z=\boxed{\text{east}}$", r"3, 1000, \text{east}"),
        (r"$\boxed{3}$" + "\n" + r"and $\boxed{4}$", "3, 4"),
        (r"So $\boxed{3}$." + "\n\n" + r"The answer is $\boxed{ 3 }$.", "3"),
        (r"\boxed{\boxed{3}}", "3"),
        (r"\boxed{x = \boxed{3}}", "3"),
        (r"\boxed{\boxed{3} \text{ and } \boxed{4}}", "3, 4"),
        ("She has 18.\n#### 18", "18"),
        ("She has 18,000.\n#### 18,000\n", "18000"),
        ("#### -1,234.5", "-1234.5"),
        ("#### (1, 2)", "(1, 2)"),
        ("#### 1, 2", "1, 2"),
        ("#### Step 1\nWe add.\n#### 18", "18"),
        ("#### Step 1\nWe add.\n\n" + r"Thus \boxed{4}.", "4"),
    ],
)
def test_solutions(solution, answer):
    assert reference_answer(solution) == answer


ANSWERS = r"""
42 | -1 | 1/2 | .5 | 1e-3 | x | A | E | e | (C) | \text{(A)} | $8 \sqrt{10}$. | x=2 | k \geq 3 | (0,\infty) | [0,1)
\{1,2\} | {} | \varnothing | \emptyset | \infty | \pm 3 | < | > | + | 5 : 3 | 7:30 p.m. | 4:40 a.m. | \$1,000 | Na | DNE
-12 \text{ or } -30 | 0^\circ \text{ and } 360^\circ | 20\text{ days} | 100\text{ square units} | 9 (apples)
Tuesday | \text{east} | \text{Evelyn} | \text{ellipse} | \text{6 and 9} | Yes | no | True | even | \text{odd}
St. Petersburg | Mr. Smith | does not exist | undefined | no solution | \text{No real solutions} | none of these
None of the above | infinitely many | all real numbers | Alice wins | the second player | $n$ is a power of 2
an isosceles triangle | Pythagorean theorem | It is impossible | Both are equal | Infinite number of solutions
\text{All positive integers } n \text{ such that } n \equiv 1 \pmod 4 | \begin{pmatrix} 1 \\ 2 \end{pmatrix}
$f(x)=a x+b$, where $b$ is an arbitrary integer, and $a$ is an arbitrary positive integer
concave up when $x<0$, concave down when $x>0$ | 15 (liters of Yoda Soda)
""".strip()


@pytest.mark.parametrize("answer", [answer for line in ANSWERS.split("\n") for answer in line.split(" | ")])
def test_answers_of_any_kind_stay(answer):
    assert reference_answer(answer) == answer


@pytest.mark.parametrize(
    "answer",
    [
        "proof", "Proof.", "PROOF", r"\text{proof}", r"\boxed{\text{proof}}", r"$\text{Proof}$", "**proof**", "[proof]",
        "proof omitted", "not found", "notfound", "NotFound", "not_found", "N/A", "n/a", "N.A.", r"\text{N/A}", "none",
        "None", "null", "NaN", "unknown", "QED", "Q.E.D.", r"\blacksquare", "∎", "-", "--", "?", "...", "…", "TBD",
        "no answer", "Answers may vary.", "not provided", "omitted", '["proof"]', ["proof"], "#### proof", "见解析",
    ],
)  # fmt: skip
def test_placeholders_are_no_answers(answer):
    with pytest.raises(ValueError, match="is a placeholder"):
        reference_answer(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "see solution", "See the figure below.", "refer to the solution", "as shown above", "![](https://x.org/a.png)",
        "![graph](cdn/a.jpg)", '<img src="a.png">', "https://example.org/answer", r"\includegraphics{a.png}",
    ],
)  # fmt: skip
def test_answers_that_are_elsewhere(answer):
    with pytest.raises(ValueError, match="elsewhere"):
        reference_answer(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "Proof. Trivial since 1 < 2 and 3 < 4, so the claim holds for all n. QED",
        "It can be shown by induction.",
        "The statement is true for all $n$.",
        "The answer is 42.",
        "There is no solution.",
        "Therefore, it takes $2$ hours.",
        "We prove it by contradiction.",
        "Adding the equations gives $2x = 4$. Then $x = 2$.",
        "Yes. It has a unique solution.",
        r"\text{The proof is complete}",
        "left to the reader as an exercise about the sums of squares of the first odd numbers",
        "## Solution\n\n$x + 1 = 2$",
        "#### Conclusion\nx = 3",
        "Let $x$ be the number of apples; she sells half of those and then buys three more at the market",
    ],
)
def test_prose_is_no_answer(answer):
    with pytest.raises(ValueError, match="is prose"):
        reference_answer(answer)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "empty"), ("", "empty"), (" \n", "empty"), ([], "empty"), ([None], "empty"), ("[]", "empty"),
        ({}, "empty"), (math.nan, "empty"), (r"\boxed{}", "box that is empty"), ({"ground_truth": None}, "empty"),
        (math.inf, "must be text, a number or a list of them, and is inf"),
        ({"target": 3}, "must be text, a number or a list of them, and is {'target': 3}"),
        ([{"target": 3}, "2"], "must be text, a number or a list of them"),
        ([[1, 2], [3]], "list of lists"),
        (r"\boxed{3", "or not closed"),
        (r"First $\boxed{3}$." + "\n\n" + r"Then $\boxed{4}$.", r"different paragraphs, \['3', '4'\]"),
        ("3" * 201, "has 201 characters"),
        (1e300, "has 301 characters"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_named(value, message):
    with pytest.raises(ValueError, match=message):
        reference_answer(value)


@given(st.one_of(st.text(), st.lists(st.sampled_from(
    ["\\boxed{", "\\boxed ", "\\", "{", "}", "3", "$", "\n", "####", "[", "]", '"', "'", ",", " ", "\\f", "proof"]
), max_size=20).map("".join)))  # fmt: skip
def test_any_text_is_an_answer_or_refused(text):
    with contextlib.suppress(ValueError):
        assert 0 < len(reference_answer(text)) <= MAX_CHARACTERS


@pytest.mark.parametrize("unit", ["\\boxed{", "\\boxed ", "{", "}", "$", "#", "####", "\\(", "[", "['", "a. B", "\n"])
def test_long_solutions_are_read_in_linear_time(unit):
    # Half a million characters: whatever looks at them more than once each runs into the suite's timeout.
    for text in ("x" + unit * (500_000 // len(unit)), unit * (500_000 // len(unit)) + "x"):
        with contextlib.suppress(ValueError):
            reference_answer(text)


def problems_of(path, **changes):
    domain = Maths(path=str(path), **changes)
    return [*domain.problems("train"), *domain.problems("heldout")]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("answer", "response", "reward"),
    [
        ([r"$\frac{1}{2 n+2}$"], r"\boxed{\frac{1}{2n+2}}", 1.0),
        (["$-2,0,2$"], r"\boxed{0, 2, -2}", 1.0),
        (["$-2,0,2$"], r"\boxed{-2, 2}", 0.0),
        (["2", "-2"], r"\boxed{-2, 2}", 1.0),
        (["2", "-2"], r"\boxed{2}", 0.0),
        ([r"$\left[0, \frac{1}{2}\right]$"], r"\boxed{[0,1/2]}", 1.0),
        (["$f(x)=x$", "$f(x)=2-x$"], r"\boxed{f(x)=2-x, f(x)=x}", 1.0),
        (["$f(x)=x$", "$f(x)=2-x$"], r"\boxed{f(x)=x}", 0.0),
        (["$(1,1)$", "$(2,2)$"], r"\boxed{(1,1),(2,2)}", 1.0),
        (BOTH_ROOTS, r"\boxed{3,4}", 1.0),
        (BOTH_ROOTS, r"\boxed{4}", 0.0),
        (1e22, r"\boxed{10^{22}}", 1.0),
        (1e-5, r"\boxed{0.00001}", 1.0),
        (1e-5, r"\boxed{0.0001}", 0.0),
    ],
)
def test_responses_are_graded_by_what_the_column_says(tmp_path, answer, response, reward):
    """As JSON lines, as JSON in JSON lines in verl's layout, and as Parquet."""
    layouts = [
        [{"question": "Q?", "final_answer": answer}, {"question": "R?", "final_answer": answer}],
        [
            {
                "prompt": [{"role": "user", "content": f"{i}?"}],
                "reward_model": {"ground_truth": json.dumps(answer) if isinstance(answer, list) else answer},
                "extra_info": {"index": i},
            }
            for i in range(2)
        ],
    ]
    pq.write_table(pa.Table.from_pylist(layouts[0]), tmp_path / "p.parquet")
    files = [write(tmp_path / f"{i}.jsonl", rows) for i, rows in enumerate(layouts)]
    for path in (*files, tmp_path / "p.parquet"):
        problem = problems_of(path)[0]
        assert Maths(path="unread").verify(problem, response).reward == reward, problem.answer


def test_rows_without_an_answer_are_refused_or_dropped(tmp_path):
    good = [{"problem": f"P{i}", "answer": [str(i)]} for i in range(3)]
    bad = [
        "proof",
        "There is no such thing. See the solution.",
        None,
        "![](a.png)",
        r"\boxed{1}" + "\n\n" + r"\boxed{2}",
    ]
    for answer in bad:
        path = write(tmp_path / "p.jsonl", [*good, {"problem": "Q", "answer": answer}])
        with pytest.raises(ValueError, match=r"row 4: the .*; remove the row, .*domain.unusable: drop"):
            problems_of(path)
        assert len(problems_of(path, unusable="drop")) == 3
    named = write(tmp_path / "n.jsonl", [{**row, "answer": "proof", "gold": row["answer"]} for row in good])
    with pytest.raises(ValueError, match=r"row 1: the answer 'proof' is a placeholder; .*domain.answer_column"):
        problems_of(named)
    assert [p.answer for p in problems_of(named, answer_column="gold")] == [p.answer for p in problems_of(
        write(tmp_path / "g.jsonl", good))]  # fmt: skip
