"""Real runs that learn nothing: what is said of them, where, and that doing what it says mends them."""

import io

import pytest
from rich.console import Console
from typer.testing import CliRunner

from flows.cli import app
from flows.views.findings import markdown, run_findings, warnings
from flows.views.report import assemble
from flows.views.watch import Watched, view
from polyepo.config import parse_config
from polyepo.findings import Severity
from tasks.evaluate import evaluate
from tests.support.config import small_config
from tests.support.runs import start, train


def run_of(root, steps=4, **changes):
    """A trained run of 16 prompts."""
    run = start(str(root), parse_config(small_config(steps=steps, **changes)).runs("run")["run"])
    train(run)
    return run


def alarms(run):
    return [f for f in run_findings(run) if f.severity > Severity.NOTE]


@pytest.fixture(scope="module")
def cut_off(tmp_path_factory):
    """Twelve steps whose responses are cut off before they can be right."""
    run = run_of(tmp_path_factory.mktemp("cut"), steps=12, sampling={"max_response_tokens": 2})
    for step in (0, 12):
        evaluate.fn(run.store.root, "run", step)
    return run


def test_a_healthy_run_raises_no_alarm(tmp_path):
    assert alarms(run_of(tmp_path, steps=6)) == []


def test_a_run_that_is_cut_off_is_mended_by_the_length_that_is_advised(cut_off, tmp_path):
    lost, cut = alarms(cut_off)[:2]
    assert lost.severity == Severity.FATAL
    assert lost.what == "0 of 48 prompts had a gradient in all 12 steps, so nothing was learnt (48 all wrong)"
    assert cut.what == "99% of responses were cut off in all 12 steps"
    assert lost.remedy == cut.remedy
    assert "sampling.max_response_tokens 2 is too short for 99% of them; raise it, to 8 say" in cut.remedy
    assert alarms(run_of(tmp_path, steps=12, sampling={"max_response_tokens": 8})) == []


def test_everybody_who_looks_is_told(cut_off):
    root, said = cut_off.store.root, "0 of 48 prompts had a gradient"
    for command in ("summary", "watch"):
        result = CliRunner().invoke(app, [command, "run", "--root", root], env={"COLUMNS": "300"})
        assert result.exit_code == 0, result.output
        assert f"✗ {said}" in result.output
        assert "raise it, to 8 say" in result.output
    report = assemble(root, ["run"])
    assert report.findings[0].what.startswith(f"run: {said}")
    assert report.findings[0].severity == Severity.FATAL
    assert markdown(warnings(root, "run")).startswith(f"- ✗ {said}")


def test_watch_says_it_while_the_run_trains(tmp_path):
    config = parse_config(small_config(steps=12, sampling={"max_response_tokens": 2})).runs("run")["run"]
    run = start(str(tmp_path), config)
    watched = Watched(run)
    for steps, said in ((3, ""), (4, "0 of 16 prompts had a gradient in the 4 steps so far")):
        train(run, steps)
        watched.refresh()
        console = Console(file=io.StringIO(), width=300)
        console.print(view([watched]))
        assert said in console.file.getvalue()
        assert ("✗" in console.file.getvalue()) == bool(said)


def test_a_policy_that_knows_no_form_is_mended_by_a_longer_warm_start(tmp_path):
    poor = run_of(tmp_path / "poor", policy={"warm_start": {**small_config()["policy"]["warm_start"], "steps": 1}})
    lost = alarms(poor)[0]
    assert lost.severity == Severity.FATAL
    assert "policy.warm_start.steps 1" in " ".join(f.remedy for f in alarms(poor))
    assert alarms(run_of(tmp_path / "good")) == []


def test_a_gradient_that_is_always_clipped_is_mended_by_the_norm_that_is_advised(tmp_path):
    [found] = alarms(run_of(tmp_path / "tight", update={"max_grad_norm": 1e-4}))
    assert "far above update.max_grad_norm 0.0001" in found.what
    norm = float(found.remedy.removeprefix("raise update.max_grad_norm to "))
    assert alarms(run_of(tmp_path / "wide", update={"max_grad_norm": norm})) == []


def test_one_cluster_is_mended_by_a_finer_judge_or_by_rewards_alone(tmp_path):
    lost, one = alarms(run_of(tmp_path / "one", judge={"name": "text", "max_distance": 2}))
    assert lost.remedy == one.remedy
    assert one.what.startswith("a prompt's responses lay in 1.00 clusters in all 4 steps")
    assert one.remedy.startswith("lower judge.max_distance 2, to 1 say, or raise sampling.temperature 1; ")
    without = {"method": "poly_epo", "set_size": 2, "require_two_clusters": False}
    [still] = alarms(run_of(tmp_path / "two", judge={"name": "text", "max_distance": 2}, scoring=without))
    assert still.what == one.what  # the gradient is back
    finer = alarms(run_of(tmp_path / "finer", judge={"name": "text", "max_distance": 0.5}))
    assert finer == []
