"""Configurations hold objects of exactly the classes that their record is read back as."""

import pytest
from pydantic import ValidationError

from polyepo.config import Config, RunConfig, SamplingConfig
from polyepo.domains import Countdown, Maths, Polynomial, Verdict
from polyepo.domains.dataset import ColumnFilter
from polyepo.judges import AnswerJudge, LLMJudge
from polyepo.scoring import GRPOScoring, OverlongPenalty, SetScoring


def subclass(kind):
    return type(f"My{kind.__name__}", (kind,), {})


class Generous(Polynomial):
    """A verifier of one's own, under the name of ours."""

    def verify(self, problem, response):
        return Verdict(1.0, response)


def config(kind=RunConfig, **changes):
    settings = {"steps": 1, "domain": Polynomial(), "policy": {"model": "m"}, "judge": {"name": "program"}, **changes}
    return kind(**settings)


@pytest.mark.parametrize("kind", [RunConfig, Config])
@pytest.mark.parametrize(
    "changes",
    [
        {"domain": Generous()},
        {"domain": subclass(Countdown)()},
        {"judge": subclass(AnswerJudge)()},
        {"judge": subclass(LLMJudge)(base_url="http://127.0.0.1:1/v1", model="m")},
        {"scoring": subclass(SetScoring)(set_size=2)},
        {"scoring": subclass(GRPOScoring)(method="grpo")},
        {"sampling": subclass(SamplingConfig)()},
        {"scoring": {"method": "grpo", "overlong_penalty": subclass(OverlongPenalty)(buffer_tokens=1)}},
        {"domain": {"name": "maths", "path": "p.jsonl", "filters": {"x": subclass(ColumnFilter)(min=1)}}},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_a_subclass_is_refused(kind, changes):
    with pytest.raises(ValidationError, match=r"would come back from (the run's|a) record as"):
        config(kind, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"domain": Polynomial(max_c=4)},
        {"domain": Maths(path="p.jsonl", filters={"x": ColumnFilter(min=1)})},
        {"judge": AnswerJudge()},
        {"scoring": GRPOScoring(method="grpo", overlong_penalty=OverlongPenalty(buffer_tokens=1))},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_what_is_accepted_comes_back_as_it_was(changes):
    made = config(**changes)
    again = RunConfig.model_validate(made.model_dump(mode="json"))
    assert again == made
    for name, value in changes.items():
        assert type(getattr(again, name)) is type(value)


def test_a_subclass_is_good_for_itself():
    assert Generous.model_validate(Generous(max_c=3)).max_c == 3
