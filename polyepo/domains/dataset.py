"""Rows of a data set: JSONL or Parquet files, or anything that the `datasets` library loads; and filters on them."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

from pydantic import model_validator

from polyepo.section import Section

_FILES = (".jsonl", ".parquet")


class ColumnFilter(Section):
    """Which rows stay, by one column: numbers (or fractions such as "4/8") between bounds, or some values."""

    min: float | None = None
    max: float | None = None
    values: list[str | int | float | bool] | None = None

    @model_validator(mode="after")
    def _says_something(self) -> ColumnFilter:
        bounded = self.min is not None or self.max is not None
        if bounded == (self.values is not None):
            raise ValueError("set either min or max, or both, or values")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} must not exceed max {self.max:g}")
        return self

    def keeps(self, value: Any) -> bool:
        """Whether a row with this value stays; one without a value does not. Raises ValueError if it is no number."""
        if value is None:
            return False
        if self.values is not None:
            return value in self.values
        try:
            number = Fraction(str(value))
        except (ValueError, ZeroDivisionError):
            raise ValueError(
                f"min and max need a number or a fraction such as 4/8, and it is {value!r}; use values"
            ) from None
        return (self.min is None or number >= self.min) and (self.max is None or number <= self.max)


def read_rows(path: str, subset: str | None = None, split: str | None = None) -> list[dict[str, Any]]:
    """All rows of a data set, in its order.

    Args:
        path: a JSONL or Parquet file; or a hub id or folder for the `datasets` library.
        subset: a configuration of the data set, as the library calls it.
        split: "train" if not given.

    Raises:
        ValueError: the data set cannot be read, a row is none, or the library is missing.
    """
    file = Path(path)
    if not file.is_file() and file.suffix not in _FILES:
        return _from_library(path, subset, split or "train")
    if subset or split:
        raise ValueError(f"domain.path {path!r} is a file: it has no subset {subset!r} and no split {split!r}")
    if not file.is_file():
        raise ValueError(f"domain.path {path!r}: no such file")
    return _from_parquet(path) if file.suffix == ".parquet" else _from_jsonl(path)


def value_at(row: dict[str, Any], column: str) -> Any:
    """A column's value; dots reach into nested columns. Raises KeyError if there is no such column."""
    if column in row:
        return row[column]
    outer, _, inner = column.partition(".")
    nested = row[outer]
    if not inner or not isinstance(nested, dict):
        raise KeyError(column)
    return value_at(nested, inner)


def _from_library(path: str, subset: str | None, split: str) -> list[dict[str, Any]]:
    try:
        import datasets
    except ImportError:
        raise ValueError(
            f"domain.path {path!r}: no such file; to load it as a data set install the `datasets` library: "
            "pip install 'poly-epo[datasets]'"
        ) from None
    try:
        return datasets.load_dataset(path, subset, split=split).to_list()
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(f"domain.path {path!r} cannot be loaded as a data set: {error}") from error


def _from_parquet(path: str) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"domain.path {path!r}: no valid Parquet: {error}") from None


def _from_jsonl(path: str) -> list[dict[str, Any]]:
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"domain.path {path!r} cannot be read: {error}") from None
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines() would also split at U+2028 in a text
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"domain.path {path!r}, line {number}: no valid JSON: {error}") from None
            if not isinstance(row, dict):
                raise ValueError(f"domain.path {path!r}, line {number}: must be a JSON object")
            rows.append(row)
    return rows
