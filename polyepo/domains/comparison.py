r"""Whether two mathematical answers say the same: the rules, one after the other, and values by math-verify's parser.

math-verify's own comparison accepts too much for a reward: it rounds to six decimals (2^{-99} is 2^{-98}), takes the
last of `5 = 3`, ignores the base of 101_2 and the case of x, and drops units and one-letter variables. So it is used
for what it does well, reading LaTeX into SymPy and comparing sets and matrices; the structure around values is ours.
Imported by the worker processes alone: it takes seconds to import, and hostile text can make it run for ever.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import sympy

from polyepo.domains.notation import closing, has_two_readings, is_grouped, plain, squeezed, trimmed
from polyepo.domains.units import compatible, quantity
from polyepo.domains.values import as_exact, parsed, same_equation, same_value, within

_MAX_DEPTH = 12
_MAX_ITEMS = 64


def equal(reference: str, answer: str) -> bool:
    """Whether an answer says what the reference says. May raise anything, and take for ever, on hostile text.

    A label (`x = 5`) or a unit of one side alone makes no difference, two different ones do.
    """
    if squeezed(reference) == squeezed(answer):
        return True
    if _same_both_ways(plain(reference), plain(answer), reference, answer):
        return True
    if has_two_readings(reference) or has_two_readings(answer):
        return _same(plain(reference, euler=True), plain(answer, euler=True))
    return False


def _same_both_ways(a: str, b: str, reference: str, answer: str) -> bool:
    # 100,200,300 is one number, unless the other side is a list.
    if is_grouped(reference) and _items(b) is not None:
        a = plain(reference.replace(",", ", "))
    elif is_grouped(answer) and _items(a) is not None:
        b = plain(answer.replace(",", ", "))
    return _same(a, b)


def _same(a: str, b: str, depth: int = 0) -> bool:
    a, b = trimmed(a), trimmed(b)
    if not a or not b or depth > _MAX_DEPTH:
        return False
    if squeezed(a) == squeezed(b):
        return True
    for rule in _RULES:
        verdict = rule(a, b, depth + 1)
        if verdict is not None:
            return verdict
    return not _ELLIPSIS.search(a + b) and same_value(a, b)  # the parser drops an ellipsis


def _without_text(text: str, after: str = "") -> str:
    r"""What stands in \text{...} as if it stood there without."""
    return re.sub(r"\\text\{([^{}]*)\}", rf"\1{after}", text).strip()


# Rules: True or False, or None where the rule has nothing to say. `a` is the reference.


_CHOICE = re.compile(
    r"(?:(?:option|choice) )?(?:\(\s*([A-J])\s*\)|([A-J])\s*(?:[).:]|$))\s*(.*)", re.IGNORECASE | re.DOTALL
)


def _choices(a: str, b: str, depth: int) -> bool | None:
    """`C` is `(C) 12` and `C) 12`; where both give the contents too, these must agree. `c` is no choice."""
    mine, yours = _choice(a), _choice(b)
    if mine and yours:
        return mine[0] == yours[0] and (not mine[1] or not yours[1] or _same(mine[1], yours[1], depth))
    if yours and yours[1] and len(a) > 1:
        return _same(a, yours[1], depth)
    if mine and mine[1] and len(b) > 1:
        return _same(mine[1], b, depth)
    return None


def _choice(text: str) -> tuple[str, str] | None:
    found = _CHOICE.fullmatch(_without_text(text, " "))
    if not found:
        return None
    letter, contents = found[1] or found[2], found[3].strip()
    if not letter.isupper() or re.match(r"[-+*/^=<>_!]|\\(?:cdot|times|pm)", contents):
        return None  # the area A, and what is done with it
    if re.search(r"(?<![A-Za-z])[A-J]\s*\)|(?<![A-Za-z])or\s+\(?[A-J](?![A-Za-z])", contents):
        return None
    return letter, contents


def _words(a: str, b: str, depth: int) -> bool | None:
    """Words are compared as words, whatever their case: to the parser `even` is a product, and so is `neve`."""
    mine, yours = _word(a), _word(b)
    if mine and yours and mine == yours:
        return True
    if mine and yours and max(len(mine), len(yours)) > 3:
        return False
    return None


def _word(text: str) -> str | None:
    text = " ".join(re.sub(r"(?<=[A-Za-z])-(?=[A-Za-z])", " ", _without_text(text)).split())
    is_words = len(text) > 1 and re.fullmatch(r"[A-Za-z][A-Za-z .']*", text) and len(_split(text, _LIST)) == 1
    return text.casefold() if is_words else None


_CLOCK = re.compile(r"([0-9]{1,2})(?::([0-9]{2}))?\s*(?:([ap])\.?\s*m\.?)?", re.IGNORECASE)


def _clocks(a: str, b: str, depth: int) -> bool | None:
    """`9:30 AM` is not `9:30 PM`, and may be written without; 14:30 is 2:30 PM."""
    mine, yours = (_CLOCK.fullmatch(_without_text(text)) for text in (a, b))
    if not mine or not yours or not (mine[3] or yours[3]):
        return None
    times = [(int(t[1]), int(t[2] or 0), t[3] and t[3].lower()) for t in (mine, yours)]
    if all(half for _, _, half in times):
        return times[0] == times[1]
    known, bare = sorted(times, key=lambda time: time[2] is None)
    day = (known[0] % 12 + (12 if known[2] == "p" else 0), known[1])
    return bare[:2] in (known[:2], day)


_RELATION = re.compile(r"\\(?:le|ge)(?![a-zA-Z])|[<>]")


def _inequalities(a: str, b: str, depth: int) -> bool | None:
    r"""`x<1 \text{ or } x>3` is `(-\infty,1)\cup(3,\infty)`, in both directions."""
    if not _RELATION.search(a) and not _RELATION.search(b):
        return None
    first, second = _solution_set(a), _solution_set(b)
    if first is None or second is None:
        return None
    (mine, x), (yours, y) = first, second
    return (x is None or y is None or x == y) and _same_sets(mine, yours)


def _solution_set(text: str) -> tuple[Any, Any] | None:
    """The real numbers that an inequality or a set expression describes, and the variable it does so for."""
    if not _RELATION.search(text):
        text = re.sub(r"^[a-zA-Z]\s*(?:\\in(?![a-zA-Z])|=)", "", text)
        found = parsed(text)
        return (found, None) if isinstance(found, sympy.Set) else None
    union: Any = sympy.S.EmptySet
    variable = None
    for case in _split(text, r"\bor\b|\\cup(?![a-zA-Z])|\\lor(?![a-zA-Z])"):
        part: Any = sympy.S.Reals
        for relation in _split(case, r"\band\b|,|\\land(?![a-zA-Z])"):
            found = parsed(re.sub(r"^\{|\}$", "", relation.strip()))
            symbols: set[Any] = getattr(found, "free_symbols", set())
            if len(symbols) != 1 or not hasattr(found, "as_set") or (variable or symbols) != symbols:
                return None
            variable = symbols
            real = sympy.Symbol("x", real=True)
            for single in getattr(found, "_unsorted_args", [found]):
                part = part & as_exact(single).subs(next(iter(symbols)), real).as_set()
        union = union | part
    return union, variable


def _same_sets(mine: Any, yours: Any) -> bool:
    try:
        difference = sympy.SymmetricDifference(as_exact(mine.doit()), as_exact(yours.doit()))
        return bool(mine == yours or difference.doit().is_empty)
    except (TypeError, NotImplementedError):
        return False


_SET_OPERATION = re.compile(r"\\(?:cup|cap|setminus|mathbb|emptyset|varnothing)(?![a-zA-Z])")


def _set_expressions(a: str, b: str, depth: int) -> bool | None:
    """Unions and the like are the library's; its commas are no lists."""
    if not _SET_OPERATION.search(a) and not _SET_OPERATION.search(b):
        return None
    mine, yours = (parsed(re.sub(r"^[a-zA-Z]\s*(?:\\in(?![a-zA-Z])|=)", "", text)) for text in (a, b))
    if isinstance(mine, sympy.Set) and isinstance(yours, sympy.Set):
        return _same_sets(mine, yours)
    return None


def _signs(a: str, b: str, depth: int) -> bool | None:
    r"""`1 \pm x` is the two values `1 + x, 1 - x`."""
    if not re.search(r"\\[pm]{2}(?![a-zA-Z])", a + b):
        return None
    return _same(_both_signs(a), _both_signs(b), depth)


def _both_signs(text: str) -> str:
    found = re.search(r"\\(?:pm|mp)(?![a-zA-Z])", text)
    if not found:
        return text
    items = []
    for item in _split(text, ","):
        first, second = (re.sub(r"\\pm(?![a-zA-Z])", p, re.sub(r"\\mp(?![a-zA-Z])", m, item)) for p, m in ("+-", "-+"))
        items += [first] if first == second else [first, second]
    return ", ".join(items)


_LIST = r"[,;]|\bor\b|\band\b"
_ELLIPSIS = re.compile(r"\\ldots(?![a-zA-Z])")


class _Collection(NamedTuple):
    kind: str
    """"list" without brackets, "set" in braces, or its brackets, such as "()" and "[)"."""
    items: list[str]


def _collections(a: str, b: str, depth: int) -> bool | None:
    """Lists and sets in any order; tuples, vectors and intervals in theirs. A set is no tuple, (1,2) is not [1,2]."""
    mine, yours = _items(a), _items(b)
    if mine is None and yours is None:
        return None
    mine, yours = mine or _Collection("list", [a]), yours or _Collection("list", [b])
    if max(len(mine.items), len(yours.items)) > _MAX_ITEMS:
        return False
    unordered = {"list", "set"}
    if mine.kind in unordered and yours.kind in unordered and not _ELLIPSIS.search(a + b):
        return all(any(_same(x, y, depth) for y in yours.items) for x in mine.items) and all(
            any(_same(x, y, depth) for x in mine.items) for y in yours.items
        )
    bare_for_tuple = {mine.kind, yours.kind} == {"list", "()"}
    if mine.kind != yours.kind and not bare_for_tuple:
        return False
    return len(mine.items) == len(yours.items) and all(map(_same, mine.items, yours.items, [depth] * len(mine.items)))


def _items(text: str) -> _Collection | None:
    """The collection that an answer is, or None if it is one value."""
    text = trimmed(text)
    if len(parts := _split(text, _LIST)) > 1:
        return _Collection("list", [part for part in parts if part.strip()])
    inside, kind = text, ""
    if text.startswith(r"\{") and text.endswith(r"\}") and closing(text, 1) == len(text) - 1:
        return _Collection("set", [part for part in _split(text[2:-2], _LIST) if part.strip()])
    if text.startswith(r"\langle") and text.endswith(r"\rangle"):
        inside, kind = text[7:-7], "()"
    elif text[:1] in ("(", "[", "{") and closing(text, 0) == len(text) - 1:
        inside, kind = text[1:-1], text[0] + text[-1]
    if not kind:
        return None
    items = _split(inside, "[,;]")
    if kind == "{}":
        return _Collection("set", items) if len(items) > 1 else None
    return _Collection(kind, items) if len(items) > 1 else None


def _split(text: str, separator: str) -> list[str]:
    """The parts between separators outside of all brackets and environments."""
    parts, start, depth = [], 0, 0
    for found in re.finditer(
        rf"\\begin(?![a-z])|\\end(?![a-z])|\\text\{{[^{{}}]*\}}|[(\[{{]|[)\]}}]|({separator})", text
    ):
        if found[1] is not None and depth == 0:
            parts.append(text[start : found.start()])
            start = found.end()
        elif found[0] in ("(", "[", "{", r"\begin"):
            depth += 1
        elif found[0] in (")", "]", "}", r"\end"):
            depth -= 1
    return [*parts, text[start:]]


_EQUALITY = r"(?<![<>!:\\])=|\\equiv(?![a-zA-Z])|\\in(?![a-zA-Z])"
_APPROXIMATELY = r"\\(?:approx|simeq|sim)(?:eq)?(?![a-zA-Z])"
_CLOSE = Fraction(1, 20)
_FUNCTION_OF = re.compile(r"(?:[A-Za-z]|\\text\{[^{}]*\}|\\[A-Za-z]+)'*(?:_\w|_\{[^{}]*\})?\([^()]*\)")
_NO_LETTERS = re.compile(r"\\(?:pi|infty|frac|sqrt|cdot|times|circ)(?![a-zA-Z])|(?<![A-Za-z\\])[ei](?![A-Za-z])")


def _equations(a: str, b: str, depth: int) -> bool | None:
    """`x = 2 + 3 = 5` is 5, and `5 = 3` is nothing: the values that are joined must be one value."""
    mine, yours = _split(a, f"{_EQUALITY}|{_APPROXIMATELY}"), _split(b, f"{_EQUALITY}|{_APPROXIMATELY}")
    equations = [text for text, sides in ((a, mine), (b, yours)) if len(sides) > 1]
    if not equations or any(len(_split(text, _LIST)) > 1 for text in equations):
        return None
    if len(mine) > 1 and len(yours) > 1 and not (squeezed(mine[0]) == squeezed(yours[0]) and _is_label(mine[0])):
        return len(mine) == len(yours) == 2 and same_equation(mine, yours)
    values = _chain(b, depth)
    wanted = [a] if len(mine) == 1 else _chain(a, depth) if _is_label(mine[0]) else []
    return any(_same(x, y, depth) for x in wanted for y in values)


def _chain(text: str, depth: int) -> list[str]:
    """The values that an equation gives, without its label; none if they contradict."""
    exact, *approximate = _split(text, _APPROXIMATELY)
    parts = [part.strip() for part in _split(exact, _EQUALITY)]
    if "" in parts:
        return []
    labelled = (len(parts) > 1 or bool(approximate)) and _is_label(parts[0])
    if not labelled and len(parts) > 1 and _has_symbols(parts[0]) and not any(map(_has_symbols, parts[1:])):
        labelled = True  # 2x + 1 = 5, asked for 2x + 1
    values = parts[1:] if labelled else parts
    while len(values) > 1 and _is_label(values[0]):
        values = values[1:]  # x = y = 3
    if not all(_same(values[0], value, depth) for value in values[1:]):
        return []
    rounded = [value.strip() for value in approximate]
    if values and not all(_close(values[0], value) for value in rounded):
        return []
    return values[-1:] + rounded


def _is_label(text: str) -> bool:
    """Whether a left-hand side only names what is asked for: x, x_1, f(2), AB, m + n, \\text{Area}."""
    text = text.strip()
    if _FUNCTION_OF.fullmatch(text):
        return True
    text = re.sub(r"_\{[^{}]*\}|_\w", "", text)
    return not re.search(r"[0-9]", text) and bool(re.search(r"[A-Za-z]", _NO_LETTERS.sub("", text)))


def _has_symbols(text: str) -> bool:
    """Whether this is a formula in variables; words are none."""
    return r"\text" not in text and bool(getattr(parsed(text), "free_symbols", False))


def _close(exact: str, rounded: str) -> bool:
    x, y = parsed(quantity(exact).value), parsed(quantity(rounded).value)
    if not isinstance(x, sympy.Expr) or not isinstance(y, sympy.Expr) or x.free_symbols or y.free_symbols:
        return False
    return within(sympy.N(x), sympy.N(y), _CLOSE)


_BASE_WORDS = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10,
               "twelve": 12, "sixteen": 16}  # fmt: skip
_BASED = re.compile(r"[({]*([0-9][0-9A-F]*)[)}]*\s*_\s*[{(]*\s*([0-9]+|[a-z]+)\s*[})]*")


def _bases(a: str, b: str, depth: int) -> bool | None:
    """101_2 is neither 101 nor 5, which were asked for in another base; the parser drops the subscript."""
    mine, yours = _based(a), _based(b)
    if mine is None and yours is None:
        return None
    decimal = [(text.lstrip("0"), 10) for text in (a, b)]
    return (mine or decimal[0]) == (yours or decimal[1])


def _based(text: str) -> tuple[str, int] | None:
    """Digits and base of a number with a base; 2E_0 is none."""
    found = _BASED.fullmatch(_without_text(text))
    if found is None:
        return None
    base = int(found[2]) if found[2].isdigit() else _BASE_WORDS.get(found[2], 0)
    if not 2 <= base <= 36 or any(int(digit, 36) >= base for digit in found[1]):
        return None
    return found[1].lstrip("0"), base


def _ratios(a: str, b: str, depth: int) -> bool | None:
    """2:4:6 is 1:2:3 and not 1:3:2; the parser divides from the left, and gets the same for both."""
    mine, yours = _split(a, "(?<!:):(?![:=])"), _split(b, "(?<!:):(?![:=])")
    if len(mine) < 2 or len(yours) < 2:
        return None
    if len(mine) != len(yours):
        return False
    return all(
        _same(rf"({x}) \cdot ({yours[0]})", rf"({y}) \cdot ({mine[0]})", depth)
        for x, y in zip(mine, yours, strict=True)
    )


def _quantities(a: str, b: str, depth: int) -> bool | None:
    """A unit that only one side has makes no difference, two that contradict do; 50% is 50 and 0.5."""
    mine, yours = quantity(a), quantity(b)
    if mine.unit is None and yours.unit is None and (mine.value, yours.value) == (a, b):
        return None
    if not compatible(mine.unit, yours.unit):
        return False
    if _same(mine.value, yours.value, depth):
        return True
    units = {mine.unit, yours.unit}
    if units == {"percent", None}:
        share, other = (mine, yours) if mine.unit else (yours, mine)
        return _same(rf"\frac{{{share.value}}}{{100}}", other.value, depth)
    # 5\text{ m} may have been 5m: a variable in roman type.
    bare = [re.sub(r"\\text\{\s*([A-Za-z])\s*\}", r"\1", text) for text in (a, b)]
    return None in units and bare != [a, b] and squeezed(bare[0]) == squeezed(bare[1])


_RULES: list[Callable[[str, str, int], bool | None]] = [
    _choices, _clocks, _words, _signs, _inequalities, _set_expressions, _equations, _collections, _bases, _quantities,
    _ratios,
]  # fmt: skip
