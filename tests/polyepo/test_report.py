"""The page: what it holds, what it escapes, and how large it becomes."""

import base64
import hashlib
import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyepo.report import Figure, Prompt, Series, render
from polyepo.report.choose import Candidate, choose, fit
from polyepo.report.divergence import divergence
from polyepo.report.page import MAX_CHARACTERS, packed_size, to_json
from tests.support.pages import HOSTILE, Page, payload, report, response


def test_hostile_text_stays_data():
    prompts = [Prompt(0, "train", 1, text[:90], [response(text)] * 2, reply=text) for text in HOSTILE]
    html = render(report(prompts, problems={text[:90]: text for text in HOSTILE}))
    page = Page(html)
    plain = Page(render(report([])))
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in plain.elements]
    assert not [name for _, attrs in page.elements for name in attrs if name.startswith("on")]
    assert html.isascii() or not re.search(r"[\u202a-\u202e\u2066-\u2069\x00\x1b]", html)
    shown = {s if isinstance(s, str) else s[0] for s in payload(html)["strings"]}
    assert {text[:MAX_CHARACTERS] for text in HOSTILE} <= shown
    assert ["x" * MAX_CHARACTERS, 1_000_000 - MAX_CHARACTERS] in payload(html)["strings"]


def test_only_the_pages_own_scripts_may_run_and_nothing_may_be_fetched():
    page = Page(render(report([])))
    policy = next(a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "connect-src" not in policy
    hashes = set(re.findall(r"'sha256-([^']+)'", policy))
    run = [text for attrs, text in page.scripts if "type" not in attrs]
    assert {base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in run} == hashes
    addresses = [a for _, attrs in page.elements for name, a in attrs.items() if name in ("src", "href")]
    assert not [address for address in addresses if not address.startswith(("#", "data:"))]


@given(st.recursive(st.none() | st.text() | st.integers(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)))
def test_json_survives_and_holds_nothing_that_html_sees(value):
    text = to_json(value)
    assert json.loads(text) == value
    assert text.isascii()
    assert not set("<>&") & set(text)


TOKENS = st.lists(st.lists(st.integers(0, 3), max_size=6), min_size=1, max_size=7)


@given(TOKENS)
def test_where_any_two_responses_part(token_ids):
    words = ["a", "bb", "😀", "é"]  # of 1, 2, 2 and 1 UTF-16 units
    units = [1, 2, 2, 1]
    texts = ["".join(words[t] for t in ids) for ids in token_ids]
    found = divergence(token_ids, texts, lambda ids: "".join(words[t] for t in ids))
    assert sorted(found.order) == list(range(len(token_ids)))
    for i, a in enumerate(token_ids):
        for j, b in enumerate(token_ids):
            if i == j:
                continue
            shared = 0
            while shared < min(len(a), len(b)) and a[shared] == b[shared]:
                shared += 1
            first, last = sorted((found.order.index(i), found.order.index(j)))
            assert min(found.tokens[first:last]) == shared
            assert min(found.units[first:last]) == sum(units[t] for t in a[:shared])


def candidates(steps, prompts, characters=100):
    return [
        Candidate(
            "run", "train", step, f"p{prompt}", 8, characters, prompt % 4, prompt % 5 > 0, prompt == 7, prompt == 9,
            disagree=False,
        )
        for step in range(1, steps + 1)
        for prompt in range(prompts)
    ]  # fmt: skip


def test_all_prompts_are_shown_if_they_fit():
    assert choose(candidates(3, 4), 10**7) == candidates(3, 4)


@given(st.integers(1, 60), st.integers(1, 40), st.integers(0, 10**5))
def test_a_choice_fits_its_budget_and_repeats_nothing(steps, prompts, budget):
    chosen = choose(candidates(steps, prompts), budget)
    assert sum(c.cost for c in chosen) <= budget
    assert len(set(chosen)) == len(chosen)


def test_a_choice_has_the_first_and_last_steps_and_the_rare_kinds():
    chosen = choose(candidates(500, 40), 400_000)
    steps = {c.step for c in chosen}
    assert {1, 500} <= steps < set(range(1, 501))
    assert max(np.diff(sorted(steps))) <= 3 * min(np.diff(sorted(steps)))
    assert {"p7", "p9"} <= {c.problem_id for c in chosen if c.step == 500}


def test_a_thousand_steps_of_long_responses_stay_below_fifteen_megabytes():
    from flows.views.report.prompts import PAGE_BYTES

    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefgh <&é"))

    def read(chosen):
        return [
            Prompt(0, "train", c.step, c.problem_id, [
                response("".join(rng.choice(letters, 2000)), float(rng.random()), i, rng.integers(0, 9, 500).tolist())
                for i in range(8)
            ])
            for c in chosen
        ]  # fmt: skip

    # A quarter of the letters take six bytes: more than was estimated.
    chosen, prompts = fit(candidates(1000, 128, characters=8 * 2000), PAGE_BYTES, read)
    assert packed_size(prompts) <= PAGE_BYTES
    assert {1, 1000} <= {c.step for c in chosen}
    steps = [float(step) for step in range(1, 1001)]
    lines = [Series(f"arm-{i}", steps, rng.random(1000).tolist()) for i in range(4)]
    figures = [Figure(f"f{i}", "health", "title", "caption", "step", "y", "SELECT 1", lines) for i in range(20)]
    size = len(render(report(prompts, figures)).encode())
    assert 5e6 < size < 15e6


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_left_out(value):
    html = render(report([Prompt(0, "train", 1, "p", [response("a", reward=value)])]))
    assert payload(html)["prompts"][0]["w"] == [None]
