"""Measuring judges: on sets whose strategies are known, and with judges whose faults are known."""

import json
import math
import os
import re
import signal
import subprocess
import sys
from functools import partial

import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.cli import judges as commands
from flows.views import judges as views
from polyepo.domains import Multiplication, Polynomial
from polyepo.judges import AnswerJudge, LLMJudge, ProgramJudge, TextJudge
from polyepo.judges.base import Judge, Label
from polyepo.judges.bench import domain_suite, human_suite, measure
from polyepo.testing.judge_server import Answer, JudgeServer, clusters_of, completion, error


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
    assert result.stderr.count("ARI") == 8, "each result is said as it comes"
    assert [result.stdout.count(name) for name in ("program", "text-0.3", "polynomial:", "creativemath:")] == [
        4,
        4,
        1,
        1,
    ]
    for arguments, said in [(["nothing.yaml"], "nothing.yaml"), ([judges[0], "--data", "/nowhere"], "--data")]:
        result = CliRunner().invoke(app, ["judge-bench", *arguments])
        assert (result.exit_code, said in result.output) == (2, True)


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Where answers are kept; and a line for each call."""
    monkeypatch.setattr(views, "KEPT", tmp_path / "kept")
    monkeypatch.setattr(commands, "_SAY_EVERY_S", 0.0)
    return tmp_path / "kept"


def bench(folder, url, **settings):
    """The command, with a language model at this address as the judge."""
    path = folder / "judge.yaml"
    prices = {"price_per_million_input": 1, "price_per_million_output": 1}
    path.write_text(json.dumps({"name": "llm", "model": "m", "base_url": url, "max_retries": 0, **prices, **settings}))
    return CliRunner().invoke(app, ["judge-bench", str(path), "--prompts", "2", "--responses", "3"])


@pytest.mark.parametrize(
    ("behave", "reason"),
    [
        (None, "connection failed"),
        (lambda n, b: error(500, "out of order"), "HTTP 500.*out of order"),
        (lambda n, b: error(404, "no such model"), "no such model"),
        (lambda n, b: completion("I would rather not"), "unreadable reply"),
        (lambda n, b: completion(clusters_of(b)) if n < 2 else error(500), "HTTP 500"),
    ],
)
def test_a_judge_that_labels_nothing_is_a_failure_that_says_why(tmp_path, kept, behave, reason):
    with JudgeServer(behave) as server:
        if behave is not None:
            result = bench(tmp_path, server.url, concurrency=1)
    if behave is None:
        result = bench(tmp_path, server.url)
    assert result.exit_code == 1
    assert re.search(reason, result.stdout), result.output
    assert str(tmp_path / "judge.yaml") in result.stdout
    assert "ARI" not in result.stdout


def test_it_says_how_far_it_is_where_there_is_no_terminal(tmp_path, kept):
    with JudgeServer(lambda n, b: completion(clusters_of(b))) as server:
        result = bench(tmp_path, server.url, concurrency=1)
    assert result.exit_code == 0, result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("polynomial, llm-m-")]
    assert [re.sub("llm-m-........", "JUDGE", line) for line in lines[:3]] == [
        f"polynomial, JUDGE, first order: {done} of about 2 calls" for done in range(3)
    ]
    assert "ARI" in lines[-1]


def test_what_was_paid_for_is_kept(tmp_path, kept):
    """Also of a measurement that ended in the middle, and by a writer that was killed while it wrote."""
    with JudgeServer(lambda n, b: completion(clusters_of(b)) if n < 7 else error(401)) as server:
        assert bench(tmp_path, server.url, concurrency=1).exit_code == 1
        (path,) = kept.iterdir()
        with path.open("a") as file:
            file.write('{"problem_id": "p')
        server.behave = lambda n, b: completion(clusters_of(b))
        first = bench(tmp_path, server.url)
        assert first.exit_code == 0, first.output
        assert len(server.bodies) == 3 * 2 * 2 + 1, "three sets of two prompts, twice, and the call that failed"
        again = bench(tmp_path, server.url)
        assert len(server.bodies) == 13
        assert "calls" not in again.stderr
    row = next(line for line in again.stdout.splitlines() if "llm-m-" in line)
    assert row.split()[-1] == "–", "what was not asked took no time that says anything"
    assert float(row.split()[-2]) > 0, "it was paid for, though earlier"


SLOW = """
import sys
from flows.cli import app
from flows.cli import judges
judges._SAY_EVERY_S = 0.0
app(["judge-bench", "judge.yaml", "--prompts", "4", "--responses", "3"])
"""


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_a_measurement_that_is_ended_keeps_its_answers(tmp_path, end):
    def slow(number, body):
        return Answer(delay_s=600) if number >= 2 else completion(clusters_of(body))

    with JudgeServer(slow) as server:
        judge = {"name": "llm", "model": "m", "base_url": server.url, "concurrency": 1}
        (tmp_path / "judge.yaml").write_text(json.dumps(judge))
        command = [sys.executable, "-c", SLOW]
        options = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": os.getcwd()}, "text": True}
        # Whoever runs the tests in the background ignores SIGINT, and so would the child.
        heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=heed, **options)
        for line in child.stderr:
            if "2 of about 4" in line:
                break
        child.send_signal(end)
        said, _ = child.communicate(timeout=60)
        if end == signal.SIGINT:
            assert child.returncode == 130
            assert "the same command asks only for the rest" in said
        asked = len(server.bodies)
        server.behave = lambda n, b: completion(clusters_of(b))
        done = subprocess.run(command, capture_output=True, check=True, timeout=100, **options)
        assert len(server.bodies) - asked == 3 * 4 * 2 - 2
        assert "ARI" in done.stdout
