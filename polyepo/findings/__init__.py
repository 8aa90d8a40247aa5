"""What is wrong with a run, in sentences with numbers, and what would mend it: the one list of such findings.

Some follow from the configuration alone (`config_findings`, and of what a run would learn `objective_findings`), the
others from the rows of the updates table and from held-out results (`training_findings`). `polyepo plan` adds what the
machine says to the first; watch, summary, report and the training flow show the second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from polyepo.config import RunConfig
from polyepo.findings import drift, rules
from polyepo.findings.base import Finding, Severity, config_findings
from polyepo.findings.evidence import MIN_PROMPTS, RECENT, Evidence, HeldOut
from polyepo.findings.objective import objective_findings

__all__ = [
    "MIN_PROMPTS",
    "RECENT",
    "Finding",
    "HeldOut",
    "Severity",
    "config_findings",
    "objective_findings",
    "training_findings",
]

_RULES: tuple[Callable[[Evidence], Finding | None], ...] = (
    rules.no_gradient,
    rules.truncated,
    rules.unparsed,
    rules.constant_reward,
    rules.ungraded,
    rules.unlabelled,
    rules.degenerate,
    rules.one_cluster,
    rules.own_clusters,
    rules.sign_flips,
    drift.entropy_gone,
    drift.entropy_explodes,
    drift.gradient_clipped,
    drift.ratios_clipped,
    drift.mismatch,
    drift.reward_fell,
    drift.pays_for_wrong,
)


def training_findings(
    config: RunConfig, rows: Sequence[Mapping[str, Any]], heldout: HeldOut | None = None
) -> list[Finding]:
    """What a run's steps say, worst first; nothing where there is too little to go by.

    Args:
        config: the run's.
        rows: of the updates table, one per step, ordered by step; the first or all but the last may be missing.
        heldout: the last held-out results beside the base model's.
    """
    found = [*config_findings(config), *_apply(_evidence(config, rows))] if rows else []
    if heldout is not None:
        found += drift.held_out_fell(config, heldout)
    return sorted(found, key=lambda finding: -finding.severity)


def _evidence(config: RunConfig, rows: Sequence[Mapping[str, Any]]) -> Evidence:
    last = rows[-1]["step"]
    recent = [row for row in rows if row["step"] > last - RECENT]
    early = [row for row in rows if row["step"] <= RECENT]
    start = Evidence(config, early) if len(early) == RECENT and last >= 2 * RECENT else None
    return Evidence(config, recent, start, whole=Evidence(config, rows) if len(rows) == last > RECENT else None)


def _apply(recent: Evidence) -> Iterator[Finding]:
    """What the rules say of the last steps, in the numbers of all steps where it holds of them as well.

    What was wrong and no longer is becomes a note.
    """
    enough = recent.total("prompts") >= MIN_PROMPTS
    # A run that is over without a single gradient has learnt nothing, however short it was.
    applied = _RULES if enough else (rules.no_gradient,) if recent.complete and recent.finished else ()
    for rule in applied:
        now, ever = rule(recent), rule(recent.whole) if recent.whole else None
        if now and now.severity > Severity.NOTE:
            yield ever if ever and ever.severity >= now.severity else now
        elif note := ever or now:
            yield Finding(Severity.NOTE, note.what)
