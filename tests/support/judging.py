"""A language model's judge, a log, and the group of responses that it judges."""

from polyepo.domains import Polynomial, Problem
from polyepo.judges import CallLog, Group
from polyepo.judges.llm.judge import LLMJudge
from polyepo.testing.judge_server import JudgeServer, clusters_of, completion

CANARY = "sk-canary-0123456789abcdef"
DOMAIN = Polynomial()
TEXTS = ["add 1", "double 2", "add 3", ""]


class Log(CallLog):
    """A log in memory."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def record(self, call):
        super().record(call)
        self.calls.append(call)

    def earlier(self, request_sha256):
        return [call for call in self.calls if call.request_sha256 == request_sha256]


def group(texts=TEXTS, number=0):
    return Group(Problem(problem_id=f"p{number}", domain="maths", prompt=f"problem {number}"), texts)


def judge_of(server, **settings):
    return LLMJudge(**{"model": "m", "base_url": server.url, "api_key_env": "CANARY_KEY", **settings})


def run(behave, groups=None, log=None, **settings):
    """Labels and log of groups judged by a server with this behaviour."""
    log = log or Log()
    with JudgeServer(behave) as server:
        labels = judge_of(server, **settings).label(DOMAIN, groups or [group()], log)
    return labels, log, server


def good(number, body):
    return completion(clusters_of(body))


def once(answer):
    return lambda number, body: answer if number == 0 else good(number, body)


def assert_right(labels, status="ok"):
    assert [label.cluster for label in labels] == [0, 1, 0, None]
    assert [label.degenerate for label in labels] == [False, False, False, True]
    assert {label.status for label in labels} == {status}
    assert [label.macro_strategy for label in labels] == ["add", "double", "add", None]


def assert_missing(labels, status):
    assert [label[:5] for label in labels] == [(None, False, None, None, status)] * len(TEXTS)
