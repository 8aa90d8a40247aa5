"""How two descriptions of runs differ, and a description with values replaced, by dotted names such as policy.dtype."""

from __future__ import annotations

import json
from typing import Any

from polyepo.errors import ConfigError


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """One line per setting that differs between two configurations, as `section.key: old -> new`."""
    lines = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            lines += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            lines.append(f"{prefix}{key}: {json.dumps(before)} -> {json.dumps(after)}")
    return lines


def as_settings(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by dotted name that make one configuration the other, as `load_config` takes them.

    A section of another kind, or one that lacks what the old one had, is given as a whole.
    """
    settings: dict[str, Any] = {}
    for key, after in new.items():
        before = old.get(key)
        if before == after:
            continue
        if isinstance(before, dict) and isinstance(after, dict) and _same_kind(before, after):
            settings |= as_settings(before, after, f"{prefix}{key}.")
        else:
            settings[f"{prefix}{key}"] = after
    return settings


def _same_kind(before: dict[str, Any], after: dict[str, Any]) -> bool:
    return before.keys() <= after.keys() and all(before.get(tag) == after.get(tag) for tag in ("name", "method"))


def set_value(raw: dict[str, Any], name: str, value: Any) -> None:
    """Set a value by its dotted name; the name of an arm may have dots of its own."""
    arms = raw.get("arms")
    sections, key = _path(arms if isinstance(arms, dict) else {}, name)
    for section in sections:
        raw = raw.setdefault(section, {})
        if not isinstance(raw, dict):
            raise ConfigError(f"setting {name!r} cannot be: {section!r} is no section")
    raw[key] = value


def _path(arms: dict[str, Any], name: str) -> tuple[list[str], str]:
    """A dotted name as its sections and its key."""
    if name.startswith("arms."):
        arm = max((arm for arm in arms if name.startswith(f"arms.{arm}.")), key=len, default="")
        if arm:
            sections, key = _path({}, name.removeprefix(f"arms.{arm}."))
            return ["arms", arm, *sections], key
    *sections, key = name.split(".")
    return sections, key


def replaces(changes: Any, names: list[str]) -> bool:
    """Whether an arm's changes decide a setting, by its value or by another kind for the section that it is in."""
    first, *rest = names
    if not isinstance(changes, dict) or first not in changes:
        return False
    value = changes[first]
    if not rest or not isinstance(value, dict) or {"name", "method"} & value.keys():
        return True
    return replaces(value, rest)


def override(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with `changes` merged in; a mapping that names another kind (name, method) replaces its section."""
    merged = dict(base)
    for key, value in changes.items():
        old = base.get(key)
        same_kind = isinstance(old, dict) and isinstance(value, dict) and not {"name", "method"} & value.keys()
        merged[key] = override(old, value) if same_kind else value  # type: ignore[arg-type]
    return merged
