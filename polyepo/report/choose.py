"""Which prompts a report of a limited size shows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from polyepo.report.data import Prompt
from polyepo.report.page import packed_size

_PER_RUN_AND_STEP = 16


class Candidate(NamedTuple):
    """A prompt that could be shown: its key, what makes it worth looking at, and what it costs."""

    run: str
    benchmark: str
    step: int
    problem_id: str
    responses: int
    characters: int
    successful: int
    """Distinct successful strategies."""
    solved: bool
    degenerate: int
    sign_flipped: bool
    disagree: bool
    """Two judges disagree."""

    @property
    def cost(self) -> int:
        """Bytes in the page, roughly and rather too many."""
        return 350 + 32 * self.responses + self.characters


def choose(candidates: Sequence[Candidate], budget: int) -> list[Candidate]:
    """All, if they fit; else whole steps, the first and the last first and then halfway between, with a share of each.

    Within a run's step the rare come first: sign flips, disagreeing judges, all wrong, degenerate, most diverse; then
    the others in the order of their ids, so that a problem is met again at other steps.
    """
    if sum(c.cost for c in candidates) <= budget:
        return list(candidates)
    by_step: dict[tuple[str, int], dict[str, list[Candidate]]] = defaultdict(lambda: defaultdict(list))
    for candidate in candidates:
        by_step[candidate.benchmark, candidate.step][candidate.run].append(candidate)
    chosen: list[Candidate] = []
    for key in _halving(by_step):
        for some in by_step[key].values():
            for candidate in _rare_first(some)[:_PER_RUN_AND_STEP]:
                if candidate.cost <= budget:
                    budget -= candidate.cost
                    chosen.append(candidate)
    return chosen


def fit(
    candidates: Sequence[Candidate], budget: int, read: Callable[[list[Candidate]], list[Prompt]]
) -> tuple[list[Candidate], list[Prompt]]:
    """Choose prompts and read them; fewer, while what was read takes more of the page than the estimate said."""
    target = budget
    while True:
        chosen = choose(candidates, target)
        prompts = read(chosen)
        size = packed_size(prompts)
        if size <= budget:
            return chosen, prompts
        target = int(0.9 * target * budget / size)


def _halving(keys: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
    """Steps of each benchmark, ends first and then by halves; the benchmarks take turns."""
    steps: dict[str, list[int]] = defaultdict(list)
    for benchmark, step in sorted(keys):
        steps[benchmark].append(step)
    ranked = []
    for benchmark, of_benchmark in steps.items():
        last = len(of_benchmark) - 1
        places = [last, 0]
        seen = set(places)
        parts = 2
        while len(seen) <= last:
            for i in range(1, parts):
                if (place := round(i * last / parts)) not in seen:
                    seen.add(place)
                    places.append(place)
            parts *= 2
        places = places[: last + 1]
        ranked += [(rank, benchmark, of_benchmark[place]) for rank, place in enumerate(places)]
    return [(benchmark, step) for _, benchmark, step in sorted(ranked)]


def _rare_first(candidates: list[Candidate]) -> list[Candidate]:
    kinds = [
        [c for c in candidates if c.sign_flipped],
        [c for c in candidates if c.disagree],
        [c for c in candidates if not c.solved],
        sorted((c for c in candidates if c.degenerate), key=lambda c: -c.degenerate),
        sorted(candidates, key=lambda c: (-c.successful, c.problem_id)),
    ]
    rare = [candidate for kind in kinds for candidate in kind[:2]]
    return list(dict.fromkeys([*rare, *sorted(candidates, key=lambda c: c.problem_id)]))
