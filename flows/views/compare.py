"""How two judges, or two scorings, differ on the same responses: numbers, and the prompts that differ most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from flows.views.terminal import safe_text
from polyepo.config import ConfigError
from polyepo.judges import Judge
from polyepo.scoring import scoring_id
from storage import connect, rows
from tasks.runs.run import Run, open_run

_SHOWN = 5

_LABELS = """
SELECT count(*) AS prompts, avg(ari) AS ari, avg(v_measure) AS v_measure, avg(pair_agreement) AS pair_agreement,
       avg(clusters_a) AS clusters_a, avg(clusters_b) AS clusters_b
FROM agreement_by_prompt($judge_a, $judge_b) WHERE run = $run
"""
_JUDGES = "SELECT DISTINCT judge FROM labels WHERE run = $run ORDER BY judge"
_ALL_PROMPTS = """
SELECT count(*) AS prompts
FROM (SELECT DISTINCT step, problem_id FROM labels WHERE run = $run AND judge IN ($judge_a, $judge_b))
"""
_DIFFERENT = """
SELECT step, problem_id, ari, clusters_a, clusters_b FROM agreement_by_prompt($judge_a, $judge_b)
WHERE run = $run AND ari < 1 ORDER BY ari, abs(clusters_a - clusters_b) DESC, step, problem_id LIMIT $shown
"""
_SCORES = """
SELECT avg(rank_correlation) AS rank_correlation, count(rank_correlation) AS ranked, count(*) AS prompts,
       sum(sign_flips)::BIGINT AS sign_flips,
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
    """Prompts that not both of the judges labelled whole."""
    different: list[dict[str, Any]]
    scores: dict[str, Any] | None
    regraded: list[dict[str, Any]]


def compare(root: str, run: str, first: tuple[str, str | None], second: tuple[str, str | None]) -> Comparison:
    """Compare two (judge id, scoring id) pairs.

    The id of a scoring may stand in the place of a judge's: then it is that scoring of that judge's labels. Without
    scoring ids it is the run's own scoring by either judge, or else the only two of one objective that there are.

    Raises:
        ConfigError: there is no such run, it has no labels by one of the judges and no scorings were given, there
            are several pairs of scorings to choose from, or nothing to compare.
    """
    opened, connection = open_run(root, run), connect(root)

    def ask(sql: str, **parameters: Any) -> list[dict[str, Any]]:
        return rows(connection, sql, run=run, **parameters)

    there = ask(_SCORINGS)
    first, second = (_with_judge(side, there) for side in (first, second))
    judges = {"judge_a": first[0], "judge_b": second[0]}
    labelled = [row["judge"] for row in ask(_JUDGES)]
    missing = [judge for judge in judges.values() if judge not in labelled]
    scorings = _pair_of_scorings(opened, there, first, second)
    if missing and not scorings:
        raise ConfigError(f"run {run!r} has no labels by judge {missing[0]!r}; it has {labelled}")
    labels = ask(_LABELS, **judges)[0] if first[0] != second[0] and not missing else None
    if not labels and not scorings:
        raise ConfigError(
            f"run {run!r} has nothing to compare {first[0]!r} with {second[0]!r} by; "
            f"name two of its scorings in the judges' places: {_names(there)}"
        )
    ids = {"scoring_a": scorings[0], "scoring_b": scorings[1]} if scorings else {}
    return Comparison(
        run=run,
        judges=(first[0], second[0]),
        scorings=scorings,
        labels=labels,
        left_out=ask(_ALL_PROMPTS, **judges)[0]["prompts"] - labels["prompts"] if labels else 0,
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


def _with_judge(side: tuple[str, str | None], there: list[dict[str, Any]]) -> tuple[str, str | None]:
    """A judge id with or without a scoring id as it is; a scoring id alone with the judge of its labels."""
    judge = next((row["judge"] for row in there if row["scoring"] == side[0]), None)
    return (judge, side[0]) if judge and side[1] is None else side


def _pair_of_scorings(
    run: Run, there: list[dict[str, Any]], first: tuple[str, str | None], second: tuple[str, str | None]
) -> tuple[str, str] | None:
    """The given scorings; else those of the judges that differ in nothing but the judge, as far as that is known."""
    if first[1] and second[1]:
        return (first[1], second[1]) if first[1] != second[1] else None
    pairs = [
        (a["scoring"], b["scoring"])
        for i, a in enumerate(there)
        for j, b in enumerate(there)
        if (a["judge"], b["judge"]) == (first[0], second[0])
        and first[1] in (None, a["scoring"])
        and second[1] in (None, b["scoring"])
        and a["objective"] == b["objective"]
        and (i < j if first == second else i != j)
    ]
    # A scoring's id is made of its settings, so two ids alone do not tell whether their settings are the same.
    own = {row["scoring"] for row in there if not row["later"]}
    own |= {scoring_id(run.config.scoring, Judge(name=judge)) for judge, _ in (first, second)}
    pairs = [pair for pair in pairs if own.issuperset(pair)] or pairs
    if len(pairs) > 1:
        raise ConfigError(
            f"run {run.name!r} has several scorings by {first[0]!r} and {second[0]!r} to compare; "
            f"name two of them in the judges' places: {_names(there)}"
        )
    return pairs[0] if pairs else None


def _names(there: list[dict[str, Any]]) -> str:
    return ", ".join(f"{row['scoring']} ({row['objective']}, {row['judge']})" for row in there) or "none"


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
        shown = "undefined" if correlation is None else f"{correlation:.3f}"
        lines += [
            ("scorings", f"{comparison.scorings[0]} -> {comparison.scorings[1]}"),
            # Undefined where all advantages of a prompt are equal, under either scoring.
            ("rank correlation of advantages", f"{shown} ({scores['ranked']:,} of {scores['prompts']:,} prompts)"),
            (
                "advantages that change sign",
                "unknown" if scores["sign_flips"] is None else f"{scores['sign_flips']:,} of {scores['responses']:,}",
            ),
            ("rewards that change", f"{scores['rewards_changed'] or 0:,} of {scores['responses']:,}"),
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
