"""What an evaluation, a re-scoring or a replay is asked for, and all of it that can be refused before anything starts.

The commands ask before there is a flow run, and the flows ask again by the same functions.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyepo.config import ConfigError, load_config, load_judge
from polyepo.domains import AnyDomain
from polyepo.judges import AnyJudge
from polyepo.scoring import Scoring
from tasks.runs.benchmarks import benchmark_name, heldout
from tasks.runs.choices import choose_scoring, choose_steps, choose_verifier
from tasks.runs.code import check_provided
from tasks.runs.evaluations import HELDOUT, choose_step
from tasks.runs.run import Run, open_run


@dataclass(frozen=True)
class Rescoring:
    """Which labels and scores of which steps to make."""

    run: Run
    judge: AnyJudge
    scoring: Scoring
    verifier: AnyDomain | None
    steps: list[int]


@dataclass(frozen=True)
class Replaying:
    """Which step to replay, and under which other scoring of which judge's labels, if any."""

    run: Run
    judge: AnyJudge
    scoring: Scoring | None


def check_evaluation(
    root: str,
    run: str | None,
    model: str | None,
    step: int | None,
    benchmark: str,
    num_samples: int,
    judge: str | None,
    config: str | None,
    settings: dict[str, Any] | None,
) -> AnyJudge | None:
    """The judge that is named, if any; what an evaluation is given can be used, as far as no policy is needed to tell.

    Raises:
        ConfigError: it cannot.
    """
    if (run is None) == (model is None):
        raise ConfigError(f"give one of run (is {run!r}) and model (is {model!r})")
    if num_samples < 1:
        raise ConfigError(f"num_samples {num_samples} must be at least 1")
    if run and (config or settings):
        raise ConfigError("config and settings go with model: a run has its own")
    benchmark_name(benchmark)
    chosen = load_judge(judge) if judge else None
    if chosen:
        chosen.check_ready()
    if config:
        load_config(config, settings)
    elif model and benchmark == HELDOUT:
        raise ConfigError(
            "model without config needs benchmark=FILE; give config=FILE for a domain's held-out problems"
        )
    if run:
        opened = open_run(root, run)
        check_provided(opened.config)
        choose_step(opened, step)
        if benchmark == HELDOUT:
            heldout(opened)
    return chosen


def check_rescoring(
    root: str,
    run: str,
    judge: str | None,
    scoring: dict[str, Any] | None,
    objective: str | None,
    set_size: int | None,
    verifier: dict[str, Any] | None,
    steps: str | int | list[int] | None,
) -> Rescoring:
    """What a re-scoring is asked for. Raises ConfigError if something of it cannot be."""
    opened = open_run(root, run)
    chosen = load_judge(judge) if judge else opened.config.judge
    chosen.check_ready()
    check_provided(opened.config)
    return Rescoring(
        opened,
        chosen,
        choose_scoring(opened, scoring, objective, set_size),
        choose_verifier(opened, verifier),
        choose_steps(opened, steps),
    )


def check_replay(
    root: str,
    run: str,
    step: int,
    scoring: dict[str, Any] | None,
    judge: str | None,
    objective: str | None,
    set_size: int | None,
    output: str | None,
) -> Replaying:
    """What a replay is asked for. Raises ConfigError if the step is not committed, or something else cannot be."""
    opened = open_run(root, run)
    check_step(opened, step)
    opened = opened.owner(step)
    if output is not None and Path(output).exists():
        raise ConfigError(f"output {output!r} exists already; nothing is overwritten")
    if scoring is None and judge is None and objective is None and set_size is None:
        return Replaying(opened, opened.config.judge, None)
    if output is not None:
        raise ConfigError("output goes with the run's own scoring: a step under another one is compared, not written")
    chosen = load_judge(judge) if judge else opened.config.judge
    chosen.check_ready()
    return Replaying(opened, chosen, choose_scoring(opened, scoring, objective, set_size))


def check_step(run: Run, step: int) -> None:
    """Raise ConfigError if a step has no committed update."""
    if step < 1 or not run.store.exists(run.key("updates", step)):
        raise ConfigError(f"step {step} of run {run.name!r} is not committed; it has steps 1 to {run.last_step()}")


def parse_section(option: str, text: str | None) -> dict[str, Any] | None:
    """A section that is given on the command line as JSON. Raises ConfigError if it is none."""
    if text is None:
        return None
    try:
        section = json.loads(text)
    except ValueError as error:
        raise ConfigError(f'{option} {text!r} is no JSON: {error}; it must be like \'{{"method": "grpo"}}\'') from None
    if not isinstance(section, dict):
        raise ConfigError(f'{option} {text!r} must be an object, such as \'{{"method": "grpo"}}\'')
    return section
