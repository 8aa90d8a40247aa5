"""What a person sees of runs, prompts, findings and garbage."""

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.services import local_stack
from polyepo.schemas import LABELS, ROLLOUTS, SCORES
from storage import Store
from tests.support.artifacts import PROMPTLESS, commit, label_of, make_root, pick, rows_of, simple

HOSTILE = "\x1b[2J\x1b[31mred\x1b[0m [bold]markup[/bold] \u202eesrever\u202c \x07 line\nbreak"


def cli(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "100"})


@pytest.fixture
def root(tmp_path):
    make_root(tmp_path, [[[simple(), simple(1, reward=0.0), simple(1), simple("degenerate"), simple("missing")]]])
    return tmp_path


def test_runs(root):
    shown = cli("runs", "--root", root).output
    assert "run" in shown
    assert "unfinished" in shown
    missing = cli("runs", "--root", root / "nothing")
    assert missing.exit_code == 2
    assert "nothing" in missing.output


def test_show_groups_by_cluster(root):
    result = cli("show", "run", "--root", root)
    assert result.exit_code == 0, result.output
    order = [result.output.index(text) for text in ("cluster 1: macro 1 · 2", "cluster 0: macro 0 · 1")]
    assert order == sorted(order)
    assert "not labelled · 1" in result.output
    assert "degenerate · 1" in result.output


@pytest.mark.parametrize(
    ("arguments", "said"), [(("nobody",), "does not exist"), (("run", "7"), "step 7"), (("run", "1", "p9"), "'p9'")]
)
def test_show_refuses_what_is_not_there(root, arguments, said):
    result = cli("show", *arguments, "--root", root)
    assert result.exit_code == 2
    assert said in result.output


def test_hostile_responses_are_shown_as_text(tmp_path):
    store = Store(str(tmp_path))
    store.create_run("run", {"config": {"steps": 1}})
    rows = rows_of("run", 1, [[simple(), simple()]])
    texts = [HOSTILE, "x" * 1_000_000]
    sampled = [{**r, **PROMPTLESS, "response": texts[r["sample"]], "sampler_logprobs": [0.0]} for r in rows]
    commit(store, "run", "rollouts", 1, [pick(r, ROLLOUTS) for r in sampled], ROLLOUTS, shard=0)
    label = {**label_of(0), "macro_strategy": HOSTILE, "judge": "first"}
    commit(store, "run", "labels", 1, [pick({**r, **label}, LABELS) for r in rows], LABELS, shard=0, judge="first")
    constant = {**label_of(0), "scoring": "own", "objective": "o", "judge": "first", "parsed_answer": HOSTILE}
    commit(store, "run", "scores", 1, [pick({**r, **constant}, SCORES) for r in rows], SCORES, scoring="own")
    for arguments in (("show", "run"), ("sql", "-c", "FROM rollouts"), ("sql", "-c", "FROM strategies")):
        shown = cli(*arguments, "--root", tmp_path).output
        assert "[bold]markup" in shown.replace("\n", "")
        assert not set(shown) & {"\x1b", "\x07", "\u202e", "\u202c"}
        assert len(shown) < 50_000


def test_verify_says_what_is_wrong(root):
    assert "are as their manifests say" in cli("verify", "run", "--root", root).output
    part = next(Path(root).glob("runs/run/scores/**/*.parquet"))
    part.write_bytes(part.read_bytes() + b"x")
    result = cli("verify", "run", "--root", root)
    assert result.exit_code == 1
    assert "bytes instead of" in result.output
    assert cli("verify", "nobody", "--root", root).exit_code == 2


def test_gc_lists_before_it_deletes(root):
    stray = Path(root) / "runs/run/rollouts/step=000009/shard=000/0123456789abcdef/part-00000.parquet"
    stray.parent.mkdir(parents=True)
    stray.write_bytes(b"half")
    os.utime(stray, (0, 0))
    result = cli("gc", "--root", root)
    assert "0123456789abcdef" in result.output
    assert "nothing was deleted" in result.output
    assert stray.exists()
    assert "deleted 1" in cli("gc", "--yes", "--root", root).output
    assert not stray.exists()
    assert cli("gc", "--older-than", "soon", "--root", root).exit_code == 2


def test_imported_responses_without_rewards_or_advantages(tmp_path):
    """What an import prints as the next command must work on whatever the files lacked."""
    for name, rewards in {"all": [1, 0, 1], "some": [1, None, 0], "none": [None] * 3}.items():
        path = tmp_path / f"{name}.jsonl"
        path.write_text(
            "".join(
                json.dumps({"question": "q", "answer": "1", "response": f"text {i}", "reward": reward}) + "\n"
                for i, reward in enumerate(rewards)
            )
        )
        assert cli("import", path, "--run", name, "--root", tmp_path / "root").exit_code == 0
        result = cli("show", name, "--root", tmp_path / "root")
        assert result.exit_code == 0, result.output
        assert all(f"text {i}" in result.output for i in range(3))
        # A dash for each reward and each advantage that is not there.
        assert result.output.count("–") == 3 + rewards.count(None)
    result = cli("show", "none", "7", "--root", tmp_path / "root")
    assert (result.exit_code, "no responses" in result.output) == (2, True)


def test_verify_says_that_the_record_is_broken(root):
    (Path(root) / "runs/run/run.json").write_bytes(b"{")
    result = cli("verify", "run", "--root", root)
    assert result.exit_code == 1
    assert "run.json is no valid JSON" in result.output.replace("\n", "")


def test_runs_never_break_a_name(tmp_path):
    name = "a-run-with-a-rather-long-name-that-one-types-next"
    make_root(tmp_path, [[[simple(), simple(1)]]])
    (tmp_path / "runs" / "run").rename(tmp_path / "runs" / name)
    record = tmp_path / "runs" / name / "run.json"
    record.write_text(record.read_text().replace('"run": "run"', f'"run": "{name}"'))
    for width in (20, 30, 60, 80, 200):
        result = CliRunner().invoke(app, ["runs", "--root", str(tmp_path)], env={"COLUMNS": str(width)})
        lines = result.output.splitlines()
        assert any(f"{line} ".startswith(f"{name} ") for line in lines), "from the beginning of a line, and whole"
        assert len(lines) == 2, "a line for the run, and one for the header"
    assert "domain" in result.output
    assert "MB" in result.output


def test_runs_like(root):
    for like, there in (("ru", True), ("r?n", True), ("*n", True), ("other", False), ("r", True), ("r?", False)):
        result = cli("runs", "--like", like, "--root", root)
        assert (result.exit_code == 0) == there, like
        assert ("unfinished" in result.output) == there


def test_columns_of_numbers_have_headers(root):
    result = cli("show", "run", "--root", root)
    assert "reward" in result.output
    assert "advantage" in result.output


@pytest.fixture
def arms(tmp_path):
    """Two arms of the configuration `both`, and a run of its own that is called nearly so."""
    for name, group in (("both-a", "both"), ("both-b-c", "both"), ("both-2", None)):
        make_root(tmp_path, [[[simple(), simple(1)]]], name)
        record = tmp_path / "runs" / name / "run.json"
        about = {"group": group, "arm": name.removeprefix("both-"), "arms": ["a", "b-c"]} if group else {"group": None}
        record.write_text(json.dumps({**json.loads(record.read_text()), **about}))
    return tmp_path


def test_a_configuration_is_verified_arm_by_arm(arms):
    whole = cli("verify", "both", "--root", arms)
    assert whole.output == "8 artifacts of runs both-a, both-b-c are as their manifests say\n"
    part = next(arms.glob("runs/both-b-c/scores/**/*.parquet"))
    part.write_bytes(part.read_bytes() + b"x")
    assert cli("verify", "both-a", "--root", arms).output.count("bytes instead of") == 0
    broken = cli("verify", "both", "--root", arms)
    assert (broken.exit_code, broken.output.count("bytes instead of")) == (1, 1)
    (arms / "runs/both-a/run.json").write_bytes(b"")
    assert "runs/both-a/run.json is no valid JSON" in cli("verify", "both", "--root", arms).output


COMMANDS = [
    ("show", "{}"), ("verify", "{}"), ("summary", "{}"), ("watch", "{}"), ("report", "{}"), ("export", "{}"),
    ("model", "{}"), ("compare", "{}", "a", "b"), ("judge-sheet", "{}"), ("fork", "{}", "--at", "0", "--run", "new"),
    ("cancel", "{}"), ("evaluate", "{}"), ("rescore", "{}"), ("replay", "{}", "1"),
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_a_mistyped_run_is_guessed_wherever_one_is_named(arms, command, monkeypatch):
    monkeypatch.chdir(arms)
    monkeypatch.setattr(local_stack, "is_healthy", lambda: False)
    result = cli(*(word.format("both-aa") for word in command), "--root", arms)
    assert result.exit_code == 2, result.output
    assert "run 'both-aa' does not exist" in result.output
    assert "did you mean both-a?" in result.output


@pytest.mark.parametrize(
    "command", [c for c in COMMANDS if c[0] in ("show", "export", "model", "compare", "judge-sheet", "fork", "replay")],
    ids=lambda command: command[0],
)  # fmt: skip
def test_what_takes_one_run_says_which_arms_there_are(arms, command, monkeypatch):
    monkeypatch.chdir(arms)
    result = cli(*(word.format("both") for word in command), "--root", arms)
    assert (result.exit_code, result.output) == (2, "'both' has several arms: name one of both-a, both-b-c\n")
