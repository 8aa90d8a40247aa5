"""The report of runs: what the catalog says of them, handed to polyepo.report, which makes the page.

Every number comes from the SQL that the page shows beside it; intervals are bootstrapped from the rows it returns.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from flows.summary import runs_named
from polyepo import metrics
from polyepo.config import ConfigError
from polyepo.metrics import bootstrap_interval
from polyepo.objectives import DEGENERATE
from polyepo.report import Figure, Policy, Prompt, Report, Response, RunFacts, Series, render
from polyepo.report.choose import Candidate, choose
from polyepo.report.data import TRAIN
from storage import connect, open_store
from storage.layout import check_name
from tasks.policy import load_tokenizer
from tasks.run import Run, open_run

BASE = "base"
PAGE_BYTES = 8_000_000
"""What prompts and responses may take of the page; the library, curves and histories come on top of it."""
_HISTORY_ROWS = 120_000
_MAX_POINTS = 1_500
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


def write_report(root: str, names: Sequence[str], output: Path) -> int:
    """Write the report of runs (or of whole configurations: their arms) to a file; returns its size in bytes.

    Raises:
        ConfigError: there is no such run under the root, or none has taken a step or been evaluated.
    """
    page = render(assemble(root, names)).encode()
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_bytes(page)
    return len(page)


def publish_report(root: str, title: str, runs: Sequence[str]) -> str:
    """Put the report of runs beside them, under the title as its name; returns its address.

    Reports are views: they are named by their content and never rewritten, and any of them can be deleted.
    """
    page = render(assemble(root, runs, title)).encode()
    files = open_store(root).files
    path = f"reports/{check_name('title', title)}/{hashlib.sha256(page).hexdigest()[:12]}.html"
    files.create(path, page)
    url = files.url(path)
    return url if "://" in url else Path(url).as_uri()


def assemble(root: str, names: Sequence[str], title: str | None = None) -> Report:
    """Everything the report of these runs shows. Raises ConfigError as `write_report` does."""
    runs = [open_run(root, run) for run in dict.fromkeys(run for name in names for run in runs_named(root, name))]
    source = _Source(root, runs)
    if not source.rows("SELECT 1 FROM updates UNION ALL SELECT 1 FROM evals LIMIT 1"):
        raise ConfigError(f"run {' '.join(names)}: no step and no evaluation is committed yet, so there is no report")
    facts = _facts(runs, source)
    held_out = [_HeldOut(source, facts, benchmark) for benchmark in source.benchmarks]
    prompts, coverage_note, sql = _prompts(source, facts)
    shown = {prompt.problem_id for prompt in prompts}
    histories, history_sql, history_note = _histories(source, shown)
    second = _second_judge(source)
    figures = [
        *_curves(source),
        *(figure for evaluation in held_out for figure in evaluation.figures()),
        *second,
    ]
    table = held_out[0].table() if held_out else []
    return Report(
        title=title or ", ".join(names),
        runs=facts,
        findings=_findings(source, facts, held_out),
        policies=table,
        policies_note=held_out[0].note if held_out else "",
        policies_sql=held_out[0].sql if held_out else "",
        figures=[figure for figure in figures if any(any(y is not None for y in s.y) for s in figure.series)],
        problems=_problems(source, shown),
        prompts=prompts,
        histories=histories,
        coverage_note=coverage_note + history_note,
        sql={"history": history_sql, **sql},
        decode=_decoder(runs[0]),
    )


class _Source:
    """The catalog, narrowed to the report's runs: small tables are read once, under their own names."""

    def __init__(self, root: str, runs: Sequence[Run]) -> None:
        self.connection: duckdb.DuckDBPyConnection = connect(root)
        self.names = [run.name for run in runs]
        self.where = f"run IN ({', '.join(map(quote, self.names))})"
        self.labels = _labels(self.names)
        self.judges = {run.name: run.config.judge.judge_id for run in runs}
        # A temporary table stands before the view of its name, so what is run here is, word for word, what is shown.
        for name in ("runs", "updates", "evals", "scores", "labels", "judge_calls"):
            self.connection.execute(f"CREATE TEMP TABLE {name} AS SELECT * FROM main.{name} WHERE {self.where}")
        self.benchmarks = [
            b
            for (b,) in self.rows("SELECT DISTINCT benchmark FROM evals ORDER BY benchmark = 'heldout' DESC, benchmark")
        ]

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """What a query returns."""
        return self.connection.execute(sql).fetchall()

    def label(self, run: str) -> str:
        """What figures call a run."""
        return self.labels[run]


class _HeldOut:
    """A benchmark's evaluations, per policy and problem."""

    def __init__(self, source: _Source, facts: list[RunFacts], benchmark: str) -> None:
        self.benchmark = benchmark
        self.sql = (
            "SELECT run, step, problem_id, sample, reward > 0.5 AS correct, parsed_answer, cluster, degenerate\n"
            f"FROM evals\nWHERE benchmark = {quote(benchmark)} AND {source.where}\nORDER BY ALL"
        )
        grades: dict[tuple[str, int], dict[str, list[tuple[Any, ...]]]] = defaultdict(lambda: defaultdict(list))
        for run, step, problem_id, _, *grade in source.rows(self.sql):
            grades[run, step][problem_id].append(tuple(grade))
        # Problems that every evaluation has: differences between policies are then differences on the same problems.
        self.problem_ids = sorted(set.intersection(*(set(problems) for problems in grades.values())))
        self.num_samples = min(len(problems[p]) for problems in grades.values() for p in self.problem_ids)
        self.evaluations = {key: _Evaluation(problems, self) for key, problems in grades.items()}
        self.source = source
        self.facts = facts
        self.policies = self._policies()
        self.note = (
            f"{benchmark}: {len(self.problem_ids)} problems, {self.num_samples} samples each. Below each number: its 95 % "
            "BCa bootstrap interval over problems. maj@k: accuracy of the most frequent of k answers. distinct@k: "
            "expected number of distinct successful strategies among k samples."
        )

    def _policies(self) -> dict[str, tuple[int, _Evaluation]]:
        """The base models, once each, and then each run's last evaluation."""
        policies: dict[str, tuple[int, _Evaluation]] = {}
        for run in self.source.names:
            base = self.evaluations.get((run, 0))
            if base and not any(np.array_equal(base.correct_PM, other.correct_PM) for _, other in policies.values()):
                policies[BASE if not policies else f"{BASE} of {self.source.label(run)}"] = (0, base)
        for run in self.source.names:
            if last := max((step for name, step in self.evaluations if name == run and step), default=0):
                policies[self.source.label(run)] = (last, self.evaluations[run, last])
        return policies

    def table(self) -> list[Policy]:
        """One row per policy."""
        last, some = self.num_samples, min(8, self.num_samples)
        wanted = {
            "pass@1": lambda e: e.pass_at(1),
            f"pass@{last}": lambda e: e.pass_at(last),
            f"maj@{last}": lambda e: e.majority(last)[0],
            f"distinct@{some}": lambda e: e.strategies(some),
            f"distinct@{last}": lambda e: e.strategies(last),
        }
        return [
            Policy(label, step, {name: with_interval(values(evaluation)) for name, values in wanted.items()})
            for label, (step, evaluation) in self.policies.items()
        ]

    def figures(self) -> list[Figure]:
        """pass@k, maj@k, vote share, strategies and branching of each policy; and how they went over steps."""
        ks = sorted(
            {2**i for i in range(self.num_samples.bit_length())} & set(range(1, self.num_samples + 1))
            | {self.num_samples}
        )
        measures: list[tuple[str, str, str, Callable[[_Evaluation, int], Any], str, bool]] = [
            ("pass", "pass@k", "Chance that one of k samples is correct.", _Evaluation.pass_at, "pass@k", True),
            (
                "maj",
                "maj@k",
                "Accuracy of the most frequent of k answers.",
                lambda e, k: e.majority(k)[0],
                "maj@k",
                True,
            ),
            (
                "vote",
                "Vote share",
                "Share of k votes that the most frequent answer has.",
                lambda e, k: e.majority(k)[1],
                "share",
                True,
            ),
            (
                "div",
                "Distinct successful strategies among k",
                "Expected number, from all samples.",
                _Evaluation.strategies,
                "strategies",
                False,
            ),
        ]
        figures = [
            self._figure(
                name,
                title,
                caption + " Bands: 95 % intervals over problems.",
                "k",
                y,
                share,
                {
                    label: (ks, [with_interval(measure(evaluation, k)) for k in ks])
                    for label, (_, evaluation) in self.policies.items()
                },
                log_x=True,
            )
            for name, title, caption, measure, y, share in measures
        ]
        figures.append(self._branching())
        some = min(8, self.num_samples)
        over_steps = [
            ("pass-steps", "pass@1 over steps", lambda e: e.pass_at(1), "pass@1", True),
            (
                "div-steps",
                f"Distinct successful strategies among {some}, over steps",
                lambda e: e.strategies(some),
                "strategies",
                False,
            ),
        ]
        for name, title, values, y, share in over_steps:
            lines = {}
            for run in self.source.names:
                steps = sorted(step for of_run, step in self.evaluations if of_run == run)
                if len(steps) > 2:
                    lines[self.source.label(run)] = (
                        steps,
                        [with_interval(values(self.evaluations[run, s])) for s in steps],
                    )
            figures.append(
                self._figure(
                    name, title, "On held-out problems, with 95 % intervals over problems.", "step", y, share, lines
                )
            )
        return figures

    def _branching(self) -> Figure:
        sql = (
            "SELECT run, step, problem_id, response_token_ids\n"
            f"FROM evals\nWHERE benchmark = {quote(self.benchmark)} AND {self.source.where}\nORDER BY ALL"
        )
        wanted = {}
        for label, (step, evaluation) in self.policies.items():
            run = next(key[0] for key, value in self.evaluations.items() if value is evaluation)
            wanted[run, step] = label
        tokens: dict[str, dict[str, list[list[int]]]] = defaultdict(lambda: defaultdict(list))
        for run, step, problem_id, token_ids in self.source.rows(sql):
            if (run, step) in wanted and problem_id in self.problem_ids:
                tokens[wanted[run, step]][problem_id].append(token_ids)
        lines = {}
        for label, problems in tokens.items():
            alive = [metrics.branching(responses)[0] for responses in problems.values()]
            positions = _some(list(range(max(map(len, alive), default=0))), 200)
            lines[label] = (
                [position + 1 for position in positions],
                [with_interval(np.array([a[t] if t < len(a) else 0 for a in alive])) for t in positions],
            )
        return self._figure(
            "branching",
            "Branching",
            "Branches of the samples' token tree that are alive at each token, mean over "
            "problems: how early a policy's responses part.",
            "token",
            "branches",
            False,
            lines,
            sql=sql,
        )

    def _figure(
        self,
        name: str,
        title: str,
        caption: str,
        x: str,
        y: str,
        share: bool,
        lines: dict[str, tuple[list[int], list[tuple[float, float, float]]]],
        log_x: bool = False,
        sql: str | None = None,
    ) -> Figure:
        series = [
            Series(label, list(map(float, xs)), [v[0] for v in values], [v[1] for v in values], [v[2] for v in values])
            for label, (xs, values) in lines.items()
        ]
        suffix = "" if self.benchmark == self.source.benchmarks[0] else f" · {self.benchmark}"
        return Figure(
            f"{name}-{self.benchmark}",
            "heldout",
            title + suffix,
            caption,
            x,
            y,
            sql or self.sql,
            series,
            log_x=log_x,
            unit_interval=share,
        )


class _Evaluation:
    """A policy's graded samples of a benchmark: (P, M) arrays, problems in the benchmark's order."""

    def __init__(self, problems: dict[str, list[tuple[Any, ...]]], benchmark: _HeldOut) -> None:
        grades = [problems[problem_id][: benchmark.num_samples] for problem_id in benchmark.problem_ids]
        self.correct_PM = np.array([[bool(correct) for correct, *_ in row] for row in grades])
        self.answers = [[answer for _, answer, *_ in row] for row in grades]
        self.clusters_PM = np.array(
            [
                [DEGENERATE if degenerate or cluster is None else cluster for *_, cluster, degenerate in row]
                for row in grades
            ]
        )
        self._majority: dict[int, tuple[Any, Any]] = {}

    def pass_at(self, k: int) -> Any:
        """pass@k of each problem, (P,)."""
        return metrics.pass_at_k(self.correct_PM.shape[1], self.correct_PM.sum(1), k)

    def strategies(self, k: int) -> Any:
        """Expected distinct successful strategies among k samples of each problem, (P,)."""
        return metrics.div_at_k(self.correct_PM.astype(float), self.clusters_PM, k)

    def majority(self, k: int) -> tuple[Any, Any]:
        """maj@k and the winner's share of the votes, for each problem, (P,) each."""
        if k not in self._majority:
            rows = zip(self.answers, self.correct_PM.tolist(), strict=True)
            both = np.array([metrics.maj_at_k(answers, correct, k, num_draws=200) for answers, correct in rows])
            self._majority[k] = (both[:, 0], both[:, 1])
        return self._majority[k]


def with_interval(values_P: Any) -> tuple[float, float, float]:
    """Mean over problems with its 95 % bootstrap interval."""
    low, high = bootstrap_interval(values_P)
    return float(np.mean(values_P)), float(low), float(high)


def quote(text: str) -> str:
    """A SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


def _labels(names: Sequence[str]) -> dict[str, str]:
    """Names of runs without the words that all begin with."""
    if len(names) < 2:
        return {name: name for name in names}
    words = [name.split("-") for name in names]
    shared = 0
    while all(len(w) > shared + 1 and w[: shared + 1] == words[0][: shared + 1] for w in words):
        shared += 1
    return {name: "-".join(w[shared:]) for name, w in zip(names, words, strict=True)}


def _facts(runs: Sequence[Run], source: _Source) -> list[RunFacts]:
    rows = source.rows("SELECT run, steps_done, state, code_version, config FROM runs")
    by_name = {name: rest for name, *rest in rows}
    facts = []
    for run in runs:
        steps_done, state, version, config = by_name[run.name]
        facts.append(
            RunFacts(
                name=run.name,
                label=source.label(run.name),
                domain=run.config.domain.name,
                judge=run.config.judge.judge_id,
                scoring=_scoring(run),
                seed=run.config.seed,
                num_responses=run.config.sampling.num_responses,
                steps=run.config.steps,
                steps_done=steps_done,
                finished=state == "finished",
                code_version=version or "",
                config=json.dumps(json.loads(config), indent=1),
            )
        )
    return facts


def _scoring(run: Run) -> str:
    scoring, size = run.config.scoring, run.config.sampling.num_responses
    if scoring.method == "grpo":
        return "GRPO"
    if scoring.method == "grpo_div":
        return f"GRPO + {scoring.weight:g} × diversity"
    name = {"polychromic": "Poly-EPO", "pass_at_n": "pass@n", "mean_reward": "mean reward"}[scoring.objective]
    sets = "" if scoring.num_sets is None else f", K = {scoring.num_sets} sets"
    return f"{name}, n = {scoring.set_size} of N = {size}{sets}"


def _curves(source: _Source) -> list[Figure]:
    figures = []
    for section, expression, title, caption, y, share in _CURVES:
        name = expression.rsplit(" ", 1)[-1]
        sql = f"SELECT run, step, {expression}\nFROM updates\nWHERE {source.where}\nORDER BY run, step"
        series = _series(source, source.rows(sql))
        figures.append(Figure(name, section, title, caption, "step", y, sql, series, unit_interval=share))
    columns = ", ".join(f"seconds_{stage}" for stage in _STAGES)
    sql = f"SELECT run, step, {columns}\nFROM updates\nWHERE {source.where}\nORDER BY run, step"
    rows = source.rows(sql)
    stages = [
        series
        for place, stage in enumerate(_STAGES)
        for series in _series(source, [(row[0], row[1], row[2 + place]) for row in rows], stage)
    ]
    figures.append(
        Figure("seconds", "health", "Seconds by stage", "Of each step.", "step", "seconds", sql, stages, "stack")
    )
    figures += _judge_calls(source)
    return figures


def _judge_calls(source: _Source) -> list[Figure]:
    """Labels that are not plainly ok, and what calls cost: of judges that can fail."""
    figures = []
    sql = (
        "SELECT run, step, status, count(*) / sum(count(*)) OVER (PARTITION BY run, step) AS share\n"
        f"FROM labels SEMI JOIN runs USING (run, judge)\nWHERE {source.where}\nGROUP BY run, step, status\nORDER BY ALL"
    )
    rows = source.rows(sql)
    if statuses := sorted({row[2] for row in rows} - {"ok"}):
        series = [
            s
            for status in statuses
            for s in _series(source, [(r[0], r[1], r[3]) for r in rows if r[2] == status], status)
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
    sql = f"SELECT run, step, failed / calls AS failed, latency_median_s\nFROM judge_cost() SEMI JOIN runs USING (run, judge)\nWHERE {source.where}\nORDER BY run, step"
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
                _series(source, [r[:3] for r in rows]),
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
                _series(source, [(r[0], r[1], r[3]) for r in rows]),
            )
        )
    return figures


def _series(source: _Source, rows: Iterable[Sequence[Any]], part: str | None = None) -> list[Series]:
    """Rows of (run, step, value) as one line per run."""
    by_run: dict[str, list[tuple[float, float | None]]] = {name: [] for name in source.names}
    for run, step, value in rows:
        by_run[run].append((step, None if value is None or not np.isfinite(value) else float(value)))
    lines = {run: _some(points, _MAX_POINTS) for run, points in by_run.items()}
    return [
        Series(source.label(run), [x for x, _ in points], [y for _, y in points], part=part)
        for run, points in lines.items()
        if points
    ]


def _some(items: list[Any], limit: int) -> list[Any]:
    """At most so many, evenly spaced, with the first and the last."""
    if len(items) <= limit:
        return items
    return [items[i] for i in np.linspace(0, len(items) - 1, limit).round().astype(int)]


def _second_judge(source: _Source) -> list[Figure]:
    """Agreement of each run's own judge with every other that labelled it."""
    others = source.rows(
        "SELECT DISTINCT l.judge, r.judge FROM labels l JOIN runs r USING (run) WHERE l.judge <> r.judge ORDER BY ALL"
    )
    figures = []
    for other, own in others:
        sql = (
            f"SELECT run, step, ari, pair_agreement, clusters_a, clusters_b\n"
            f"FROM judge_agreement({quote(own)}, {quote(other)})\nWHERE {source.where}\nORDER BY run, step"
        )
        rows = source.rows(sql)
        for column, title, caption, y in [
            (2, "Adjusted Rand index", "1: the same clusters up to names; 0: no better than chance.", "ARI"),
            (3, "Pairs that agree", "Share of pairs of responses that both put together, or both put apart.", "share"),
        ]:
            series = _series(source, [(row[0], row[1], row[column]) for row in rows])
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
                    unit_interval=True,
                )
            )
    return figures


def _prompts(source: _Source, facts: list[RunFacts]) -> tuple[list[Prompt], str, dict[str, str]]:
    """The prompts that the browser holds, a note of how many there are, and the SQL behind them."""
    sql = f"""WITH own AS (
    SELECT s.run, 'train' AS benchmark, s.step, s.problem_id, s.reward, s.cluster, s.degenerate, s.advantage,
           u.num_tokens / u.num_responses * 4 AS characters
    FROM scores s JOIN runs r USING (run, judge, scoring) JOIN updates u USING (run, step)
    UNION ALL
    SELECT run, benchmark, step, problem_id, reward, cluster, degenerate, NULL, length(response) FROM evals
), differing AS (
    SELECT run, step, problem_id, bool_or(a_pair <> b_pair) AS disagree FROM (
        SELECT a.run, a.step, a.problem_id, a.cluster IS NOT DISTINCT FROM a2.cluster AS a_pair,
               b.cluster IS NOT DISTINCT FROM b2.cluster AS b_pair
        FROM labels a JOIN runs r USING (run, judge)
        JOIN labels b ON (a.run, a.step, a.problem_id, a.sample) = (b.run, b.step, b.problem_id, b.sample) AND b.judge <> a.judge
        JOIN labels a2 ON (a.run, a.step, a.problem_id, a.judge) = (a2.run, a2.step, a2.problem_id, a2.judge) AND a.sample < a2.sample
        JOIN labels b2 ON (a2.run, a2.step, a2.problem_id, a2.sample, b.judge) = (b2.run, b2.step, b2.problem_id, b2.sample, b2.judge)
    ) GROUP BY ALL
)
SELECT run, benchmark, step, problem_id, count(*) AS responses, sum(characters)::BIGINT AS characters,
       count(DISTINCT cluster) FILTER (reward > 0.5 AND NOT degenerate) AS successful,
       bool_or(reward > 0.5) AS solved, count(*) FILTER (degenerate) AS degenerate,
       coalesce(min(advantage) FILTER (reward > 0.5) < 0 AND max(advantage) FILTER (reward <= 0.5) > 0, false) AS sign_flipped,
       coalesce(any_value(disagree), false) AND benchmark = 'train' AS disagree
FROM own LEFT JOIN differing USING (run, step, problem_id)
GROUP BY run, benchmark, step, problem_id
ORDER BY run, benchmark, step, problem_id"""
    candidates = [Candidate(*row) for row in source.rows(sql)]
    chosen = choose(candidates, PAGE_BYTES)
    prompts = _read(source, chosen)
    if len(chosen) == len(candidates):
        note = f"All {len(candidates):,} prompts of all steps and evaluations are here."
    else:
        steps = [len({(c.benchmark, c.step) for c in some}) for some in (chosen, candidates)]
        note = (
            f"{len(chosen):,} of {len(candidates):,} prompts are here, from {steps[0]:,} of {steps[1]:,} steps and "
            "evaluations: the first, the last and evenly between, and of each the rare kinds first (sign flips, "
            "disagreeing judges, all wrong, degenerate, most diverse). The store has all."
        )
    return prompts, note, {"browser": sql}


def _read(source: _Source, chosen: Sequence[Candidate]) -> list[Prompt]:
    keys = [(c.run, c.benchmark, c.step, c.problem_id) for c in chosen]
    names = ("run", "benchmark", "step", "problem_id")
    table = pa.table({name: [key[i] for key in keys] for i, name in enumerate(names)})
    source.connection.register("wanted", table)
    steps = ", ".join(map(str, sorted({c.step for c in chosen if c.benchmark == TRAIN}))) or "NULL"
    responses: dict[tuple[Any, ...], list[Response]] = defaultdict(list)
    # Steps are spelt out, so that only their files are opened.
    for (
        *key,
        _,
        text,
        token_ids,
        truncated,
        reward,
        answer,
        cluster,
        degenerate,
        advantage,
        macro,
        micro,
        status,
    ) in source.rows(
        f"""SELECT w.run, w.benchmark, w.step, w.problem_id, sample, response, response_token_ids,
                   finish_reason = 'length', reward, parsed_answer, s.cluster, s.degenerate, advantage,
                   macro_strategy, micro_strategy, status
            FROM wanted w
            JOIN (FROM scores SEMI JOIN runs USING (run, judge, scoring)) s USING (run, step, problem_id)
            JOIN (FROM labels SEMI JOIN runs USING (run, judge)) l USING (run, step, problem_id, sample)
            JOIN (FROM rollouts WHERE {source.where} AND step IN ({steps})) o USING (run, step, problem_id, sample)
            WHERE w.benchmark = 'train'
            UNION ALL
            SELECT w.run, w.benchmark, w.step, w.problem_id, sample, response, response_token_ids,
                   finish_reason = 'length', reward, parsed_answer, cluster, degenerate, NULL,
                   macro_strategy, micro_strategy, 'ok'
            FROM wanted w JOIN evals USING (run, benchmark, step, problem_id)
            ORDER BY ALL"""
    ):
        responses[tuple(key)].append(
            Response(text, token_ids, truncated, reward, answer, cluster, degenerate, advantage, macro, micro, status)
        )
    others: dict[tuple[Any, ...], dict[str, list[int | None]]] = defaultdict(lambda: defaultdict(list))
    for run, step, problem_id, judge, _, cluster, degenerate in source.rows(
        """SELECT run, step, problem_id, l.judge, sample, cluster, degenerate
           FROM wanted w JOIN labels l USING (run, step, problem_id) ANTI JOIN runs r USING (run, judge)
           WHERE w.benchmark = 'train' ORDER BY ALL"""
    ):
        others[run, TRAIN, step, problem_id][judge].append(DEGENERATE if degenerate else cluster)
    replies = {
        (run, TRAIN, step, problem_id): reply
        for run, step, problem_id, reply in source.rows(
            """SELECT run, step, problem_id, arg_max(raw_reply, attempt) FROM judge_calls
               SEMI JOIN runs USING (run, judge) SEMI JOIN wanted USING (run, step, problem_id)
               WHERE raw_reply IS NOT NULL GROUP BY ALL"""
        )
    }
    places = {name: place for place, name in enumerate(source.names)}
    return [
        Prompt(places[key[0]], key[1], key[2], key[3], responses[key], dict(others.get(key, {})), replies.get(key))
        for key in keys
        if key in responses
    ]


def _histories(source: _Source, shown: set[str]) -> tuple[dict[str, list[Any]], str, str]:
    """How the strategies of each problem came and went."""
    sql = f"""SELECT problem_id, run, benchmark, step,
       concat_ws(': ', macro_strategy, micro_strategy) AS strategy,
       count(*) AS responses, count(*) FILTER (reward > 0.5) AS correct
FROM strategies SEMI JOIN runs USING (run, judge)
WHERE {source.where}
GROUP BY ALL ORDER BY ALL"""
    places = {name: place for place, name in enumerate(source.names)}
    histories: dict[str, list[Any]] = defaultdict(list)
    for problem_id, run, benchmark, step, strategy, count, correct in source.rows(sql):
        if problem_id in shown:
            histories[problem_id].append((places[run], benchmark, step, strategy, count, correct))
    total = sum(map(len, histories.values()))
    if total <= _HISTORY_ROWS:
        return dict(histories), sql, ""
    share = _HISTORY_ROWS / total
    for problem_id, entries in histories.items():
        steps = sorted({entry[2] for entry in entries})
        kept = set(_some(steps, max(2, int(share * len(steps)))))
        histories[problem_id] = [entry for entry in entries if entry[2] in kept]
    return dict(histories), sql, " The strategies' histories are drawn from evenly spaced steps."


def _problems(source: _Source, shown: set[str]) -> dict[str, str]:
    rows = source.rows(
        f"SELECT problem_id, any_value(prompt), any_value(prompt_is_chat) FROM problems WHERE {source.where} "
        "GROUP BY problem_id ORDER BY problem_id"
    )
    return {problem_id: _prompt_text(prompt, is_chat) for problem_id, prompt, is_chat in rows if problem_id in shown}


def _prompt_text(prompt: str, is_chat: bool) -> str:
    if not is_chat:
        return prompt
    return "\n\n".join(f"{message.get('role')}: {message.get('content')}" for message in json.loads(prompt))


def _decoder(run: Run) -> Callable[[list[int]], str] | None:
    try:
        tokenizer = load_tokenizer(run)
    except (OSError, ValueError):  # a model of the hub that is not on this machine: the text itself must do
        return None
    return lambda token_ids: tokenizer.decode(token_ids, skip_special_tokens=True)


def _findings(source: _Source, facts: list[RunFacts], held_out: list[_HeldOut]) -> list[str]:
    """What the numbers say, in sentences."""
    found = [_training(fact) for fact in facts if not fact.finished]
    if held_out:
        found += _gains(held_out[0])
    found += _ratio(source)
    found += _warnings(source)
    return found


def _training(fact: RunFacts) -> str:
    return f"{fact.label} is not finished: {fact.steps_done:,} of {fact.steps:,} steps are here."


def _gains(evaluation: _HeldOut) -> list[str]:
    if BASE not in evaluation.policies:
        return []
    base = evaluation.policies[BASE][1]
    last, some = evaluation.num_samples, min(8, evaluation.num_samples)
    sentences = []
    for label, (step, policy) in evaluation.policies.items():
        if step == 0:
            continue
        gain, low, high = with_interval(policy.pass_at(1) - base.pass_at(1))
        far, far_low, far_high = with_interval(policy.pass_at(last) - base.pass_at(last))
        strategies = float(policy.strategies(some).mean()), float(base.strategies(some).mean())
        at_last = (
            f"pass@{last} is below the base model's by {-far:.3f} ({-far_high:.3f} to {-far_low:.3f})"
            if far_high < 0
            else f"pass@{last} is above the base model's by {far:.3f} ({far_low:.3f} to {far_high:.3f})"
            if far_low > 0
            else f"pass@{last} is not distinguishable from the base model's"
        )
        sentences.append(
            f"{label}: pass@1 is {float(policy.pass_at(1).mean()):.3f}, {gain:+.3f} on the base model "
            f"({low:+.3f} to {high:+.3f}, paired over {len(evaluation.problem_ids)} problems); {at_last}; among {some} "
            f"samples there are {strategies[0]:.1f} distinct successful strategies (base: {strategies[1]:.1f})."
        )
    return sentences


def _ratio(source: _Source) -> list[str]:
    """Strategies at the end of training, most against fewest."""
    rows = source.rows(
        "SELECT run, avg(distinct_successful) FROM (SELECT *, max(step) OVER (PARTITION BY run) AS last FROM updates) "
        "WHERE step > 0.9 * last GROUP BY run ORDER BY 2"
    )
    if len(rows) < 2 or not rows[0][1]:
        return []
    (fewest, least), (most, greatest) = rows[0], rows[-1]
    return [
        f"Over the last tenth of training a prompt's responses hold {greatest:.1f} distinct successful strategies under "
        f"{source.label(most)} and {least:.1f} under {source.label(fewest)}: {greatest / least:.1f} times as many."
    ]


def _warnings(source: _Source) -> list[str]:
    sentences = []
    for run, prompts, flipped, unlabelled, truncated, degenerate in source.rows(
        "SELECT run, sum(prompts), sum(prompts_sign_flipped), sum(prompts_unlabelled), avg(truncated_rate), "
        "avg(degenerate_rate) FROM updates GROUP BY run ORDER BY run"
    ):
        label = source.label(run)
        if flipped:
            sentences.append(
                f"{label}: {flipped:,} of {prompts:,} prompts ({flipped / prompts:.1%}) were sign-flipped: diversity "
                "outweighed reward, a correct response was pushed down and an incorrect one up."
            )
        if unlabelled:
            sentences.append(
                f"{label}: the judge could not label {unlabelled:,} of {prompts:,} prompts ({unlabelled / prompts:.1%})."
            )
        if truncated > 0.05:
            sentences.append(f"{label}: {truncated:.0%} of responses were cut off at the length limit.")
        if degenerate > 0.05:
            sentences.append(f"{label}: {degenerate:.0%} of responses were degenerate.")
    return sentences
