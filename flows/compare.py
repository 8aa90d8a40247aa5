"""How two judges, or two scorings, differ on the same responses: numbers, and the prompts that differ most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from flows.terminal import safe_text
from polyepo.config import ConfigError
from storage import connect, rows

_SHOWN = 5

_LABELS = """
SELECT count(*) AS prompts, avg(ari) AS ari, avg(v_measure) AS v_measure, avg(pair_agreement) AS pair_agreement,
       avg(clusters_a) AS clusters_a, avg(clusters_b) AS clusters_b
FROM agreement_by_prompt($judge_a, $judge_b) WHERE run = $run
"""
_LABELLED = "SELECT count(*) FROM (SELECT DISTINCT step, problem_id FROM labels WHERE run = $run AND judge = $judge)"
_DIFFERENT = """
SELECT step, problem_id, ari, clusters_a, clusters_b FROM agreement_by_prompt($judge_a, $judge_b)
WHERE run = $run AND ari < 1 ORDER BY ari, abs(clusters_a - clusters_b) DESC, step, problem_id LIMIT $shown
"""
_SCORES = """
SELECT avg(rank_correlation) AS rank_correlation, sum(sign_flips)::BIGINT AS sign_flips,
       sum(rewards_changed)::BIGINT AS rewards_changed, sum(responses)::BIGINT AS responses
FROM scoring_agreement($scoring_a, $scoring_b) WHERE run = $run
"""
_REGRADED = """
SELECT * FROM regraded($scoring_a, $scoring_b) WHERE run = $run ORDER BY step, problem_id, sample LIMIT $shown
"""
# The run's own scoring first.
_SCORINGS = """
SELECT DISTINCT s.scoring, s.judge, s.objective, s.scoring != coalesce(r.scoring, '') AS later
FROM scores s JOIN runs r USING (run) WHERE run = $run ORDER BY later, s.scoring, s.judge
"""


@dataclass(frozen=True)
class Comparison:
    """Two labelings (judges) and two scorings of the same responses. Means are over prompts."""

    run: str
    judges: tuple[str, str]
    scorings: tuple[str, str] | None
    labels: dict[str, Any] | None
    """Of prompts that both judges labelled whole; None if there is one judge."""
    left_out: int
    """Prompts that only one of the judges labelled whole."""
    different: list[dict[str, Any]]
    scores: dict[str, Any] | None
    regraded: list[dict[str, Any]]


def compare(root: str, run: str, first: tuple[str, str | None], second: tuple[str, str | None]) -> Comparison:
    """Compare two (judge id, scoring id) pairs; without scoring ids, those of the run that rest on the judges.

    Raises:
        ConfigError: the run has no labels by one of the judges, and no scorings were given.
    """
    connection = connect(root)

    def ask(sql: str, **parameters: Any) -> list[dict[str, Any]]:
        return rows(connection, sql, run=run, **parameters)

    judges = {"judge_a": first[0], "judge_b": second[0]}
    labelled = [ask(_LABELLED, judge=judge)[0]["count_star()"] for judge in judges.values()]
    scorings = _pair_of_scorings(ask(_SCORINGS), first, second)
    if 0 in labelled and not scorings:
        missing = list(judges.values())[labelled.index(0)]
        there = [row["judge"] for row in ask("SELECT DISTINCT judge FROM labels WHERE run = $run ORDER BY ALL")]
        raise ConfigError(f"run {run!r} has no labels by judge {missing!r}; it has {there}")
    labels = ask(_LABELS, **judges)[0] if first[0] != second[0] and 0 not in labelled else None
    ids = {"scoring_a": scorings[0], "scoring_b": scorings[1]} if scorings else {}
    return Comparison(
        run=run,
        judges=(first[0], second[0]),
        scorings=scorings,
        labels=labels,
        left_out=max(labelled) - labels["prompts"] if labels else 0,
        different=ask(_DIFFERENT, **judges, shown=_SHOWN) if labels else [],
        scores=ask(_SCORES, **ids)[0] if scorings else None,
        regraded=ask(_REGRADED, **ids, shown=_SHOWN) if scorings else [],
    )


def render(comparison: Comparison) -> RenderableType:
    """The comparison for a terminal."""
    parts: list[RenderableType] = [Text(_title(comparison), style="bold")]
    summary = Table(box=box.SIMPLE_HEAD, show_header=False)
    for name, value in _lines(comparison):
        summary.add_row(name, Text(value))
    parts.append(summary)
    for title, listed in _lists(comparison):
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
        for name in listed[0]:
            table.add_column(name, overflow="fold")
        for row in listed:
            table.add_row(*(Text(_cell(value)) for value in row.values()))
        parts.append(table)
    return Group(*parts)


def markdown(comparison: Comparison) -> str:
    """The comparison as markdown; texts of models stand in it as code."""
    lines = [f"### {_title(comparison)}", "", "| | |", "|---|---:|"]
    lines += [f"| {name} | {value} |" for name, value in _lines(comparison)]
    for title, listed in _lists(comparison):
        lines += ["", title, "", f"| {' | '.join(listed[0])} |", f"|{'---|' * len(listed[0])}"]
        lines += [f"| {' | '.join(map(code, row.values()))} |" for row in listed]
    return "\n".join(lines)


def _pair_of_scorings(
    there: list[dict[str, Any]], first: tuple[str, str | None], second: tuple[str, str | None]
) -> tuple[str, str] | None:
    """The given scorings, or the first two of the judges that have the same objective."""
    if first[1] and second[1]:
        return (first[1], second[1]) if first[1] != second[1] else None
    pairs = ((a, b) for a in there for b in there if (a["judge"], b["judge"]) == (first[0], second[0]))
    return next(((a["scoring"], b["scoring"]) for a, b in pairs if a != b and a["objective"] == b["objective"]), None)


def _title(comparison: Comparison) -> str:
    a, b = comparison.judges
    what = f"judges {a} (a) and {b} (b)" if a != b else f"labels by {a}, scored twice"
    return f"{comparison.run}: {what}"


def _lines(comparison: Comparison) -> list[tuple[str, str]]:
    lines = []
    if labels := comparison.labels:
        lines.append(("prompts labelled by both", f"{labels['prompts']:,} ({comparison.left_out:,} left out)"))
        if labels["prompts"]:
            lines += [
                ("adjusted Rand index", f"{labels['ari']:.3f}"),
                ("V-measure", f"{labels['v_measure']:.3f}"),
                ("pairs of responses that agree", f"{labels['pair_agreement']:.3f}"),
                ("clusters per prompt", f"{labels['clusters_a']:.2f} -> {labels['clusters_b']:.2f}"),
            ]
    if (scores := comparison.scores) and comparison.scorings:
        correlation = scores["rank_correlation"]
        lines += [
            ("scorings", f"{comparison.scorings[0]} -> {comparison.scorings[1]}"),
            ("rank correlation of advantages", "undefined" if correlation is None else f"{correlation:.3f}"),
            ("advantages that change sign", f"{scores['sign_flips']:,} of {scores['responses']:,}"),
            ("rewards that change", f"{scores['rewards_changed']:,} of {scores['responses']:,}"),
        ]
    return lines


def _lists(comparison: Comparison) -> list[tuple[str, list[dict[str, Any]]]]:
    lists = [
        ("Prompts that differ most", comparison.different),
        ("Responses that were graded differently (the first)", comparison.regraded),
    ]
    return [(title, [{k: v for k, v in row.items() if k != "run"} for row in found]) for title, found in lists if found]


def _cell(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else safe_text("" if value is None else value, limit=200)


def code(value: Any) -> str:
    """A cell in which nothing is markup: no text can end a code span that has no backtick or pipe in it."""
    return f"`{_cell(value).replace('`', 'ˋ').replace('|', '¦')}`" if isinstance(value, str) else _cell(value)
