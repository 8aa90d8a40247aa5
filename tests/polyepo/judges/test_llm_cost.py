"""What calls cost, and what they may have cost where that is not known."""

import pytest

from polyepo.judges.llm.limits import JudgeError
from polyepo.testing.judge_server import Answer, JudgeServer, clusters_of, completion, error
from tests.support.judging import DOMAIN, Log, group, judge_of, run

PRICES = {"price_per_million_input": 0.0, "price_per_million_output": 1000.0, "max_tokens": 100}


@pytest.mark.parametrize(
    ("answer", "costs"),
    [
        (lambda body: completion(clusters_of(body), usage=None), (None, 0.1)),
        (lambda body: Answer(delay_s=5), (None, 0.1)),
        (lambda body: Answer(completion("{}").body, reset_after=20), (None, 0.1)),
        (lambda body: error(500), (None, 0.1)),
        (lambda body: error(504), (None, 0.1)),
        (lambda body: Answer(b"no completion"), (None, 0.1)),
        (lambda body: error(429), (None, None)),
        (lambda body: error(400), (None, None)),
        (lambda body: error(503), (None, None)),
        (lambda body: completion("unreadable"), (0.05, None)),
        (lambda body: completion(clusters_of(body)), (0.05, None)),
    ],
)
def test_a_cost_that_is_not_known_counts_as_the_most_it_can_be(answer, costs):
    _, log, _ = run(lambda n, body: answer(body), max_retries=0, timeout_s=0.3, **PRICES)
    cost, bound = costs
    for call in log.calls:
        assert call.cost == (cost and pytest.approx(cost))
        assert call.cost_bound == (bound and pytest.approx(bound))
    assert log.spent() == pytest.approx(len(log.calls) * (cost or bound or 0))


def test_a_server_that_was_not_reached_costs_nothing():
    with JudgeServer() as gone:
        pass
    log = Log()
    judge_of(gone, max_retries=0, **PRICES).label(DOMAIN, [group()], log)
    assert [(call.cost, call.cost_bound) for call in log.calls] == [(None, None)]
    assert "connection failed" in log.calls[0].error


@pytest.mark.parametrize("answer", [lambda body: completion(clusters_of(body), usage=None), lambda body: error(500)])
def test_max_cost_holds_where_no_cost_is_known(answer):
    log = Log()
    with pytest.raises(JudgeError, match=r"max_cost 1 is reached.*count as the most"):
        run(lambda n, body: answer(body), [group(number=n) for n in range(100)], log, max_cost=1.0, concurrency=8,
            max_retries=0, max_consecutive_failures=100, **PRICES)  # fmt: skip
    assert len(log.calls) <= 10, "each may have cost 0.1"


def test_calls_that_are_broken_off_are_booked():
    def behave(number, body):
        return Answer(delay_s=30) if number < 3 else error(401)

    log = Log()
    with pytest.raises(JudgeError, match="refuses the API key"):
        run(behave, [group(number=n) for n in range(4)], log, concurrency=4, **PRICES)
    assert sorted(call.cost_bound or 0 for call in log.calls) == pytest.approx([0, 0.1, 0.1, 0.1], rel=1e-3)
