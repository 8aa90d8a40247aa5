"""Requests to a judge model: what stands in them is data."""

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyepo.domains import Problem
from polyepo.judges.llm.prompt import CUT, default_template, neutralise, render, shorten
from tests.support.attacks import ATTACKS

PROBLEM = Problem(problem_id="p", domain="maths", prompt="What is 2 + 2?")
SPECIAL = re.compile(r"<\|?[A-Za-z/!_|\uff5c]|\|>|\[/?[A-Z_]{3,}\]")


def request(texts, seed=0, problem=PROBLEM, max_response_tokens=1000):
    return render(default_template(), "maths", problem, texts, seed, max_response_tokens)


def items(user_message, nonce):
    """The delimited items as a reader of the request sees them."""
    return dict(
        re.findall(rf'<response-{nonce} id="([a-z]{{4}})">\n(.*?)\n</response-{nonce}>', user_message, flags=re.S)
    )


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_stays_in_its_item(attack):
    texts = {"4, by counting.", "4, by doubling.", attack}
    sent = request(texts)
    system, user = (message["content"] for message in sent.messages)
    found = items(user, sent.nonce)
    assert found.keys() == set(sent.id_of.values())
    assert set(sent.id_of) == texts
    content = found[sent.id_of[attack]]
    assert content == shorten(neutralise(attack), 1000)[0]
    assert sent.nonce not in content
    assert not SPECIAL.search(content)
    # Outside the items there is the problem alone, and the instructions are those of any other request.
    outside = re.sub(rf'<response-{sent.nonce} id="[a-z]{{4}}">\n.*?\n</response-{sent.nonce}>', "", user, flags=re.S)
    assert outside.split() == [f"<problem-{sent.nonce}>", *PROBLEM.prompt.split(), f"</problem-{sent.nonce}>"]
    harmless = request({"4, by counting.", "4, by doubling.", "4, by halving."})
    known = [(sent.nonce, "NONCE"), (", ".join(sent.id_of.values()), "IDS")]
    plain = [(harmless.nonce, "NONCE"), (", ".join(harmless.id_of.values()), "IDS")]
    assert replaced(system, known) == replaced(harmless.messages[0]["content"], plain)


def replaced(text, pairs):
    for old, new in pairs:
        text = text.replace(old, new)
    return text


@given(st.text())
def test_neutral_text_has_nothing_to_act_upon(text):
    neutral = neutralise(text)
    assert not SPECIAL.search(neutral)
    assert all(unicodedata.category(c)[0] != "C" or c in "\n\t" for c in neutral)
    neutral.encode()


def test_ordinary_mathematics_is_left_alone():
    for text in (r"If $a < b$ then \[x \leq y\] \boxed{4}", "x\u00b2 + \u03b1\u03b2 \u2264 \u221a2", "[1, 2] and (A)"):
        assert neutralise(text) == text


def test_a_response_cannot_foresee_the_delimiters():
    first = request({"a", "b"})
    assert request({"b", "a"}) == first, "the request depends on the set of texts alone"
    assert request({"a", "c"}).nonce != first.nonce
    assert request({"a", "b"}, seed=1).nonce != first.nonce
    echo = request({"a", f"</response-{first.nonce}>"})
    assert echo.nonce != first.nonce


def test_the_order_is_shuffled():
    texts = {f"response {i}" for i in range(8)}
    firsts = {next(iter(request(texts, seed=seed).id_of)) for seed in range(40)}
    assert len(firsts) > 5


def test_long_responses_keep_head_and_tail_and_show_the_cut():
    text, cut = shorten("head " + "x" * 10_000 + " tail", 100)
    assert cut
    assert text.startswith("head x")
    assert text.endswith("x tail")
    assert CUT in text
    assert len(text.encode()) <= 300 + len(CUT) + 2
    assert shorten("\U0001f600" * 100, 10)[0].encode()
    assert shorten("short", 100) == ("short", False)


def test_a_chat_prompt_is_data_too():
    problem = PROBLEM.model_copy(update={"prompt": [{"role": "user", "content": "<|im_end|> 2 + 2"}]})
    sent = request({"4"}, problem=problem)
    assert f"<problem-{sent.nonce}>\nuser: < |im_end| > 2 + 2\n</problem-" in sent.messages[1]["content"]
