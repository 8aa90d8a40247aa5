"""Read rollouts that others made: verl's dumps, TRL's completion tables, any JSONL, JSON or Parquet by column names."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from polyepo.conversations import asked_and_answered, is_conversation, is_parts, messages, spoken, text
from polyepo.domains.base import Prompt
from polyepo.domains.dataset import value_at
from polyepo.domains.references import number_text

if TYPE_CHECKING:
    import pyarrow as pa

Format = Literal["auto", "verl", "trl", "generic"]

# What columns are usually called, first match wins; dots reach into nested columns.
_KNOWN = {
    "problem": (
        "problem", "question", "prompt", "input", "query", "numbers",
        "doc.problem", "doc.question", "responses_create_params.input", "messages",  # lm-eval, NeMo Gym, chats
    ),
    "response": (
        "response", "responses", "completion", "completions", "output", "outputs", "generations", "samples",
        "resps", "filtered_resps",
    ),
    "answer": (
        "answer", "gold_answer", "expected_answer", "ground_truth", "gt", "gts", "reward_model.ground_truth", "target"
    ),
    "reward": ("reward", "rewards", "score", "scores", "is_correct", "correct"),
    "id": ("problem_id", "unique_id"),
    "step": ("step",),
    "advantage": ("advantage", "advantages"),
}  # fmt: skip
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
    filters: dict[str, Any] = {}
    for number, row in _rows(path):
        rows += 1
        if isinstance(row, str):
            yield BadRow(path.name, number, row)
            continue
        try:
            _check_filter(row, filters)
            yield from list(_responses(path.name, number, row, *_named(row, form, columns)))
        except _RowError as error:
            yield BadRow(path.name, number, str(error))
        except RecursionError:
            yield BadRow(path.name, number, "lists in lists, too deep to read")
    if not rows:
        raise ValueError(f"{str(path)!r} holds no rows")


def _check_filter(row: dict[str, Any], filters: dict[str, Any]) -> None:
    """lm-eval writes a document's responses once for each of its filters; they are taken once."""
    if "resps" in row and "doc_id" in row:
        first = filters.setdefault(str(row["doc_id"]), row.get("filter"))
        if first != row.get("filter"):
            raise _RowError(
                f"these responses were read under filter {first!r} already; a file without the rows of that one has "
                f"those of {_shown(row.get('filter'))}"
            )


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
    if "response" not in names and "messages" in row and not any(_has(row, name) for name in _KNOWN["response"]):
        names = {"problem": ["messages"], "response": ["messages"], **names}
    for what, known in _KNOWN.items():
        found = next((column for column in known if _has(row, column)), None)
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
    problem = _one(values, "problem")
    if names["problem"] == names["response"] and is_conversation(problem):  # all of it in one column
        problem, values["response"] = asked_and_answered(problem)[0], [asked_and_answered(problem)[1]]
    columns = [_several(value) for value in values["response"]]
    found = [response for column in columns for response in column]
    if not found:
        raise _RowError("the list of responses is empty")
    rewards = _numbers("reward", values, columns, nan_is_none=form == "trl")
    advantages = _numbers("advantage", values, columns)
    step = _whole(_one(values, "step"))
    if step is not None and not (_is_number(step) and isinstance(step, int) and 0 <= step <= _MAX_STEP):
        raise _RowError(f"step must be a whole number up to {_MAX_STEP}, but is {_shown(step)}")
    prompt = _prompt(problem)
    answer = _answer(_one(values, "answer"))
    problem_id = _problem_id(_one(values, "id"))
    for response, reward, advantage in zip(found, rewards, advantages, strict=True):
        yield ImportedResponse(
            file=file,
            row=number,
            step=1 if step is None else step,
            problem_id=problem_id,
            prompt=prompt,
            answer=answer,
            response=_response(response),
            reward=reward,
            advantage=advantage,
        )


def _numbers(
    what: str, values: dict[str, list[Any]], responses: list[list[Any]], nan_is_none: bool = False
) -> list[float | None]:
    """A reward (or advantage) per response; what several columns say of one column of responses is added up."""
    given = [_several(value) for value in values.get(what, [])]
    if nan_is_none:  # a reward function that does not apply to a response says None, which TRL logs as NaN
        given = [[None if isinstance(n, float) and math.isnan(n) else n for n in column] for column in given]
    if len(responses) > 1:  # a column of rewards for each column of responses
        given = [[number for column in given for number in column]]
    num_responses = sum(map(len, responses))
    numbers: list[float | None] = [None] * num_responses
    for column in given:
        if column in ([], [None]):  # not known for this row
            continue
        if len(column) != num_responses:
            raise _RowError(f"{num_responses} responses but {len(column)} {what}s; --map {what}= leaves them out")
        # TRL adds up its reward functions; weights other than 1 are not in its tables.
        numbers = [n if m is None else _reward(m) + (n or 0.0) for n, m in zip(numbers, column, strict=True)]
    return numbers


def _several(value: Any) -> list[Any]:
    """What a column holds for each response: lists in lists are one after the other, a conversation is one."""
    if isinstance(value, dict) and isinstance(value.get("output"), list):  # a reply of OpenAI's Responses API
        return _several(value["output"])
    if isinstance(value, dict) and is_conversation([value]):
        return [[value]]
    if isinstance(value, dict) and all(str(key).isdigit() for key in value):  # numbered, such as {"1": ..., "2": ...}
        return [item for item in value.values() if item is not None]
    if isinstance(value, list) and not is_conversation(value) and not is_parts(value):
        return [one for item in value for one in _several(item)]
    return [value]


def _has(row: dict[str, Any], column: str) -> bool:
    try:
        value_at(row, column)
    except KeyError:
        return False
    return True


def _reach(row: Any, column: str) -> Any:
    """The value of a column; dots reach into nested ones and lists of them. A column's own name may have a dot.

    What the turns of a conversation say is known only together with who says it: their content is the conversation.
    """
    if isinstance(row, dict) and column in row:
        return row[column]
    first, dot, rest = column.partition(".")
    if first == "content" and is_conversation(row):
        return row
    if isinstance(row, list):
        return [_reach(item, column) for item in row]
    if dot and isinstance(row, dict) and first in row:
        return _reach(row[first], rest)
    raise _RowError(f"no column {column!r}")


def _one(values: dict[str, list[Any]], what: str) -> Any:
    """The value of a field that a row has once; a list of one is its element."""
    value = values[what][0] if values.get(what) else None
    while isinstance(value, list) and len(value) == 1 and not is_conversation(value):
        value = value[0]
    return value


def _prompt(value: Any) -> Prompt:
    if isinstance(value, str) and value.strip():
        return _text(value)
    if is_conversation(value):
        try:
            return [{name: _text(said) for name, said in message.items()} for message in messages(value)]
        except ValueError as error:
            raise _RowError(f"the problem cannot be read: {error}") from None
    raise _RowError(f"the problem must be text or chat messages, but is {_shown(value)}")


def _response(value: Any) -> str:
    if value is None:
        raise _RowError("a response must be text, but is None")
    try:
        return _text(spoken(value) if is_conversation(value) else text(value))
    except _RowError:
        raise
    except ValueError as error:
        raise _RowError(f"a response must be text, but is {_shown(value)}: {error}") from None


def _answer(value: Any) -> str | None:
    """As text; several answers as JSON, which is how data sets write them."""
    if value is None:
        return None
    if isinstance(value, list) and value:
        return json.dumps([_answer(item) for item in value], ensure_ascii=False)
    if not isinstance(value, str | int) and not (isinstance(value, float) and math.isfinite(value)):
        raise _RowError(
            f"the answer must be text or a number, but is {_shown(value)}; --map answer= leaves answers out"
        )
    return _text(number_text(value) if isinstance(value, float) else str(value))


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


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python writes out no integer of more than 4,300 digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:60]}…"
