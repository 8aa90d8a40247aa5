"""The blocks of code in Markdown pages, and what may be said before one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

_FENCE = re.compile(r"(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)\n(?P=indent)```", re.DOTALL)
_INDENTED = re.compile(r"(?:(?<=\n\n)|\A)(?P<text>(?: {4}.*\n|\n(?= {4}))+)")
_MARK = re.compile(r"<!-- not run: (?P<why>[^\n]+) -->\n+\Z")
_TABLE = re.compile(r"\n+(?P<head>\|[^\n]+\|)\n\|[-:|]+\|")


class Block(NamedTuple):
    """A block of code, in a page's order."""

    page: str
    line: int
    language: str
    text: str
    not_run: str | None
    """Why, if the page says so."""
    columns: list[str] | None
    """Of the table that follows it."""

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(path: Path, root: Path) -> list[Block]:
    """All of a page's, fenced and indented ones."""
    text = path.read_text(encoding="utf-8")
    fenced = list(_FENCE.finditer(text))
    without = text
    for match in fenced:  # a block in a block is its text
        without = without.replace(match[0], re.sub(r"[^\n]", "~", match[0]), 1)
    found = [(m.start(), m["language"], _dedent(m["text"], len(m["indent"]))) for m in fenced]
    found += [(m.start(), "", _dedent(m["text"], 4).strip("\n")) for m in _INDENTED.finditer(without)]
    made = []
    for start, language, code in sorted(found):
        mark = _MARK.search(text[:start])
        after = text[start:].partition("\n```")[2] if language else ""
        table = _TABLE.match(after)
        columns = [name.strip() for name in table["head"].strip("|").split("|")] if table else None
        line = text[:start].count("\n") + 1
        made.append(Block(str(path.relative_to(root)), line, language, code, mark and mark["why"], columns))
    return made


def _dedent(text: str, by: int) -> str:
    return "\n".join(line[by:] if not line[:by].strip() else line for line in text.splitlines())


def commands(shell: str) -> list[str]:
    """A shell block's commands, each in one line; no comments. Quotes and backslashes continue a line."""
    found: list[str] = []
    open_quote, buffer = None, ""
    for line in shell.splitlines():
        for i, character in enumerate(line):
            if open_quote is None and character == "#" and (i == 0 or line[i - 1] == " "):
                line = line[:i].rstrip()
                break
            if character in "'\"" and open_quote in (None, character):
                open_quote = None if open_quote else character
        buffer += line + "\n"
        if open_quote is None and not line.endswith("\\"):
            if stripped := buffer.strip():
                found.append(stripped)
            buffer = ""
    return found
