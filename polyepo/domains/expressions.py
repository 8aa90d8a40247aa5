"""Arithmetic expressions in hostile text: a bounded parser, exact values, a normal form; never eval."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import lru_cache
from itertools import combinations
from typing import NamedTuple

_TOKEN = re.compile(r"\s*([0-9]{1,6}|[-+*/()×÷−·])", re.ASCII)
_SIGNS = {"×": "*", "·": "*", "÷": "/", "−": "-"}
_MAX_TOKENS = 64


class Expression(NamedTuple):
    """An arithmetic expression: its exact value, the numbers it uses, and its normal form.

    `key` is equal for expressions that differ only by commutativity and associativity of + and - and of * and /.
    """

    value: Fraction
    numbers: tuple[int, ...]
    key: str
    kind: str
    """"number", "sum" or "product": the operation at the top."""
    terms: tuple[str, ...] = ()
    """Keys of a sum's terms, each after its "+" or "-", or of a product's factors, after "*" or "/"; sorted."""


def parse(text: str, operators: str = "+-*/") -> Expression | None:
    """Read an expression over the operators and parentheses, or None: malformed, too long or a division by zero."""
    tokens: list[str] = []
    position = 0
    text = text.rstrip()
    while position < len(text):
        found = _TOKEN.match(text, position)
        if found is None or len(tokens) == _MAX_TOKENS:
            return None
        word = _SIGNS.get(found.group(1), found.group(1))
        if word in "+-*/" and word not in operators:
            return None
        tokens.append(word)
        position = found.end()
    try:
        expression, rest = _sum(tokens)
    except _MalformedError:
        return None
    return None if rest else expression


def number(value: int) -> Expression:
    """A single number."""
    return Expression(Fraction(value), (value,), str(value), "number")


def combine(sign: str, left: Expression, right: Expression) -> Expression | None:
    """left sign right, or None if it divides by zero."""
    if sign == "/" and right.value == 0:
        return None
    kind, terms = _flatten(sign, left, right)
    value = _apply(sign, left.value, right.value)
    return Expression(value, left.numbers + right.numbers, f"({''.join(terms)})", kind, terms)


def all_expressions(numbers: tuple[int, ...], operators: str) -> Iterator[tuple[Expression, str]]:
    """Every expression that uses each number once, with a text of it; duplicates by normal form are left out."""
    for expression, text in _expressions.__wrapped__(tuple(sorted(numbers)), operators):  # only its parts are cached
        yield expression, text.removeprefix("( ").removesuffix(" )")


@lru_cache(maxsize=2048)  # puzzles share their parts
def _expressions(numbers: tuple[int, ...], operators: str) -> list[tuple[Expression, str]]:
    if len(numbers) == 1:
        return [(number(numbers[0]), str(numbers[0]))]
    found: dict[tuple[str, ...], tuple[Expression, str]] = {}
    for left_numbers, right_numbers in _partitions(numbers):
        for left, left_text in _expressions(left_numbers, operators):
            for right, right_text in _expressions(right_numbers, operators):
                for sign in operators:
                    if sign in "+*" and left_numbers > right_numbers:
                        continue
                    terms = _flatten(sign, left, right)[1]
                    if terms not in found and (made := combine(sign, left, right)) is not None:
                        found[terms] = (made, f"( {left_text} {sign} {right_text} )")
    return list(found.values())


def _partitions(numbers: tuple[int, ...]) -> set[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Every way to share the numbers out between two sides, in both orders."""
    places = range(len(numbers))
    return {
        (tuple(numbers[i] for i in chosen), tuple(numbers[i] for i in places if i not in chosen))
        for size in places[1:]
        for chosen in combinations(places, size)
    }


def _flatten(sign: str, left: Expression, right: Expression) -> tuple[str, tuple[str, ...]]:
    """The kind and the sorted terms of left sign right; parts of the same kind are taken apart."""
    kind, positive, negative = ("sum", "+", "-") if sign in "+-" else ("product", "*", "/")
    terms = list(left.terms) if left.kind == kind else [positive + left.key]
    if right.kind != kind:
        terms.append(sign + right.key)
    elif sign == positive:
        terms += right.terms
    else:
        terms += [(negative if term[0] == positive else positive) + term[1:] for term in right.terms]
    terms.sort()
    return kind, tuple(terms)


_Parser = Callable[[list[str]], tuple["Expression", list[str]]]


class _MalformedError(Exception):
    pass


def _sum(tokens: list[str]) -> tuple[Expression, list[str]]:
    return _chain(tokens, "+-", _product)


def _product(tokens: list[str]) -> tuple[Expression, list[str]]:
    return _chain(tokens, "*/", _atom)


def _chain(tokens: list[str], signs: str, operand: _Parser) -> tuple[Expression, list[str]]:
    left, tokens = operand(tokens)
    while tokens and tokens[0] in signs:
        right, rest = operand(tokens[1:])
        combined = combine(tokens[0], left, right)
        if combined is None:
            raise _MalformedError
        left, tokens = combined, rest
    return left, tokens


def _atom(tokens: list[str]) -> tuple[Expression, list[str]]:
    if tokens and tokens[0].isdigit():
        if tokens[0] != str(int(tokens[0])):
            raise _MalformedError
        return number(int(tokens[0])), tokens[1:]
    if not tokens or tokens[0] != "(":
        raise _MalformedError
    inner, rest = _sum(tokens[1:])
    if not rest or rest[0] != ")":
        raise _MalformedError
    return inner, rest[1:]


def _apply(sign: str, left: Fraction, right: Fraction) -> Fraction:
    if sign == "+":
        return left + right
    if sign == "-":
        return left - right
    return left * right if sign == "*" else left / right
