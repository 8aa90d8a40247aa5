r"""One notation for the many ways to write the same answer, before math-verify reads it.

math-verify reads LaTeX. What it does not read, or reads as something else, is rewritten here; each rule says why.
Nothing here decides whether two answers are equal.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from fractions import Fraction

# Characters that LaTeX writes as commands. What NFKC turns into ASCII (full-width digits, ％) needs no entry.
_CHARACTERS = str.maketrans(
    dict.fromkeys("−–—‒‐‑﹣", "-")
    | dict.fromkeys("·⋅∙•∗", r"\cdot ")
    | dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\u00ad", "")
    | dict.fromkeys("\u00a0\u2009\u202f", r"\,")
    | {
        "×": r"\times ", "÷": "/", "⁄": "/", "∕": "/", "≤": r"\le ", "≥": r"\ge ", "⩽": r"\le ", "⩾": r"\ge ",
        "≠": r"\ne ", "≈": r"\approx ", "≡": r"\equiv ", "±": r"\pm ", "∓": r"\mp ", "∞": r"\infty ",
        "°": r"^\circ ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "∖": r"\setminus ",
        "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}",
        "…": r"\ldots ", "⋯": r"\ldots ", "′": "'", "’": "'", "∠": r"\angle ", "△": r"\triangle ", "。": ".",
        "、": ",", "⟨": r"\langle ", "⟩": r"\rangle ", "→": r"\to ", "√": r"\sqrt ", "∛": r"\sqrt[3] ",
        "\n": " ", "\t": " ",
    }
)  # fmt: skip
_SUPERSCRIPTS, _SUBSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "₀₁₂₃₄₅₆₇₈₉"
_RAISED = str.maketrans(_SUPERSCRIPTS, "0123456789+-n")
_LOWERED = str.maketrans(_SUBSCRIPTS, "0123456789")

_FUNCTIONS = (
    "arcsin arccos arctan sinh cosh tanh sin cos tan sec csc cot log ln lcm gcd max min"  # as calculators write them
)
_TEXT = re.compile(r"(\\text\{[^{}]*\})")
_ONLY_WORDS = re.compile(r"(?:[A-Za-z\s.'/-]|\^-?[0-9])*")  # and units such as m/s^2
_GROUPED = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9,])")

# Within brackets 1,234 may be a pair. 1,000 cannot: nobody writes a number as 000.
_GROUPED_FOR_SURE = re.compile(r"(?<![0-9.])[0-9]{1,3}(?:,[0-9]{3})*,0[0-9]{2}(?:,[0-9]{3})*(?![0-9])")
_SCIENTIFIC = re.compile(r"(?<![\w.])([0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE]([+-]?[0-9]{1,4})(?![\w.])")
_SIGNED_E = re.compile(r"[0-9][eE][+-][0-9]")

Rule = tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]

# In order. They see the text without what stands in \text{...}.
_RULES: list[Rule] = [
    # Marks that change how it looks, not what it says.
    (re.compile(r"\\(?:left|right|[bB]igg?[lrm]?)(?![a-zA-Z])"), ""),
    (re.compile(r"\\(?:displaystyle|textstyle|bf|it|rm|limits|tiny|small|[lL]arge|[hH]uge)(?![a-zA-Z])"), ""),
    (re.compile(r"\\(?:text)?color\s*\{[^{}]*\}"), ""),
    (re.compile(r"\\varnothing(?![a-zA-Z])"), r"\\emptyset "),
    (re.compile(r"\\[dtc]frac(?![a-zA-Z])"), r"\\frac"),
    # 1\,234, 1{,}234, 1\ 234 and 1 234 are one number; other digits apart are not (see comparison).
    (re.compile(r"(?<=[0-9])(?:\{,\}|,\\!|\\[,;:! ]|~|\\(?:thin|med)space| )+(?=[0-9]{3}(?![0-9]))"), ""),
    (re.compile(r"\{([,:])\}"), r"\1"),
    (re.compile(r"\\!"), ""),
    (re.compile(r"(?<!\\)\\[,;: ]|~|\\q?quad(?![a-zA-Z])|\\(?:thin|med|thick)space"), " "),
    (re.compile(r"(?<![a-zA-Z\\])\.{3}|\\[cl]?dots[cbmio]?(?![a-zA-Z])"), r"\\ldots "),
    (re.compile(r"\^\s*\{\s*\\circ\s*\}|\^\s*\\circ(?![a-zA-Z])|\\degree(?![a-zA-Z])"), r"^\\circ "),
    (re.compile(r"\\leq?(?:slant)?(?![a-zA-Z])|<="), r"\\le "),
    (re.compile(r"\\geq?(?:slant)?(?![a-zA-Z])|>="), r"\\ge "),
    (re.compile(r"\\lt(?![a-zA-Z])"), "<"),
    (re.compile(r"\\gt(?![a-zA-Z])"), ">"),
    (re.compile(r"\\%"), "%"),
    # As calculators and programs write it: x**2, 2*pi, exp(16), sqrt(2), sin(x).
    (re.compile(r"\*\*"), "^"),
    (re.compile(r"\*"), r"\\cdot "),
    (re.compile(rf"(?<![a-zA-Z\\])({'|'.join(_FUNCTIONS.split())})(?![a-zA-Z])"), r"\\\1"),
    (re.compile(r"(?<![a-zA-Z\\])(?:infinity|inf|oo)(?![a-zA-Z])"), r"\\infty "),
    (re.compile(r"(?<![a-zA-Z\\])pi(?![a-zA-Z])"), r"\\pi "),
    (re.compile(r"(?<![a-zA-Z\\])sqrt(?![a-zA-Z])"), r"\\sqrt "),
    (re.compile(r"(?<![a-zA-Z])\\?exp\s*(?=[({])"), r"e^"),
    (re.compile(r"\+\s*-"), "-"),
    # \sqrt 2 x is \sqrt{2}x to LaTeX, but whoever writes √10 means the root of ten.
    (re.compile(r"\\sqrt(\[[0-9]+\])?\s+([0-9]+|[a-zA-Z])"), r"\\sqrt\1{\2}"),
    (re.compile(r"\^\s*(-?[0-9]{2,}|-[0-9])"), r"^{\1}"),
    # A repeating decimal is a fraction.
    (
        re.compile(r"([0-9]*)\.([0-9]*)\\overline\s*\{([0-9]+)\}"),
        lambda found: _repeating(found[1] or "0", found[2], found[3]),
    ),
    # 11 5/6 and 11 \frac{5}{6} are mixed numbers: spaces are nothing to the parser, which would read 115/6.
    (re.compile(r"(?<![\w.}])([0-9]+)\s+([0-9]+)\s*/\s*([0-9]+)(?![\w.])"), r"\1\\frac{\2}{\3}"),
    # E_{1} is E_1.
    (re.compile(r"_\{([0-9A-Za-z])\}"), r"_\1"),
    # The base of a logarithm is no number beside the next one.
    (re.compile(r"\\log_e(?![a-zA-Z])"), r"\\ln "),
    (re.compile(r"\\log_([0-9])"), r"\\log_{\1}"),
    # An ordinal is its number.
    (re.compile(r"(?<=[0-9])\^\{?(?:th|st|nd|rd)\}?"), ""),
]


def plain(text: str, euler: bool = False) -> str:
    r"""An answer in the one notation: LaTeX of ASCII characters, text in \text{...}, without marks around it.

    Args:
        text: an answer as a model or a data set writes it.
        euler: read `2e-1` as 2e − 1; otherwise it is 0.2.
    """
    text = _ascii(text)
    text = re.sub(
        r"\\(?:math(?:rm|sf|tt|normal)|text(?:bf|it|rm|sf|tt|normal)?|mbox|operatorname\*?)\s*\{", r"\\text{", text
    )
    text = re.sub(r"\\(?:mathbf|boldsymbol|bm|pmb|mathit)\s*\{([^{}]*)\}", r"{\1}", text)
    # Text that holds more than words, such as \text{(C) 12} or \text{2:30}, is what it says.
    text = _TEXT.sub(lambda found: found[0] if _ONLY_WORDS.fullmatch(found[0][6:-1]) else f" {found[0][6:-1]} ", text)
    text = re.sub(r"\\text\{([^{}]*\b(?:or|and)\b[^{}]*)\}", r" \1 ", text)
    text = re.sub(r"\\frac\s*\{\s*(\\text\{[^{}]*\})\s*\}\s*\{\s*(\\text\{[^{}]*\})\s*\}", r"\1/\2", text)
    text = re.sub(r"\^\s*\{?\\text\{(?:th|st|nd|rd)\}\}?", "", text)
    text = re.sub(r"\\text\{\s*\}", " ", text)
    text = "".join(part if _TEXT.fullmatch(part) else _outside_text(part, euler) for part in _TEXT.split(text))
    return trimmed(text)


def has_two_readings(text: str) -> bool:
    """Whether `plain` depends on `euler`."""
    return bool(_SIGNED_E.search(text))


def is_grouped(text: str) -> bool:
    """Whether this is a number such as 123,456, which may also be two."""
    return bool(_GROUPED.fullmatch(text.strip())) and not re.search(",0", text)


def squeezed(text: str) -> str:
    """Without spaces, but for those between digits: 5 6 is not 56."""
    return re.sub(r"(?<![0-9]) | (?![0-9])", "", " ".join(text.split()))


def trimmed(text: str) -> str:
    """Without marks of a formula around it, and without a full stop or comma after it."""
    before = None
    while before != text:
        before = text
        text = text.strip().rstrip(".,;").removesuffix(r"\\").strip()
        if not text.endswith(r"\$"):
            text = text.removesuffix("$")
        text = re.sub(r"^\$(?![0-9])|^\$(?=[^$]*\$$)|^\\[\[(]|\\[\])]$", "", text)
        if text.startswith("{") and closing(text, 0) == len(text) - 1 and "," not in text:
            text = text[1:-1]
    return text


def closing(text: str, start: int) -> int:
    """Where the bracket at `start` is closed, by a bracket of any kind; -1 if it is not."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] in "([{") - (text[i] in ")]}")
        if depth == 0:
            return i
    return -1


def _ascii(text: str) -> str:
    text = re.sub(f"[{_SUPERSCRIPTS}]+", lambda found: f"^{{{found[0].translate(_RAISED)}}}", text)
    text = re.sub(f"[{_SUBSCRIPTS}]+", lambda found: f"_{{{found[0].translate(_LOWERED)}}}", text)
    text = "".join(map(_latex, text)).translate(_CHARACTERS)
    return unicodedata.normalize("NFKC", text)


def _latex(character: str) -> str:
    r"""½ is \frac{1}{2}, α is \alpha; any other character is itself."""
    if character < "\x80":
        return character
    if unicodedata.decomposition(character).startswith("<fraction>"):
        above, _, below = unicodedata.normalize("NFKC", character).partition("⁄")
        return rf"\frac{{{above}}}{{{below}}}"
    kind, _, letter = unicodedata.name(character, "").partition(" LETTER ")
    if kind in ("GREEK SMALL", "GREEK CAPITAL") and " " not in letter:
        name = letter.lower().replace("lamda", "lambda")
        return f"\\{name.capitalize() if kind == 'GREEK CAPITAL' else name} "
    return character


def _outside_text(text: str, euler: bool) -> str:
    if not euler:
        text = _SCIENTIFIC.sub(r"(\1 \\times 10^{\2})", text)
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    text = _GROUPED_FOR_SURE.sub(lambda found: found[0].replace(",", ""), text)
    text = _outside_brackets(_GROUPED, text)
    text = _braced(r"\\sqrt(?:\[[0-9]+\])?\s*", _braced(r"\^\s*", text))
    # To the parser E is no symbol that takes a subscript and I is the square root of -1: both are letters here.
    return re.sub(r"\\[A-Za-z]+|[EI]", lambda f: f[0] if f[0][0] == "\\" else rf"\text{{{f[0]}}}", text)


def _outside_brackets(pattern: re.Pattern[str], text: str) -> str:
    """Without the commas of what a pattern finds outside of all brackets."""
    depths = [0]
    for character in text:
        depths.append(depths[-1] + (character in "([{") - (character in ")]}"))
    return pattern.sub(lambda f: f[0].replace(",", "") if depths[f.start()] == 0 else f[0], text)


def _braced(command: str, text: str) -> str:
    r"""`\sqrt(2)` and `x^(n+1)` with braces: the parser takes parentheses there for something else, or for nothing."""
    for found in reversed([*re.finditer(rf"{command}(?=\()", text)]):
        end = closing(text, found.end())
        if end > 0:
            text = f"{text[: found.end()]}{{{text[found.end() + 1 : end]}}}{text[end + 1 :]}"
    return text


def _repeating(whole: str, fixed: str, repeated: str) -> str:
    value = Fraction(int(whole + fixed + repeated) - int(whole + fixed), 10 ** len(fixed) * (10 ** len(repeated) - 1))
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
