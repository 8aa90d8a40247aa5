"""Reference answers: what a data set's answer column says, as one text to compare with, or why it is no answer."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

MAX_CHARACTERS = 200
"""Longer answers are not read, in a data set or in a response."""

_MAX_WORDS = 12  # the longest answers in words that can be compared describe a set: "f(x) = ax, where a is any ..."

_BRACE = re.compile(r"\\\\|\\[{}]|\\(?:boxed|fbox)\s*\{|[{}]")
_BARE_BOX = re.compile(r"\\boxed\s+([^\s{}$,;]+)")  # \boxed 5, in solutions of MATH
_FORMULA = re.compile(r"(?<!\\)\$+[^$]*(?<!\\)\$+|\\\(.*?\\\)|\\\[.*?\\\]", re.DOTALL)
_DOLLARS = re.compile(r"(?<!\\)\$+")
_THOUSANDS = re.compile(r"[-+]?(?:\\?\$)?[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?")
_SHORT_LIST = re.compile(r"\[\s*(?:[-+]?[0-9]+(?:\.[0-9]+)?)?\s*\]")
_TEXT_COMMAND = re.compile(r"\\(?:text\w*|mbox|mathrm|operatorname)\s*\{([^{}]*)\}")
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\s*\{\w+\*?\}(?:\{[lcr|]*\})?")
_COMMAND = re.compile(r"\\[a-zA-Z]+")

# In lower case, without marks and commands around. "No solution" and "none of these" are answers.
_PLACEHOLDER = re.compile(
    r"(?:(?:a )?proof(?: omitted| problem| question| required)?|proved|q\.?e\.?d|\\(?:black)?square|n[./]a|"
    r"(?:no|not)[ _-]?(?:found|available|applicable|provided|given|answer)|none|null|nan|unknown|missing|answer|"
    r"solution|omitted|todo|tbd|answers? (?:may |will )?var(?:y|ies)|略|证明略|见解析|[-–—?….∎□■_/*]+)[ .]*"
)
_ELSEWHERE = re.compile(
    r"!\[[^\]]*\]\(|<img\b|\bhttps?://|\\includegraphics\b|^\W*(?:see|refer to|as (?:shown|above|below)|shown above)\b",
    re.IGNORECASE,
)
_ARGUMENT = re.compile(
    r"\b(?:proof|prove[dns]?|q\.?e\.?d|hence|therefore|thus|because|since|suppose|assume|we|follows|shown)\b",
    re.IGNORECASE,
)
_HEADING = re.compile(r"^#{1,6}\s", re.MULTILINE)
_NEXT_SENTENCE = re.compile(r"(?:\b[a-z]{3,}|[0-9\x00)}\]])[.!?]\s+[A-Z][a-z]*\b")
_SENTENCE = re.compile(
    r"[A-Z][a-z]*\b.*\b(?:is|are|was|were|has|have|had|can|cannot|must|will|would|should|does|do|did|holds|gives|exists|"
    r"equals)\b",
    re.DOTALL,
)


def reference_answer(value: Any) -> str:
    r"""The answer that a column's value gives.

    A solution's answer is what it boxes (all of it, if it boxes several values in one paragraph) or writes after ####
    in its last line; of a list (or JSON of one) with more than one element, the elements with commas between them,
    which is how a set of answers is written; of {"ground_truth": ...}, that.

    Raises:
        ValueError: it is empty, a placeholder such as "proof", prose, overlong or unclear; the message says which.
    """
    answers = [_answer(_written(item)) for item in _items(value)]
    if len(answers) > 1:
        answers = [", ".join(map(_element, answers))]
    if not answers or not answers[0]:
        raise ValueError("the answer is empty")
    _check(answers[0])
    return answers[0]


def number_text(value: float | Decimal) -> str:
    """A finite number as people write it: no exponent, no fraction that is 0."""
    text = format(Decimal(repr(value)) if isinstance(value, float) else value, "f")
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text


def _items(value: Any) -> list[Any]:
    """The answers in a column: one, unless it holds a list of several."""
    if isinstance(value, dict) and "ground_truth" in value:  # verl's reward_model
        return _items(value["ground_truth"])
    if isinstance(value, str):
        listed = _list_in(value.strip())
        return [value] if listed is None else _items(listed)
    if isinstance(value, list | tuple):
        items = [item for item in value if not _is_missing(item)]
        if len(items) == 1:
            return _items(items[0])
        if any(isinstance(item, list | tuple) for item in items):
            raise ValueError(f"the answer is a list of lists, and how they belong together is unclear: {_shown(value)}")
        return items
    return [] if _is_missing(value) else [value]


def _is_missing(value: Any) -> bool:
    return value in (None, "", {}) or (isinstance(value, float | Decimal) and math.isnan(value))


def _list_in(text: str) -> list[Any] | None:
    """The list that a text writes in JSON or Python; None for an interval or coordinates, such as [0, 1]."""
    if not (text.startswith("[") and text.endswith("]")):
        return None
    if "'" not in text and '"' not in text and not _SHORT_LIST.fullmatch(text):
        return None
    for escaped in (text, text.replace("\\", "\\\\")):  # LaTeX that nobody escaped: "\theta" would start with a tab
        for read in (json.loads, ast.literal_eval):
            try:
                found = read(escaped)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
            if isinstance(found, list) and all(map(_is_clean, _strings(found))):
                return found
    return None


def _is_clean(text: str) -> bool:
    return not set(text) & set("\a\b\f\n\r\t\v")


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def _written(value: Any) -> str:
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool | int):
        return str(value)
    if isinstance(value, float | Decimal) and math.isfinite(value):
        return number_text(value)
    raise ValueError(f"the answer must be text, a number or a list of them, and is {_shown(value)}")


def _answer(text: str) -> str:
    """What a text gives as its answer: its boxes, what stands behind #### in its last line, or itself."""
    boxes = sorted(_boxes(text))
    different = {"".join(content.split()): content for *_, content in boxes}
    if len(different) == 1:
        return different.popitem()[1]
    if different:
        if re.search(r"\n\s*\n", text[boxes[0][0] : boxes[-1][1]]):
            raise ValueError(
                f"the solution boxes different values in different paragraphs, {_shown(list(different.values()))}, and "
                "which of them are the answer is unclear"
            )
        return ", ".join(map(_element, different.values()))
    _, mark, last = text.rpartition("####")
    if mark and "\n" not in last.strip():
        last = last.strip()
        return last.replace(",", "") if _THOUSANDS.fullmatch(last) else last
    return text


def _boxes(text: str) -> Iterator[tuple[int, int, str]]:
    r"""Start, end and contents of every \boxed{...} that holds something, but no other box."""
    for bare in _BARE_BOX.finditer(text):
        yield bare.start(), bare.end(), bare.group(1).rstrip(".")
    open_braces: list[tuple[int, int] | None] = []  # where a box and its contents start; None for any other brace
    last = -1
    for found in _BRACE.finditer(text):
        mark = found.group()
        if mark == "}" and open_braces:
            box = open_braces.pop()
            content = text[box[1] : found.start()].strip() if box and box[0] > last else ""
            if box and content:
                last = box[0]
                yield box[0], found.end(), content
        elif mark.endswith("{") and mark != "\\{":
            open_braces.append((found.start(), found.end()) if mark != "{" else None)


def _element(answer: str) -> str:
    """One of several answers: without $, and without commas of its own in a number."""
    return _THOUSANDS.sub(lambda number: number.group().replace(",", ""), _DOLLARS.sub("", answer)).strip(" .")


def _check(answer: str) -> None:
    """Raises ValueError if a text is nothing that a response's final answer can be equal to."""
    if len(answer) > MAX_CHARACTERS:
        raise ValueError(
            f"the answer has {len(answer)} characters, and responses are read up to {MAX_CHARACTERS}; it must be an "
            "answer, or a solution with one in \\boxed{} or after ####"
        )
    plain = _TEXT_COMMAND.sub(r"\1", answer).strip("$*_` \n!()[]{}").casefold()
    if _PLACEHOLDER.fullmatch(plain):
        raise ValueError(f"the answer {answer!r} is a placeholder")
    if _ELSEWHERE.search(answer):
        raise ValueError(f"the answer {answer!r} is to be found elsewhere")
    if "\\boxed" in answer:
        raise ValueError(f"the answer {answer!r} has a box that is empty or not closed")
    prose = _TEXT_COMMAND.sub(r" \1 ", _ENVIRONMENT.sub("", _FORMULA.sub(" \x00 ", answer)))
    words = re.findall(r"\x00|[0-9]+|[^\W\d_]{2,}", _COMMAND.sub(" ", prose))
    num_words = sum(word[0].isalpha() for word in words)
    is_sentence = len(words) > 3 and _SENTENCE.match(prose)
    if (
        num_words > _MAX_WORDS
        or is_sentence
        or any(sign.search(prose) for sign in (_ARGUMENT, _HEADING, _NEXT_SENTENCE))
    ):
        raise ValueError(
            f"the answer {answer!r} is prose, which no response's answer is equal to; it must be an answer, or a "
            "solution with one in \\boxed{} or after ####"
        )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}…"
