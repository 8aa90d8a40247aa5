"""docs/objectives.md against the code: every line of configuration works, and none is missing."""

import re
from pathlib import Path
from typing import get_args

import pytest
import yaml

from polyepo.config import parse_config
from polyepo.objectives import BY_NAME, Polychromic
from polyepo.scoring import Scoring, SetScoring
from tests.support.config import small_config

TEXT = (Path(__file__).parents[2] / "docs" / "objectives.md").read_text()
SECTIONS = re.findall(r"^\| `(\{.*?\})` \|", TEXT, re.MULTILINE)


@pytest.mark.parametrize("section", SECTIONS)
def test_every_line_of_configuration_works_as_an_arm(section):
    arms = {"arm": {"scoring": yaml.safe_load(section)}}
    config = parse_config(small_config(sampling={"num_responses": 8}, arms=arms)).runs("run")["run-arm"]
    said = next(line for line in TEXT.splitlines() if line.startswith(f"| `{section}`")).split("|")
    labels = said[5].strip()
    assert labels.startswith("yes" if config.scoring.uses_clusters else "no")


def test_nothing_is_missing():
    settings = [yaml.safe_load(section) for section in SECTIONS]
    assert {s["objective"] for s in settings if "objective" in s} == set(BY_NAME)
    methods = {get_args(kind.model_fields["method"].annotation)[0] for kind in get_args(Scoring)}
    assert {s["method"] for s in settings if "method" in s} == methods - {SetScoring().method}


def test_the_shares_are_those_of_the_function():
    rows = re.findall(r"^\| (\d) \|((?: \.?\d+ \|){4})$", TEXT, re.MULTILINE)
    assert [int(n) for n, _ in rows] == [2, 3, 4, 6, 8]
    for n, shares in rows:
        found = [Polychromic().best_right_share(int(n), right) for right in (1, 2, 3, 4)]
        assert [float(share) for share in shares.strip(" |").split("|")] == pytest.approx(found, abs=0.005)
