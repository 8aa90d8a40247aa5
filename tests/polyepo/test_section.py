"""Configurations hold objects of exactly the classes that their record is read back as."""

from typing import Annotated

import pytest
from pydantic import ValidationError

from polyepo.config import Config, RunConfig, SamplingConfig
from polyepo.domains import Countdown, Maths, Polynomial, Verdict
from polyepo.domains.dataset import ColumnFilter
from polyepo.judges import AnswerJudge, LLMJudge
from polyepo.scoring import GRPOScoring, OverlongPenalty, SetScoring
from polyepo.section import Operational, Section, added, digest, results_only


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


def test_a_setting_that_was_added_changes_no_digest_at_its_default():
    class Older(Section):
        a: int = 1

    class Newer(Older):
        b: list[int] = added([], max_length=1)
        c: Annotated[float, Operational()] = added(0.5, ge=0)

    assert digest(results_only(Newer())) == digest(results_only(Older()))
    assert Newer(c=0.5).model_dump(mode="json") == {"a": 1}
    given = Newer(b=[3], c=0.25)
    assert given.model_dump(mode="json") == {"a": 1, "b": [3], "c": 0.25}
    assert results_only(given) == {"a": 1, "b": [3]}
    assert Newer.model_validate(given.model_dump(mode="json")) == given
    with pytest.raises(ValidationError):
        Newer(b=[1, 2])
