"""What a judge model replies: the JSON schema it is asked for, and the only way its text becomes labels.

A reply is hostile until it is validated: each id exactly once, whole numbers in range, no unknown keys.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from polyepo.judges.llm.prompt import visible

DEGENERATE_CLUSTER = -1
"""What the model answers for a degenerate response."""
MAX_NAME_CHARACTERS = 120
MAX_RATIONALE_CHARACTERS = 240
MAX_REPLY_CHARACTERS = 1_000_000
"""A longer reply is not read: no group needs one."""
_MAX_SCANNED = 2 * MAX_REPLY_CHARACTERS
_NO_OBJECT = "the reply must be one JSON object and nothing else"

# LaTeX that the model forgot to escape. A backslash that starts no JSON escape is LaTeX, and so are \b, \f, \r and \t
# before letters (\frac, \beta, \times) though JSON reads them: nobody means a control character in a name. A line break
# may be meant, so \n is LaTeX only before what can go on as a command (\nu, \neq, \nRightarrow), not before a sentence.
_BACKSLASH = re.compile(r'\\\\|\\(?=[bfrt][A-Za-z]|n(?:[a-z]|[LR]\w*arrow|V[Dd]ash)|u(?![0-9a-fA-F]{4})|[^"\\/bfnrtu])')
# Strings and comments run to the end of the text if nothing ends them: each character is looked at once.
_STRING = r'"(?>[^"\\]+|\\.)*+"?'
_COMMENT = r"//[^\n]*|#[^\n]*|/\*.*?(?:\*/|\Z)"
_TOKEN = re.compile(rf'{_STRING}|{_COMMENT}|[{{}}\[\],]|\s+|(?:(?!//|/\*)[^"{{}}\[\],#\s])+', re.S)
_BLANK = re.compile(rf"(?:\s+|{_COMMENT})*+", re.S)
# Every object that can be valid begins with one of its two keys.
_KEY = re.compile(r'"(?:responses|strategies)"')


class ReplyError(ValueError):
    """A reply that cannot be used; the message tells the model what to correct, and quotes at most a few ids."""


class Assignment(NamedTuple):
    """What the judge said of one response. `cluster` is None if degenerate."""

    cluster: int | None
    macro_strategy: str | None
    micro_strategy: str | None
    rationale: str


class Reply(NamedTuple):
    """A valid reply: one assignment per id. `repaired` if the text had to be mended before it could be read."""

    assignments: dict[str, Assignment]
    repaired: bool


def reply_schema(ids: Sequence[str]) -> dict[str, Any]:
    """The strict JSON schema of a reply about these ids. Arrays and strings are bounded: models loop otherwise."""
    cluster = {"type": "integer", "minimum": 0, "maximum": len(ids) - 1}
    response = {
        "id": {"type": "string", "enum": list(ids)},
        "rationale": {"type": "string", "maxLength": MAX_RATIONALE_CHARACTERS},
        "cluster": {**cluster, "minimum": DEGENERATE_CLUSTER},
    }
    strategy = {
        "cluster": cluster,
        "macro_strategy": {"type": "string", "maxLength": MAX_NAME_CHARACTERS},
        "micro_strategy": {"type": "string", "maxLength": MAX_NAME_CHARACTERS},
    }
    return _strict(
        {
            "responses": {
                "type": "array",
                "items": _strict(response),
                "minItems": len(ids),
                "maxItems": len(ids),
            },
            "strategies": {"type": "array", "items": _strict(strategy), "maxItems": len(ids)},
        }
    )


def parse_reply(text: str, ids: Sequence[str]) -> Reply:
    """Read and validate a reply about these ids: the last valid object in the text, whatever stands around it.

    Raises:
        ReplyError: no object in it gives each id exactly one cluster, or it ends in the middle of one.
    """
    if len(text) > MAX_REPLY_CHARACTERS:
        raise ReplyError(f"the reply has {len(text)} characters; at most {MAX_REPLY_CHARACTERS} are read")
    if not text.strip():
        raise ReplyError(f"the content was empty; {_NO_OBJECT}")
    if text.lstrip().startswith("<think>") and "</think>" not in text:
        raise ReplyError(f"the model's thoughts did not end; {_NO_OBJECT}")
    wrong: ReplyError | None = None
    for value, source in _objects(text):
        try:
            return Reply(_assignments(value, ids), source != text.strip())
        except ReplyError as error:
            wrong = wrong or error  # of the last object, which is the one that was meant
    raise wrong or ReplyError(_NO_OBJECT)


def _assignments(value: Any, ids: Sequence[str]) -> dict[str, Assignment]:
    body = _object(value, ("responses", "strategies"), "the reply")
    strategies = _strategies(_array(body["strategies"], "strategies"), len(ids))
    found: dict[str, Assignment] = {}
    seen: Counter[str] = Counter()
    for entry in _array(body["responses"], "responses"):
        row = _object(entry, ("id", "rationale", "cluster"), "an entry of responses")
        response_id = _string(row["id"], "id")
        seen[response_id] += 1
        cluster = _integer(row["cluster"], DEGENERATE_CLUSTER, len(ids) - 1)
        rationale = _bounded(_string(row["rationale"], "rationale"), MAX_RATIONALE_CHARACTERS)
        if cluster == DEGENERATE_CLUSTER:
            found[response_id] = Assignment(None, None, None, rationale)
        elif cluster in strategies:
            found[response_id] = Assignment(cluster, *strategies[cluster], rationale)
        else:
            raise ReplyError(f"cluster {cluster} is used but not described in strategies")
    _check_ids(seen, ids)
    return found


def _check_ids(seen: Counter[str], ids: Sequence[str]) -> None:
    problems = {
        "missing": [i for i in ids if not seen[i]],
        "repeated": [i for i in ids if seen[i] > 1],
        # Ids that we did not make are not quoted: they would carry a reply's text into the next request.
        "unknown": ["?" for i in seen if i not in set(ids)],
    }
    if wrong := {kind: found[:8] for kind, found in problems.items() if found}:
        listed = "; ".join(f"{len(problems[kind])} {kind} ({', '.join(found)})" for kind, found in wrong.items())
        raise ReplyError(f"each id must occur exactly once in responses: {listed}")


def _strategies(entries: list[Any], num_ids: int) -> dict[int, tuple[str, str]]:
    found: dict[int, tuple[str, str]] = {}
    for entry in entries:
        row = _object(entry, ("cluster", "macro_strategy", "micro_strategy"), "an entry of strategies")
        cluster = _integer(row["cluster"], 0, num_ids - 1)
        if cluster in found:
            raise ReplyError(f"cluster {cluster} is described twice in strategies")
        macro, micro = (
            _string(row["macro_strategy"], "macro_strategy"),
            _string(row["micro_strategy"], "micro_strategy"),
        )
        found[cluster] = (_bounded(macro, MAX_NAME_CHARACTERS), _bounded(micro, MAX_NAME_CHARACTERS))
    return found


def _objects(text: str) -> Iterator[tuple[Any, str]]:
    """JSON objects in a text that may be the reply, the last one first, each with its mended source.

    An object that the end of the text cuts short is an error: the model was about to say something else than before.
    """
    scanned = 0
    starts = _starts(text)
    for start in reversed(starts):
        source, end = _mended(text, start)
        scanned += end - start
        if scanned > _MAX_SCANNED:  # objects in objects in objects: no model means that
            return
        try:
            yield _loads(source), source
        except json.JSONDecodeError as error:
            if end == len(text) and (error.pos >= len(source) - 1 or error.msg.startswith("Unterminated string")):
                raise ReplyError(f"{_NO_OBJECT}; it ends in the middle of one") from None
        except (ValueError, RecursionError):
            continue
    if not starts:
        with contextlib.suppress(ValueError, RecursionError):
            yield _loads(text), text


def _starts(text: str) -> list[int]:
    """Where objects begin whose first key is one of a reply's."""
    starts, last = [], 0
    for key in _KEY.finditer(text):
        brace = text.rfind("{", last, key.start())
        if brace >= 0 and _BLANK.fullmatch(text, brace + 1, key.start()):
            starts.append(brace)
        last = key.end()
    return starts


def _mended(text: str, start: int) -> tuple[str, int]:
    """The JSON object that begins at `start`, without comments and trailing commas and with its LaTeX, and its end.

    No library does this as strictly: json-repair closes what was cut short and so makes labels up, JSON5 parsers drop
    LaTeX's backslashes and take keys that occur twice. What is left is for `json` to read, and for us to validate.
    """
    parts: list[str] = []
    depth, comma = 0, -1
    for token in _TOKEN.finditer(text, start):
        part = token[0]
        first = part[0]
        if first == '"':
            part = _BACKSLASH.sub(r"\\\\", part)  # one that was escaped stays so, another becomes so
        elif first == "#" or part.startswith(("//", "/*")):
            continue
        elif first in "{[":
            depth += 1
        elif first in "}]":
            depth -= 1
            if comma >= 0:
                parts[comma] = ""
        if first == ",":
            comma = len(parts)
        elif not part.isspace():
            comma = -1
        parts.append(part)
        if depth == 0:
            return "".join(parts), token.end()
    return "".join(parts), len(text)


def _loads(text: str) -> Any:
    # Not strict: line breaks and tabs may stand in strings as they are.
    return json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_no_constant, strict=False)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _strict(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _object(value: Any, keys: tuple[str, ...], what: str) -> dict[str, Any]:
    if not isinstance(value, dict) or value.keys() != set(keys):
        raise ReplyError(f"{what} must be an object with exactly the keys {', '.join(keys)}")
    return value


def _array(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise ReplyError(f"{name} must be an array")
    return value


def _string(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ReplyError(f"{name} must be a string")
    return value


def _integer(value: Any, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:  # True is an int to isinstance
        raise ReplyError(f"cluster must be a whole number from {low} to {high}")
    return value


def _bounded(text: str, limit: int) -> str:
    return visible(text[:limit])[:limit]
