"""What a re-scoring is asked for: parameters that contradict each other are refused, and nothing changes unasked."""

import pytest

from polyepo.config import ConfigError, parse_config
from polyepo.scoring import GRPOScoring, SetScoring
from tasks.runs.choices import choose_scoring
from tasks.runs.run import Run
from tests.support.config import small_config

PENALTY = {"buffer_tokens": 4, "factor": 2.0}


def run_with(**scoring):
    config = parse_config(small_config(scoring=scoring)).runs("run")["run"]
    return Run(None, "run", config, config.digest)


SETS = run_with(method="poly_epo", set_size=2, num_sets=3, overlong_penalty=PENALTY)
GRPO = run_with(method="grpo", overlong_penalty=PENALTY)


@pytest.mark.parametrize(
    ("run", "given", "said"),
    [
        (SETS, ({"method": "grpo"}, None, 2), "has no set_size"),
        (SETS, ({"method": "grpo_div"}, "pass_at_n", None), "has no objective"),
        (SETS, ({"method": "grpo"}, "pass_at_n", 2), "has no objective and no set_size"),
        (SETS, ({"method": "poly_epo", "set_size": 3}, None, 2), "set_size 2 contradicts"),
        (SETS, ({"set_size": 3}, None, 2), "set_size 2 contradicts"),
        (SETS, ({"objective": "polychromic"}, "pass_at_n", None), "objective 'pass_at_n' contradicts"),
        (GRPO, (None, None, 2), "needs a set objective"),
        (SETS, (None, None, 5), r"set_size \(n\) 5 must not exceed"),
        (SETS, ({"method": "poly_epo", "set_size": 5}, None, None), r"set_size \(n\) 5 must not exceed"),
        (GRPO, ({"method": "none"}, None, None), "none"),
    ],
)
def test_contradictions_are_refused(run, given, said):
    with pytest.raises(ConfigError, match=said):
        choose_scoring(run, *given)


@pytest.mark.parametrize(
    ("run", "given", "chosen"),
    [
        (SETS, (None, None, None), SETS.config.scoring),
        (GRPO, (None, None, None), GRPO.config.scoring),
        (SETS, (None, "pass_at_n", None), SETS.config.scoring.model_copy(update={"objective": "pass_at_n"})),
        (SETS, (None, None, 3), SETS.config.scoring.model_copy(update={"set_size": 3})),
        (SETS, ({"method": "grpo"}, None, None), GRPOScoring(method="grpo")),
        (SETS, ({"set_size": 3}, None, 3), SetScoring(set_size=3)),
        (SETS, ({"method": "poly_epo"}, "mean_reward", 3), SetScoring(set_size=3, objective="mean_reward")),
        # The objective says what it is to be; what any scoring has is kept.
        (GRPO, (None, "pass_at_n", 2), SetScoring(objective="pass_at_n", set_size=2, overlong_penalty=PENALTY)),
    ],
)
def test_what_fits_is_taken(run, given, chosen):
    assert choose_scoring(run, *given) == chosen


def test_the_stated_remedies_work():
    assert isinstance(choose_scoring(GRPO, None, "polychromic", 2), SetScoring)
    assert choose_scoring(SETS, {"method": "poly_epo"}, None, 2).set_size == 2
