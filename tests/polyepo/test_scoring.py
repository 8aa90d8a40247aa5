"""Every scoring that a configuration may name."""

from typing import get_args

import numpy as np
import pytest

from polyepo.config import ConfigError, parse_config
from polyepo.judges import ProgramJudge
from polyepo.objectives import BY_NAME
from polyepo.scoring import Scoring, SetScoring, scoring_id
from storage.layout import is_name
from tests.support.config import small_config

METHODS = [get_args(kind.model_fields["method"].annotation)[0] for kind in get_args(Scoring)]
SCORINGS = [{"method": method} for method in METHODS if method != "poly_epo"] + [
    {"objective": name} for name in BY_NAME
]


def configured(**scoring):
    return parse_config(small_config(scoring=scoring)).runs("run")["run"]


@pytest.mark.parametrize("section", SCORINGS, ids=str)
def test_each_is_a_line_of_configuration(section):
    config = configured(**section)
    scoring = config.scoring
    again = type(config).model_validate(config.model_dump(mode="json"))
    assert (again.scoring, again.digest) == (scoring, config.digest)
    assert is_name(scoring_id(scoring, ProgramJudge()))
    assert scoring.title(4)
    rng = np.random.default_rng(0)
    rewards = rng.integers(0, 2, (40, 4)).astype(float)
    one, three = np.zeros((40, 4), int), np.tile([0, 0, 1, 2], (40, 1))
    falling = np.tile([-1.0, -2.0, -3.0, -4.0], (40, 1))
    found = [scoring.advantages(rewards, clusters, 0, falling) for clusters in (one, three)]
    assert all(a.shape == (40, 4) and np.isfinite(a).all() for a in found)
    assert scoring.uses_clusters == (not np.array_equal(*found)), "it says whether it needs labels"
    rising = scoring.advantages(rewards, three, 0, falling[:, ::-1])
    assert scoring.uses_logprobs == (not np.array_equal(found[1], rising)), "and whether it needs log-probabilities"
    few = scoring.advantages(rewards[:, :1], one[:, :1], 0, falling[:, :1])
    assert few.shape == (40, 1), "an import may have prompts of a single response"


@pytest.mark.parametrize("method", ["pass_at_k", "pkpo", "max_at_k"])
def test_k_is_1_once_it_is_annealed(method):
    rewards, clusters = np.array([[1.0, 0, 0, 0]]), np.zeros((1, 4), int)
    annealed = configured(method=method, k=3, anneal_after=10).scoring
    of_three, of_one = (configured(method=method, k=k).scoring.advantages(rewards, clusters, 0) for k in (3, 1))
    for step, expected in ((1, of_three), (10, of_three), (11, of_one), (99, of_one)):
        np.testing.assert_array_equal(annealed.at(step).advantages(rewards, clusters, 0), expected)
    assert (of_three != of_one).any()
    assert annealed.title(4).endswith("1 after step 10")
    assert scoring_id(annealed, ProgramJudge()) != scoring_id(configured(method=method, k=3).scoring, ProgramJudge())


def test_the_default_is_the_papers():
    assert configured(set_size=2).scoring == SetScoring(set_size=2, objective="polychromic")


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"method": "pass_at_k", "k": 5}, r"scoring.k 5 must not exceed sampling.num_responses \(N\) 4"),
        ({"method": "pkpo", "k": 0}, "scoring.k"),
        ({"method": "maxrl", "overlong_penalty": {"buffer_tokens": 2}}, "scoring.overlong_penalty"),
        ({"method": "darling", "floor": 2}, "scoring.floor"),
        ({"method": "pkpo", "anneal_after": 0}, "scoring.anneal_after"),
        ({"method": "uniqueness", "alpha": 2}, "scoring.alpha"),
        ({"method": "unlikeliness", "beta": -1}, "scoring.beta"),
        ({"method": "max_rl"}, "maxrl"),
        ({"method": "grpo", "set_size": 2}, "scoring.set_size"),
    ],
)
def test_what_cannot_be_is_refused(section, said):
    with pytest.raises(ConfigError, match=said):
        configured(**section)
