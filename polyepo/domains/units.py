r"""Units of answers: `5 \text{ cm}`, `\$18`, `30^\circ`, `12.5\%`, `2 million dollars`.

A unit that only one of two answers names does not make them differ; two different ones do. One letter is a unit only
as text (`5\text{ m}`): otherwise it is a variable (`5m`).
"""

from __future__ import annotations

import re
from typing import NamedTuple

from polyepo.domains.answers import HEDGE

# Written in any of these ways, a unit is the first of its row.
_SAME = """
m meter metre | cm centimeter centimetre | mm millimeter millimetre | km kilometer kilometre | inch in | ft foot feet
yard yd | mile mi | g gram gramme | kg kilogram | mg milligram | lb pound lbs | ounce oz | l liter litre | ml milliliter
s second sec | minute min | hour hr h | day | week | month | year yr | dollar usd bucks | cent ¢ | euro eur | gbp
degree deg | radian rad | percent pct percentage | newton n | joule j | watt w | kw | volt v | hz hertz | mph | mps
unit | people person | kmh kph | celsius | fahrenheit | kelvin | gallon gal | acre | rupee rs
"""
_CANONICAL = {
    word: row.split()[0] for line in _SAME.strip().split("\n") for row in line.split("|") for word in row.split()
}
_PLAIN = {word for word in _CANONICAL if len(word) > 1} - {"in", "min"}  # known without \text; \min is a function
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_MATHS = re.compile("pi|sin|cos|tan|sec|csc|cot|log|ln|exp|sqrt|mod|alpha|beta|gamma|delta|theta|lambda|infinity")

_CURRENCY = {r"\$": "dollar", "$": "dollar", "£": "gbp", "€": "euro", "₹": "rupee", "¥": "yen", "¢": "cent"}
_BEFORE = re.compile(r"(-?)\s*(\\?\$|[£€₹¥])\s*(?=[-0-9.\\(])")
_AFTER = re.compile(r"\s*(\\?\$|[£€₹¥¢])$")
_PERCENT = re.compile(r"\s*(?:%|\\text\{\s*(?:percent|percentage|pct)\s*\}|(?<![a-zA-Z])(?:percent|pct))$")
_DEGREES = re.compile(r"\s*\^\\circ\s*(?:\\text\{\s*)?([CFK]?)\s*\}?$")
_MODULUS = re.compile(r"\s*\(?\s*\\?[pb]?mod\s*\{?\s*([0-9a-z]+)\s*\}?\s*\)?$")
_AS_TEXT = re.compile(
    r"((?:\s*(?:/|\\cdot|\\times)?\s*\\text\{[A-Za-z\s./'^0-9-]+\}\s*(?:\^\{?-?[0-9]\}?)?)+)(?:\s*/\s*([A-Za-z]))?$"
)
_AS_WORDS = re.compile(
    r"(?<=[0-9})!])(\s*)([A-Za-z][A-Za-z.'-]*(?:\^\{?-?[0-9]\}?)?(?:(?:\s+|\s*/\s*)[A-Za-z][A-Za-z.'-]*(?:\^\{?-?[0-9]\}?)?){0,7})$"
)


class Quantity(NamedTuple):
    """A value and its unit in canonical form, or None."""

    value: str
    unit: str | None


def quantity(text: str) -> Quantity:
    """What an answer (in the one notation) says without its unit, and the unit."""
    unit: str | None = None
    if found := _BEFORE.match(text):
        text, unit = found[1] + text[found.end() :], _CURRENCY[found[2]]
    elif found := _AFTER.search(text):
        text, unit = text[: found.start()], _CURRENCY[found[1]]
    if found := _PERCENT.search(text):
        return Quantity(text[: found.start()].strip(), "percent")
    if found := _DEGREES.search(text):
        return Quantity(
            text[: found.start()].strip(), "degree" + {"C": " celsius", "F": " fahrenheit"}.get(found[1], "")
        )
    if found := _MODULUS.search(text):
        return Quantity(text[: found.start()].strip(), f"mod {found[1]}")
    words = _words(text)
    if words is None:
        return Quantity(text.strip(), unit)
    text, named = words
    scale = named.split()[0].lower() if named else ""
    if scale in _SCALES:
        text, named = rf"({text}) \cdot 10^{{{_SCALES[scale]}}}", named[len(scale) :].strip()
    return Quantity(text.strip(), _canonical(named) or unit)


def compatible(one: str | None, other: str | None) -> bool:
    """Whether two units do not contradict: one is missing, they are the same, or one describes the other's more.

    `apples` and `red apples` are compatible, `cm` and `m` or `cm^2` are not.
    """
    if one is None or other is None or one == other:
        return True
    mine, yours = one.split(), other.split()
    if set(mine) <= set(yours) or set(yours) <= set(mine):
        return not any(_is_measure(word) for word in set(mine) ^ set(yours))
    return False


def _is_measure(word: str) -> bool:
    return word.startswith("/") or word.split("^")[0] in _CANONICAL.values() or "^" in word


def _words(text: str) -> tuple[str, str] | None:
    """The text before trailing words that can be a unit, and these words."""
    if found := _AS_TEXT.search(text):
        named = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", found[1]).replace(r"\cdot", " ") + (
            f" / {found[2]}" if found[2] else ""
        )
        if text[: found.start()].strip() and not HEDGE.search(named):
            return text[: found.start()], named.strip()
    if (found := _AS_WORDS.search(text)) and not HEDGE.search(found[2]):
        words = re.findall(r"[A-Za-z]+", found[2])
        known = words[0].lower() in _PLAIN and all(w.lower() in _CANONICAL or w.lower() == "per" for w in words)
        known = known or (bool(found[1]) and "/" in found[2] and all(word in _CANONICAL for word in words))
        sentence = bool(found[1]) and len(words[0]) > 2 and not any(map(_MATHS.fullmatch, words))
        if known or sentence or (found[1] and words[0].lower() in _SCALES):
            return text[: found.start()], found[2].strip()
    return None


def _canonical(named: str) -> str | None:
    """Words in order, each by its canonical name, with exponents: `square meters per second` is `m^2 /s`."""
    named = re.sub(r"\^\s*\{?(-?[0-9])\}?", r"^\1 ", named)
    named = re.sub(r"\bper\b|/", " / ", named)
    found: list[str] = []
    power, slash = "", ""
    for word in re.findall(r"/|[A-Za-z.'-]+|\^-?[0-9]", named):
        lower = word.strip(".'-").lower()
        if word == "/":
            slash = "/"
        elif word.startswith("^") and found:
            found[-1] += word
        elif lower in ("square", "sq", "cubic", "cu"):
            power = "^2" if lower.startswith("s") else "^3"
        elif lower and lower not in ("of", "the", "a", "an", "and", "in", "total", "is", "are"):
            found.append(slash + _canonical_word(word.strip(".'-")) + power)
            power, slash = "", ""
    return " ".join(found) + (f" unit{power}" if power else "") or None


def _canonical_word(word: str) -> str:
    if len(word) <= 2 and word in _CANONICAL:
        return _CANONICAL[word]
    if len(word) == 1:
        return word  # M is no m
    lower = word.lower()
    for form in (lower, lower.removesuffix("s"), lower.removesuffix("es")):
        if form in _CANONICAL:
            return _CANONICAL[form]
    return lower.removesuffix("s")
