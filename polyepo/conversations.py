"""Conversations as other programs write them: chat messages, and the items of OpenAI's Responses API."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_ASSISTANTS = ("assistant", "model")
_SILENT_PARTS = ("reasoning", "thinking", "redacted_thinking", "tool_use", "tool_call", "tool_result")


def is_conversation(value: Any) -> bool:
    """Whether a value is a list of turns: {"role", "content"}, or {"type": "reasoning"} and the like."""
    return isinstance(value, Sequence) and bool(value) and all(map(_is_turn, value))


def is_parts(value: Any) -> bool:
    """Whether a value is one turn's content in parts, such as [{"type": "text", "text": "..."}]."""
    return isinstance(value, list) and bool(value) and all(isinstance(p, dict) and "type" in p for p in value)


def role(turn: dict[str, Any]) -> str:
    """Who speaks. Items of the Responses API name a role only where it is not plain from their type."""
    if "role" in turn:
        return str(turn["role"])
    return "tool" if str(turn["type"]).endswith("_output") else "assistant"


def text(content: Any) -> str:
    """The text of a content: nothing of thoughts and tool calls, parts together. Raises ValueError for an image."""
    if is_parts(content):
        parts = [part.get("text") for part in content if part["type"] not in _SILENT_PARTS]
        if all(isinstance(part, str) for part in parts):
            return "".join(parts)
    if content is not None and not isinstance(content, str):
        raise ValueError("content must be text")
    return content or ""


def spoken(turns: Sequence[dict[str, Any]]) -> str:
    """All that the assistant says, line by line; not what it is told or what its tools print.

    Raises:
        ValueError: no turn is the assistant's, or one is not text.
    """
    own = [turn for turn in turns if role(turn) in _ASSISTANTS]
    if not own:
        raise ValueError(f"no turn is the assistant's, only {', '.join(sorted({role(turn) for turn in turns}))}")
    return "\n".join(filter(None, (text(turn.get("content")) for turn in own if "role" in turn)))


def messages(turns: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """Chat messages with role and text alone. Raises ValueError if one is not text."""
    said = [turn for turn in turns if "role" in turn or "output" in turn]
    return [{"role": role(turn), "content": text(turn.get("content", turn.get("output")))} for turn in said]


def asked_and_answered(turns: Sequence[dict[str, Any]]) -> tuple[Sequence[dict[str, Any]], Sequence[dict[str, Any]]]:
    """A whole conversation, divided after the last turn that is neither the assistant's nor a tool's."""
    asked = max(
        (i for i, turn in enumerate(turns, 1) if role(turn) not in (*_ASSISTANTS, "tool", "function")), default=0
    )
    return turns[:asked], turns[asked:]


def _is_turn(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    if "role" in value:
        return "content" in value or "tool_calls" in value
    kind = str(value.get("type"))
    return kind == "reasoning" or kind.endswith(("_call", "_call_output"))
