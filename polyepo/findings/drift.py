"""What can be wrong with the policy and its updates: entropy, gradients, mismatch, and rewards that fall.

As in `rules`, each function returns None where its numbers are unknown or as they should be.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean, median, stdev

from polyepo.config import RunConfig
from polyepo.findings.base import Finding, Severity
from polyepo.findings.evidence import FLIPPED, MIN_PROMPTS, RECENT, Evidence, HeldOut
from polyepo.findings.objective import ALTERNATIVES, wrong_optimum
from polyepo.scoring import GRPODivScoring, SetScoring

_NO_ENTROPY = 0.02
"""Nats per token: of 50 tokens one is in doubt, so a prompt's responses are copies of one another."""
_ENTROPY_LEFT = 0.1
"""Of the entropy at the start: a model that was as certain from the beginning has not collapsed."""


def entropy_gone(e: Evidence) -> Finding | None:
    """The policy has stopped exploring before it could solve its problems."""
    now, before = e.mean("entropy"), e.start.mean("entropy") if e.start else None
    if now is None or before is None or e.solved or now > min(_NO_ENTROPY, _ENTROPY_LEFT * before):
        return None
    return Finding(
        Severity.WARNING,
        f"the entropy fell from {before:.2g} to {now:.2g} nats per token {e.when} at a mean reward of "
        f"{e.mean('reward_mean'):.2f}: a prompt's responses hardly differ, and there is nothing left to choose from",
        f"go back to an earlier checkpoint with a lower update.lr {e.config.update.lr:g}, to "
        f"{e.config.update.lr / 3:.1g} say, or reward diversity (scoring.method: poly_epo)",
    )


_ENTROPY_GREW = 3.0
_ENTROPY_NATS = 1.0
"""Three times as much alone may be little: from 0.1 to 0.3 is exploring. A nat more is another model."""


def entropy_explodes(e: Evidence) -> Finding | None:
    """The policy dissolves into noise."""
    now, before = e.mean("entropy"), e.start.mean("entropy") if e.start else None
    if now is None or before is None or now < max(_ENTROPY_GREW * before, before + _ENTROPY_NATS):
        return None
    what = f"the entropy rose from {before:.2g} to {now:.2g} nats per token {e.when}"
    return Finding(Severity.WARNING, what, _slower(e))


def _slower(e: Evidence) -> str:
    return (
        f"the updates destroy the policy: lower update.lr {e.config.update.lr:g}, to {e.config.update.lr / 3:.1g} say, "
        "and go on from a checkpoint before"
    )


_CLIPPED = 10.0
"""AdamW's steps do not depend on the gradient's scale, so being clipped always by like factors is harmless. Beyond ten
times single batches are cut by factors that differ, and what is left of them no longer depends on what they say."""


def gradient_clipped(e: Evidence) -> Finding | None:
    """Gradients are far above the norm that they are clipped to."""
    norms = [row["grad_norm"] for row in e.rows if row.get("grad_norm") is not None]
    limit = e.config.update.max_grad_norm
    if not norms or median(norms) <= _CLIPPED * limit:
        return None
    what = f"the gradient's norm was {median(norms):.3g} (median) {e.when}, far above update.max_grad_norm {limit:g}"
    summed = isinstance(e.config.scoring, SetScoring) and e.config.scoring.aggregate == "sum"
    other = "set scoring.aggregate: mean, or " if summed else ""
    return Finding(Severity.WARNING, what, f"{other}raise update.max_grad_norm to {median(norms):.2g}")


_RATIO_CLIPPED = 0.2
"""Share of tokens: the update is then mostly what the clip range lets through."""


def ratios_clipped(e: Evidence) -> Finding | None:
    """The policy moves so far within a step that its tokens leave the clip range."""
    rate = e.mean("clip_fraction")
    if rate is None or rate <= _RATIO_CLIPPED:
        return None
    update = e.config.update
    fewer = f" or update.epochs {update.epochs}" if update.epochs > 1 else ""
    what = f"{rate:.0%} of tokens were clipped {e.when}"
    return Finding(Severity.WARNING, what, f"lower update.lr {update.lr:g}{fewer}")


_MISMATCH, _MISMATCH_CORRECTED = 0.1, 1.0
"""Nats per token. Engines that round to bfloat16 differ by 0.01 to 0.05; with truncated importance sampling more can be
corrected, but a nat is another policy."""


def mismatch(e: Evidence) -> Finding | None:
    """The sampler is not the policy that is trained."""
    value, corrected = e.mean("logprob_mismatch"), e.config.update.importance_cap is not None
    if value is None or value <= (_MISMATCH_CORRECTED if corrected else _MISMATCH):
        return None
    what = f"log-probabilities of sampler and trainer differed by {value:.2g} nats per token {e.when}"
    remedy = "see that the sampler has the trainer's weights and type (policy.dtype: float32, and the server's --dtype)"
    return Finding(Severity.WARNING, what, remedy if corrected else f"{remedy}, or correct by update.importance_cap: 2")


_FELL = 0.1
"""Of what it was: less is seen between batches of other problems."""
_STANDARD_ERRORS = 3.0
"""By chance one run in 700 falls so far."""


@dataclass(frozen=True)
class _Change:
    """The mean reward of the first steps and of the latest."""

    before: float
    now: float
    error: float
    """Standard error of their difference, by the spread between steps."""

    @property
    def fell(self) -> bool:
        return self.before - self.now > max(_STANDARD_ERRORS * self.error, _FELL * abs(self.before))

    @property
    def rose(self) -> bool:
        return self.now - self.before > _STANDARD_ERRORS * self.error


def _reward_change(e: Evidence) -> _Change | None:
    if e.start is None:
        return None
    before, now = (
        [float(row["reward_mean"]) for row in rows if row.get("reward_mean") is not None]
        for rows in (e.start.rows, e.rows)
    )
    if min(len(before), len(now)) < RECENT // 2:
        return None
    error = math.sqrt(stdev(before) ** 2 / len(before) + stdev(now) ** 2 / len(now))
    return _Change(fmean(before), fmean(now), error)


def reward_fell(e: Evidence) -> Finding | None:
    """The policy has become worse at what it is trained for."""
    change = _reward_change(e)
    if change is None or not change.fell or pays_for_wrong(e):
        return None
    what = f"the mean reward fell from {change.before:.2f} in the first {RECENT} steps to {change.now:.2f} {e.when}"
    return Finding(Severity.WARNING, what, _slower(e))


_MORE_WAYS = 1.25
_WAYS = 0.5
"""Strategies among a prompt's wrong responses: a quarter more, and half a strategy, is more than batches differ by."""


def pays_for_wrong(e: Evidence) -> Finding | None:
    """What the objective wants is not right answers: the sign of many advantages is wrong and nothing is learnt, or
    the reward falls while wrong answers multiply."""
    change = _reward_change(e)
    if e.start is None or change is None or e.solved or not e.uses_clusters:
        return None
    flipped = e.total("prompts_sign_flipped") / max(e.total("prompts"), 1)
    before, now = e.start.mean("distinct_unsuccessful"), e.mean("distinct_unsuccessful")
    multiply = before is not None and now is not None and now > max(_MORE_WAYS * before, before + _WAYS)
    if not ((flipped > FLIPPED and not change.rose) or (multiply and change.fell)):
        return None
    ways = f", strategies among a prompt's wrong responses from {before:.1f} to {now:.1f}" if multiply else ""
    return Finding(
        Severity.WARNING,
        f"it pays to be wrong in other ways: {flipped:.0%} of prompts were sign-flipped {e.when}; since the first "
        f"{RECENT} the mean reward went from {change.before:.2f} to {change.now:.2f}{ways}",
        _right_objective(e.config),
    )


def _right_objective(config: RunConfig) -> str:
    if found := wrong_optimum(config):
        return found.remedy
    scoring = config.scoring
    if isinstance(scoring, GRPODivScoring):
        return f"lower scoring.weight {scoring.weight:g}, to {scoring.weight / 2:g} say"
    return f"take an objective that pays for successes alone (scoring.objective: {ALTERNATIVES})"


def held_out_fell(config: RunConfig, heldout: HeldOut) -> list[Finding]:
    """Held-out rewards lie below the base model's, by paired differences."""
    differences = [now - base for base, now in zip(heldout.base, heldout.now, strict=True)]
    if len(differences) < MIN_PROMPTS:
        return []
    fall, error = -fmean(differences), stdev(differences) / math.sqrt(len(differences))
    if fall <= _STANDARD_ERRORS * error:
        return []
    what = (
        f"held out, the mean reward is {fmean(heldout.now):.3f} after step {heldout.step}, below the base model's "
        f"{fmean(heldout.base):.3f}"
    )
    slower = f"lower update.lr {config.update.lr:g}, to {config.update.lr / 3:.1g} say"
    wrong = wrong_optimum(config)
    return [Finding(Severity.WARNING, what, wrong.remedy if wrong else slower)]
