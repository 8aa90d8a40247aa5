"""How good a judge is: measured on sets of responses whose strategies are known."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from polyepo import metrics
from polyepo.domains import AnyDomain, Demonstrated, Maths, Problem, Strategy
from polyepo.judges.base import Call, CallLog, Group, Judge, Label, cluster_by_strategy
from polyepo.judges.llm.limits import JudgeError

_GARBAGE = ("", "the the the the the the the the", "I do not know.", "=== === ===")
_JUDGED_DEGENERATE = -1


class Suite(NamedTuple):
    """Groups of one domain, and what a judge should say of each."""

    name: str
    domain: AnyDomain
    groups: list[Group]
    truth: list[list[Label]]


class Measured(NamedTuple):
    """A judge on a suite. Rates are means over prompts or responses; NaN where there is nothing to measure."""

    suite: str
    judge: str
    prompts: int
    responses: int
    ari: float
    v_measure: float
    degenerate_precision: float
    degenerate_recall: float
    consistency: float
    """Pair agreement of the judge with itself, when it sees the responses in another order."""
    position_bias: float
    """Of pairs with different strategies: how much oftener neighbours are put together than others."""
    missing: float
    cost_per_1000: float
    """In the currency of the judge's prices; NaN without prices, or if a call's cost is not known."""
    seconds_per_1000: float
    """NaN if answers of an earlier measurement were used."""


class BenchCalls(CallLog):
    """A judge's calls in a measurement, kept in a file as they come, so that no answer is paid for twice.

    Args:
        path: JSON lines, read first if they are there, then added to; nothing is kept if None.
        tell: called after each call with the calls that this measurement has made.
    """

    def __init__(self, path: Path | None = None, tell: Callable[[int], None] = lambda made: None) -> None:
        super().__init__()
        self._path = path
        self._tell = tell
        self._calls: dict[str, list[Call]] = {}
        self._used: set[str] = set()
        self.made = 0
        self.last_error: str | None = None
        for line in path.read_bytes().splitlines() if path and path.exists() else ():
            try:
                call = Call(**json.loads(line))
            except (ValueError, TypeError):  # its writer was killed
                continue
            self._calls.setdefault(call.request_sha256, []).append(call)

    def earlier(self, request_sha256: str) -> list[Call]:
        """Calls of an identical request, oldest first."""
        self._used.add(request_sha256)
        return list(self._calls.get(request_sha256, ()))

    def record(self, call: Call) -> None:
        """Keep a call."""
        super().record(call)
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # The line break before ends what a killed writer left; one write is whole or not there.
            line = f"\n{json.dumps(call._asdict())}\n".encode()
            file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(file, line)
            finally:
                os.close(file)
        self._calls.setdefault(call.request_sha256, []).append(call)
        self.last_error = call.error or self.last_error
        self.made += 1
        self._tell(self.made)

    def cost(self) -> float:
        """What the calls behind the labels have cost, whenever they were made; NaN if that is not known."""
        calls = [call for request in self._used for call in self._calls.get(request, ())]
        unknown = any(call.cost is None and call.cost_bound is not None for call in calls)
        return float("nan") if unknown else sum(call.cost or 0.0 for call in calls)

    def reused(self) -> bool:
        """Whether some of what was asked had been asked before."""
        return self.made < sum(len(self._calls.get(request, ())) for request in self._used)


def domain_suite(domain: AnyDomain, prompts: int, responses: int, seed: int) -> Suite:
    """Demonstrations of a domain's held-out problems, some of them garbage, with the exact strategies.

    Raises:
        ValueError: the domain has no demonstrations.
    """
    if not isinstance(domain, Demonstrated):
        raise ValueError(f"domain {domain.name!r} has no demonstrations")
    rng = np.random.default_rng(seed)
    problems = domain.problems("heldout")
    chosen = [problems[i] for i in rng.permutation(len(problems))[:prompts]]
    groups = []
    for problem in chosen:
        texts = [domain.demonstration(problem, rng) for _ in range(responses)]
        if responses > 2:
            texts[int(rng.integers(responses))] = _GARBAGE[int(rng.integers(len(_GARBAGE)))]
        groups.append(Group(problem, texts))
    truth = [cluster_by_strategy(found) for found in domain.strategies([(g.problem, g.responses) for g in groups])]
    return Suite(domain.name, domain, groups, truth)


def human_suite(path: Path, prompts: int, seed: int) -> Suite:
    """Problems with two or more human solutions (CreativeMath's JSON), each told twice, and one garbage response.

    The second telling has another opening and end and other line breaks, so its strategy is the same. Two solutions of
    one problem may be alike in truth; they count as two.

    Raises:
        ValueError: the file cannot be read, or is not of this kind.
    """
    try:
        content: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        several = [row for row in content if len(row["solutions"]) > 1]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} must be a JSON list of problems with solutions: {error}") from None
    rng = np.random.default_rng(seed)
    groups, truth = [], []
    for number in rng.permutation(len(several))[:prompts]:
        row = several[number]
        told = [(Strategy("human", key), text) for key, text in row["solutions"].items()]
        told += [(strategy, _retold(text)) for strategy, text in told]
        known: list[tuple[Strategy | None, str]] = [*told, (None, _GARBAGE[int(rng.integers(len(_GARBAGE)))])]
        known = [known[i] for i in rng.permutation(len(known))]
        problem = Problem(problem_id=f"human-{number}", domain="maths", prompt=str(row["problem"]))
        groups.append(Group(problem, [text for _, text in known]))
        truth.append(cluster_by_strategy([strategy for strategy, _ in known]))
    return Suite(path.parent.name or path.stem, Maths(path=str(path)), groups, truth)


Calls = Callable[[str, int], BenchCalls]
"""Makes the log of a pass over a suite, from what the pass is called and the calls that it is expected to make."""


def measure(
    judge: Judge, suite: Suite, seed: int = 0, calls_of: Calls = lambda name, expected: BenchCalls()
) -> Measured:
    """Label a suite twice, the second time in another order, and compare with the truth.

    Raises:
        JudgeError: the judge cannot go on, or gave no label at all.
    """
    labels, calls = _labelled(judge, suite, suite.groups, calls_of, "first order")
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(len(group.responses)) for group in suite.groups]
    other = judge.model_copy(update={"seed": seed + 1}) if "seed" in type(judge).model_fields else judge
    shuffled = [Group(g.problem, [g.responses[i] for i in o]) for g, o in zip(suite.groups, orders, strict=True)]
    started = time.perf_counter()  # the first time, libraries were loaded and connections opened
    unordered, calls_again = _labelled(other, suite, shuffled, calls_of, "second order")
    seconds = float("nan") if calls_again.reused() else time.perf_counter() - started
    again = [[found[i] for i in np.argsort(order)] for found, order in zip(unordered, orders, strict=True)]
    agreements = []
    neighbours: list[bool] = []
    others: list[bool] = []
    for group, truth, first, second in zip(suite.groups, suite.truth, labels, again, strict=True):
        agreements.append(_agreement(truth, first))
        agreements[-1]["consistency"] = _agreement(second, first)["pairs"]
        for position, together in _merged_wrongly(judge.shown_order(suite.domain, group), truth, first):
            (neighbours if position == 1 else others).append(together)
    flat = [label for group in labels for label in group]
    wanted = [label.degenerate for group in suite.truth for label in group]
    said = [label.degenerate for label in flat]
    both = sum(a and b for a, b in zip(wanted, said, strict=True))
    per_1000 = 1000 / max(len(flat), 1)
    return Measured(
        suite=suite.name,
        judge=judge.judge_id,
        prompts=len(suite.groups),
        responses=len(flat),
        ari=_mean([a["ari"] for a in agreements]),
        v_measure=_mean([a["v_measure"] for a in agreements]),
        degenerate_precision=both / sum(said) if any(said) else float("nan"),
        degenerate_recall=both / sum(wanted) if any(wanted) else float("nan"),
        consistency=_mean([a["consistency"] for a in agreements]),
        position_bias=_mean(neighbours) - _mean(others),
        missing=_mean([_is_missing(label) for label in flat]),
        cost_per_1000=calls.cost() * per_1000 if getattr(judge, "has_prices", False) else float("nan"),
        seconds_per_1000=seconds * per_1000,
    )


def _labelled(
    judge: Judge, suite: Suite, groups: Sequence[Group], calls_of: Calls, order: str
) -> tuple[list[list[Label]], BenchCalls]:
    expected = judge.estimate(suite.domain, groups, calls_of("", 0)).calls
    calls = calls_of(f"{suite.name}, {judge.judge_id}, {order}", expected)
    labels = judge.label(suite.domain, groups, calls)
    flat = [label for group in labels for label in group]
    if flat and judge.makes_calls and all(map(_is_missing, flat)):
        raise JudgeError(
            f"{judge.judge_id} labelled none of the {len(flat)} responses of {suite.name}, the last time because: "
            f"{calls.last_error or flat[0].status}. Check the judge's server (base_url) and model"
        )
    return labels, calls


def _is_missing(label: Label) -> bool:
    return label.cluster is None and not label.degenerate


def _agreement(truth: Sequence[Label], found: Sequence[Label]) -> dict[str, float]:
    """Agreement on the responses that have a strategy and a label; what was called degenerate is one cluster."""
    pairs = [
        (t.cluster, _JUDGED_DEGENERATE if f.cluster is None else f.cluster)
        for t, f in zip(truth, found, strict=True)
        if t.cluster is not None and (f.cluster is not None or f.degenerate)
    ]
    if len(pairs) < 2:
        return {"ari": float("nan"), "v_measure": float("nan"), "pairs": float("nan")}
    first, second = zip(*pairs, strict=True)
    return {
        "ari": metrics.adjusted_rand_index(first, second),
        "v_measure": metrics.v_measure(first, second),
        "pairs": metrics.pair_agreement(first, second),
    }


def _merged_wrongly(order: Sequence[int], truth: Sequence[Label], found: Sequence[Label]) -> list[tuple[int, bool]]:
    """For each pair of responses with different strategies: how far apart they were shown, and if they were merged."""
    seen = [i for i in order if truth[i].cluster is not None and found[i].cluster is not None]
    return [
        (b - a, found[i].cluster == found[j].cluster)
        for a, i in enumerate(seen)
        for b, j in enumerate(seen[a + 1 :], start=a + 1)
        if truth[i].cluster != truth[j].cluster
    ]


def _retold(text: str) -> str:
    body = " ".join(text.split()).replace(". ", ".\n")
    return f"Here is how I would do it. {body}\nSo that is the answer."


def _mean(values: Sequence[float | bool]) -> float:
    array = np.array([float(value) for value in values])
    array = array[~np.isnan(array)]
    return float(array.mean()) if len(array) else float("nan")
