"""A step's scores: each response verified, and rewards and clusters turned into one advantage per response."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa

from polyepo.clusters import cluster_matrix
from polyepo.config import ConfigError
from polyepo.domains import Domain, Problem, Ungraded, Verdict
from polyepo.errors import PolyepoError
from polyepo.judges import Judge
from polyepo.plugins import raised_at
from polyepo.schemas import SCORES
from polyepo.scoring import Scoring, scoring_id
from polyepo.seeds import derive_seed
from storage import ArtifactKey
from tasks.runs.run import Run

# Scoring and judge of rewards that imported rollouts came with.
IMPORTED = "imported"


class UngradedError(PolyepoError, RuntimeError):
    """Too many of a step's responses could not be graded."""


def commit_scores(run: Run, scoring: Scoring, judge: Judge, step: int, verifier: Domain | None = None) -> ArtifactKey:
    """Commit a step's scores by any scoring of any judge's labels, unless they are there; returns their key.

    Rewards are those of the run's own domain, or of another verifier.

    Raises:
        UngradedError: too many responses could not be graded. Nothing is committed then, so that they are graded again
            when the run is resumed.
    """
    key = run.scores_key(step, scoring_id(scoring, judge, verifier))
    if not run.store.exists(key):
        started = time.perf_counter()
        shards = range(run.config.sampling.shards)
        parents = [k for s in shards for k in (run.key("rollouts", step, s), run.labels_key(step, s, judge))]
        table = score_table(run, scoring, judge, step, verifier)
        provenance = run.provenance(step - 1, time.perf_counter() - started)
        manifests = [run.store.manifest(parent) for parent in parents]
        run.store.commit_table(key, table, table_name="scores", parents=manifests, provenance=provenance)
    return key


def score_table(run: Run, scoring: Scoring, judge: Judge, step: int, verifier: Domain | None = None) -> pa.Table:
    """The scores table of a step from its committed rollouts and a judge's labels."""
    rows: list[dict[str, Any]] = []
    columns = ["problem_id", "sample", "response", "response_token_ids"]
    columns += ["sampler_logprobs"] if scoring.uses_logprobs else []
    for shard in range(run.config.sampling.shards):
        rollouts = run.store.read_table(run.key("rollouts", step, shard), columns)
        labels = run.store.read_table(
            run.labels_key(step, shard, judge), ["problem_id", "sample", "cluster", "degenerate", "status"]
        )
        label_of = {(label["problem_id"], label["sample"]): label for label in labels.to_pylist()}
        rows += [row | label_of[(row["problem_id"], row["sample"])] for row in rollouts.to_pylist()]
    domain = verifier or run.config.domain
    verdicts = _verdicts(run, step, rows, domain)
    check_ungraded(step, scoring, verdicts)
    penalties = overlong_penalties(run, scoring, rows)
    logprobs = _mean_logprobs(scoring, step, rows) if scoring.uses_logprobs else None
    seed = derive_seed(run.config.seed, "sets", step)
    scoring_now = scoring.at(step)
    values = np.zeros(len(rows))
    # Groups have one size, but for rollouts that were imported.
    for members in _groups_by_size(rows):
        rewards_PN = np.array([[reward_of(verdicts[row]) for row in group] for group in members])
        flat = [rows[row] for group in members for row in group]
        clusters_PN, labelled_P = cluster_matrix(flat, len(members[0]), judge.missing_labels.policy)
        # A prompt with a response that is not graded, or that needs a label and has none, gets no made-up signal.
        whole_P = ~np.isnan(rewards_PN).any(-1) & (labelled_P | (not scoring.uses_clusters))
        penalized_PN = np.nan_to_num(rewards_PN) - penalties[np.array(members)]
        logprobs_PN = None if logprobs is None else logprobs[np.array(members)]
        advantages_PN = scoring_now.advantages(penalized_PN, clusters_PN, seed, logprobs_PN)
        values[np.array(members)] = np.where(whole_P[:, None], advantages_PN, 0.0)
    constant = {
        "run": run.name,
        "step": step,
        "scoring": scoring_id(scoring, judge, verifier),
        "objective": scoring.objective_name,
        "judge": judge.judge_id,
        "verifier": domain.name,
        "uses_clusters": scoring.uses_clusters,
    }
    return pa.Table.from_pylist(
        [
            {
                **constant,
                **{key: row[key] for key in ("problem_id", "sample", "cluster", "degenerate")},
                **verdict._asdict(),
                "answer_class": answer_class,
                "advantage": advantage,
                "overlong_penalty": penalty if scoring.overlong_penalty else None,
            }
            for row, verdict, answer_class, advantage, penalty in zip(
                rows, verdicts, _answer_classes(run, domain, rows, verdicts), values, penalties, strict=True
            )
        ],
        schema=SCORES,
    )


def _mean_logprobs(scoring: Scoring, step: int, rows: list[dict[str, Any]]) -> np.ndarray:
    """The sampler's mean log-probability per token of each response. Raises ConfigError if there is none."""
    if any(not row["sampler_logprobs"] for row in rows):
        raise ConfigError(
            f"step {step}: scoring.method {scoring.method!r} ranks responses by the sampler's log-probabilities, and "
            "rollouts that were imported without them have none: take another scoring"
        )
    return np.array([np.mean(row["sampler_logprobs"]) for row in rows])


def reward_of(verdict: Verdict) -> float:
    """A verdict's reward; NaN if there is none."""
    return math.nan if verdict.reward is None else verdict.reward


def check_ungraded(step: int, scoring: Scoring, verdicts: Sequence[Verdict]) -> None:
    """Raise UngradedError if too many of a step's responses could not be graded."""
    reasons = Counter(verdict.ungraded for verdict in verdicts if verdict.reward is None)
    if reasons.total() > scoring.max_ungraded_rate * len(verdicts):
        counts = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        raise UngradedError(
            f"step {step}: {reasons.total()} of {len(verdicts)} responses could not be graded ({counts}), more than "
            f"scoring.max_ungraded_rate {scoring.max_ungraded_rate:g} allows. Nothing is lost: the same command grades "
            "them again, and a higher scoring.max_ungraded_rate leaves their prompts out."
        )


def _answer_classes(
    run: Run, domain: Domain, rows: list[dict[str, Any]], verdicts: Sequence[Verdict]
) -> list[int | None]:
    """Each row's answer by number, equal for answers to one problem that mean the same; rows are in order of problems.

    Null where nobody read the answers: those that imported responses came with stand as they are.
    """
    if isinstance(domain, Ungraded):
        return [None] * len(rows)
    pairs = zip(rows, verdicts, strict=True)
    groups = [
        (run.problems[problem_id], [verdict.parsed_answer for _, verdict in group])
        for problem_id, group in groupby(pairs, key=lambda pair: pair[0]["problem_id"])
    ]
    return [number for numbers in domain.answer_classes(groups) for number in numbers]


def _verdicts(run: Run, step: int, rows: list[dict[str, Any]], domain: Domain) -> list[Verdict]:
    """Rewards of rollout rows by a verifier; those they came with, if nobody here can verify them."""
    if isinstance(domain, Ungraded):
        return _given_verdicts(run, step, rows)
    problems = [run.problems[row["problem_id"]] for row in rows]
    return grade(domain, problems, rows, step)


def grade(domain: Domain, problems: Sequence[Problem], rows: Sequence[dict[str, Any]], step: int) -> list[Verdict]:
    """Verdicts on rollout rows, each with a finite reward, or with the reason why there is none.

    Raises:
        ValueError: a reward is NaN or infinite.
    """
    verdicts = _verified(domain, problems, [row["response"] for row in rows])
    for row, verdict in zip(rows, verdicts, strict=True):
        if verdict.reward is not None and not math.isfinite(verdict.reward):
            raise ValueError(
                f"reward of problem {row['problem_id']!r}, sample {row['sample']}, step {step} is {verdict.reward}; "
                f"the verifier of domain {domain.name!r} must return finite numbers, or None for what it cannot grade"
            )
    return [v._replace(ungraded=(v.ungraded or "no reason given") if v.reward is None else None) for v in verdicts]


def _verified(domain: Domain, problems: Sequence[Problem], responses: Sequence[str]) -> list[Verdict]:
    """Verdicts; where a class of the user's own raises, its response alone is not graded, as by a function."""
    try:
        return domain.verify_batch(problems, responses)
    except PolyepoError:
        raise
    except Exception as error:
        if domain.code is None:
            raise
        if type(domain).verify_batch is not Domain.verify_batch:  # all at once, so that it is said of all
            return [_ungraded(error)] * len(responses)
    return [_verdict(domain, problem, response) for problem, response in zip(problems, responses, strict=True)]


def _verdict(domain: Domain, problem: Problem, response: str) -> Verdict:
    try:
        return domain.verify(problem, response)
    except PolyepoError:
        raise
    except Exception as error:
        return _ungraded(error)


def _ungraded(error: Exception) -> Verdict:
    return Verdict(None, None, f"{type(error).__name__}: {str(error)[:200]}{raised_at(error)}")


def _given_verdicts(run: Run, step: int, rows: list[dict[str, Any]]) -> list[Verdict]:
    """Rewards that imported responses came with. Raises ConfigError if some came without: no reward is made up."""
    key = run.scores_key(step, IMPORTED)
    columns = ["problem_id", "sample", "reward", "parsed_answer"]
    given = run.store.read_table(key, columns).to_pylist() if run.store.exists(key) else []
    graded = [row for row in given if row["reward"] is not None]
    of = {(row["problem_id"], row["sample"]): Verdict(row["reward"], row["parsed_answer"]) for row in graded}
    if len(of) < len(rows):
        raise ConfigError(
            f"run {run.name!r}, step {step}: {len(rows) - len(of)} of {len(rows)} responses were imported without a "
            "reward, and domain 'ungraded' has no verifier; give one, such as "
            '--param verifier=\'{"name": "maths", "path": "none"}\''
        )
    return [of[(row["problem_id"], row["sample"])] for row in rows]


def _groups_by_size(rows: list[dict[str, Any]]) -> list[list[list[int]]]:
    """Row indices of each prompt's group, groups of one size together; rows of a prompt are next to each other."""
    by_size: dict[int, list[list[int]]] = {}
    for _, group in groupby(range(len(rows)), key=lambda row: rows[row]["problem_id"]):
        members = list(group)
        by_size.setdefault(len(members), []).append(members)
    return list(by_size.values())


def overlong_penalties(run: Run, scoring: Scoring, rows: list[dict[str, Any]]) -> np.ndarray:
    """What each response of rollout rows loses for its length, (R,); zeros if the scoring has no penalty.

    Raises:
        ConfigError: the rollouts were imported without their tokens.
    """
    penalty, limit = scoring.overlong_penalty, run.config.sampling.max_response_tokens
    if penalty is None:
        return np.zeros(len(rows))
    if any(row["response_token_ids"] is None for row in rows):
        raise ConfigError(
            f"scoring.overlong_penalty needs lengths in tokens, and run {run.name!r} was imported without token ids"
        )
    lengths_R = np.array([len(row["response_token_ids"]) for row in rows])
    excess_R = lengths_R - (limit - penalty.buffer_tokens)
    return penalty.factor * np.clip(excess_R / penalty.buffer_tokens, 0, 1)
