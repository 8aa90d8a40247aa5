"""What the numbers say, in sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from flows.views.evaluation import with_interval
from flows.views.report.heldout import HeldOut
from flows.views.report.source import Source
from polyepo.findings import Finding, Severity, training_findings
from polyepo.findings import HeldOut as Pair
from polyepo.report import RunFacts
from tasks.runs.run import Run


def findings(source: Source, runs: Sequence[Run], facts: list[RunFacts], held_out: list[HeldOut]) -> list[Finding]:
    """What the numbers say, in sentences: what is wrong first."""
    found = [Finding(Severity.NOTE, text) for text in _results(source, facts, held_out)]
    for run in runs:
        rows = source.records("SELECT * FROM updates WHERE run = $run ORDER BY step", run=run.name)
        label = source.label(run.name)
        for finding in training_findings(run.config, rows, _held_out(label, held_out)):
            found.append(replace(finding, what=f"{label}: {finding.what}"))
    return sorted(found, key=lambda finding: -finding.severity)


def _held_out(label: str, held_out: list[HeldOut]) -> Pair | None:
    if not held_out or label not in held_out[0].policies or (both := held_out[0].against_base(label)) is None:
        return None
    now, base = (evaluation.pass_at(1) for evaluation in both)
    known = ~np.isnan(now) & ~np.isnan(base)
    return Pair(held_out[0].policies[label][0], base[known].tolist(), now[known].tolist())


def _results(source: Source, facts: list[RunFacts], held_out: list[HeldOut]) -> list[str]:
    found = [_training(fact) for fact in facts if not fact.finished]
    if held_out:
        found += _gains(held_out[0])
    return found + _ratio(source)


def _training(fact: RunFacts) -> str:
    return f"{fact.label} is not finished: {fact.steps_done:,} of {fact.steps:,} steps are here."


def _gains(evaluation: HeldOut) -> list[str]:
    some = min(8, evaluation.num_samples)
    sentences = []
    for label in evaluation.policies:
        if (both := evaluation.against_base(label)) is None:
            continue
        policy, base = both
        last = min(policy.num_samples, base.num_samples)
        if not last:
            continue
        gain, low, high = with_interval(policy.pass_at(1) - base.pass_at(1))
        far, far_low, far_high = with_interval(policy.pass_at(last) - base.pass_at(last))
        strategies = with_interval(policy.strategies(some))[0], with_interval(base.strategies(some))[0]
        at_last = (
            f"pass@{last} is below the base model's by {-far:.3f} ({-far_high:.3f} to {-far_low:.3f})"
            if far_high < 0
            else f"pass@{last} is above the base model's by {far:.3f} ({far_low:.3f} to {far_high:.3f})"
            if far_low > 0
            else f"pass@{last} is not distinguishable from the base model's"
        )
        distinct = (
            f"; among {some} samples there are {strategies[0]:.1f} distinct successful strategies "
            f"(base: {strategies[1]:.1f})"
            if not any(map(math.isnan, strategies))
            else ""
        )
        sentences.append(
            f"{label}: pass@1 is {with_interval(policy.pass_at(1))[0]:.3f}, {gain:+.3f} on the base model "
            f"({low:+.3f} to {high:+.3f}, paired over {policy.num_problems} problems); {at_last}{distinct}."
        )
    return sentences


def _ratio(source: Source) -> list[str]:
    """Strategies at the end of training, most against fewest."""
    rows = source.rows(
        "SELECT run, avg(distinct_successful) FROM (SELECT *, max(step) OVER (PARTITION BY run) AS last FROM updates) "
        "WHERE step > 0.9 * last GROUP BY run HAVING count(distinct_successful) > 0 ORDER BY 2"
    )
    if len(rows) < 2 or not rows[0][1]:
        return []
    (fewest, least), (most, greatest) = rows[0], rows[-1]
    return [
        f"Over the last tenth of training a prompt's responses hold {greatest:.1f} distinct successful strategies "
        f"under {source.label(most)} and {least:.1f} under {source.label(fewest)}: {greatest / least:.1f} "
        "times as many."
    ]
