"""A report as one HTML page. Model output reaches it as JSON alone, and its script writes it as text alone."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from polyepo.labels import LabelStatus
from polyepo.objectives import DEGENERATE
from polyepo.report.data import ProblemKey, Prompt, Report
from polyepo.report.divergence import divergence

MAX_CHARACTERS = 16_000
"""Of a text in the page; the store has the rest."""


def render(report: Report) -> str:
    """The page: styles, scripts, data and all."""
    folder = resources.files("polyepo.report")
    scripts = [(folder / name).read_text("utf-8") for name in _SCRIPTS]
    # Only these very scripts may run, and nothing may be fetched: whatever else got into the page would be inert.
    hashes = " ".join(f"'sha256-{_sha256(script)}'" for script in scripts)
    template = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string((folder / "template.html.jinja").read_text("utf-8"))
    return template.render(
        report=report,
        policy=(
            f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; "
            "base-uri 'none'; form-action 'none'"
        ),
        style=Markup((folder / "report.css").read_text("utf-8")),  # noqa: S704 - our own file
        scripts=[Markup(script) for script in scripts],  # noqa: S704 - our own and vendored files
        data=Markup(to_json(_payload(report))),  # noqa: S704 - to_json leaves nothing that could end the element
    )


_SCRIPTS = ("vendor/d3.min.js", "vendor/plot.umd.min.js", "text.js", "figures.js", "browser.js", "report.js")


def to_json(value: Any) -> str:
    """JSON that can stand in a script element: ASCII, and without the signs that HTML sees something in."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def packed_size(prompts: Sequence[Prompt]) -> int:
    """Bytes that prompts take of the page."""
    strings = _Strings()
    return len(to_json([_prompt(prompt, 0, 0, strings, None) for prompt in prompts])) + len(to_json(strings.texts))


class _Strings:
    """Every text once; the payload refers to them by number."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}
        self.texts: list[str | list[Any]] = []

    def number(self, text: str | None) -> int:
        """The text's number; -1 for None. A long one is cut, and the page says by how much."""
        if text is None:
            return -1
        if text not in self.numbers:
            self.numbers[text] = len(self.texts)
            cut = text[:MAX_CHARACTERS]
            self.texts.append(cut if len(cut) == len(text) else [cut, len(text) - len(cut)])
        return self.numbers[text]


def _payload(report: Report) -> dict[str, Any]:
    strings = _Strings()
    # A problem that several runs have is one, if its text is the same.
    problems: dict[tuple[str, str], int] = {}
    places = {key: problems.setdefault((key.problem_id, text), len(problems)) for key, text in report.problems.items()}
    histories: dict[int, list[list[Any]]] = {}
    for problem_id, entries in report.histories.items():
        for run, b, step, s, n, right in entries:
            if (place := places.get(ProblemKey(run, b, problem_id))) is not None:
                histories.setdefault(place, []).append([run, b, step, strings.number(s), n, right])
    decoders = report.decoders or [None] * len(report.runs)
    benchmarks = sorted({prompt.benchmark for prompt in report.prompts})
    return {
        "title": report.title,
        "runs": [asdict(run) for run in report.runs],
        "policies": [asdict(policy) for policy in report.policies],
        "figures": [_figure(asdict(figure)) for figure in report.figures],
        "sql": report.sql,
        "problems": [[problem_id, strings.number(text)] for problem_id, text in problems],
        "benchmarks": benchmarks,
        "prompts": [
            _prompt(
                prompt,
                places[ProblemKey(prompt.run, prompt.benchmark, prompt.problem_id)],
                benchmarks.index(prompt.benchmark),
                strings,
                decoders[prompt.run],
            )
            for prompt in report.prompts
        ],
        "histories": histories,
        "strings": strings.texts,
    }


def _prompt(prompt: Prompt, problem: int, benchmark: int, strings: _Strings, decode: Any) -> dict[str, Any]:
    """The keys are short because there are thousands: browser.js says what they mean."""
    responses = prompt.responses
    parting = divergence([r.token_ids for r in responses], [r.text for r in responses], decode)
    clusters = [_cluster(r.cluster, r.degenerate) for r in responses]
    names = {
        cluster: [strings.number(r.macro_strategy), strings.number(r.micro_strategy)]
        for cluster, r in zip(clusters, responses, strict=True)
        if cluster is not None and r.macro_strategy is not None
    }
    packed = {
        "r": prompt.run,
        "b": benchmark,
        "s": prompt.step,
        "p": problem,
        "c": clusters,
        "t": [strings.number(r.text) for r in responses],
        "w": [None if r.reward is None else _round(r.reward) for r in responses],
        "n": [len(r.token_ids) for r in responses],
        "g": [strings.number(r.answer) for r in responses],
        "m": names,
        "o": parting.order,
        "l": parting.tokens,
        "u": parting.units,
    }
    if any(r.advantage is not None for r in responses):
        packed["a"] = [None if r.advantage is None else _round(r.advantage) for r in responses]
    if any(r.truncated for r in responses):
        packed["x"] = [int(r.truncated) for r in responses]
    if any(r.ungraded is not None for r in responses):
        packed["v"] = [strings.number(r.ungraded) for r in responses]
    if any(r.status not in (None, LabelStatus.OK) for r in responses):
        packed["z"] = [r.status for r in responses]
    if prompt.others:
        packed["j"] = prompt.others
    if prompt.reply is not None:
        packed["y"] = strings.number(prompt.reply)
    return packed


def _figure(figure: dict[str, Any]) -> dict[str, Any]:
    for series in figure["series"]:
        for name in ("y", "low", "high"):
            if series[name] is not None:
                series[name] = [None if value is None else _round(value) for value in series[name]]
    return figure


def _cluster(cluster: int | None, degenerate: bool) -> int | None:
    return DEGENERATE if degenerate else cluster


@lru_cache(maxsize=1 << 16)  # rewards and advantages are few, and stand there many times
def _round(value: float) -> float | None:
    if not math.isfinite(value):
        return None
    rounded = float(f"{value:.4g}")
    return int(rounded) if rounded.is_integer() else rounded


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
