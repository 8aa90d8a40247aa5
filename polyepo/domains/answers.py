r"""Where a response's final answer stands: in its last \boxed{...}, else on an "Answer: ..." or "#### ..." line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from polyepo.domains.references import MAX_CHARACTERS

_MAX_WRITTEN = 4 * MAX_CHARACTERS  # with its markup
_MAX_LINES = 50  # "Answer:" lines that are looked at, from the end

# Markdown around a label, a box's own mark, a tick: anything but words may stand before it on its line.
_ANSWER_LINE = re.compile(
    r"^(?:[^\w\n]|_)*(?:(?:the|my) )?(?:final )?(?:answer|答案)(?: is)?(?:[*_ \t]*[:：]|[*_ \t]*$)",
    re.IGNORECASE | re.MULTILINE,
)
_GSM8K_MARK = re.compile(r"(?<!#)####(?!#)")
_DECORATION = "*_` \t\r\n"
_BLOCKS = ((r"\[", r"\]"), ("$$", "$$"), ("```", "```"))

_PREFIX = re.compile(
    r"(?:(?:so|thus|therefore|hence),? )?(?:(?:the|my) )?(?:(?:final|correct) )?"
    r"(?:answer|result|value|option|choice|solution|total|sum)s?(?: is| are| =|:)+ *"
    r"|[a-z ,']{1,60}? (?:is|are|equals):? +",
    re.IGNORECASE,
)
_MATHS = re.compile(r"(?<!\\)\$+([^$\n]+?)(?<!\\)\$+|\\\(([^\n]+?)\\\)")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}(?![A-Za-z])")
_AMOUNT = re.compile(r"(?<![\w.^])\\?\$?[-+−]?(?:[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?|\.[0-9]+)(?:/[0-9]+)?(?: ?\\?%)?")
_DIGITS_OR_SIGNS = re.compile(r"(?<![_^])[0-9]|[+*/]|(?<![A-Za-z])[-−]|[-−](?![A-Za-z])")
_LABELLED_NUMBER = re.compile(r"\b(?:step|part|case|problem|question|option|section|no\.?)\s*[0-9]", re.IGNORECASE)

_OTHER_NUMBER = re.compile(  # 2 million is not 2, and 3 and a half is not 3
    r"\b(?:half|quarter|third|dozen|hundred|thousand|million|billion|trillion|minus|negative|below)s?\b", re.IGNORECASE
)

HEDGE = re.compile(
    r"(?<![A-Za-z])(?:or|if|maybe|perhaps|possibly|probably|either|else|otherwise|unless|not|when|but|except|even|odd|"
    r"least|most|about|around|zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve)(?![A-Za-z])",
    re.IGNORECASE,
)
"""Words after which a number is no longer the answer: a condition, a doubt, an alternative, another number."""

# Between two boxes that belong together: nothing but `and`, `or`, signs of a formula, and a label such as x_2 =.
_JOINT = re.compile(
    r"(?:[\s$,;&*{}和或、-]|\\[\[\]()\\,;:! ]|\\q?quad|\\text|\b(?:and|or|also)\b|[A-Za-z](?:_\{?\w{1,3}\}?)? *=)*",
    re.IGNORECASE,
)
_EQUALS = re.compile(r"[\s$]*(?:\\[\[\]()]|[\s$])*=(?:\\[\[\]()]|[\s$])*")
_MAX_BETWEEN = 80


class _Box(NamedTuple):
    start: int
    end: int
    text: str


def final_answer(response: str, num_values: int = 1) -> str | None:
    r"""The answer that a response ends with, or None: none is there, or it is overlong.

    The last box counts. Boxes with nothing between them but "and" or "or" are one answer; a box in a box is its
    contents; an explicit answer line after the last box counts in its stead, if what it says is an answer.

    Args:
        response: any text.
        num_values: how many values the problem asks for. If more than one, and the last box holds one, then the last
            ones are read together: roots given one by one, as \boxed{2} and \boxed{3}.
    """
    boxes = _boxes(response)
    answer = _boxed_answer(response, boxes, num_values) if boxes else ""
    line = _line_answer(response, boxes[-1].end if boxes else 0)
    if line and (not boxes or not _is_prose(line)):
        answer = line
    answer = answer.strip()
    return answer if 0 < len(answer) <= MAX_CHARACTERS else None


def all_answers(response: str) -> list[str]:
    """Every distinct boxed answer, or every one of an answer line if none is boxed, in order of appearance."""
    boxes = [box.text for box in _boxes(response)]
    found = boxes or [value for _, value in sorted(_lines(response, 0)) if value]
    return list(dict.fromkeys(answer for answer in found if len(answer) <= MAX_CHARACTERS))


def num_values(reference: str) -> int:
    """How many values a reference lists: 2 of `2, 3` or `x=2 or x=3`, 1 of a number, a pair `(2, 3)` or `1,000`."""
    text = re.sub(r"\\text\s*\{\s*(?:and|or)\s*\}|\b(?:and|or)\b", ",", reference.strip("$. "))
    text = re.sub(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))|\{,\}", "", text)
    text = re.sub(r"\\left|\\right", "", text).strip()
    if text.startswith(r"\{") and text.endswith(r"\}"):
        text = text[2:-2]
    depth, count = 0, 1
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        count += character in ",;" and depth == 0
    return count


def _boxes(text: str) -> list[_Box]:
    found: list[_Box] = []
    open_braces: list[tuple[int, int] | None] = []  # where a box and its contents start; None for any other brace
    for brace in re.finditer(r"\\(?:boxed|fbox)\s*\{|[{}]", text):
        if brace.group() != "}":
            open_braces.append((brace.start(), brace.end()) if brace.group() != "{" else None)
        elif open_braces:
            box = open_braces.pop()
            if box is not None and brace.start() - box[1] <= _MAX_WRITTEN:
                while found and found[-1].start > box[0]:
                    found.pop()  # it lies in this one
                contents = re.sub(r"\\(?:boxed|fbox)\s*(?=\{)", "", text[box[1] : brace.start()]).strip()
                if contents and not contents.startswith(r"\phantom"):
                    found.append(_Box(box[0], brace.end(), _value(contents)))
    return found


def _boxed_answer(response: str, boxes: list[_Box], num_values: int) -> str:
    answer, start = boxes[-1].text, boxes[-1].start
    for box in reversed(boxes[:-1]):
        between = response[box.end : start] if start - box.end <= _MAX_BETWEEN else "far"
        if _EQUALS.fullmatch(between):
            answer = f"{box.text} = {answer}"
        elif _JOINT.fullmatch(between):
            if box.text not in answer.split(", "):
                answer = f"{box.text}, {answer}"
        else:
            break
        start = box.start
        if len(answer) > MAX_CHARACTERS:
            return answer
    if num_values > 1 and answer == boxes[-1].text and not re.search(r"[,;]|\bor\b|\band\b|\\pm", answer):
        values = list(dict.fromkeys(box.text for box in reversed(boxes[-_MAX_LINES:])))[:num_values]
        return ", ".join(reversed(values))
    return answer


def _line_answer(response: str, start: int) -> str:
    """What the last answer line after `start` says, one with a value before one with only words."""
    lines = [value for _, value in sorted(_lines(response, start), reverse=True) if re.search(r"\w", value)]
    return next((value for value in lines if not _is_prose(value)), lines[0] if lines else "")


def _lines(response: str, start: int) -> Iterator[tuple[int, str]]:
    for pattern in (_ANSWER_LINE, _GSM8K_MARK):
        for mark in [*pattern.finditer(response, start)][-_MAX_LINES:]:
            written = response[mark.end() : mark.end() + _MAX_WRITTEN]
            value = _value(_first_line(written, own_line=pattern is _GSM8K_MARK))
            if not (pattern is _GSM8K_MARK and _ANSWER_LINE.match(f"#{value}")):
                yield mark.start(), value


def _first_line(text: str, own_line: bool) -> str:
    """The line that a label is for: its own if anything stands there, else the next one that holds anything."""
    if own_line:
        return text.split("\n", 1)[0]
    text = text.lstrip("*_ \t")
    if text[:1] in ("\r", "\n"):
        text = re.sub(r"^(?:[-*+>] +)+", "", text.lstrip())  # what stands there may be an item of a list
    text = text.lstrip("*_ \t>")
    for opening, closing in _BLOCKS:
        if text.startswith(opening):
            inside = text.removeprefix(opening).split(closing, 1)[0]
            if opening == "```" and "\n" in inside:
                inside = inside.split("\n", 1)[1]  # the first line names a language
            return inside.strip().replace("\n", " ")
    return text.split("\n", 1)[0]


def _value(text: str) -> str:
    r"""What a box or an answer line says: `The value is $3$` is 3, and so is `3 and that is all of it`.

    Only where one value is there and nothing casts doubt on it; else all of it stays, so that `3 or 5` is no 3.
    """
    text = _trimmed(text)
    if len(text) > _MAX_WRITTEN:
        return text
    text = _trimmed(_PREFIX.sub("", text, count=1)) or text
    maths = [first or second for first, second in _MATHS.findall(text)]
    around = _MATHS.sub(" ", text)
    if maths and not _DIGITS_OR_SIGNS.search(around) and not HEDGE.search(around) and len(set(maths)) == 1:
        return _trimmed(maths[0])
    if maths:
        text = _MATHS.sub(lambda found: found[1] or found[2], text)
    elif _is_prose(text) and not any(p.search(text) for p in (HEDGE, _OTHER_NUMBER, _LABELLED_NUMBER)):
        amounts = _AMOUNT.findall(text)
        if len(amounts) == 1 and len(re.findall(r"[0-9]+", text)) == len(re.findall(r"[0-9]+", amounts[0])):
            return amounts[0].strip()
    return text


def _is_prose(text: str) -> bool:
    r"""Whether this is a sentence or a heading: three words outside of formulas, or two with nothing to count."""
    words = _WORD.findall(re.sub(r"\\(?:text|mathrm|operatorname)\s*\{[^{}]*\}", "", text))
    few = len(words) == 2 and ("," in text or not re.search(r"[0-9]", text))
    return len(words) >= 3 or few or bool(_LABELLED_NUMBER.match(text))


def _trimmed(text: str) -> str:
    """Without marks around it or a full stop after it; a dot before it is part of .5."""
    text = text.strip(_DECORATION).rstrip(_DECORATION + ".。")
    if text.endswith("|") and text.count("|") % 2:  # the end of a table's row
        text = text[:-1].strip(_DECORATION)
    if text.endswith(")") and text.count(")") > text.count("(") and "[" not in text:
        text = text[:-1]
    if "$" not in text.strip("$") or text.count("$") % 2:
        text = text.strip("$").strip(_DECORATION).rstrip(".。")
    for opening, closing in ((r"\(", r"\)"), (r"\[", r"\]")):
        if text.startswith(opening) and text.endswith(closing):
            text = text[2:-2].strip()
    return text.rstrip("\\").rstrip() if text.endswith("\\") and not text.endswith("\\\\") else text
