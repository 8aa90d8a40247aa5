"""The request: one problem and its responses as data that cannot leave their delimiters."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

import numpy as np

from polyepo.domains import Problem
from polyepo.seeds import derive_seed

RENDERING_VERSION = 1
"""Part of the judge's id: count up when the same template would give another request."""
CUT = "[... cut ...]"
PLACEHOLDERS = ("count", "nonce", "cut", "examples", "ids")
MESSAGE_TOKENS = 8
"""Of what a chat template puts around a message."""
_BYTES_PER_TOKEN = 3
_LETTERS = "bcdfghjkmnpqrstvwxz"

# What could be read as a tag or as a chat template's special token: <|im_start|>, <s>, </response>, [INST], <<SYS>>.
_TAG = re.compile(r"<(?=[A-Za-z/|!_<｜])")
_BRACKET_TOKEN = re.compile(r"\[(?=/?[A-Z_]{3,}\])")
_TOKEN_END = re.compile(r"(?<=[|｜])>")


class Request(NamedTuple):
    """A request about some texts, which stand in it under the ids in `id_of` (text -> id)."""

    messages: list[dict[str, str]]
    id_of: dict[str, str]
    nonce: str


def render(
    template: str, domain: str, problem: Problem, texts: Sequence[str], seed: int, max_response_tokens: int
) -> Request:
    """The request about distinct texts. It depends on their set alone, not on their order.

    Ids, the order and the delimiters' nonce are drawn from the seed and all of the content, so that no response can
    foresee them; the nonce stands in no text.
    """
    shown = {text: shorten(neutralise(text), max_response_tokens)[0] for text in sorted(texts)}
    question = neutralise(_prompt_text(problem))
    rng = np.random.default_rng(derive_seed(seed, problem.problem_id, question, *sorted(texts)))
    everything = "\n".join([question, *shown.values()]).lower()
    nonce = _word(rng, 10)
    while nonce in everything:
        nonce = _word(rng, 10)
    ids: list[str] = []
    while len(ids) < len(shown):
        if (word := _word(rng, 4)) not in ids:
            ids.append(word)
    order = rng.permutation(len(shown))
    ordered = [list(shown)[i] for i in order]
    id_of = dict(zip(ordered, ids, strict=True))
    values = {
        "count": str(len(ids)),
        "nonce": nonce,
        "cut": CUT,
        "examples": examples(domain),
        "ids": ", ".join(ids),
    }
    # One pass: what was put in is not searched again.
    instructions = re.sub(r"\{(" + "|".join(PLACEHOLDERS) + r")\}", lambda match: values[match[1]], template)
    items = [f'<response-{nonce} id="{id_of[text]}">\n{shown[text]}\n</response-{nonce}>' for text in ordered]
    data = "\n\n".join([f"<problem-{nonce}>\n{question}\n</problem-{nonce}>", *items])
    return Request([{"role": "system", "content": instructions}, {"role": "user", "content": data}], id_of, nonce)


def repair_messages(request: Request, reply: str, error: str) -> list[dict[str, str]]:
    """The request again, with the reply that could not be used and what is wrong with it."""
    return [
        *request.messages,
        {"role": "assistant", "content": shorten(neutralise(reply), 1000)[0]},
        {"role": "user", "content": f"That reply cannot be used: {error}. Give the whole corrected JSON object only."},
    ]


def neutralise(text: str) -> str:
    """The text, readable, but with nothing that a chat template, a delimiter or a display would act upon."""
    text = visible(text)
    text = _TAG.sub("< ", text)
    text = _BRACKET_TOKEN.sub("[ ", text)
    return _TOKEN_END.sub(" >", text)


def visible(text: str) -> str:
    """The text with control, format (bidirectional, zero-width), surrogate and unassigned characters spelled out."""
    text = text.replace("\r\n", "\n")
    if text.isascii() and text.replace("\n", "").replace("\t", "").isprintable():
        return text
    return "".join(f"[U+{ord(c):04X}]" if _hidden(c) else c for c in text)


def shorten(text: str, max_tokens: int) -> tuple[str, bool]:
    """Head and tail of a text that is longer than a number of (estimated) tokens, and whether it was cut."""
    limit = max_tokens * _BYTES_PER_TOKEN
    data = text.encode()
    if len(data) <= limit:
        return text, False
    half = limit // 2
    head, tail = data[:half].decode(errors="ignore"), data[-half:].decode(errors="ignore")
    return f"{head}\n{CUT}\n{tail}", True


def estimated_tokens(messages: Sequence[dict[str, str]]) -> int:
    """About how many tokens messages have: three bytes each, which is true of prose; digits take one each."""
    return sum(len(message["content"].encode()) // _BYTES_PER_TOKEN + MESSAGE_TOKENS for message in messages)


@cache
def default_template() -> str:
    """The project's own instructions to the judge."""
    return (resources.files("polyepo.judges.llm") / "template.md").read_text(encoding="utf-8")


@cache
def all_examples() -> str:
    """The examples of every domain, as JSON."""
    return (resources.files("polyepo.judges.llm") / "examples.json").read_text(encoding="utf-8")


@cache
def examples(domain: str) -> str:
    """A worked example for the judge, of the domain if there is one, else of general mathematics."""
    known: dict[str, list[dict[str, Any]]] = json.loads(all_examples())
    lines = []
    for example in known.get(domain, known["maths"]):
        lines.append(f"Example. Problem: {example['problem']}")
        lines += [f'* "{text}" -> {verdict}' for text, verdict in example["responses"]]
    return "\n".join(lines)


def _hidden(character: str) -> bool:
    category = unicodedata.category(character)
    return (category[0] == "C" and character not in "\n\t") or category in ("Zl", "Zp")


def _prompt_text(problem: Problem) -> str:
    if isinstance(problem.prompt, str):
        return problem.prompt
    return "\n".join(f"{message['role']}: {message['content']}" for message in problem.prompt)


def _word(rng: np.random.Generator, length: int) -> str:
    return "".join(_LETTERS[i] for i in rng.integers(len(_LETTERS), size=length))
