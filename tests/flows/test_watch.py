"""What `polyepo watch` shows of real runs."""

import io
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
from rich.console import Console
from typer.testing import CliRunner

from flows.cli import app
from flows.views.watch import Watched, sparkline, view, watch
from polyepo.schemas import ROLLOUTS
from tasks.judge import judge
from tasks.sample import sample
from tasks.score import score
from tests.support.runs import start, train


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


def test_a_terminal_is_kept_up_to_date_until_the_run_ends(tmp_path):
    run = start(str(tmp_path))
    train(run, 1)
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch, run.store.root, "run", console)
        train(run)
        watching.result(timeout=120)
    assert "sampling" in screen.getvalue() or "1/6" in screen.getvalue()
    assert "6/6" in screen.getvalue()


def test_what_a_model_wrote_moves_no_cursor(tmp_path):
    run = start(str(tmp_path))
    hostile = "\x1b[2J\x1b]0;title\x07 \u202eright to left\r\n" + "x" * 10_000
    sample.fn(run.store.root, "run", 1, 0)
    rows = run.store.read_table(run.key("rollouts", 1, 0)).to_pylist()
    other = start(str(tmp_path / "other"))
    table = pa.Table.from_pylist([row | {"response": hostile} for row in rows], schema=ROLLOUTS)
    key = other.key("rollouts", 1, 0)
    other.store.commit_table(key, table, table_name="rollouts", provenance=other.provenance(0))
    train(other, 1)
    watched = Watched(other)
    watched.refresh()
    console = Console(file=io.StringIO(), width=120)
    console.print(view([watched]))
    assert not set(console.file.getvalue()) & set("\x1b\x07\r\u202e")
    assert "x1b" in console.file.getvalue()
