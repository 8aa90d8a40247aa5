"""Objectives that want something else than right answers: the numbers against enumeration, and whom they are told."""

import math
from fractions import Fraction
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from polyepo.advantages import grpo_div_advantages, marginal_set_advantages
from polyepo.config import load_config, parse_config
from polyepo.findings import Severity, objective_findings
from polyepo.findings.objective import div_right_share
from polyepo.objectives import Polychromic
from tests.support.config import small_config

MULTIPLICATION = "configs/multiplication.yaml"
BY_ANSWER = {"judge": {"name": "answer"}}


def polychromic(rewards, clusters, require_two):
    distinct = len(set(clusters))
    return Fraction(sum(rewards), len(rewards)) * Fraction(
        0 if require_two and distinct < 2 else distinct, len(rewards)
    )


def distinct_successful(rewards, clusters):
    return Fraction(len({c for r, c in zip(rewards, clusters, strict=True) if r}), len(rewards))


def mean_plus_distinct(rewards, clusters):
    return Fraction(sum(rewards), len(rewards)) + distinct_successful(rewards, clusters)


def lexicographic(rewards, clusters):
    if any(rewards):
        return 1 + distinct_successful(rewards, clusters)
    return Fraction(len(set(clusters)), len(clusters))


def mean_score(score, set_size, share, num_right, num_wrong):
    """Over every sequence of clusters, with its probability; the first clusters are right."""
    chance = [share / num_right] * num_right + [(1 - share) / num_wrong] * num_wrong
    total = Fraction(0)
    for clusters in product(range(num_right + num_wrong), repeat=set_size):
        weight = Fraction(1)
        for cluster in clusters:
            weight *= chance[cluster]
        total += weight * score([int(cluster < num_right) for cluster in clusters], clusters)
    return total


@pytest.mark.parametrize("require_two", [True, False])
@pytest.mark.parametrize(
    ("set_size", "num_right", "num_wrong"), [(2, 1, 3), (3, 1, 2), (3, 2, 2), (4, 1, 3), (4, 2, 2)]
)
def test_the_best_share_of_right_answers_is_that_of_all_sets(require_two, set_size, num_right, num_wrong):
    best = Polychromic(require_two).best_right_share(set_size, num_right, num_wrong)

    def score(share):
        return mean_score(lambda r, c: polychromic(r, c, require_two), set_size, share, num_right, num_wrong)

    found = score(Fraction(best).limit_denominator(10_000))
    assert all(found >= score(other) for other in (Fraction(i, 10) for i in range(11)))
    for step in (Fraction(-1, 500), Fraction(1, 500)):
        if 0 <= best + step <= 1:
            assert found >= score(Fraction(best).limit_denominator(10_000) + step)


@pytest.mark.parametrize("score", [distinct_successful, mean_plus_distinct, lexicographic])
@pytest.mark.parametrize("num_right", [1, 2])
def test_what_is_advised_is_best_at_right_answers_alone(score, num_right):
    at = [mean_score(score, 3, Fraction(i, 8), num_right, 3) for i in range(9)]
    assert at == sorted(at)
    assert at[-1] > at[-2]


def test_the_shares_that_were_measured():
    """Of sets of 4 with the paper's indicator: .56 with one right strategy, .83 with two, 1 with three."""
    shares = [Polychromic().best_right_share(4, num_right) for num_right in (1, 2, 3)]
    assert shares == pytest.approx([0.56, 0.83, 1.0], abs=0.005)
    assert Polychromic().best_right_share(1, 1) == 1.0, "sets of one have no diversity"


def pull(advantages, share, size, num_right, num_wrong):
    """Which way a policy's share of right answers is moved: the advantages of right responses in N, summed, on average
    over every sequence of clusters."""
    chance = [share / num_right] * num_right + [(1 - share) / num_wrong] * num_wrong
    groups = [list(clusters) for clusters in product(range(num_right + num_wrong), repeat=size)]
    rewards = np.array([[float(cluster < num_right) for cluster in clusters] for clusters in groups])
    weights = np.array([math.prod(chance[cluster] for cluster in clusters) for clusters in groups])
    return float((weights * (advantages(rewards, groups) * rewards).sum(-1)).sum())


@pytest.mark.parametrize(("set_size", "size", "num_right"), [(2, 4, 1), (3, 5, 1), (4, 5, 1), (4, 5, 2)])
def test_advantages_pull_to_the_best_share(set_size, size, num_right):
    """By a route of its own: what a step does on average, not what sets score."""
    best = Polychromic().best_right_share(set_size, num_right, num_wrong=3)
    assert best < 1
    below, at, above = (
        pull(lambda r, c: marginal_set_advantages(r, c, set_size), best + step, size, num_right, 3)
        for step in (-0.05, 0.0, 0.05)
    )
    assert below > 1e-3
    assert abs(at) < 1e-4
    assert above < -1e-3


@pytest.mark.parametrize(("weight", "size", "num_wrong"), [(1.5, 3, 2), (2.0, 4, 2), (4.0, 3, 3)])
def test_a_large_bonus_pulls_up_to_a_share_of_right_answers(weight, size, num_wrong):
    share = div_right_share(weight, size, num_wrong)
    assert 0 < share < 1
    below, at, above = (
        pull(lambda r, c: grpo_div_advantages(r, c, weight), share + step, size, 1, num_wrong)
        for step in (-0.05, 0.0, 0.05)
    )
    assert below > 1e-3
    assert abs(at) < 1e-9
    assert above < -1e-3


def test_a_bonus_above_the_reward_is_told_with_the_share():
    runs = load_config(MULTIPLICATION, {**BY_ANSWER, "arms.grpo-div.scoring.weight": 2}).runs("m")
    [found] = objective_findings(runs["m-grpo-div"])
    assert f"nothing pulls beyond {div_right_share(2, 8):.0%} right answers" in found.what
    assert "lower scoring.weight to at most 1" in found.remedy
    mended = load_config(MULTIPLICATION, {**BY_ANSWER, "arms.grpo-div.scoring.weight": 1}).runs("m")
    assert objective_findings(mended["m-grpo-div"]) == []
    assert div_right_share(1, 8) == pytest.approx(1.0)


def test_multiplication_by_answers_is_told_with_numbers_and_the_alternative():
    runs = load_config(MULTIPLICATION, BY_ANSWER).runs("m")
    assert objective_findings(runs["m-grpo"]) == objective_findings(runs["m-grpo-div"]) == []
    [found] = objective_findings(runs["m-poly-epo"])
    assert found.severity == Severity.WARNING
    assert "judge 'answer' puts all right ones into one cluster" in found.what
    assert "sets of 4 score best at 56% right answers (with two right strategies at 83%)" in found.what
    for objective in ("mean_plus_distinct", "distinct_successful", "lexicographic"):
        assert objective in found.remedy
        settings = {**BY_ANSWER, "arms.poly-epo.scoring.objective": objective}
        assert objective_findings(load_config(MULTIPLICATION, settings).runs("m")["m-poly-epo"]) == []
    assert objective_findings(load_config(MULTIPLICATION).runs("m")["m-poly-epo"]) == [], "by decompositions"


def test_mathematics_by_the_program_judge_is_by_answers():
    maths = {"name": "maths", "path": "train.jsonl"}
    config = small_config(domain=maths, policy={"model": "m", "warm_start": None})
    [found] = objective_findings(parse_config(config).runs("run")["run"])
    assert "judge 'program' puts all right ones into one cluster: sets of 2 score best at 50%" in found.what
    text = parse_config({**config, "judge": {"name": "text"}}).runs("run")["run"]
    assert objective_findings(text) == []


@pytest.mark.parametrize(
    ("scoring", "said"),
    [
        ({"set_size": 4}, None),
        (
            {"set_size": 5},
            "any two sets share 2 responses or more, and a response is compared with the 21 sets without",
        ),
        (
            {"set_size": 7, "objective": "pass_at_n"},
            "share 6 responses or more, and a response is compared with the 1 ",
        ),
        ({"set_size": 8}, None),  # every advantage is 0: said by config_findings
        ({"method": "pkpo", "k": 8}, None),
    ],
)
def test_sets_that_hold_most_of_each_other(scoring, said):
    config = parse_config(small_config(sampling={"num_responses": 8}, scoring=scoring)).runs("run")["run"]
    found = objective_findings(config)
    assert [said in f.what for f in found] == ([True] if said else [])
    for finding in found:
        n = scoring["set_size"]
        assert finding.remedy == f"lower scoring.set_size to at most 4, or raise sampling.num_responses to {2 * n}"
        for mended in ({"scoring": {**scoring, "set_size": 4}}, {"sampling": {"num_responses": 2 * n}}):
            changed = small_config(**{"sampling": {"num_responses": 8}, "scoring": scoring, **mended})
            assert objective_findings(parse_config(changed).runs("run")["run"]) == []


@pytest.mark.parametrize("path", sorted(Path("configs").glob("*.yaml")), ids=str)
def test_our_configurations_are_silent(path):
    for config in load_config(path).runs("run").values():
        assert objective_findings(config) == []
