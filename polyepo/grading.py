"""Grade a table of references and responses, and find where the reward differs from what somebody expects."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from polyepo.domains.base import Domain, Problem
from polyepo.domains.dataset import read_rows, value_at

FIELDS = ("reference", "response", "expected")
_RIGHT = {"true": 1.0, "yes": 1.0, "right": 1.0, "correct": 1.0, "false": 0.0, "no": 0.0, "wrong": 0.0}


class Case(NamedTuple):
    """One row of the table. Rows count from 1, without a header."""

    row: int
    reference: str
    response: str
    expected: float


class Difference(NamedTuple):
    """A case whose reward is not the expected one. `reward` is None, and `ungraded` says why, if there is none."""

    case: Case
    reward: float | None
    parsed_answer: str | None
    ungraded: str | None


def read_cases(path: str, columns: Mapping[str, str]) -> list[Case]:
    """The cases of a JSONL, Parquet or CSV file.

    Args:
        path: the file.
        columns: names of the columns of FIELDS that are called otherwise; dots reach into nested ones.

    Raises:
        ValueError: the file cannot be read, or a row lacks a value.
    """
    rows = _csv_rows(path) if Path(path).suffix == ".csv" else read_rows(path)
    if not rows:
        raise ValueError(f"{path!r} holds no rows")
    return [_case(f"{path!r}, row {number}", number, row, columns) for number, row in enumerate(rows, start=1)]


def parse_mapping(entries: Iterable[str]) -> dict[str, str]:
    """From "reference=gold" and the like. Raises ValueError if an entry is not of that form."""
    columns = {}
    for entry in entries:
        field, _, column = entry.partition("=")
        if field not in FIELDS or not column:
            raise ValueError(f"--map {entry!r} must be FIELD=COLUMN, with FIELD one of {', '.join(FIELDS)}")
        columns[field] = column
    return columns


def differences(domain: Domain, cases: Sequence[Case]) -> list[Difference]:
    """Grade all cases with a domain's verifier; those whose reward differs, in their order."""
    problems = [Problem(problem_id=str(c.row), domain=domain.name, prompt="", answer=c.reference) for c in cases]
    verdicts = domain.verify_batch(problems, [case.response for case in cases])
    return [
        Difference(case, *verdict)
        for case, verdict in zip(cases, verdicts, strict=True)
        if verdict.reward != case.expected
    ]


def _csv_rows(path: str) -> list[dict[str, Any]]:
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            return list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path!r} cannot be read as CSV: {error}") from None


def _case(where: str, number: int, row: dict[str, Any], columns: Mapping[str, str]) -> Case:
    values = {}
    for field in FIELDS:
        column = columns.get(field, field)
        try:
            values[field] = value_at(row, column)
        except KeyError:
            known = ", ".join(sorted(map(str, row)))
            raise ValueError(f"{where}: no column {column!r} among {known}; name it by --map {field}=COLUMN") from None
        if values[field] is None:
            raise ValueError(f"{where}: column {column!r} is empty")
    expected = str(values["expected"]).strip().lower()
    try:
        reward = _RIGHT[expected] if expected in _RIGHT else float(expected)
    except ValueError:
        reward = -1.0
    if reward not in (0.0, 1.0):
        raise ValueError(f"{where}: expected must be 1 or 0, true or false, but is {values['expected']!r}")
    return Case(number, str(values["reference"]), str(values["response"]), reward)
