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
from polyepo.config import ConfigError, load_config
from polyepo.plugins import MissingCodeError
from polyepo.samplers.base import SamplerError
from storage import connect, rows
from tasks.runs.preflight import Training, accept_changed_code, check
from tasks.runs.record import RunExistsError
from tasks.runs.replaying import replay_policy
from tasks.runs.requests import check_evaluation, check_rescoring
from tasks.runs.run import create_or_resume, open_run
from tests.support.config import small_config
from tests.support.runs import forget, start, train

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


SAMPLER = """
import numpy as np
from polyepo.samplers.base import Sample
from polyepo.samplers.settings import Sampling

class Shortest(Sampling):
    draws: int = 2

    def sample(self, policy, prompts, seeds, sampling):
        rounds = [policy.sample(prompts, [[s + d for s in row] for row in seeds], sampling) for d in range(self.draws)]
        return [
            [min((r[p][i] for r in rounds), key=lambda s: len(s.token_ids)) for i in range(len(row))]
            for p, row in enumerate(seeds)
        ]

class Spoilt(Sampling):
    how: str

    def sample(self, policy, prompts, seeds, sampling):
        groups = policy.sample(prompts, seeds, sampling)
        first = groups[0][0]
        groups[0][0] = {
            "tuple": tuple(first),
            "empty": Sample([], np.zeros(0), "stop"),
            "long": Sample([3] * 99, np.zeros(99), "length"),
            "floats": Sample([3.0], np.zeros(1), "stop"),
            "no logprobs": Sample(first.token_ids, None, "stop"),
            "positive": Sample([3], np.ones(1), "stop"),
            "nan": Sample([3], np.full(1, np.nan), "stop"),
            "reason": Sample([3], np.zeros(1), "eos"),
        }.get(self.how, first)
        return groups[1:] if self.how == "fewer" else None if self.how == "none" else groups
"""


def sampled(folder, name="sampler.py:Shortest", steps=2, **settings):
    (folder / "mine" / "sampler.py").write_text(textwrap.dedent(SAMPLER))
    config = small_config(steps=steps, sampler={"name": name, **settings})
    path = folder / "mine" / "sampled.yaml"
    path.write_text(yaml.safe_dump(config))
    return load_config(path).runs("sampled")["sampled"]


def test_a_sampler_of_ones_own(folder, monkeypatch):
    run = start(str(folder / "store"), sampled(folder), "sampled")
    train(run)
    assert list(run.store.run_record("sampled")["code"]) == ["sampler.py:Shortest"]
    columns = ["sampler", "sampler_logprobs", "response_token_ids"]
    rollouts = run.store.read_table(run.key("rollouts", 1, 0), columns).to_pylist()
    assert {row["sampler"] for row in rollouts} == {"sampler.py:Shortest"}
    longer = sampled(folder, steps=3)
    train(create_or_resume(run.store.root, "sampled", longer))
    with pytest.raises(RunExistsError, match=r"sampler\.draws: 2 -> 3"):
        create_or_resume(run.store.root, "sampled", sampled(folder, draws=3))
    monkeypatch.setattr(plugins, "_provided", {})
    open_run.cache_clear()
    forget()
    opened = open_run(run.store.root, "sampled")
    assert replay_policy(opened, 2)["step"] == 2, "a replay samples nothing, and needs no sampler"
    with pytest.raises(MissingCodeError, match=r"sampler\.py:Shortest"):
        check_evaluation(run.store.root, "sampled", None, None, "heldout", 4, None, None, None)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("tuple", "gave a tuple: a sample must be a polyepo.samplers.base.Sample"),
        ("empty", "1 to 8 integers"),
        ("long", "1 to 8 integers"),
        ("floats", "1 to 8 integers"),
        ("no logprobs", "they must be one per token"),
        ("positive", "at most 0"),
        ("nan", "finite"),
        ("reason", "finish_reason 'eos'"),
        ("fewer", "one sample per seed for each of 4 prompts"),
        ("none", "one sample per seed for each of 4 prompts"),
    ],
)
def test_a_sampler_that_gives_something_else_is_named(folder, how, said):
    run = start(str(folder / "store"), sampled(folder, "sampler.py:Spoilt", how=how), "sampled")
    with pytest.raises(SamplerError, match=said) as raised:
        train(run, until=1)
    assert "sampler.py:" in str(raised.value)
    assert not run.store.exists(run.key("rollouts", 1, 0))


def test_a_sampler_that_is_none_is_refused(folder):
    with pytest.raises(ConfigError, match=r"must be a subclass of polyepo.samplers.settings.Sampling"):
        sampled(folder, "even.py:Even")
    with pytest.raises(ConfigError, match="drawz"):
        sampled(folder, drawz=3)
