"""The method as a trainer of somebody else's uses it: a step's responses and rewards in, labels and advantages out."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from polyepo.clusters import cluster_matrix, is_labelled
from polyepo.config import read_yaml, validated
from polyepo.conversations import is_conversation, messages, spoken
from polyepo.domains import AnyDomain, Domain, Problem, Ungraded
from polyepo.domains.base import content_id
from polyepo.errors import ConfigError, PolyepoError
from polyepo.judges import AnyJudge, Group, Judge, Label
from polyepo.metrics import distinct_successful_strategies
from polyepo.objectives import DEGENERATE, num_distinct
from polyepo.plugins import given_by_user
from polyepo.scoring import AnyMethod, AnyScoring, SetScoring
from polyepo.section import Section
from polyepo.seeds import derive_seed


class _Sections(Section):
    """What a file of the method holds: sections of a run's configuration, each with its keys."""

    judge: AnyJudge
    scoring: AnyScoring = SetScoring()
    domain: AnyDomain = Ungraded()
    seed: int = 0


@dataclass(frozen=True)
class Method:
    """A judge and a scoring, for a trainer that samples, verifies and updates by itself."""

    judge: Judge
    scoring: AnyMethod = field(default_factory=SetScoring)
    domain: Domain = field(default_factory=Ungraded)
    """Whose exact strategies or answers a judge by program takes; other judges need none."""
    seed: int = 0
    """For a scoring that draws sets."""

    @classmethod
    def load(cls, path: str | Path) -> Method:
        """Read `judge`, `scoring`, `domain` and `seed` from YAML, as they stand in a run's configuration.

        Raises:
            ConfigError: the file is missing, or a field is unknown or has a value that cannot be.
        """
        raw = read_yaml(path)
        if isinstance(raw.get("scoring"), dict):
            raw["scoring"] = {"method": SetScoring().method, **raw["scoring"]}
        with given_by_user(Path(path).parent):
            found = validated(_Sections, raw, str(path))
        return cls(found.judge, found.scoring, found.domain, found.seed)

    def check(self, num_responses: int) -> None:
        """Raise ConfigError if the judge cannot work here, or N responses to a prompt cannot be scored so."""
        if self.scoring.overlong_penalty is not None:
            raise ConfigError("scoring.overlong_penalty is not for other trainers: shape their reward instead")
        if self.scoring.uses_logprobs:
            raise ConfigError(
                f"scoring.method {self.scoring.objective_name!r} needs log-probabilities, which other trainers do not "
                "hand over; take another method"
            )
        try:
            self.scoring.check(num_responses)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        self.judge.check_ready()

    def group(self, prompt: Any, answer: Any, columns: Mapping[str, Any], completions: Sequence[Any]) -> Group:
        """The responses to a row of a trainer's data set, as text; its other columns are the problem's metadata.

        The problem's id is the column `problem_id`, or a hash of prompt and answer.
        Raises ValueError if a prompt or completion is a conversation that is not all text.
        """
        asked = messages(prompt) if is_conversation(prompt) else str(prompt)
        answer = None if answer is None else str(answer)
        known = {name: value for name, value in columns.items() if name != "problem_id" and value is not None}
        given = columns.get("problem_id")
        problem = Problem(
            problem_id=content_id(asked, answer) if given is None else str(given),
            domain=self.domain.name,
            prompt=asked,
            answer=answer,
            metadata=json.loads(json.dumps(known, default=_plain)),
        )
        return Group(problem, [spoken(c) if is_conversation(c) else str(c) for c in completions])

    def label(self, groups: Sequence[Group]) -> list[list[Label]]:
        """One label per response, in the responses' order, for each group.

        Raises:
            PolyepoError: the judge cannot be asked, or leaves too many responses without a label.
        """
        labels = self.judge.label(self.domain, groups)
        flat = [label for group in labels for label in group]
        missing, limit = [one for one in flat if not is_labelled(one._asdict())], self.judge.missing_labels.max_rate
        if self.judge.can_fail and len(missing) > limit * len(flat):
            raise PolyepoError(
                f"{len(missing)} of {len(flat)} responses have no label ({missing[0].status}"
                f"{f': {missing[0].rationale}' if missing[0].rationale else ''}), more than judge.max_missing_rate "
                f"{limit:g} allows"
            )
        return labels

    def advantages(
        self, step: int, rewards: Sequence[Sequence[float]], labels: Sequence[Sequence[Label]]
    ) -> list[list[float]]:
        """One advantage per response of each group; 0 for a prompt with a NaN reward, or without labels it needs.

        Args:
            step: counts from 1; for a scoring that changes while a run goes on, or draws sets.
            rewards: by group; NaN for a response that was not graded.
            labels: by group, as `label` gives them.

        Raises:
            PolyepoError: more responses were not graded than scoring.max_ungraded_rate allows.
        """
        ungraded = [math.isnan(reward) for group in rewards for reward in group]
        if sum(ungraded) > self.scoring.max_ungraded_rate * len(ungraded):
            raise PolyepoError(
                f"step {step}: {sum(ungraded)} of {len(ungraded)} responses have no reward, more than "
                f"scoring.max_ungraded_rate {self.scoring.max_ungraded_rate:g} allows"
            )
        found: list[list[float]] = [[] for _ in rewards]
        for size in {len(group) for group in rewards}:  # groups have one size, unless the trainer lost responses
            at = [number for number, group in enumerate(rewards) if len(group) == size]
            rewards_PN = np.array([rewards[number] for number in at], dtype=np.float64)
            rows = [label._asdict() for number in at for label in labels[number]]
            clusters_PN, labelled_P = cluster_matrix(rows, size, self.judge.missing_labels.policy)
            whole_P = ~np.isnan(rewards_PN).any(-1) & (labelled_P | (not self.scoring.uses_clusters))
            seed = derive_seed(self.seed, "sets", step)
            scored_PN = self.scoring.at(step).advantages(np.nan_to_num(rewards_PN), clusters_PN, seed)
            for number, advantages_N in zip(at, np.where(whole_P[:, None], scored_PN, 0.0).tolist(), strict=True):
                found[number] = advantages_N
        return found


def _plain(value: Any) -> Any:
    """A value that a data set's reader made as JSON can hold it: arrays are lists, other objects their names."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def statistics(rewards: Sequence[Sequence[float]], labels: Sequence[Sequence[Label]]) -> dict[str, float]:
    """What to watch besides the reward, means over prompts: distinct strategies, and those among right responses."""
    clusters = [np.array([DEGENERATE if one.cluster is None else one.cluster for one in group]) for group in labels]
    successful = map(distinct_successful_strategies, map(np.nan_to_num, rewards), clusters)
    return {
        "distinct": float(np.mean([num_distinct(clusters_N) for clusters_N in clusters])),
        "distinct_successful": float(np.mean(list(successful))),
    }


def write_rollouts(
    path: Path,
    step: int,
    groups: Sequence[Group],
    rewards: Sequence[Sequence[float]],
    labels: Sequence[Sequence[Label]],
    advantages: Sequence[Sequence[float]],
) -> None:
    """Write a step's responses as JSONL, one per line, with columns that `polyepo import` knows by name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for group, *columns in zip(groups, rewards, labels, advantages, strict=True):
            problem = group.problem
            for response, reward, label, advantage in zip(group.responses, *columns, strict=True):
                row = {
                    "step": step,
                    "problem_id": problem.problem_id,
                    "prompt": problem.prompt,
                    "answer": problem.answer,
                    "response": response,
                    "reward": None if math.isnan(reward) else reward,
                    "advantage": advantage,
                    **label._asdict(),
                }
                file.write(json.dumps(row, allow_nan=False) + "\n")
