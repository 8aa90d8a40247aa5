"""What a re-scoring is asked for: scoring, verifier and steps, as a person names them."""

from __future__ import annotations

from typing import Any

from polyepo.config import ConfigError, validated
from polyepo.domains import AnyDomain
from polyepo.scoring import AnyMethod, AnyScoring, Scoring, SetScoring, check_scoring
from tasks.runs.run import Run

_SETS = SetScoring().method


def choose_scoring(run: Run, scoring: dict[str, Any] | None, objective: str | None, set_size: int | None) -> Scoring:
    """The run's own scoring, or another, with parts replaced.

    An objective asks for a set scoring: a run whose own scoring is none keeps what any scoring has, its penalty.

    Raises:
        ConfigError: a field is unknown or has a value that cannot be, or the parameters contradict each other.
    """
    own = run.config.scoring.model_dump(mode="json")
    changes = {key: value for key, value in (("objective", objective), ("set_size", set_size)) if value is not None}
    base = own if scoring is None else {"method": _SETS, **scoring}
    if changes and base["method"] != _SETS:
        if scoring is not None:
            raise ConfigError(
                f"scoring {scoring!r} has no {' and no '.join(changes)}: leave {'them' if len(changes) > 1 else 'it'} "
                f"out, or give scoring={{'method': '{_SETS}'}}"
            )
        if objective is None:
            raise ConfigError(
                f"set_size {set_size} needs a set objective, and run {run.name!r} is scored by {base['method']!r}, "
                "which has none: give an objective as well, such as objective='polychromic'"
            )
        base = {"method": _SETS} | {key: base[key] for key in AnyMethod.model_fields if key in base}
    for key, value in changes.items():
        if scoring is not None and scoring.get(key, value) != value:
            raise ConfigError(f"{key} {value!r} contradicts scoring {scoring!r}: give one of them")
    chosen = validated(AnyScoring, base | changes, "scoring")
    try:
        check_scoring(chosen, run.config.sampling.num_responses, run.config.sampling.max_response_tokens)
    except ValueError as error:
        raise ConfigError(f"run {run.name!r} cannot be scored so: {error}") from None
    return chosen


def choose_verifier(run: Run, settings: dict[str, Any] | None) -> AnyDomain | None:
    """The run's domain with settings replaced, or another domain if they name one; None for the run's own.

    Raises:
        ConfigError: a field is unknown or has a value that cannot be.
    """
    if settings is None:
        return None
    own = run.config.domain.model_dump(mode="json")
    base = own if settings.get("name", own["name"]) == own["name"] else {}
    verifier: AnyDomain = validated(AnyDomain, base | settings, "verifier")
    return None if verifier == run.config.domain else verifier


def choose_steps(run: Run, steps: str | int | list[int] | None) -> list[int]:
    """Committed steps: all of them, or those named: 12, "12", "1-50", "1-50,60" or [1, 2].

    Raises:
        ConfigError: the text is none of that, or a step has no committed rollouts.
    """
    shards = range(run.config.sampling.shards)
    committed = set.intersection(*(set(run.store.steps(run.name, "rollouts", shard=shard)) for shard in shards))
    if steps is None or steps == "all":
        if not committed:
            raise ConfigError(f"run {run.name!r} has no rollouts to score")
        return sorted(committed)
    wanted = _parse_steps(steps)
    if not wanted:
        raise ConfigError(f"steps {steps!r} name no step; they must be like 12, 1-50, or 1-50,60")
    if missing := sorted(set(wanted) - committed):
        there = f"{min(committed)} to {max(committed)}" if committed else "none"
        made = f"; those before were made by {run.parent.name!r}, which it was forked from" if run.parent else ""
        raise ConfigError(f"steps {missing[:5]} of run {run.name!r} have no committed rollouts; it has {there}{made}")
    return wanted


def _parse_steps(steps: str | int | list[int]) -> list[int]:
    if isinstance(steps, int):
        return [steps]
    if isinstance(steps, list):
        return sorted(set(steps))
    found: set[int] = set()
    for part in steps.split(","):
        first, _, last = part.strip().partition("-")
        try:
            found.update(range(int(first), int(last or first) + 1))
        except ValueError:
            raise ConfigError(f"steps {steps!r} must be like 12, 1-50, or 1-50,60") from None
    return sorted(found)
