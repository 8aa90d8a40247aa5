"""The LLM judge against a real vLLM server. POLYEPO_TEST_VLLM_URL is its address, up to and with /v1."""

import json
import os
import urllib.request

import pytest

from polyepo.domains import Polynomial, Problem
from polyepo.judges import CallLog, Group
from polyepo.judges.llm.judge import LLMJudge
from tests.polyepo.judges.attacks import ATTACKS

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def model():
    """Address, name and context length of the served model."""
    url = os.environ.get("POLYEPO_TEST_VLLM_URL")
    if not url:
        pytest.skip("POLYEPO_TEST_VLLM_URL is not set: no vLLM server to test against")
    with urllib.request.urlopen(f"{url}/models", timeout=10) as answer:
        served = json.load(answer)["data"][0]
    return url, served["id"], served["max_model_len"]


class Log(CallLog):
    def __init__(self):
        super().__init__()
        self.calls = []

    def record(self, call):
        super().record(call)
        self.calls.append(call)


@pytest.mark.parametrize("texts", [["x = 1 by guessing", "factor it"], [a for a in ATTACKS if len(a) < 60][:4]])
def test_replies_follow_the_schema(model, texts):
    """Whatever the weights, random ones included: each response gets one label, or the reason why not."""
    url, name, context = model
    # Few tokens of a small model's vocabulary make up a word, so this counts generously.
    judge = LLMJudge(
        model=name, base_url=url, context_tokens=max(context, 256), max_tokens=max(64, context // 2), timeout_s=300
    )
    log = Log()
    group = Group(Problem(problem_id="p", domain="polynomial", prompt="1 x 2 >"), texts)
    (labels,) = judge.label(Polynomial(), [group], log)
    assert len(labels) == len(texts)
    assert log.calls
    for label in labels:
        assert label.status in ("ok", "repaired", "parse_failed", "overflow")
        if label.status in ("ok", "repaired"):
            assert label.degenerate == (label.cluster is None)
    answered = [call for call in log.calls if call.error is None]
    assert all(call.prompt_tokens and call.completion_tokens for call in answered)
    if context >= 4096:  # the instructions fit
        assert any(label.status == "ok" for label in labels), [call.raw_reply for call in answered]
