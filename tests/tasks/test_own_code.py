"""Runs made with code of their maker's: recorded, kept, resumed, refused, and readable without it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml

from polyepo import plugins
from polyepo.config import load_config
from polyepo.plugins import MissingCodeError
from storage import connect, rows
from tasks.runs.preflight import Training, accept_changed_code, check
from tasks.runs.record import RunExistsError
from tasks.runs.requests import check_evaluation, check_rescoring
from tasks.runs.run import create_or_resume, open_run
from tests.support.config import small_config
from tests.support.runs import start, train

CODE = """
from __future__ import annotations
from polyepo.domains import Polynomial, Verdict
from polyepo.judges import Judge
from polyepo.judges.base import Label

class Even(Polynomial):
    name: str
    bonus: float = 0.0

    def verify(self, problem, response):
        words = response.split()
        return Verdict(float(len(words) == 5 and words[0] in "0 2 4 -2 -4"), words[0] if words else None)

class FirstWord(Judge):
    def label(self, domain, groups, calls=None):
        number = lambda text: sum(map(ord, text.split()[0])) % 5 if text.split() else 0
        return [[Label(number(r), False, "first word", r[:1], "ok") for r in g.responses] for g in groups]
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(plugins, "_provided", {})
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "even.py").write_text(textwrap.dedent(CODE))
    config = small_config(steps=2, evaluation={"num_samples": 4, "k": [1, 4]})
    config["domain"] = {"name": "even.py:Even", "max_abs_b": 2, "max_c": 3}
    config["judge"] = {"name": "even.py:FirstWord"}
    (tmp_path / "mine" / "even.yaml").write_text(yaml.safe_dump(config))
    open_run.cache_clear()
    yield tmp_path
    open_run.cache_clear()


def config_of(folder):
    return load_config(folder / "mine" / "even.yaml").runs("own")["own"]


def made(folder):
    run = start(str(folder / "store"), config_of(folder), "own")
    train(run)
    return run


def test_a_run_with_code_of_ones_own(folder):
    run = made(folder)
    record = run.store.run_record("own")
    (file,) = record["code"]["even.py:Even"]["files"].items()
    assert file[0] == "even.py"
    assert (folder / "store" / "runs" / "own" / "code" / f"{file[1]}.py").read_text() == textwrap.dedent(CODE)
    assert record["judge"].startswith("firstword-")
    found = rows(connect(run.store.root), "SELECT DISTINCT macro_strategy FROM labels")
    assert found == [{"macro_strategy": "first word"}]
    assert create_or_resume(run.store.root, "own", config_of(folder)).last_step() == 2


@pytest.mark.slow
def test_without_the_code_all_can_be_read_and_nothing_is_run(folder):
    run = made(folder)
    shutil.rmtree(folder / "mine")
    root = run.store.root
    for command in (
        ["runs"], ["show", "own"], ["sql", "-c", "FROM pass_at_k(1)"], ["sql", "-c", "FROM strategies LIMIT 3"],
        ["verify", "own"], ["export", "own", "-o", str(folder / "exported")],
        ["report", "own", "-o", str(folder / "r.html")],
    ):  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", "from flows.cli import app; app()", *command, "--root", root],
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, (command, done.stdout, done.stderr)
    for command in (["train", "--run", "own"], ["evaluate", "own"], ["rescore", "own"]):
        done = subprocess.run(
            [sys.executable, "-c", "from flows.cli import app; app()", *command, "--root", root],
            capture_output=True, text=True, cwd=Path(__file__).parents[2],
        )  # fmt: skip
        assert done.returncode == 2, (command, done.stdout, done.stderr)
        assert "give your own configuration that names it" in " ".join(done.stdout.split())
        assert "Traceback" not in done.stderr


def test_a_record_alone_brings_no_code(folder, monkeypatch):
    run = made(folder)
    monkeypatch.setattr(plugins, "_provided", {})
    open_run.cache_clear()
    opened = open_run(run.store.root, "own")
    assert opened.config.judge.judge_id == run.config.judge.judge_id, "labels are found without it"
    with pytest.raises(MissingCodeError, match="--code FILE"):
        check_evaluation(run.store.root, "own", None, None, "heldout", 4, None, None, None)
    with pytest.raises(MissingCodeError):
        check_rescoring(run.store.root, "own", None, None, None, None, None, None)
    config_of(folder)  # what --code does
    open_run.cache_clear()
    check_evaluation(run.store.root, "own", None, None, "heldout", 4, None, None, None)
    assert check_rescoring(run.store.root, "own", None, None, None, None, None, None).steps == [1, 2]


def test_other_code_is_refused_and_allowed_by_a_note(folder):
    run = made(folder)
    file = folder / "mine" / "even.py"
    file.write_text(file.read_text().replace("0 2 4", "0 2 4 6"))
    training = Training("own", {"own": config_of(folder)}, {"own": None})
    with pytest.raises(RunExistsError, match=r"domain\.code: .* -> .*\n.*judge\.code.*\n.*\n.*--allow-changed-code"):
        check(run.store.root, training)
    check(run.store.root, training, allow_changed_code=True)
    accept_changed_code(run.store.root, training)
    check(run.store.root, training)
    (change,) = run.store.settings_changes("own")
    assert any(line.startswith("domain.code") for line in change["changes"])
    assert len(list((folder / "store" / "runs" / "own" / "code").iterdir())) == 2, "both texts are kept"


def test_other_settings_are_refused_with_or_without_the_code(folder):
    run = made(folder)
    raw = yaml.safe_load((folder / "mine" / "even.yaml").read_text())
    raw["domain"]["bonus"] = 1.0
    (folder / "mine" / "even.yaml").write_text(yaml.safe_dump(raw))
    training = Training("own", {"own": config_of(folder)}, {"own": None})
    with pytest.raises(RunExistsError, match=r"domain\.bonus: 0\.0 -> 1\.0"):
        check(run.store.root, training, allow_changed_code=True)
