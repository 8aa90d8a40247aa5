"""Measuring judges: on sets whose strategies are known, and with judges whose faults are known."""

import json
import math

import pytest
from typer.testing import CliRunner

from flows.cli import app
from polyepo.domains import Multiplication, Polynomial
from polyepo.judges import AnswerJudge, LLMJudge, ProgramJudge, TextJudge
from polyepo.judges.base import Judge, Label
from polyepo.judges.bench import domain_suite, human_suite, measure
from tests.polyepo.judges.server import JudgeServer, clusters_of, completion


class Neighbours(Judge):
    """Puts every response together with the one shown before it, two by two."""

    name: str = "neighbours"

    def label(self, domain, groups, calls=None):
        return [[Label(i // 2, False, None, None, "ok") for i in range(len(group.responses))] for group in groups]


class Fixed(Judge):
    """One label for everything."""

    name: str = "fixed"
    degenerate: bool = False

    def label(self, domain, groups, calls=None):
        label = Label(None, True, None, None, "ok") if self.degenerate else Label(0, False, None, None, "ok")
        return [[label] * len(group.responses) for group in groups]


@pytest.mark.parametrize("domain", [Polynomial(), Multiplication()])
def test_the_program_judge_is_perfect(domain):
    found = measure(ProgramJudge(), domain_suite(domain, 10, 8, 0))
    perfect = (found.ari, found.v_measure, found.degenerate_precision, found.degenerate_recall, found.consistency)
    assert perfect == (1, 1, 1, 1, 1)
    assert (found.position_bias, found.missing, found.prompts, found.responses) == (0, 0, 10, 80)
    assert math.isnan(found.cost_per_1000)


def test_faults_are_seen():
    suite = domain_suite(Polynomial(), 30, 8, 1)
    biased = measure(Neighbours(name="neighbours"), suite)
    assert biased.position_bias > 0.3
    assert biased.consistency < 0.9
    lazy = measure(Fixed(name="fixed"), suite)
    assert (lazy.ari, lazy.consistency, lazy.position_bias, lazy.degenerate_recall) == (
        pytest.approx(0, abs=0.2),
        1,
        0,
        0,
    )
    harsh = measure(Fixed(name="fixed", degenerate=True), suite)
    assert harsh.degenerate_recall == 1
    assert 0 < harsh.degenerate_precision < 0.3
    assert measure(AnswerJudge(), suite).ari < 1


def test_an_llm_judge_is_asked_twice_in_two_orders():
    with JudgeServer(lambda n, b: completion(clusters_of(b))) as server:
        judge = LLMJudge(model="m", base_url=server.url, price_per_million_input=1, price_per_million_output=1)
        found = measure(judge, domain_suite(Polynomial(), 3, 4, 0))
        users = [body["messages"][1]["content"] for body in server.bodies]
    assert len(users) == len(set(users)) == 6
    assert found.cost_per_1000 > 0


@pytest.fixture
def data(tmp_path):
    rows = [
        {"problem": f"problem {i}", "solutions": {str(s): f"Way {s} of {i}. It has steps. Done." for s in range(i + 1)}}
        for i in range(4)
    ]
    (tmp_path / "creativemath").mkdir()
    (tmp_path / "creativemath/subset.json").write_text(json.dumps(rows))
    return tmp_path


def test_human_solutions_are_told_twice(data):
    suite = human_suite(data / "creativemath/subset.json", 10, 0)
    assert sorted(len(group.responses) for group in suite.groups) == [5, 7, 9]
    for group, truth in zip(suite.groups, suite.truth, strict=True):
        assert len(set(group.responses)) == len(group.responses)
        clusters = [label.cluster for label in truth if label.cluster is not None]
        assert all(clusters.count(cluster) == 2 for cluster in clusters)
        assert sum(label.degenerate for label in truth) == 1
    assert measure(TextJudge(), suite).v_measure > 0


def test_real_human_solutions(real_data):
    suite = human_suite(real_data / "creativemath/subset.json", 20, 0)
    assert len(suite.groups) == 20
    assert measure(TextJudge(), suite).ari > 0.5


def test_the_command_shows_judges_side_by_side(data):
    judges = ["configs/judges/program.yaml", "configs/judges/text.yaml"]
    result = CliRunner().invoke(app, ["judge-bench", *judges, "--prompts", "3", "--data", str(data)])
    assert result.exit_code == 0, result.output
    assert [result.output.count(name) for name in ("program", "text-0.3", "polynomial:", "creativemath:")] == [
        4,
        4,
        1,
        1,
    ]
    for arguments, said in [(["nothing.yaml"], "nothing.yaml"), ([judges[0], "--data", "/nowhere"], "--data")]:
        result = CliRunner().invoke(app, ["judge-bench", *arguments])
        assert (result.exit_code, said in result.output) == (2, True)
