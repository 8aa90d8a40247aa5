"""Hand labels: a blind sheet for a person to fill in, read back as a judge of its own."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import model_validator

from polyepo.domains import Domain
from polyepo.errors import ConfigError
from polyepo.judges.base import CallLog, Group, Judge, Label
from polyepo.labels import LabelStatus

COLUMNS = ("problem_id", "prompt", "response", "cluster", "id")
DEGENERATE_MARK = "x"
"""What a person writes for a response without any reasoning; an empty cell is no label."""

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


class SheetJudge(Judge):
    """A person's labels: responses of one problem share a cluster if their cells hold the same text."""

    name: Literal["sheet"] = "sheet"
    path: str
    """A sheet that `polyepo judge-sheet` wrote, with its column `cluster` filled in."""
    sha256: str = ""
    """Of the sheet; worked out from the file if not given. Records have it: the file may be gone, until it is read."""

    @model_validator(mode="before")
    @classmethod
    def _identify(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(path := values.get("path"), str) and not values.get("sha256"):
            read_sheet(path, digest := _digest(path))
            return {**values, "sha256": digest}
        return values

    @property
    def judge_id(self) -> str:
        """The judge's name, and the beginning of the sheet's hash."""
        return f"{self.name}-{self.sha256[:8]}"

    def label(self, domain: Domain, groups: Sequence[Group], calls: CallLog | None = None) -> list[list[Label]]:
        """Exactly one label per response, in the responses' order, for each group.

        Raises:
            ConfigError: the sheet is not the one it was, or cannot be read.
        """
        marks = read_sheet(self.path, self.sha256)
        labels = []
        for group in groups:
            numbers: dict[str, int] = {}
            found = []
            for response in group.responses:
                mark = marks.get(response_id(group.problem.problem_id, response), "")
                if mark in ("", DEGENERATE_MARK):
                    found.append(
                        Label(None, bool(mark), None, None, LabelStatus.OK if mark else LabelStatus.UNLABELLED)
                    )
                else:
                    found.append(Label(numbers.setdefault(mark, len(numbers)), False, None, mark, LabelStatus.OK))
            labels.append(found)
        return labels


def response_id(problem_id: str, response: str) -> str:
    """What stands for a response in a sheet: equal responses to one problem are one row."""
    content = f"{problem_id}\0{response}".encode(errors="surrogatepass")
    return f"r{hashlib.sha256(content).hexdigest()[:16]}"  # a spreadsheet would make a number of digits alone


def write_sheet(path: Path, groups: Sequence[Group], seed: int) -> int:
    """Write distinct responses, shuffled, with nothing that tells rewards, clusters or steps; returns their number.

    Raises:
        OSError: the file cannot be written, or is there already: it may hold somebody's work.
    """
    rng = np.random.default_rng(seed)
    rows = 0
    with path.open("x", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for g in rng.permutation(len(groups)):
            problem, responses = groups[g]
            texts = list(dict.fromkeys(responses))
            for t in rng.permutation(len(texts)):
                identity = response_id(problem.problem_id, texts[t])
                writer.writerow(map(_cell, [problem.problem_id, str(problem.prompt), texts[t], "", identity]))
                rows += 1
    return rows


@lru_cache(maxsize=4)
def read_sheet(path: str, sha256: str) -> dict[str, str]:
    """Marks by response id. Raises ConfigError naming the row that cannot be used."""
    if _digest(path) != sha256:
        raise ConfigError(f"sheet {path!r} has changed since its judge was made: sha256 is not {sha256[:8]}…")
    marks: dict[str, str] = {}
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        try:
            if missing := {"cluster", "id"} - set(reader.fieldnames or ()):
                raise ConfigError(f"sheet {path!r} must have the columns {sorted(missing)}; it has {reader.fieldnames}")
            for number, row in enumerate(reader, start=2):
                if row["id"] in marks or not row["id"]:
                    raise ConfigError(f"sheet {path!r}, row {number}: id {row['id']!r} must be there once in the sheet")
                marks[row["id"]] = (row["cluster"] or "").strip().casefold()
        except (csv.Error, UnicodeDecodeError) as error:
            raise ConfigError(f"sheet {path!r} is no UTF-8 CSV: {error}") from None
    return marks


def _digest(path: str) -> str:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise ConfigError(f"sheet {path!r} cannot be read: {error.strerror}") from None


def _cell(text: str) -> str:
    """Text that a spreadsheet will not run: models write what they like."""
    text = "".join(c if c.isprintable() or c == "\n" else f"[U+{ord(c):04X}]" for c in text)
    return f"'{text}" if text.startswith(_FORMULA) else text
