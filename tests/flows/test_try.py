"""`polyepo try`: a few problems from sampling to advantages, seen in the terminal and kept nowhere."""

import json
import subprocess
import sys

import pytest
import yaml

from tests.support.config import small_config

VERIFIER = """
def score(problem, response):
    if problem.answer == "broken":
        raise RuntimeError("no idea")
    return float(len(response.split()) % 2)
"""


def tried(path, *words, cwd):
    code = (
        "import sys\nfrom flows.cli import app\ntry:\n    app(sys.argv[1:])\n"
        "finally:\n    print('prefect' in sys.modules, file=sys.stderr)"
    )
    return subprocess.run(
        [sys.executable, "-c", code, "try", str(path), *words],
        cwd=cwd, capture_output=True, text=True, check=False, env=None,
    )  # fmt: skip


@pytest.fixture
def config(tmp_path):
    def write(**changes):
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump(small_config(**changes)))
        return path

    return write


def test_each_step_is_seen_and_nothing_is_kept(config, tmp_path):
    path = config(arms={"grpo": {"scoring": {"method": "grpo"}}, "poly": {}})
    done = tried(path, "-n", "2", "--set", "seed=3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.split()[-1] == "False", "it needs no Prefect"
    assert done.stdout.count("try · step 1 · polynomial:") == 2
    for word in ("sampling 4 responses to each of 2 problems", "judging", "cluster", "reward", "advantage", "gradient"):
        assert word in done.stdout
    assert "poly_epo-" in done.stdout, "the last arm, if none is named"
    assert "mine.yaml --set seed=3" in done.stdout.splitlines()[-2]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["artifacts", "mine.yaml"]
    assert sorted(p.name for p in (tmp_path / "artifacts").iterdir()) == ["models"], "the base model, made once"
    again = tried(path, "-n", "2", "--set", "seed=3", "--arm", "grpo", cwd=tmp_path)
    assert "taking the base model" in again.stdout
    assert "grpo-" in again.stdout
    missing = tried(path, "--arm", "dpo", cwd=tmp_path)
    assert (missing.returncode, "--arm 'dpo' is none of the configuration's: grpo, poly" in missing.stdout) == (2, True)


def test_what_cannot_be_graded_is_seen_with_its_reason(config, tmp_path):
    (tmp_path / "rewards.py").write_text(VERIFIER)
    model = tmp_path / "model"
    from tests.support.byte_model import byte_tokenizer, save_byte_model

    save_byte_model(model, byte_tokenizer())
    rows = [{"problem": f"number {i}", "answer": "broken" if i % 2 else "fine"} for i in range(8)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    domain = {"name": "dataset", "path": str(tmp_path / "rows.jsonl"), "verify": "rewards.py:score"}
    path = config(
        domain={**domain, "heldout_fraction": 0.25},
        policy={"model": str(model), "warm_start": None},
        sampling={"max_prompt_tokens": 64, "prompts_per_step": 6},
        judge={"name": "answer"},
    )
    done = tried(path, "-n", "6", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no idea" in done.stdout
    assert "not graded" in done.stdout
    assert "not graded 0%" not in " ".join(done.stdout.split())


def test_what_a_run_would_be_refused_for_is_said_before_a_model_is_made(config, tmp_path):
    done = tried(config(sampling={"max_prompt_tokens": 1024}), cwd=tmp_path)
    assert done.returncode == 2, done.stdout
    assert "positions of the model" in done.stdout
    assert "base model" not in done.stdout


def test_more_problems_than_there_are(config, tmp_path):
    done = tried(config(), "-n", "999", cwd=tmp_path)
    assert done.returncode == 2, done.stdout
    assert "prompts_per_step" in done.stdout
    assert "Traceback" not in done.stderr


def test_a_judge_that_fails_on_most_problems_is_seen_rather_than_an_end(config, tmp_path):
    (tmp_path / "judge.py").write_text(
        "def cluster(problem, responses):\n"
        "    if len(responses) == 4:  # not the two that it is tried on before\n"
        "        raise RuntimeError('no idea')\n"
        "    return [0 for _ in responses]\n"
    )
    path = config(judge={"name": "function", "function": "judge.py:cluster"})
    done = tried(path, "-n", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "without a label 100%" in " ".join(done.stdout.split())
