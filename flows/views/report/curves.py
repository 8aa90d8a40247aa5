"""Figures over training steps."""

from __future__ import annotations

from flows.views.report.source import Source, quote, series_of
from polyepo.labels import LabelStatus
from polyepo.report import Figure

_STAGES = ("sample", "judge", "score", "update")


# Figures over training steps: section, column or expression, title, caption, axis, whether it is a share.
_CURVES = [
    ("learning", "reward_mean", "Reward", "Mean reward of the step's responses.", "reward", False),
    ("learning", "coverage", "Coverage", "Share of prompts with at least one correct response.", "share", True),
    (
        "exploring",
        "distinct_successful",
        "Distinct successful strategies",
        "Clusters with a correct response, per prompt.",
        "clusters",
        False,
    ),
    (
        "exploring",
        "distinct_unsuccessful",
        "Clusters among incorrect responses",
        "Different ways of being wrong, per prompt: they count in the set score too.",
        "clusters",
        False,
    ),
    ("exploring", "entropy", "Entropy", "Nats per response token, of the policy that sampled.", "nats", False),
    (
        "health",
        "prompts_with_signal / prompts AS with_signal",
        "Prompts with a gradient",
        "Share of prompts with any advantage other than 0.",
        "share",
        True,
    ),
    (
        "health",
        "prompts_sign_flipped / prompts AS sign_flipped",
        "Sign flips",
        "Share of prompts where a correct response was pushed down while an incorrect one was pushed up.",
        "share",
        True,
    ),
    (
        "health",
        "logprob_mismatch",
        "Log-prob mismatch",
        "Mean |trainer - sampler| per token: how far the two disagree about the same weights.",
        "nats",
        False,
    ),
    ("health", "grad_norm", "Gradient norm", "Before clipping.", "norm", False),
    (
        "health",
        "num_tokens / num_responses AS mean_tokens",
        "Response length",
        "Mean tokens per response.",
        "tokens",
        False,
    ),
    ("health", "truncated_rate", "Truncation", "Share of responses cut off at the limit.", "share", True),
    (
        "judge",
        "degenerate_rate",
        "Degenerate responses",
        "Share of responses in the degenerate cluster.",
        "share",
        True,
    ),
    (
        "judge",
        "prompts_unlabelled / prompts AS unlabelled",
        "Unlabelled prompts",
        "Share of prompts that the judge could not label; they have no gradient.",
        "share",
        True,
    ),
]


def curves(source: Source) -> list[Figure]:
    figures = []
    for section, expression, title, caption, y, share in _CURVES:
        name = expression.rsplit(" ", 1)[-1]
        sql = f"SELECT run, step, {expression}\nFROM updates\nWHERE {source.where}\nORDER BY run, step"
        series = series_of(source, source.rows(sql))
        figures.append(Figure(name, section, title, caption, "step", y, sql, series, unit_interval=share))
    columns = ", ".join(f"seconds_{stage}" for stage in _STAGES)
    sql = f"SELECT run, step, {columns}\nFROM updates\nWHERE {source.where}\nORDER BY run, step"
    rows = source.rows(sql)
    stages = [
        series
        for place, stage in enumerate(_STAGES)
        for series in series_of(source, [(row[0], row[1], row[2 + place]) for row in rows], stage)
    ]
    figures.append(
        Figure("seconds", "health", "Seconds by stage", "Of each step.", "step", "seconds", sql, stages, "stack")
    )
    figures += _judge_health(source)
    return figures


def _judge_health(source: Source) -> list[Figure]:
    """Labels that are not plainly ok, and what calls cost: of judges that can fail."""
    figures = []
    sql = (
        "SELECT run, step, status, count(*) / sum(count(*)) OVER (PARTITION BY run, step) AS share\n"
        f"FROM labels SEMI JOIN runs USING (run, judge)\nWHERE {source.where}\nGROUP BY run, step, status\nORDER BY ALL"
    )
    rows = source.rows(sql)
    if statuses := sorted({row[2] for row in rows} - {LabelStatus.OK}):
        series = [
            s
            for status in statuses
            for s in series_of(source, [(r[0], r[1], r[3]) for r in rows if r[2] == status], status)
        ]
        figures.append(
            Figure(
                "status",
                "judge",
                "Labels that are not plainly ok",
                "Share of responses by status.",
                "step",
                "share",
                sql,
                series,
                unit_interval=True,
            )
        )
    sql = (
        "SELECT run, step, failed / calls AS failed, latency_median_s\n"
        "FROM judge_cost() SEMI JOIN runs USING (run, judge)\n"
        f"WHERE {source.where}\nORDER BY run, step"
    )
    if rows := source.rows(sql):
        figures.append(
            Figure(
                "failed-calls",
                "judge",
                "Failed calls",
                "Share of the judge's calls that failed.",
                "step",
                "share",
                sql,
                series_of(source, [r[:3] for r in rows]),
                unit_interval=True,
            )
        )
        figures.append(
            Figure(
                "latency",
                "judge",
                "Latency",
                "Median seconds of the judge's calls.",
                "step",
                "seconds",
                sql,
                series_of(source, [(r[0], r[1], r[3]) for r in rows]),
            )
        )
    return figures


def judge_differences(source: Source) -> list[Figure]:
    """Agreement of each run's own judge with every other that labelled it."""
    figures: list[Figure] = []
    for own, other in source.judge_pairs():
        sql = (
            f"SELECT run, step, ari, pair_agreement, clusters_a, clusters_b\n"
            f"FROM judge_agreement({quote(own)}, {quote(other)})\nWHERE {source.where}\nORDER BY run, step"
        )
        rows = source.rows(sql)
        for column, title, caption, y in [
            (2, "Adjusted Rand index", "1: the same clusters up to names; 0: no better than chance.", "ARI"),
            (3, "Pairs that agree", "Share of pairs of responses that both put together, or both put apart.", "share"),
        ]:
            series = series_of(source, [(row[0], row[1], row[column]) for row in rows])
            figures.append(
                Figure(
                    f"judges-{len(figures)}",
                    "judges",
                    f"{title}: {own} and {other}",
                    caption,
                    "step",
                    y,
                    sql,
                    series,
                    unit_interval=y == "share",
                )
            )
    return figures
