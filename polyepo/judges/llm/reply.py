"""What a judge model replies: the JSON schema it is asked for, and the only way its text becomes labels.

A reply is hostile until it is validated: each id exactly once, whole numbers in range, no unknown keys.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from polyepo.judges.llm.prompt import visible

DEGENERATE_CLUSTER = -1
"""What the model answers for a degenerate response."""
MAX_NAME_CHARACTERS = 120
MAX_RATIONALE_CHARACTERS = 240
MAX_REPLY_CHARACTERS = 1_000_000
"""A longer reply is not read: no group needs one."""

# A backslash that starts no JSON escape: LaTeX that the model forgot to escape. \b, \f, \n, \r, \t and \u before
# letters (\frac, \beta, \times) are LaTeX too; before anything else they are what JSON says.
_BARE_BACKSLASH = re.compile(r'\\(?:(?=[bfnrt][A-Za-z])|(?=u(?![0-9a-fA-F]{4}))|(?=[^"\\/bfnrtu]))')
_ESCAPED_BACKSLASH = re.compile(r"(\\\\)")


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
    """Read and validate a reply about these ids.

    Raises:
        ReplyError: it is no JSON, or does not give each id exactly one cluster.
    """
    raw, repaired = _read_json(text)
    body = _object(raw, ("responses", "strategies"), "the reply")
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
    return Reply(found, repaired)


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


def _read_json(text: str) -> tuple[Any, bool]:
    """The JSON value in a text, and whether anything around or inside it had to be mended."""
    if len(text) > MAX_REPLY_CHARACTERS:
        raise ReplyError(f"the reply has {len(text)} characters; at most {MAX_REPLY_CHARACTERS} are read")
    inner = text[text.find("{") : text.rfind("}") + 1]
    mended = "".join(
        part if part == "\\\\" else _BARE_BACKSLASH.sub(r"\\\\", part) for part in _ESCAPED_BACKSLASH.split(inner)
    )
    for candidate in dict.fromkeys((text, inner, mended)):
        try:
            return _loads(candidate), candidate != text
        except (ValueError, RecursionError):
            continue
    raise ReplyError("the reply must be one JSON object and nothing else")


def _loads(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_no_constant)


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
