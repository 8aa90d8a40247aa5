"""What the list of findings says of steps that go wrong, and that it is silent where nothing is."""

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from polyepo.advantages import marginal_set_advantages
from polyepo.config import load_config, parse_config
from polyepo.findings import RECENT, HeldOut, Severity, training_findings
from polyepo.metrics import sign_flips
from polyepo.objectives import Polychromic
from tests.support.config import small_config

REAL = Path(__file__).with_name("data") / "quickstart_updates.jsonl"
QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"

LLM = {"name": "llm", "model": "judge", "base_url": "http://127.0.0.1:1/v1"}
GRPO = {"method": "grpo"}

HEALTHY = {
    "prompts": 16, "prompts_with_signal": 14, "prompts_all_wrong": 1, "prompts_one_cluster": 0,
    "prompts_unlabelled": 0, "prompts_other_zero": 1, "prompts_sign_flipped": 0, "reward_mean": 0.5, "reward_std": 0.5,
    "coverage": 0.9, "truncated_rate": 0.01, "unparsed_rate": 0.1, "degenerate_rate": 0.02, "missing_label_rate": 0.0,
    "distinct_clusters": 2.5, "distinct_successful": 2.0, "distinct_unsuccessful": 1.0, "entropy": 0.8,
    "grad_norm": 0.5, "clip_fraction": 0.01, "logprob_mismatch": 0.01,
}  # fmt: skip


def config_of(steps=100, **changes):
    return parse_config(small_config(steps=steps, **changes)).runs("run")["run"]


def rows_of(count, first=1, **changes):
    """Update rows; a list in `changes` gives each step its value."""
    return [
        {"step": first + i, **HEALTHY, **{k: v[i] if isinstance(v, list) else v for k, v in changes.items()}}
        for i in range(count)
    ]


def alarms(config, rows, heldout=None):
    return [f for f in training_findings(config, rows, heldout) if f.severity > Severity.NOTE]


SILENT = {"prompts_with_signal": 0, "prompts_all_wrong": 0, "prompts_other_zero": 0}
# What is changed in the configuration and in the rows; what must be said, and which setting is to be changed.
FAULTS = [
    ({}, {**SILENT, "prompts_all_wrong": 16, "reward_mean": 0.0, "reward_std": 0.0, "truncated_rate": 0.94},
     "0 of 192 prompts had a gradient in all 12 steps, so nothing was learnt (192 all wrong)",
     "sampling.max_response_tokens 8 is too short for 94% of them; raise it, to 32"),
    ({}, {**SILENT, "prompts_all_wrong": 16, "reward_mean": 0.0, "reward_std": 0.0, "truncated_rate": 0.94},
     "94% of responses were cut off in all 12 steps", "sampling.max_response_tokens 8"),
    ({}, {**SILENT, "prompts_all_wrong": 16, "reward_mean": 0.0, "unparsed_rate": 1.0},
     "0 of 192 prompts", "policy.warm_start.steps 250"),
    ({}, {**SILENT, "prompts_all_wrong": 16, "reward_mean": 0.0}, "0 of 192 prompts", "sampling.num_responses 4"),
    ({"scoring": GRPO}, {**SILENT, "prompts_other_zero": 16, "reward_mean": 1.0, "reward_std": 0.0},
     "(192 rewards and clusters that make no difference)", "harder problems"),
    ({}, {**SILENT, "prompts_one_cluster": 16, "distinct_clusters": 1.0}, "(192 one cluster)",
     "scoring.require_two_clusters: false"),
    ({"judge": LLM}, {**SILENT, "prompts_unlabelled": 16, "missing_label_rate": 0.4}, "(192 unlabelled)",
     "judge.max_tokens 4096"),
    ({}, {**SILENT, "prompts_ungraded": 16, "ungraded_rate": 0.4}, "(192 ungraded)", "polyepo sql"),
    ({"scoring": {"set_size": 4}}, {**SILENT, "prompts_other_zero": 16}, "0 of 192 prompts", "see scoring.set_size 4"),
    ({}, {"prompts_with_signal": [1] + [0] * 11, "prompts_all_wrong": 15, "reward_mean": 0.01},
     "1 of 192 prompts had a gradient in all 12 steps, so next to nothing is learnt", "too hard"),
    ({}, {"unparsed_rate": 0.97, "reward_mean": 0.02}, "97% of responses held no answer",
     "policy.warm_start.steps 250"),
    ({}, {"reward_mean": 1.0, "reward_std": 0.0, "unparsed_rate": 0.0}, "every response earned 1", "harder problems"),
    ({}, {"ungraded_rate": 0.2, "prompts_ungraded": 5}, "20.0% of responses could not be graded", "polyepo sql"),
    ({"judge": LLM}, {"missing_label_rate": 0.15, "prompts_unlabelled": 4},
     "could not label 15.0% of responses in all 12 steps, which leaves out 48 of 192", "judge.timeout_s 120"),
    ({}, {"degenerate_rate": 0.95, "distinct_clusters": 0.2}, "95% of responses were degenerate", "judge 'program'"),
    ({"judge": {"name": "text"}}, {"distinct_clusters": 1.0}, "responses lay in 1.00 clusters",
     "lower judge.max_distance 0.3, to 0.15"),
    ({"scoring": {"objective": "distinct_successful"}}, {"distinct_clusters": 1.0}, "responses lay in 1.00 clusters",
     "tells more apart than 'program', or raise sampling.temperature 1"),
    ({"scoring": {"method": "dsdr"}}, {"distinct_clusters": 3.9}, "4 responses lay in 3.90 clusters", "less apart"),
    ({"judge": {"name": "text"}}, {"distinct_clusters": 3.9}, "4 responses lay in 3.90 clusters",
     "raise judge.max_distance 0.3, to 0.45"),
    ({"judge": LLM}, {"distinct_clusters": 3.9}, "4 responses lay in 3.90 clusters", "judge.template_path"),
    ({"scoring": {"set_size": 3}}, {"prompts_sign_flipped": 5}, "60 of 192 prompts (31.2%) were sign-flipped",
     "lower scoring.set_size 3, to 2"),
    ({"scoring": {"method": "grpo_div", "weight": 0.5}}, {"prompts_sign_flipped": 5}, "were sign-flipped",
     "lower scoring.weight 0.5, to 0.25"),
    ({}, {"grad_norm": 40.0}, "gradient's norm was 40 (median)", "raise update.max_grad_norm to 40"),
    ({"scoring": {"aggregate": "sum"}}, {"grad_norm": 40.0}, "gradient's norm was 40", "scoring.aggregate: mean"),
    ({"update": {"epochs": 3}}, {"clip_fraction": 0.4}, "40% of tokens were clipped", "or update.epochs 3"),
    ({}, {"logprob_mismatch": 0.5}, "differed by 0.5 nats per token", "update.importance_cap: 2"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "row", "what", "remedy"), FAULTS)
def test_a_fault_is_named_with_its_numbers_and_its_setting(changes, row, what, remedy):
    config = config_of(steps=12, **changes)
    said = [f for f in alarms(config, rows_of(12, **row)) if what in f.what]
    assert len(said) == 1
    assert remedy in said[0].remedy


def test_no_gradient_is_fatal_and_first():
    found = alarms(config_of(steps=12), rows_of(12, **FAULTS[0][1]))
    assert [f.severity for f in found] == [Severity.FATAL, Severity.WARNING]


def test_healthy_steps_say_nothing():
    for count in (1, 12, 45, 100):
        assert training_findings(config_of(), rows_of(count)) == []


@pytest.mark.parametrize("arm", ["grpo", "grpo-div", "poly-epo"])
def test_the_quickstarts_real_runs_raise_no_alarm(arm):
    """The first and last twenty steps of 250: GRPO's ends with an entropy of 0.004 and 2 % of prompts with a gradient,
    because it has learnt its problems."""
    by_run = defaultdict(list)
    for line in REAL.read_text().splitlines():
        row = json.loads(line)
        by_run[row["run"]].append(row)
    config = load_config(QUICKSTART).runs("quickstart")[f"quickstart-{arm}"]
    rows = by_run[f"quickstart-{arm}"]
    assert len(rows) == 2 * RECENT
    for count in range(1, len(rows) + 1):
        assert alarms(config, rows[:count]) == []


def test_the_same_end_without_the_rewards_is_an_alarm():
    rows = [json.loads(line) for line in REAL.read_text().splitlines()]
    rows = [row | {"reward_mean": 0.4} for row in rows if row["run"] == "quickstart-grpo"]
    said = " ".join(str(f) for f in alarms(load_config(QUICKSTART).runs("q")["q-grpo"], rows))
    assert "the entropy fell from" in said
    assert "next to nothing is learnt" in said


def test_too_little_says_nothing_but_a_run_that_is_over_does():
    silent = {**SILENT, "prompts": 4, "prompts_all_wrong": 4, "truncated_rate": 1.0, "reward_mean": 0.0}
    assert training_findings(config_of(steps=12), rows_of(3, **silent)) == []
    [found] = training_findings(config_of(steps=3), rows_of(3, **silent))
    assert found.what.startswith("0 of 12 prompts had a gradient in all 3 steps, so nothing was learnt")
    assert training_findings(config_of(steps=12), []) == []
    assert alarms(config_of(steps=12), rows_of(4, **silent))[0].what.startswith(
        "0 of 16 prompts had a gradient in the 4 steps so far"
    )


def test_what_older_runs_do_not_know_is_no_finding():
    known = {"reward_std", "unparsed_rate", "distinct_clusters", "missing_label_rate"}
    rows = [{k: v for k, v in row.items() if k not in known} for row in rows_of(45)]
    assert training_findings(config_of(), rows) == []
    assert training_findings(config_of(), [row | dict.fromkeys(known) for row in rows]) == []


def test_what_has_passed_is_a_note_and_what_began_lately_an_alarm():
    early = rows_of(RECENT, truncated_rate=1.0)
    late = rows_of(30, first=RECENT + 1)
    [passed] = training_findings(config_of(), early + late)
    assert passed.severity == Severity.NOTE
    assert passed.what == "41% of responses were cut off in the 50 steps so far"
    [now] = alarms(config_of(), rows_of(30) + rows_of(RECENT, first=31, truncated_rate=0.5))
    assert now.what == "50% of responses were cut off in the last 20 of 50 steps"


def test_the_first_and_last_steps_are_enough():
    rows = rows_of(RECENT) + rows_of(RECENT, first=81, prompts_with_signal=0, prompts_all_wrong=16)
    said = [f.what for f in alarms(config_of(), rows)]
    assert said == ["0 of 320 prompts had a gradient in the last 20 of 100 steps, so nothing is learnt (320 all wrong, "
                    "20 rewards and clusters that make no difference)"]  # fmt: skip


def wave(mean, spread=0.1):
    noise = np.random.default_rng(0).standard_normal(RECENT)
    return (mean + spread * (noise - noise.mean())).tolist()


@pytest.mark.parametrize(
    ("start", "end", "what"),
    [
        ({"entropy": 0.8}, {"entropy": 0.01}, "the entropy fell from 0.8 to 0.01"),
        ({"entropy": 0.8}, {"entropy": 2.6}, "the entropy rose from 0.8 to 2.6"),
        (
            {"reward_mean": wave(0.6)},
            {"reward_mean": wave(0.3)},
            "the mean reward fell from 0.60 in the first 20",
        ),
        ({"entropy": 0.8}, {"entropy": 0.01, "reward_mean": 0.97}, None),  # it knows its problems
        ({"entropy": 0.01}, {"entropy": 0.008}, None),  # it was as certain from the start
        ({"entropy": 0.1}, {"entropy": 0.4}, None),  # it explores
        ({"reward_mean": wave(0.6)}, {"reward_mean": wave(0.56)}, None),  # other problems
        ({"reward_mean": 0.3}, {"reward_mean": 0.9}, None),
        ({"reward_std": 0.4}, {"reward_std": 0.0, "reward_mean": 1.0, "prompts_with_signal": 0}, None),  # solved
    ],
)
def test_a_drift_is_an_alarm_and_learning_is_none(start, end, what):
    found = alarms(config_of(), rows_of(RECENT, **start) + rows_of(RECENT, first=RECENT + 1, **end))
    assert [f.what.startswith(what) for f in found] == ([True] if what else [])


BY_ANSWER = {"domain": {"name": "multiplication"}, "sampling": {"max_response_tokens": 16}, "judge": {"name": "answer"}}
OTHERS = "set scoring.objective to mean_plus_distinct, distinct_successful or lexicographic"


@pytest.mark.parametrize(
    ("changes", "start", "end", "what", "remedy"),
    [
        # As multiplication went, clustered by answers: from the first step on, and nothing is learnt.
        (
            BY_ANSWER,
            {"reward_mean": wave(0.47), "prompts_sign_flipped": 5},
            {"reward_mean": wave(0.5), "prompts_sign_flipped": 7},
            "44% of prompts were sign-flipped in the last 20 of 40 steps; since the first 20 the mean reward went from",
            OTHERS,
        ),
        (
            {},
            {"reward_mean": wave(0.6), "distinct_unsuccessful": 2.0},
            {"reward_mean": wave(0.3), "distinct_unsuccessful": 3.5},
            "went from 0.60 to 0.30, strategies among a prompt's wrong responses from 2.0 to 3.5",
            "scoring.objective: mean_plus_distinct",
        ),
        (
            {"scoring": {"method": "grpo_div", "weight": 3.0}},
            {"reward_mean": wave(0.5), "prompts_sign_flipped": 5},
            {"reward_mean": wave(0.5), "prompts_sign_flipped": 5},
            "31% of prompts",
            "lower scoring.weight 3, to 1.5",
        ),
        # Signs are flipped about strategies, and it learns all the same; or it explores where nothing is right yet.
        (
            {},
            {"reward_mean": wave(0.3), "prompts_sign_flipped": 5},
            {"reward_mean": wave(0.6), "prompts_sign_flipped": 6},
            None,
            None,
        ),
        (
            {},
            {"reward_mean": wave(0.1), "distinct_unsuccessful": 2.0},
            {"reward_mean": wave(0.1), "distinct_unsuccessful": 3.5},
            None,
            None,
        ),
        ({}, {"prompts_sign_flipped": 5}, {"reward_mean": 0.95, "prompts_sign_flipped": 5}, None, None),
    ],
)
def test_an_objective_that_wants_other_than_right_answers(changes, start, end, what, remedy):
    found = alarms(config_of(**changes), rows_of(RECENT, **start) + rows_of(RECENT, first=RECENT + 1, **end))
    assert len(found) == (what is not None)
    for finding in found:
        assert finding.what.startswith("it pays to be wrong in other ways: ")
        assert what in finding.what
        assert remedy in finding.remedy


def test_what_an_objective_wants_is_not_mended_by_smaller_sets_or_steps():
    """Signs flipped before there is anything to compare with, and held-out rewards below the base model's."""
    config = config_of(**BY_ANSWER, scoring={"set_size": 3})
    [found] = alarms(config, rows_of(12, prompts_sign_flipped=5))
    assert found.remedy.startswith(OTHERS)
    base = [0.5 + i / 100 for i in range(40)]
    [found] = alarms(config, rows_of(12), HeldOut(12, base, [b - 0.1 - (i % 3) / 100 for i, b in enumerate(base)]))
    assert found.remedy.startswith(OTHERS)


def test_clusters_say_nothing_where_they_are_not_used():
    for scoring in (GRPO, {"objective": "pass_at_n"}, {"method": "grpo_div", "weight": 0.0}):
        for clusters in (1.0, 4.0):
            assert alarms(config_of(scoring=scoring), rows_of(12, distinct_clusters=clusters)) == []


def test_a_verifier_without_answers_may_give_rewards():
    assert alarms(config_of(), rows_of(12, unparsed_rate=1.0)) == []


def test_held_out_rewards_are_compared_problem_by_problem():
    rng = np.random.default_rng(0)
    base = rng.uniform(0, 1, 40)
    worse, same = base - 0.1 + 0.05 * rng.standard_normal(40), base + 0.05 * rng.standard_normal(40)
    [found] = alarms(config_of(), rows_of(12), HeldOut(12, base.tolist(), worse.tolist()))
    assert "after step 12, below the base model's" in found.what
    assert "update.lr 0.001, to 0.0003" in found.remedy
    for now in (same, base, base + 0.1):
        assert alarms(config_of(), rows_of(12), HeldOut(12, base.tolist(), now.tolist())) == []
    assert alarms(config_of(), rows_of(12), HeldOut(12, base[:10].tolist(), worse[:10].tolist())) == []


def test_importance_sampling_corrects_a_mismatch():
    rows = rows_of(12, logprob_mismatch=0.5)
    assert alarms(config_of(update={"importance_cap": 2.0}), rows) == []
    [found] = alarms(config_of(update={"importance_cap": 2.0}), rows_of(12, logprob_mismatch=1.5))
    assert "importance_cap" not in found.remedy


def test_the_smaller_set_that_is_advised_flips_no_sign():
    """METHOD's example: five right in one cluster, three wrong in clusters of their own."""
    rewards, clusters = np.array([[1.0] * 5 + [0.0] * 3]), np.array([[0] * 5 + [1, 2, 3]])

    def flipped(size):
        advantages = marginal_set_advantages(rewards, clusters, size, Polychromic(require_two_clusters=False))
        return bool(sign_flips(rewards, advantages).any())

    config = config_of(sampling={"num_responses": 8}, scoring={"set_size": 6, "require_two_clusters": False})
    [found] = alarms(config, rows_of(12, prompts_sign_flipped=8))
    assert found.remedy == "lower scoring.set_size 6, to 3 say"
    assert flipped(6)
    assert not flipped(3)
