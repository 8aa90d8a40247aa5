"""Values of mathematical answers: read by math-verify's parser, and compared as SymPy's expressions.

What comes here has no structure that the rules of comparison.py know. Like these, it is imported by the worker
processes alone: it takes seconds to import, and hostile text can make it run for ever.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, NormalizationConfig, latex2sympy, normalize_latex
from math_verify import verify
from sympy.core.function import AppliedUndef

# Units stay: the library's list would take the t of 3t for one. Case stays: x is not X.
_NORMALIZATION = NormalizationConfig(units=False, malformed_operators=True, nits=True, boxed="none")
_CONVERSION = ConversionConfig(lowercase_symbols=False)

_DIGITS_APART = re.compile(r"[0-9.]\s+(?:[0-9.]|\\frac\{[^{}]*\}\{[^{}]*\}\s*[0-9])")
_EMBEDDED_BASE = re.compile(r"(?<![\w.}])([0-9]+)_\{?([0-9]+)\}?")
_EXACT = Fraction(1, 10**20)
_DECIMAL_SHARE = Fraction(1, 10**5)


def same_value(a: str, b: str) -> bool:
    """Whether two texts are one value; what cannot be read is none."""
    mine, yours = parsed(a), parsed(b)
    if mine is None or yours is None:
        return False
    if isinstance(mine, sympy.Expr) and isinstance(yours, sympy.Expr):
        same = _same_expressions(mine, yours)
        if same is not None:
            return same
    return bool(verify([mine], [yours], timeout_seconds=None, allow_set_relation_comp=True))


def same_equation(mine: list[str], yours: list[str]) -> bool:
    """Whether two equations are the same but for a factor: 2C = E is E = 2C."""
    sides = [parsed(side) for side in (*mine, *yours)]
    if not all(isinstance(side, sympy.Expr) for side in sides):
        return False
    first, second = (as_exact(sides[i] - sides[i + 1]) for i in (0, 2))
    if not first.free_symbols or first.free_symbols != second.free_symbols:
        return False
    ratios = [_value_at(first / second, point) for point in _points(first, second)]
    return all(ratio is not None and ratio != 0 and within(ratio, ratios[0], _EXACT) for ratio in ratios)


def parsed(text: str) -> Any:
    """What the library reads, or None: it reads nothing, or digits with spaces between them as one number."""
    if _DIGITS_APART.search(text):
        return None
    try:
        text = _EMBEDDED_BASE.sub(lambda found: str(int(found[1], int(found[2]))), text)
        return latex2sympy(
            normalize_latex(text, _NORMALIZATION), normalization_config=None, conversion_config=_CONVERSION
        )
    except MemoryError:
        raise
    except Exception:  # the parser raises bare exceptions
        return None


def _same_expressions(mine: Any, yours: Any) -> bool | None:
    """By value, at points of the variables; None if they have none there.

    Two different expressions of elementary functions agree at such points as good as never. Relative to their size:
    differences of tiny numbers are tiny.
    """
    decimal = bool(mine.atoms(sympy.Float) or yours.atoms(sympy.Float))
    mine, yours = as_exact(mine), as_exact(yours)
    if mine == yours:
        return True
    symbols = mine.free_symbols | yours.free_symbols
    for point in _points(mine, yours):
        x, y = _value_at(mine, point), _value_at(yours, point)
        if x is None or y is None:
            return None
        if within(x, y, _EXACT):
            continue
        if not decimal or not (within(x, y, _DECIMAL_SHARE / 5) if symbols else _rounded(x, y)):
            return False
    if symbols or decimal:
        return True
    mine, yours = mine.doit(), yours.doit()  # 2^{100} and 2^{100} + 1 agree to thirty digits
    return not (mine.is_Rational and yours.is_Rational) or bool(mine == yours)


def as_exact(expression: Any) -> Any:
    """Decimals as the fractions they are, undefined functions as symbols, i as the imaginary unit."""
    functions = {f: sympy.Symbol(str(f)) for f in expression.atoms(AppliedUndef)}
    decimals = {f: sympy.Rational(str(f)) for f in expression.atoms(sympy.Float)}
    return expression.xreplace(functions | decimals).subs(sympy.Symbol("i"), sympy.I)


def _points(*expressions: Any) -> Iterator[dict[Any, Any]]:
    """Where to compare: no symbol is 0 or 1; those that usually count something are integers.

    Roots and logarithms are compared where their arguments are positive, everything else at negative numbers too.
    """
    symbols = sorted({s for e in expressions for s in e.free_symbols}, key=str)
    rooted = any(e.has(sympy.log) or any(not p.exp.is_integer for p in e.atoms(sympy.Pow)) for e in expressions)
    if not symbols:
        yield {}
        return
    for number, sign in enumerate((1, 1, 1 if rooted else -1)):
        yield {
            symbol: sympy.Integer(5 + 2 * i + 4 * number)
            if str(symbol)[0] in "nkmjN"
            else sign * sympy.Rational(1009 + 217 * i + 331 * number, 701)
            for i, symbol in enumerate(symbols)
        }


def _value_at(expression: Any, point: dict[Any, Any]) -> Any:
    value = expression.subs(point).evalf(30)
    if not value.is_number or not value.is_finite:
        value = expression.subs(point).doit().evalf(30)
    return value if value.is_number and value.is_finite and value.as_real_imag()[0].is_Float is not None else None


def within(x: Any, y: Any, share: Fraction) -> bool:
    """Whether two numbers differ by at most this share of the larger."""
    return bool(abs(x - y) <= max(abs(x), abs(y)) * sympy.Rational(share.numerator, share.denominator))


def _rounded(x: Any, y: Any) -> bool:
    """Whether one is the other rounded: to six decimals, as in math-verify, and to five digits of its own."""
    return bool(abs(x - y) <= sympy.Rational(5, 10**7)) and within(x, y, _DECIMAL_SHARE)
