"""Tables of text: the first row names the columns, the first column the rows, and the others are numbers."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table


def fill(table: Table, rows: Sequence[Sequence[str]], wrap: bool = False) -> Table:
    """A table for a terminal with such rows in it; `wrap` lets numbers break where there is no room."""
    header, *body = rows
    for i, name in enumerate(header):
        table.add_column(name, justify="left" if i == 0 else "right", no_wrap=i == 0 or not wrap)
    for cells in body:
        table.add_row(*cells)
    return table


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """The same rows as a markdown table."""
    header, *body = rows
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *body]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
