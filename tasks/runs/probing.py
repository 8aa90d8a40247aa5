"""Code of the user's own, tried on one problem before anything is sampled."""

from __future__ import annotations

import math
from collections.abc import Sequence

from polyepo import plugins
from polyepo.config import ConfigError, RunConfig
from polyepo.domains import Dataset, Domain, Problem, Strategy
from polyepo.errors import PolyepoError
from polyepo.judges import FunctionJudge, Group, Judge, Label, ProgramJudge
from polyepo.labels import LabelStatus


def probe(config: RunConfig, problems: Sequence[Problem]) -> None:
    """Call a run's own verifier, strategy and judge on the first problem, with its answer and an empty response.

    A verifier may have nothing to say of such responses; it is refused if it fails on all of them.

    Raises:
        ConfigError: one fails, or gives what it must not; the message names file, line and value.
    """
    if not problems:
        return
    problem = problems[0]
    responses = [problem.answer or "1", ""]
    if isinstance(config.domain, Dataset):
        _verify(config.domain, config.domain.verify_with.function, problem, responses)
        if config.domain.strategy_by is not None:
            _strategies(config.domain, problem, responses)
    elif config.domain.code is not None:
        _verify(config.domain, _name(config.domain), problem, responses)
        if isinstance(config.judge, ProgramJudge):  # nobody else asks for strategies
            _strategies(config.domain, problem, responses)
    own = isinstance(config.judge, FunctionJudge) or config.judge.code is not None
    if own and not config.judge.makes_calls:  # a call may cost money, and nobody has asked for this one
        _label(config.judge, config.domain, Group(problem, responses))


def _verify(domain: Domain, name: str, problem: Problem, responses: list[str]) -> None:
    try:
        verdicts = domain.verify_batch([problem] * len(responses), responses)
        rewards = [verdict.reward for verdict in verdicts]
    except PolyepoError:
        raise
    except Exception as error:
        raise _refused("verifier", name, problem, responses, error) from error
    if len(verdicts) != len(responses):
        raise _refused("verifier", name, problem, responses, f"it gave {len(verdicts)} verdicts")
    for reward in rewards:
        if reward is not None and (not isinstance(reward, int | float) or not math.isfinite(reward)):
            kind = type(reward).__name__
            raise _refused(
                "verifier", name, problem, responses, f"a reward must be a finite number, not {kind} {reward}"
            )
    if all(reward is None for reward in rewards):
        why = next((verdict.ungraded for verdict in verdicts if verdict.ungraded), "no reason given")
        raise _refused("verifier", name, problem, responses, f"it grades none of them: {why}")


def _strategies(domain: Domain, problem: Problem, responses: list[str]) -> None:
    try:
        (found,) = domain.strategies([(problem, responses)])
        wrong = [s for s in found if s is not None and not isinstance(s, Strategy)]
    except PolyepoError:
        raise
    except Exception as error:
        raise _refused("strategy function", _name(domain), problem, responses, error) from error
    if wrong or len(found) != len(responses):
        what = f"{len(found)} strategies, such as {found[0]!r}" if found else "no strategies"
        raise _refused("strategy function", _name(domain), problem, responses, f"it gave {what}")


def _label(judge: Judge, domain: Domain, group: Group) -> None:
    try:
        (labels,) = judge.label(domain, [group])
        wrong = [label for label in labels if not isinstance(label, Label)]
    except PolyepoError:
        raise
    except Exception as error:
        raise _refused("judge", judge.name, group.problem, group.responses, error) from error
    if wrong or len(labels) != len(group.responses):
        raise _refused("judge", judge.name, group.problem, group.responses, f"it gave {labels!r}")
    failed = next((label for label in labels if label.status == LabelStatus.PARSE_FAILED), None)
    if failed is not None:
        raise _refused("judge", judge.name, group.problem, group.responses, failed.rationale or "no label")


def _name(domain: Domain) -> str:
    place = "" if isinstance(domain, Dataset) else f" ({plugins.where(type(domain))})"
    return f"{domain.name}{place}"


def _refused(what: str, name: str, problem: Problem, responses: Sequence[str], why: str | Exception) -> ConfigError:
    reason = f"{type(why).__name__}: {why}{plugins.raised_at(why)}" if isinstance(why, Exception) else why
    return ConfigError(
        f"{what} {name} was tried on problem {problem.problem_id!r} with the responses "
        f"{', '.join(repr(response[:40]) for response in responses)}, and cannot be used: {reason}"
    )
