"""What is wrong with a configuration, in the names that its file has, and what was probably meant."""

from __future__ import annotations

import difflib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from polyepo.plugins import provided


def explain(kind: Any, error: ErrorDetails) -> str:
    """One line for one of pydantic's errors about `kind`, a section or a union of sections.

    Pydantic puts the variant of a union (llm, poly_epo) into the location, where a file has no such key.
    """
    names, section = _locate(kind, error["loc"])
    context = error.get("ctx", {})
    match error["type"]:
        case "extra_forbidden":
            return f"{'.'.join(names)}: unknown key{_meant(kind, section, names)}"
        case "union_tag_invalid" | "union_tag_not_found":
            tag = str(context["discriminator"]).strip("'")
            known = re.findall(r"'([^']*)'", str(context.get("expected_tags"))) or _tags(_type_at(kind, names))
            given = context.get("tag")
            found = "is missing" if given is None else f"{given!r} is unknown"
            # A domain or judge may be the user's own; a method may not.
            own = " or FILE.py:CLASS" if tag == "name" and len(names) == 1 else ""
            allowed = ", ".join(known) + own
            return f"{'.'.join([*names, tag])}: {found}; it must be one of {allowed}{did_you_mean(given, known)}"
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"{'.'.join(names) or 'it'}: must be a section of settings (is {error['input']!r})"
    message = error["msg"].removeprefix("Value error, ")
    shown = "" if error["type"] in ("missing", "value_error") else f" (is {error['input']!r})"
    return ": ".join(filter(None, [".".join(names), message])) + shown


def did_you_mean(given: object, known: Iterable[str]) -> str:
    """`; did you mean x?` with the name that is most like what was given, in any case; nothing if none is."""
    names = {name.lower(): name for name in known}
    close = difflib.get_close_matches(str(given).lower(), names, n=1) if given is not None else []
    return f"; did you mean {names[close[0]]}?" if close else ""


def keys(kind: Any, prefix: str = "") -> Iterator[str]:
    """Dotted names of every setting below a section or union, whatever its variant."""
    for section in _sections(kind):
        for name, field in section.model_fields.items():
            yield f"{prefix}{name}"
            yield from keys(field.annotation, f"{prefix}{name}.")


def is_setting(kind: Any, raw: Any, name: str) -> bool:
    """Whether a dotted name is a setting of what `raw` describes, by the variants that it names."""
    for part in name.split("."):
        tags = [raw.get("name"), raw.get("method")] if isinstance(raw, dict) else []
        variants = _variants(kind)
        kind = next((variants[tag] for tag in tags if tag in variants), kind)
        raw = raw.get(part) if isinstance(raw, dict) else None
        if (kind := _child(kind, part)) is None:
            return False
    return True


def _meant(kind: Any, section: type[BaseModel] | None, names: list[str]) -> str:
    """What an unknown key was meant to be: a key of its section that is like it, or the same key elsewhere."""
    *where, key = names
    near = did_you_mean(key, section.model_fields) if section else ""
    if near:
        return near.replace("mean ", f"mean {'.'.join([*where, ''])}")
    by_last = defaultdict(list)
    for name in dict.fromkeys(keys(kind)):
        by_last[name.rsplit(".", 1)[-1]].append(name)
    if ".".join(names) in by_last[key]:  # a key of another variant of this section
        having = [tag for tag, variant in _variants(_type_at(kind, where)).items() if key in variant.model_fields]
        return f" here; it is a setting of {' and '.join(having)}"
    return f"; did you mean {' or '.join(by_last[key][:3])}?" if by_last[key] else ""


def _locate(kind: Any, loc: tuple[int | str, ...]) -> tuple[list[str], type[BaseModel] | None]:
    """A location's names in the file, and the section that the last one is in."""
    names: list[str] = []
    section: type[BaseModel] | None = None
    for part in loc:
        if (variant := _variant(kind, part)) is not None:
            kind = variant
            continue
        sections = _sections(kind)
        if not sections and _is_union(kind):
            continue  # the type of a plain value: bool, str
        section = sections[0] if sections else None
        names.append(str(part))
        kind = _child(kind, str(part))
    return names, section


def _type_at(kind: Any, names: list[str]) -> Any:
    for name in names:
        kind = next((child for section in _sections(kind) or [kind] if (child := _child(section, name))), None)
    return kind


def _child(kind: Any, name: str) -> Any:
    sections = _sections(kind)
    if sections:
        return next((s.model_fields[name].annotation for s in sections if name in s.model_fields), None)
    return (get_args(_bare(kind)) or (None,))[-1]  # the values of a dictionary or list


def _sections(kind: Any) -> list[type[BaseModel]]:
    """The sections that a type allows: itself, or the members of a union."""
    kind = _bare(kind)
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return [kind]
    return [section for member in get_args(kind) for section in _sections(member)] if _is_union(kind) else []


def _variants(kind: Any) -> dict[str, type[BaseModel]]:
    """The members of a tagged union by tag."""
    if not _is_union(_bare(kind)):
        return {}
    found = {}
    for section in _sections(kind):
        for tag in ("name", "method"):
            field = section.model_fields.get(tag)
            if field is not None and get_origin(field.annotation) is Literal:
                found.update(dict.fromkeys(get_args(field.annotation), section))
    return found


def _variant(kind: Any, tag: int | str) -> type[BaseModel] | None:
    """The member of a tagged union that a tag names: one of ours, or a user's own class that was imported."""
    variants = _variants(kind)
    if tag in variants or not variants:
        return variants.get(str(tag))
    code = provided(tag) if isinstance(tag, str) else None
    return code.value if code is not None and isinstance(code.value, type) else None


def _tags(kind: Any) -> list[str]:
    return list(_variants(kind))


def _bare(kind: Any) -> Any:
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def _is_union(kind: Any) -> bool:
    return get_origin(kind) in (Union, UnionType)
