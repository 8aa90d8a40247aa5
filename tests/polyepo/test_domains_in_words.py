"""Polynomials and products in words: free-form answers are read exactly, and nothing else earns a reward."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from polyepo.domains import MultiplicationWords, PolynomialWords, Problem, Strategy

POLYNOMIALS, PRODUCTS = PolynomialWords(), MultiplicationWords()
CURVE = Problem(problem_id="c", domain="polynomial_words", prompt="?", metadata={"b": 3, "c": 7})
PRODUCT = Problem(
    problem_id="m", domain="multiplication_words", prompt="?", answer="22981", metadata={"a": 343, "b": 67}
)


@pytest.mark.parametrize(
    ("response", "x"),
    [
        (r"At x = 2, y is 4 + 6 + 7. So \boxed{(2, 17)}.", "2"),
        (r"\boxed{\left(2,\, 17\right)}", "2"),
        (r"\boxed{2, 17}", "2"),
        (r"\boxed{(x, y) = (2, 17)}", "2"),
        (r"$\boxed{(x=2, y=17)}$", "2"),
        ("Reasoning.\nAnswer: (0, 7)", "0"),
        (r"\boxed{(-3, 7)}", "-3"),
        (r"\boxed{(−3, 7)}", "-3"),
        (r"\boxed{(0.5, 8.75)}", "1/2"),
        (r"\boxed{\left(\frac{1}{2}, \frac{35}{4}\right)}", "1/2"),
        (r"\boxed{(1/2, 35/4)}", "1/2"),
    ],
)
def test_points_of_the_curve_are_right(response, x):
    verdict = POLYNOMIALS.verify(CURVE, response)
    assert verdict.reward == 1.0
    assert verdict.parsed_answer.startswith(f"({x}, ")
    assert POLYNOMIALS.strategy(CURVE, response) == Strategy("evaluate at a point", verdict.parsed_answer)


@pytest.mark.parametrize(
    "response",
    [
        "(2, 17)",
        r"\boxed{(2, 18)}",
        r"\boxed{(17, 2)}",
        r"\boxed{(2, 17)} or \boxed{(0, 7)}",
        r"\boxed{(2, 17), (0, 7)}",
        r"\boxed{(x, y)}",
        r"\boxed{(x, x^2 + 3x + 7)}",
        r"\boxed{(2, 2^2 + 3 \cdot 2 + 7)}",
        r"\boxed{17}",
        r"\boxed{(1/0, 7)}",
        r"\boxed{\left(\frac{0}{0}, 7\right)}",
        r"\boxed{(1e3, 1003007)}",
        r"\boxed{(٢, 17)}",
        r"\boxed{(" + "9" * 90 + ", 7)}",
    ],
)
def test_anything_else_is_not(response):
    assert POLYNOMIALS.verify(CURVE, response).reward == 0.0


@pytest.mark.parametrize(
    ("response", "strategy"),
    [
        (r"\boxed{(340 + 3)(70 - 3) = 22981}", "(+3+340) * (+70-3)"),
        (r"\boxed{(3+340)\cdot(70-3) = 22{,}981}", "(+3+340) * (+70-3)"),
        (r"\boxed{(70 - 3) \times (340 + 3) = 22,981}", "(+3+340) * (+70-3)"),
        (r"\boxed{343 \times 67 = (340 + 3)(70 - 3) = 22981}", "(+3+340) * (+70-3)"),
        (r"\boxed{343 \left(60 + 7\right) = 22981}", "343 * (+60+7)"),
        ("Work.\nAnswer: (300 + 40 + 3)(67) = 22981", "(+3+300+40) * 67"),
    ],
)
def test_decompositions_of_the_product_are_right(response, strategy):
    assert PRODUCTS.verify(PRODUCT, response) == (1.0, "22981", None)
    assert PRODUCTS.strategy(PRODUCT, response) == Strategy("decompose", strategy)
    wrong = response.replace("981", "982")
    assert PRODUCTS.verify(PRODUCT, wrong) == (0.0, "22982", None)
    assert PRODUCTS.strategy(PRODUCT, wrong) == Strategy("decompose", strategy), "slips are not strategies"


@pytest.mark.parametrize(
    "response",
    [
        "(340 + 3)(70 - 3) = 22981",
        r"\boxed{22981}",
        r"\boxed{343 * 67 = 22981}",
        r"\boxed{(343)(67) = 22981}",
        r"\boxed{(343 + 0)(67) = 22981}",
        r"\boxed{(22980 + 1)(1) = 22981}",
        r"\boxed{(340 + 4)(70 - 3) = 22981}",
        r"\boxed{(340 + 3)(70 - 3)}",
        r"\boxed{(340 + 3)(70 - 3) = (22981)}",
        r"\boxed{(40 + 7)(20 - 2) = 846}",
        r"\boxed{(340 + 3)(70 - 3) = 22981} \boxed{(300 + 43)(67) = 22981}",
        r"\boxed{((340 + 3))(70 - 3) = 22981}",
        r"\boxed{(340 + (3))(70 - 3) = 22981}",
        r"\boxed{(340 + 3)(70 - 3) = " + "9" * 90 + "}",
    ],
)
def test_anything_else_is_no_decomposition(response):
    assert PRODUCTS.verify(PRODUCT, response).reward == 0.0


@given(
    st.one_of(
        st.text(),
        st.text("\\boxed{}()+-=*,0123456789/ xy").map(lambda text: f"\\boxed{{{text}}}"),
    )
)
def test_reading_never_raises(response):
    for domain, problem in ((POLYNOMIALS, CURVE), (PRODUCTS, PRODUCT)):
        verdict = domain.verify(problem, response)
        assert verdict.reward in (0.0, 1.0)
        assert verdict.reward == 0 or domain.strategy(problem, response)


@pytest.mark.parametrize("domain", [POLYNOMIALS, PRODUCTS, MultiplicationWords(num_problems=50, max_a=120)])
def test_problems_are_fixed_and_split(domain):
    train, heldout = domain.problems("train"), domain.problems("heldout")
    assert domain.problems("train") == train
    ids = {p.problem_id for p in train} | {p.problem_id for p in heldout}
    assert len(ids) == len(train) + len(heldout)
    assert len(heldout) == round(0.1 * len(ids))


def test_what_is_asked():
    prompts = {p.problem_id: p.prompt for s in ("train", "heldout") for p in POLYNOMIALS.problems(s)}
    for (b, c), equation in {
        (3, 7): "y = x^2 + 3x + 7",
        (-1, 7): "y = x^2 - x + 7",
        (1, 0): "y = x^2 + x",
        (0, 0): "y = x^2",
    }.items():
        assert f"on the curve {equation}. Any" in prompts[f"polynomial-words:{b}:{c}"]
    chat = MultiplicationWords(num_problems=10, chat=True, system_prompt="Be brief.").problems("train")[0]
    assert [m["role"] for m in chat.prompt] == ["system", "user"]
    assert f"Compute {chat.metadata['a']} * {chat.metadata['b']} by" in chat.prompt[1]["content"]
    with pytest.raises(ValidationError, match="min_a 500 must not exceed max_a 400"):
        MultiplicationWords(min_a=500, max_a=400)
