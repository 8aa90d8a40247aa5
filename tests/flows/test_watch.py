"""What `polyepo watch` shows of real runs."""

from typer.testing import CliRunner

from flows.cli import app
from flows.watch import Watched, sparkline
from tasks.judge import judge
from tasks.sample import sample
from tasks.score import score
from tests.tasks.test_stages import start, train


def test_sparkline():
    assert sparkline([0, 7, 3.5]) == "▁█▅"
    assert sparkline([1, 1]) == "▁▁"
    assert sparkline(list(range(100)), width=8) == "▁▂▃▄▅▆▇█"


def test_stages_in_their_order(tmp_path):
    run = start(str(tmp_path))
    root, watched = run.store.root, Watched(run)
    train(run, 2)
    watched.refresh()
    assert (watched.step, watched.stage()) == (2, "sampling")
    for stage, doing in ((sample, "judging"), (judge, "scoring")):
        stage.fn(root, "run", 3, 0)
        assert watched.stage() == doing
    score.fn(root, "run", 3)
    assert watched.stage() == "updating"
    assert not watched.finished
    train(run)
    watched.refresh()
    assert (watched.step, watched.stage()) == (6, "finished")
    row = run.store.read_table(run.key("updates", 6)).to_pylist()[0]
    assert watched.rows[6]["reward_mean"] == row["reward_mean"]

    # Finished, or no terminal: once, and no more.
    result = CliRunner().invoke(app, ["watch", "run", "--root", root])
    assert result.exit_code == 0, result.output
    assert "6/6" in result.output
    assert "finished" in result.output
    assert f"{row['reward_mean']:.2f}" in result.output
    assert "\x1b" not in result.output


def test_a_run_that_has_not_begun_and_one_that_is_not_there(tmp_path):
    start(str(tmp_path))
    result = CliRunner().invoke(app, ["watch", "run", "--root", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "0/6" in result.output
    assert CliRunner().invoke(app, ["watch", "nothing", "--root", str(tmp_path)]).exit_code == 2
