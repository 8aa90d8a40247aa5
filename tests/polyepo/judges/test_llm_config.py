"""The LLM judge as configuration: what its id depends on, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from polyepo.config import ConfigError, load_judge
from polyepo.judges.llm.consensus import consensus, pair_agreement
from polyepo.judges.llm.judge import LLMJudge
from polyepo.section import operational

PLAIN = {"model": "Qwen/Qwen3-4B", "base_url": "http://127.0.0.1:8000/v1"}


@pytest.mark.parametrize("path", sorted(Path("configs/judges").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_judges_load(path):
    assert load_judge(path).judge_id


@pytest.mark.parametrize(
    "change",
    [
        {"base_url": "https://elsewhere/v1"}, {"api_key_env": "KEY"}, {"concurrency": 3}, {"max_retries": 0},
        {"requests_per_minute": 10}, {"timeout_s": 1}, {"max_missing_rate": 0.5}, {"reuse_calls": "root"},
        {"price_per_million_input": 1, "price_per_million_output": 1, "max_cost": 5},
    ],
)  # fmt: skip
def test_limits_and_addresses_leave_the_id(change):
    assert LLMJudge(**PLAIN).judge_id == LLMJudge(**{**PLAIN, **change}).judge_id


@pytest.mark.parametrize(
    "change",
    [
        {"model": "Qwen/Qwen3-8B"}, {"temperature": 0.5}, {"votes": 3}, {"seed": 1}, {"max_tokens": 100},
        {"template": "{nonce} {ids}"}, {"overflow": "refuse"}, {"extra_body": {"top_k": 1}}, {"missing": "singleton"},
        {"max_response_tokens": 100}, {"context_tokens": 8192},
    ],
)  # fmt: skip
def test_what_labels_depend_on_changes_the_id(change):
    assert LLMJudge(**PLAIN).judge_id != LLMJudge(**{**PLAIN, **change}).judge_id


def test_the_marks_say_what_leaves_the_id():
    """One value beside the default for each setting: the id is another exactly if the setting is not marked."""
    marked = operational(LLMJudge)
    values = {"api_key_env": "KEY", "overflow": "refuse", "missing": "singleton", "reuse_calls": "root",
              "base_url": "http://h/v1", "model": "n", "tokenizer": "t", "template": "{nonce} {ids}",
              "extra_body": {"a": 1}, "max_missing_rate": 0.5}  # fmt: skip
    plain = LLMJudge(**PLAIN)
    for name in LLMJudge.model_fields.keys() - {"name"}:
        changed = plain.model_copy(update={name: values.get(name, 777)})
        assert (changed.judge_id == plain.judge_id) == (name in marked), name


def test_ids_of_judges_in_stores_stay():
    assert LLMJudge(model="m", base_url="http://a/v1").judge_id == "llm-m-cd8c7045"


def test_the_id_is_a_name_of_a_folder():
    assert LLMJudge(**PLAIN).judge_id.startswith("llm-qwen-qwen3-4b-")
    assert LLMJudge(**{**PLAIN, "model": "../../" + "x" * 500}).judge_id.startswith("llm-xxx")
    assert len(LLMJudge(**{**PLAIN, "model": "\u202e" + "x" * 500}).judge_id) < 100


def test_a_template_file_is_kept_with_the_configuration(tmp_path):
    path = tmp_path / "mine.md"
    path.write_text("Sort {ids} between {nonce}.")
    judge = LLMJudge(**PLAIN, template_path=str(path))
    path.unlink()
    assert judge.instructions == "Sort {ids} between {nonce}."
    assert LLMJudge.model_validate(judge.model_dump(mode="json")) == judge


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base_url": "localhost:8000"}, "base_url"),
        ({"max_cost": 5}, "max_cost needs"),
        ({"price_per_million_input": 5}, "set both"),
        ({"max_tokens": 32768}, "must be below context_tokens 32768"),
        ({"template": "sort them"}, r"template must contain \{nonce\} and \{ids\}"),
        ({"template_path": "nowhere.md"}, "cannot be read"),
        ({"votes": 0}, "votes"),
        ({"api_key": "sk-123"}, "api_key: unknown key"),
        ({"missing": "ignore"}, "missing"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, change, message):
    path = tmp_path / "judge.yaml"
    path.write_text(json.dumps({"name": "llm", **PLAIN, **change}))  # JSON is YAML
    with pytest.raises(ConfigError, match=message) as refused:
        load_judge(path)
    assert "sk-123" not in str(refused.value)


def plain_consensus(votes):
    """Co-association, then merging: the textbook's way, without matrices."""
    num_votes, num = len(votes), len(votes[0])
    degenerate = [sum(vote[i] == -1 for vote in votes) * 2 > num_votes for i in range(num)]
    clusters = [{i} for i in range(num) if not degenerate[i]]
    merged = True
    while merged:
        merged = False
        for a in clusters:
            for b in clusters:
                if a is not b and any(sum(vote[i] == vote[j] for vote in votes) * 2 > num_votes for i in a for j in b):
                    a |= b
                    clusters.remove(b)
                    merged = True
                    break
            if merged:
                break
    return [-1 if degenerate[i] else min(next(c for c in clusters if i in c)) for i in range(num)]


VOTES = st.tuples(st.integers(2, 6), st.integers(1, 8)).flatmap(
    lambda shape: arrays(np.int64, shape, elements=st.integers(-1, 3))
)


@given(VOTES)
def test_consensus_is_co_association(votes):
    assert consensus(votes).tolist() == plain_consensus(votes.tolist())
    agreement = pair_agreement(votes)
    num_votes, num = votes.shape
    for i in range(num):
        pairs = [
            (votes[a, i] == votes[a, j]) == (votes[b, i] == votes[b, j])
            for a in range(num_votes) for b in range(a) for j in range(num) if j != i
        ]  # fmt: skip
        assert agreement[i] == pytest.approx(np.mean(pairs) if pairs else 1.0)
