"""The method for other trainers: what it makes of rows and conversations, and when it stops."""

import json
import math
from typing import ClassVar

import numpy as np
import pytest

from polyepo.errors import ConfigError, PolyepoError
from polyepo.integrations.method import Method, statistics, write_rollouts
from polyepo.judges import Judge, Label, ProgramJudge
from polyepo.labels import LabelStatus
from polyepo.scoring import GRPOScoring, SetScoring

GRPO = Method(ProgramJudge(), GRPOScoring(method="grpo", max_ungraded_rate=0.5))


def label(cluster, status=LabelStatus.OK):
    return Label(cluster, cluster is None and status == LabelStatus.OK, None, None, status)


def test_a_row_and_its_conversations_become_a_group():
    prompt = [{"role": "user", "content": [{"type": "text", "text": "2+2?"}]}]
    completions = [
        [{"role": "assistant", "content": "4"}],
        [{"role": "assistant", "content": ""}, {"role": "tool", "content": "7"}, {"role": "assistant", "content": "5"}],
    ]
    columns = {"problem_id": 12, "numbers": np.array([2, 2]), "hint": None}
    group = GRPO.group(prompt, 4, columns, completions)
    assert group.responses == ["4", "5"]
    problem = group.problem
    assert (problem.problem_id, problem.answer, problem.metadata) == ("12", "4", {"numbers": [2, 2]})
    assert problem.prompt == [{"role": "user", "content": "2+2?"}]
    ids = {GRPO.group(prompt, answer, {}, []).problem.problem_id for answer in (4, 4, 5)}
    assert len(ids) == 2, "without an id, the same problem has the same one"


def test_what_is_not_known_is_no_signal():
    """A prompt with a reward that is not known gets no gradient; one without a label only where labels matter."""
    rewards = [[1.0, 0.0], [1.0, math.nan], [1.0, 0.0]]
    labels = [[label(0), label(1)], [label(0), label(1)], [label(0), label(None, LabelStatus.PARSE_FAILED)]]
    assert GRPO.advantages(1, rewards, labels) == [[0.5, -0.5], [0.0, 0.0], [0.5, -0.5]]
    sets = Method(ProgramJudge(), SetScoring(set_size=1, require_two_clusters=False, max_ungraded_rate=0.5))
    assert sets.advantages(1, rewards, labels) == [[0.5, -0.5], [0.0, 0.0], [0.0, 0.0]]


def test_groups_of_several_sizes():
    rewards = [[1.0, 0.0], [1.0, 0.0, 0.0, 0.0]]
    labels = [[label(0), label(1)], [label(0)] * 4]
    assert GRPO.advantages(1, rewards, labels) == [[0.5, -0.5], [0.75, -0.25, -0.25, -0.25]]


def test_too_many_that_are_not_known_stop_the_training():
    method = Method(ProgramJudge(), SetScoring(set_size=1))
    with pytest.raises(PolyepoError, match=r"step 3: 1 of 2 .* scoring.max_ungraded_rate 0.05"):
        method.advantages(3, [[1.0, math.nan]], [[label(0), label(1)]])

    class Silent(Judge):
        name: str = "silent"
        can_fail: ClassVar[bool] = True

        def label(self, domain, groups, calls=None):
            return [[label(None, LabelStatus.REFUSED)] * len(group.responses) for group in groups]

    with pytest.raises(PolyepoError, match=r"2 of 2 responses have no label \(refused\).*max_missing_rate"):
        Method(Silent()).label([GRPO.group("?", None, {}, ["a", "b"])])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("judge: {name: nobody}", "nobody"),
        ("scoring: {set_size: 4}", "judge"),
        ("judge: {name: program}\nscoring: {set_sise: 4}", "set_sise"),
        ("judge: {name: program}\npolicy: {}", "policy"),
        ("- judge", "mapping"),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path, text, said):
    (tmp_path / "method.yaml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        Method.load(tmp_path / "method.yaml")


@pytest.mark.parametrize(
    ("scoring", "said"),
    [
        ("{set_size: 9}", "set_size"),
        ("{overlong_penalty: {buffer_tokens: 5}}", "overlong_penalty"),
        ("{method: unlikeliness}", "unlikeliness.* needs log-probabilities"),
    ],
)
def test_a_scoring_that_cannot_be(tmp_path, scoring, said):
    (tmp_path / "method.yaml").write_text(f"judge: {{name: program}}\nscoring: {scoring}")
    with pytest.raises(ConfigError, match=said):
        Method.load(tmp_path / "method.yaml").check(8)


def test_statistics_and_rollouts(tmp_path):
    rewards, labels = [[1.0, 1.0, 0.0, math.nan]], [[label(0), label(0), label(1), label(None)]]
    assert statistics(rewards, labels) == {"distinct": 2.0, "distinct_successful": 1.0}
    group = GRPO.group("2+2?", "4", {}, ["4", "four", "5", "\ud800"])
    write_rollouts(tmp_path / "new" / "step.jsonl", 2, [group], rewards, labels, [[0.1, 0.1, -0.2, 0.0]])
    written = [json.loads(line) for line in (tmp_path / "new" / "step.jsonl").open()]
    assert [row["reward"] for row in written] == [1.0, 1.0, 0.0, None]
    assert [row["cluster"] for row in written] == [0, 0, 1, None]
