"""Read rollouts that others made: verl's dumps, TRL's completion tables, any JSONL, JSON or Parquet by column names."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from polyepo.domains.base import Prompt

if TYPE_CHECKING:
    import pyarrow as pa

Format = Literal["auto", "verl", "trl", "generic"]

# What columns are usually called, first match wins.
_KNOWN = {
    "problem": ("problem", "question", "prompt", "input", "query", "numbers"),
    "response": ("response", "responses", "completion", "completions", "output", "outputs", "generations", "samples"),
    "answer": ("answer", "gold_answer", "expected_answer", "ground_truth", "gt", "gts"),
    "reward": ("reward", "rewards", "score", "scores", "is_correct", "correct"),
    "id": ("problem_id", "unique_id"),
    "step": ("step",),
    "advantage": ("advantage", "advantages"),
}
FIELDS = tuple(_KNOWN)
_MAX_STEP = 2**31 - 1


class ImportedResponse(NamedTuple):
    """One response of a file. `problem_id` is the data set's own, or None."""

    file: str
    row: int
    step: int
    problem_id: str | None
    prompt: Prompt
    answer: str | None
    response: str
    reward: float | None
    advantage: float | None


class BadRow(NamedTuple):
    """A row that cannot be used. Rows count from 1: in JSONL they are the lines."""

    file: str
    row: int
    reason: str


@dataclass
class Columns:
    """Column names by what they hold; several responses (and rewards) per row may stand in columns of their own.

    No names at all for a field: the files do not have it, whatever their columns are called.
    """

    names: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def parse(cls, mapping: Iterable[str]) -> Columns:
        """From "problem=question" and the like; dots reach into nested columns, and "id=" says there is no column.

        Raises:
            ValueError: an entry is not of that form, or rewards and responses do not belong together.
        """
        names: dict[str, list[str]] = {}
        for entry in mapping:
            what, equals, column = entry.partition("=")
            if what not in FIELDS or not equals or (not column and what in ("problem", "response")):
                raise ValueError(f"--map {entry!r} must be FIELD=COLUMN, with FIELD one of {', '.join(FIELDS)}")
            names.setdefault(what, [])
            names[what] += [column] if column else []
        num_responses, num_rewards = len(names.get("response", [""])), len(names.get("reward", []))
        if num_responses > 1 and num_rewards not in (0, num_responses):
            raise ValueError("--map must name as many reward columns as response columns, or none")
        return cls(names)


class _RowError(ValueError):
    """Why a row cannot be used."""


def read_responses(path: Path, form: Format, columns: Columns) -> Iterator[ImportedResponse | BadRow]:
    """Every response of a file, and every row that cannot be used with the reason; nothing is left out silently.

    Raises:
        ValueError: the file cannot be read at all.
    """
    rows = 0
    for number, row in _rows(path):
        rows += 1
        if isinstance(row, str):
            yield BadRow(path.name, number, row)
            continue
        try:
            yield from list(_responses(path.name, number, row, *_named(row, form, columns)))
        except _RowError as error:
            yield BadRow(path.name, number, str(error))
    if not rows:
        raise ValueError(f"{str(path)!r} holds no rows")


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Numbered rows; in place of a row that is none, what is wrong with it."""
    if not path.is_file():
        raise ValueError(f"{str(path)!r}: no such file")
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            number = 0
            for batch in pq.ParquetFile(path).iter_batches(1024):
                for row in _parquet_rows(batch):
                    number += 1
                    yield number, row
        except (OSError, pa.ArrowException) as error:
            raise ValueError(f"{str(path)!r} is no valid Parquet: {error}") from None
    elif path.suffix == ".json":
        try:
            content = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{str(path)!r} is no valid JSON: {error}") from None
        if not isinstance(content, list):
            raise ValueError(f"{str(path)!r} must hold a list of objects, but holds {type(content).__name__}")
        for number, row in enumerate(content, 1):
            yield number, row if isinstance(row, dict) else f"must be an object, but is {type(row).__name__}"
    else:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, _json_row(line)


def _parquet_rows(batch: pa.RecordBatch) -> Iterable[dict[str, Any] | str]:
    try:
        return batch.to_pylist()
    except UnicodeDecodeError as error:  # Parquet does not check that its strings are UTF-8
        if batch.num_rows == 1:
            return [f"no valid UTF-8: {error.reason} at byte {error.start}"]
        return [row for i in range(batch.num_rows) for row in _parquet_rows(batch.slice(i, 1))]


def _json_row(line: bytes) -> dict[str, Any] | str:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return f"no valid UTF-8: {error.reason} at byte {error.start}"
    except (ValueError, RecursionError) as error:
        return f"no valid JSON: {error}"
    return row if isinstance(row, dict) else f"must be an object, but is {type(row).__name__}"


def _named(row: dict[str, Any], form: Format, columns: Columns) -> tuple[Format, dict[str, list[str]]]:
    """The format of this row, and its columns by what they hold."""
    names = dict(columns.names)
    if form == "auto":
        form = "trl" if {"prompt", "completion", "advantage"} <= row.keys() else "generic"
    if form == "verl":
        names = {"problem": ["input"], "response": ["output"], "answer": ["gts"], "reward": ["score"], **names}
    if form == "trl":
        # One column per reward function, named after it. Numbers that users log besides look the same: --map reward=.
        numbers = [c for c, v in row.items() if c not in ("step", "advantage") and _is_number(v)]
        names = {"problem": ["prompt"], "response": ["completion"], "reward": numbers, **names}
    for what, known in _KNOWN.items():
        found = next((column for column in known if column in row), None)
        if what not in names and found is not None:
            names[what] = [found]
    for what in ("problem", "response"):
        if what not in names:
            raise _RowError(f"no column for {what} among {sorted(map(str, row))}; name it with --map {what}=COLUMN")
    return form, names


def _responses(
    file: str, number: int, row: dict[str, Any], form: Format, names: dict[str, list[str]]
) -> Iterator[ImportedResponse]:
    values = {what: [_reach(row, column) for column in columns] for what, columns in names.items()}
    prompt = _prompt(values["problem"][0])
    found = values["response"]
    rewards = values.get("reward", [])
    if form == "trl":  # a reward function that does not apply to a response says None, which TRL logs as NaN
        rewards = [None if isinstance(reward, float) and math.isnan(reward) else reward for reward in rewards]
    if len(found) == 1 and isinstance(found[0], dict):  # numbered texts, such as {"1": ..., "2": ...}
        found = [[text for text in found[0].values() if text is not None]]
    if len(found) == 1 and isinstance(found[0], list) and not _is_messages(found[0]):
        found = found[0]
        rewards = rewards[0] if rewards and isinstance(rewards[0], list) else rewards
    elif len(found) == 1 and len(rewards) > 1:
        # TRL adds up its reward functions; weights other than 1 are not in its tables.
        given = [_reward(reward) for reward in rewards if reward is not None]
        rewards = [sum(given) if given else None]
    if rewards and len(rewards) != len(found):
        raise _RowError(f"{len(found)} responses but {len(rewards)} rewards")
    answer = _one(values, "answer")
    step = _whole(_one(values, "step"))
    if step is not None and not (_is_number(step) and isinstance(step, int) and 0 <= step <= _MAX_STEP):
        raise _RowError(f"step must be a whole number up to {_MAX_STEP}, but is {_shown(step)}")
    if not found:
        raise _RowError("the list of responses is empty")
    advantages = values.get("advantage", [])
    for i, response in enumerate(found):
        yield ImportedResponse(
            file=file,
            row=number,
            step=1 if step is None else step,
            problem_id=_problem_id(_one(values, "id")),
            prompt=prompt,
            answer=None if answer is None else _answer(answer),
            response=_response(response),
            reward=None if not rewards or rewards[i] is None else _reward(rewards[i]),
            advantage=_reward(advantages[0]) if len(found) == 1 and advantages not in ([], [None]) else None,
        )


def _reach(row: Any, column: str) -> Any:
    """The value of a column; dots reach into nested ones and lists of them. A column's own name may have a dot."""
    if isinstance(row, dict) and column in row:
        return row[column]
    if isinstance(row, list):
        return [_reach(item, column) for item in row]
    first, dot, rest = column.partition(".")
    if dot and isinstance(row, dict) and first in row:
        return _reach(row[first], rest)
    raise _RowError(f"no column {column!r}")


def _one(values: dict[str, list[Any]], what: str) -> Any:
    return values[what][0] if values.get(what) else None


def _prompt(value: Any) -> Prompt:
    if isinstance(value, str) and value.strip():
        return _text(value)
    if _is_messages(value):
        return [{"role": _text(str(message["role"])), "content": _content(message)} for message in value]
    raise _RowError(f"the problem must be text or chat messages, but is {_shown(value)}")


def _response(value: Any) -> str:
    if _is_messages(value):
        return "\n".join(map(_content, value))
    if not isinstance(value, str):
        raise _RowError(f"a response must be text, but is {_shown(value)}")
    return _text(value)


def _content(message: dict[str, Any]) -> str:
    """The text of a chat message: nothing if it only calls tools, the parts together if it has parts."""
    content = message["content"]
    if isinstance(content, list) and all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in content):
        content = "".join(part["text"] for part in content)
    if content is not None and not isinstance(content, str):
        raise _RowError(f"a chat message's content must be text, but is {_shown(content)}")
    return _text(content or "")


def _answer(value: Any) -> str:
    value = _whole(value)
    if not isinstance(value, str | int) and not (isinstance(value, float) and math.isfinite(value)):
        raise _RowError(
            f"the answer must be text or a number, but is {_shown(value)}; --map answer= leaves answers out"
        )
    return _text(str(value))


def _problem_id(value: Any) -> str | None:
    value = _whole(value)
    if value is None or (isinstance(value, str | int) and not isinstance(value, bool)):
        return None if value is None or value == "" else _text(str(value))
    raise _RowError(f"an id must be text or a whole number, but is {_shown(value)}")


def _whole(value: Any) -> Any:
    """A number without a fraction as an integer: columns with gaps turn integers into floats."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _reward(value: Any) -> float:
    try:
        if isinstance(value, bool) or (_is_number(value) and math.isfinite(value)):
            return float(value)
    except OverflowError:  # an integer of hundreds of digits
        pass
    raise _RowError(f"a reward must be a finite number or true or false, but is {_shown(value)}")


def _text(value: str) -> str:
    """Text that can be stored: JSON may hold halves of surrogate pairs, which are no characters."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _RowError("the text holds half of a surrogate pair") from None
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_messages(value: Any) -> bool:
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and len(value) > 0
        and all(isinstance(m, dict) and "role" in m and "content" in m for m in value)
    )


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python writes out no integer of more than 4,300 digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:60]}…"
