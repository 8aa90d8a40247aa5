"""The servers of polyepo.testing as somebody uses them who writes a judge or a sampler outside of this project."""

import copy
import subprocess
import sys

import numpy as np
import pytest
import torch

from polyepo.policy.logprobs import response_logprobs
from polyepo.testing.judge_server import Answer, JudgeServer, completion, error
from polyepo.testing.vllm_server import FakeVLLM
from tests.support.tiny_policy import tiny_policy

httpx = pytest.importorskip("httpx")

MY_JUDGE = '''
import httpx

from polyepo.judges import Judge, Label
from polyepo.labels import LabelStatus


class MyJudge(Judge):
    """Asks a model for one letter per response; equal letters are equal strategies."""

    base_url: str

    def label(self, domain, groups, calls=None):
        return [self._labels(group) for group in groups]

    def _labels(self, group):
        letters = self._ask("\\n".join(group.responses)).split()
        if len(letters) != len(group.responses):
            return [Label(None, False, None, None, LabelStatus.PARSE_FAILED)] * len(group.responses)
        numbers = {letter: number for number, letter in enumerate(dict.fromkeys(letters))}
        return [Label(numbers[letter], False, None, None, LabelStatus.OK) for letter in letters]

    def _ask(self, text, tries=2):
        message = {"model": "m", "messages": [{"role": "user", "content": text}]}
        for _ in range(tries):
            try:
                reply = httpx.post(f"{self.base_url}/chat/completions", json=message, timeout=5)
                reply.raise_for_status()
                return reply.json()["choices"][0]["message"]["content"]
            except (httpx.HTTPError, ValueError):
                pass
        return ""
'''
ITS_TEST = """
import pytest
from my_judge import MyJudge

from polyepo.domains import Polynomial, Problem
from polyepo.judges import Group
from polyepo.testing.judge_server import Answer, JudgeServer, completion, error

GROUP = Group(Problem(problem_id="p", domain="d", prompt="Add up."), ["1 + 1", "1 + 1", "2 * 1"])
FAULTS = {
    "busy": error(429, headers={"retry-after": "0"}),
    "cut": Answer(completion("A A B").body, reset_after=20),
    "no json": Answer(b"<html>gateway</html>", headers={"content-type": "text/html"}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_it_tries_again(fault):
    with JudgeServer(lambda number, body: completion("A A B") if number else FAULTS[fault]) as server:
        (labels,) = MyJudge(name="mine", base_url=server.url).label(Polynomial(), [GROUP])
    assert [label.cluster for label in labels] == [0, 0, 1]
    assert len(server.bodies) == 2
    assert server.bodies[1]["messages"][0]["content"] == "1 + 1\\n1 + 1\\n2 * 1"


def test_it_misses_a_letter():
    with JudgeServer(lambda number, body: completion("A B")) as server:
        (labels,) = MyJudge(name="mine", base_url=server.url).label(Polynomial(), [GROUP])
    assert {label.status for label in labels} == {"parse_failed"}
"""


def test_a_judge_that_is_written_elsewhere_is_tested_there(tmp_path):
    (tmp_path / "my_judge.py").write_text(MY_JUDGE)
    (tmp_path / "test_my_judge.py").write_text(ITS_TEST)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "4 passed" in done.stdout, done.stdout + done.stderr
    # A judge that never tries again does not pass.
    (tmp_path / "my_judge.py").write_text(MY_JUDGE.replace("tries=2", "tries=1"))
    assert "3 failed, 1 passed" in subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout


def test_an_assertion_about_a_request_fails_the_test_and_not_the_server():
    def behave(number, body):
        assert body["model"] == "another"

    with pytest.raises(AssertionError), JudgeServer(behave) as server:  # noqa: PT012 - what the server raises at its end
        with pytest.raises(httpx.HTTPError):
            httpx.post(f"{server.url}/chat/completions", json={"model": "m"})
        assert server.bodies == [{"model": "m"}]


def test_what_the_server_sends_is_what_it_was_told_to_send():
    answers = [completion({"a": 1}, "length", None, refusal="no"), error(503, "later", {"retry-after": "3"}, code="x"),
               Answer(b"[1]", 201, drip_s=0.001)]  # fmt: skip
    with JudgeServer(lambda number, body: answers[number]) as server, httpx.Client() as client:
        found = [client.post(server.url, json={"n": n}) for n in range(3)]
    (choice,) = found[0].json()["choices"]
    assert choice["finish_reason"] == "length"
    assert choice["message"] == {"role": "assistant", "content": '{"a": 1}', "refusal": "no"}
    assert found[0].json()["usage"] is None
    assert (found[1].status_code, found[1].headers["retry-after"]) == (503, "3")
    assert found[1].json() == {"error": {"message": "later", "code": "x"}}
    assert (found[2].status_code, found[2].json()) == (201, [1])
    assert server.bodies == [{"n": 0}, {"n": 1}, {"n": 2}]


def test_the_vllm_server_samples_from_its_model_and_fails_as_told():
    policy = tiny_policy(dtype=torch.float32)
    request = {"prompt": [2, 3, 4], "n": 2, "seed": 5, "max_tokens": 6, "temperature": 1.0, "stop_token_ids": [1]}
    with FakeVLLM(copy.deepcopy(policy.model)) as server, httpx.Client(base_url=server.url) as client:
        server.faults += [503, "nan", "reset"]
        assert client.post("/v1/completions", json=request).status_code == 503
        (*_, spoiled) = client.post("/v1/completions", json=request).json()["choices"]
        assert np.isnan(spoiled["logprobs"]["token_logprobs"][0])
        with pytest.raises(httpx.HTTPError):
            client.post("/v1/completions", json=request)
        assert not server.answered
        good, again = (client.post("/v1/completions", json=request).json()["choices"] for _ in range(2))
        assert good == again
        assert server.answered == {((2, 3, 4), 5): 2}
    for choice in good:
        with torch.no_grad():
            ours, _, _ = response_logprobs(policy.model, [[2, 3, 4]], [choice["token_ids"]], 1.0)
        np.testing.assert_allclose(choice["logprobs"]["token_logprobs"], ours[0].numpy(), atol=1e-5)
