"""`polyepo sql`: questions to a root's artifacts, from the command line or at a prompt."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TextIO

import duckdb
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.views.terminal import safe_text
from polyepo.errors import PolyepoError
from storage import Catalog
from storage.catalog import queries

Format = Literal["table", "csv", "json", "parquet", "markdown"]
Row = Sequence[Any]

_COMMANDS = (".help", ".quit", ".exit")
_BATCH = 1024
_TABLE_ROWS = 100  # what a person reads; the other formats give every row
_COLUMN_WIDTH = 9  # characters that a column of a table needs, at least


class SQLError(PolyepoError, ValueError):
    """A statement that DuckDB refused, or a result that cannot be written as asked."""


def execute(catalog: Catalog, sql: str, form: Format, output: Path | None, console: Console) -> None:
    """Run every statement, and write each result that has rows to show.

    Raises:
        SQLError: DuckDB refused a statement, or Parquet has no file to go to.
    """
    if form == "parquet" and output is None:
        raise SQLError("--format parquet needs --output FILE")
    try:
        for statement in duckdb.extract_statements(sql):
            if statement.expected_result_type != [duckdb.ExpectedResultType.QUERY_RESULT]:
                catalog.execute(statement)
            elif form == "parquet":
                catalog.connection.sql(statement.query).to_parquet(str(output), compression="zstd")
            else:
                _write(catalog.execute(statement), form, output, console)
    except duckdb.Error as error:
        # DuckDB's messages quote data.
        raise SQLError("\n".join(map(safe_text, str(error).splitlines()))) from error


def run_script(catalog: Catalog, text: str, form: Format, output: Path | None, console: Console) -> None:
    """Run a text of statements, and of commands with a dot at the beginning of a line, as they are typed at the prompt.

    Raises:
        SQLError: as `execute`.
    """
    statements = ""
    for line in text.split("\n"):
        command = _command(line, statements)
        if command is None:
            statements += f"{line}\n"
            continue
        execute(catalog, statements, form, output, console)
        statements = ""
        if command != ".help":
            return
        console.print(help_text(), highlight=False, markup=False, soft_wrap=True)
    execute(catalog, statements, form, output, console)


def prompt(catalog: Catalog, form: Format, console: Console) -> None:
    """Read statements up to a semicolon, answer each, until .quit or end of input."""
    import readline  # noqa: F401 - input() edits lines and remembers them once it is there

    console.print(f"{len(queries()) - 1} queries are ready: .help lists them, .quit leaves. End a statement with ;")
    buffer = ""
    while True:
        try:
            line = input("     ... " if buffer else "polyepo> ")
        except EOFError:
            return
        except KeyboardInterrupt:
            buffer = ""
            console.print()
            continue
        try:
            command = _command(line, buffer)
            if command is None:
                buffer = f"{buffer}\n{line}".strip()
                if not buffer.endswith(";"):
                    continue
            sql, buffer = buffer, ""
            if sql:
                catalog.refresh()  # a run that is going on has moved on
                execute(catalog, sql, form, None, console)
            if command == ".help":
                console.print(help_text(), highlight=False, markup=False)
            elif command:
                return
        except SQLError as error:
            console.print(str(error), style="red", highlight=False, markup=False)
        except KeyboardInterrupt:
            console.print("interrupted")


def _command(line: str, before: str) -> str | None:
    """The command with a dot that a line is, after statements that may lack their last semicolon; None if it is none.

    Raises:
        SQLError: a statement would begin with a dot.
    """
    word = line.strip().rstrip("; ").lower()
    if word in _COMMANDS and _is_whole(before):
        return word
    if word.startswith(".") and not before.strip():
        raise SQLError(f"there is no command {safe_text(word, limit=40)}; there are {', '.join(_COMMANDS)}")
    return None


def _is_whole(sql: str) -> bool:
    """Whether statements end here: no quote is open, and nothing is missing."""
    try:
        duckdb.extract_statements(sql)
    except duckdb.Error:
        return False
    return True


def help_text() -> str:
    """The views, and what each shipped query answers: the first line of its comment."""
    lines = [
        "Views: runs, problems, rollouts, labels, judge_calls, scores, updates, evals; graded, sampled, strategies",
        "Queries, as in SELECT * FROM pass_at_k(8):",
    ]
    return "\n".join(
        lines + [f"  {text.splitlines()[0].removeprefix('-- ')}" for name, text in queries().items() if name != "views"]
    )


def _write(result: duckdb.DuckDBPyConnection, form: Format, output: Path | None, console: Console) -> None:
    names = [column[0] for column in result.description or []]
    if form == "table":
        _write_table(result.fetchmany(_TABLE_ROWS + 1), names, console)
        return
    write = {"csv": _write_csv, "json": _write_json, "markdown": _write_markdown}[form]
    if output:
        with output.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            write(_rows(result), names, file)
    else:
        write(_rows(result), names, sys.stdout)


def _rows(result: duckdb.DuckDBPyConnection) -> Iterator[Row]:
    while rows := result.fetchmany(_BATCH):
        yield from rows


def _write_table(rows: Sequence[Row], names: list[str], console: Console) -> None:
    if len(names) * _COLUMN_WIDTH > console.width:
        _write_records(rows[:_TABLE_ROWS], names, console)
    else:
        table = Table()
        for i, name in enumerate(names):
            numeric = all(isinstance(row[i], int | float | None) for row in rows)
            table.add_column(Text(safe_text(name)), justify="right" if numeric else "left", overflow="fold")
        for row in rows[:_TABLE_ROWS]:
            table.add_row(*map(_cell, row))
        console.print(table)
    if len(rows) > _TABLE_ROWS:
        console.print(f"the first {_TABLE_ROWS} rows; `polyepo sql` with --format csv gives them all", style="dim")


def _write_records(rows: Sequence[Row], names: list[str], console: Console) -> None:
    """One line per value, where columns would be too narrow to read."""
    for row in rows:
        record = Table.grid(padding=(0, 2))
        for name, value in zip(names, row, strict=True):
            record.add_row(Text(safe_text(name), style="bold"), _cell(value))
        console.print(record)
        console.rule(style="dim")


def _cell(value: object) -> Text:
    if value is None:
        return Text("null", style="dim")
    return Text(f"{value:.6g}" if isinstance(value, float) else safe_text(value, limit=500))


def _write_csv(rows: Iterator[Row], names: list[str], file: TextIO) -> None:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        writer.writerow([safe_text(v) if file.isatty() and isinstance(v, str) else v for v in row])


def _write_json(rows: Iterator[Row], names: list[str], file: TextIO) -> None:
    file.write("[")
    for i, row in enumerate(rows):
        line = json.dumps(dict(zip(names, row, strict=True)), default=str)
        file.write(f"{',' if i else ''}\n{line}")
    file.write("\n]\n")


def _write_markdown(rows: Iterator[Row], names: list[str], file: TextIO) -> None:
    def line(values: Row) -> str:
        cells = ["" if v is None else f"{v:.6g}" if isinstance(v, float) else safe_text(v) for v in values]
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"

    file.write(line(names) + f"|{'---|' * len(names)}\n")
    file.writelines(map(line, rows))
