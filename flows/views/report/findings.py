"""What the numbers say, in sentences."""

from __future__ import annotations

from flows.views.report.heldout import BASE, HeldOut, with_interval
from flows.views.report.source import Source
from polyepo.report import RunFacts


def findings(source: Source, facts: list[RunFacts], held_out: list[HeldOut]) -> list[str]:
    """What the numbers say, in sentences."""
    found = [_training(fact) for fact in facts if not fact.finished]
    if held_out:
        found += _gains(held_out[0])
    found += _ratio(source)
    found += _warnings(source)
    return found


def _training(fact: RunFacts) -> str:
    return f"{fact.label} is not finished: {fact.steps_done:,} of {fact.steps:,} steps are here."


def _gains(evaluation: HeldOut) -> list[str]:
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


def _ratio(source: Source) -> list[str]:
    """Strategies at the end of training, most against fewest."""
    rows = source.rows(
        "SELECT run, avg(distinct_successful) FROM (SELECT *, max(step) OVER (PARTITION BY run) AS last FROM updates) "
        "WHERE step > 0.9 * last GROUP BY run ORDER BY 2"
    )
    if len(rows) < 2 or not rows[0][1]:
        return []
    (fewest, least), (most, greatest) = rows[0], rows[-1]
    return [
        f"Over the last tenth of training a prompt's responses hold {greatest:.1f} distinct successful strategies "
        f"under {source.label(most)} and {least:.1f} under {source.label(fewest)}: {greatest / least:.1f} "
        "times as many."
    ]


def _warnings(source: Source) -> list[str]:
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
                f"{label}: the judge could not label {unlabelled:,} of {prompts:,} prompts "
                f"({unlabelled / prompts:.1%})."
            )
        if truncated > 0.05:
            sentences.append(f"{label}: {truncated:.0%} of responses were cut off at the length limit.")
        if degenerate > 0.05:
            sentences.append(f"{label}: {degenerate:.0%} of responses were degenerate.")
    return sentences
