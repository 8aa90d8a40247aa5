"""Problems of one id that are not one problem: a benchmark's and the run's own, and those of arms of two domains."""

import json

import pytest
import yaml
from rich.console import Console

from flows.experiment import compare_arms
from flows.experiment import markdown as experiment_markdown
from flows.views.export import export_run
from flows.views.report import assemble, publish_report, write_report
from flows.views.show import show_prompt
from flows.views.summary import markdown, summarize
from polyepo.config import ConfigError, parse_config
from polyepo.experiment import Experiment
from polyepo.judges import ProgramJudge
from storage import connect, rows
from storage.verify import verify_run
from tasks.checkpoint import warm_start
from tasks.evaluate import evaluate
from tasks.runs.benchmarks import benchmark_name
from tasks.runs.evaluating import add_benchmark, evaluate_missing
from tasks.runs.models import warm_start_digest
from tasks.runs.preflight import describe, prepare
from tests.support.byte_model import save_byte_model
from tests.support.config import small_config
from tests.support.runs import start, train


def write(path, problems):
    """Problems numbered 0, 1, 2, ..."""
    lines = [json.dumps({"id": str(i), "problem": text, "answer": answer}) for i, (text, answer) in enumerate(problems)]
    path.write_text("\n".join(lines))
    return str(path)


@pytest.fixture
def run(tmp_path):
    """A run on mathematics, and a benchmark with the same ids: 0 to 4."""
    config = small_config(
        steps=2,
        domain={"name": "maths", "path": write(tmp_path / "own.jsonl", [(f"{i} + {i}", str(2 * i)) for i in range(6)]),
                "heldout_fraction": 0.34},
        sampling={"prompts_per_step": 2, "max_prompt_tokens": 300},
        evaluation={"num_samples": 2, "k": [1, 2]},
    )  # fmt: skip
    config["policy"] = {"model": save_byte_model(tmp_path / "model"), "device": "cpu", "num_threads": 1}
    run = start(str(tmp_path / "store"), parse_config(config).runs("run")["run"])
    train(run)
    evaluate.fn(run.store.root, "run", 0)
    path = write(tmp_path / "squares.jsonl", [(f"the square of {i}", str(i * i)) for i in range(5)])
    evaluate_missing(run, add_benchmark(run, path, 0), 0, 2, ProgramJudge())
    return run


def test_a_benchmark_with_the_ids_of_the_run(run, tmp_path):
    root, connection = run.store.root, connect(run.store.root)
    assert rows(connection, "SELECT count(*) AS n FROM problems")[0]["n"] == 6 + 5
    assert export_run(root, "run", tmp_path / "export", "jsonl", None) == 2 * 2 * 4
    exported = [json.loads(line) for line in (tmp_path / "export/data/rollouts.jsonl").read_text().splitlines()]
    assert len({(row["step"], row["problem_id"], row["sample"]) for row in exported}) == len(exported) == 16
    assert not [row for row in exported if "square" in row["prompt"]]
    assert all(row["answer"] == str(2 * int(row["problem_id"])) for row in exported)
    console = Console(record=True, width=200)
    with console.capture():
        for problem in {row["problem_id"] for row in exported}:
            step = next(row["step"] for row in exported if row["problem_id"] == problem)
            console.print(show_prompt(root, "run", step, problem))
    assert "square" not in console.export_text()
    report = assemble(root, ["run"])
    for key, text in report.problems.items():
        assert ("square" in text) == (key.benchmark == "squares")
    for prompt in report.prompts:
        assert (prompt.run, prompt.benchmark, prompt.problem_id) in report.problems
    assert not list(verify_run(run.store, "run"))
    progress = rows(connection, "FROM evaluation_progress() ORDER BY benchmark")
    assert [(row["benchmark"], row["of_problems"], row["complete"]) for row in progress] == [
        ("heldout", 2, True), ("squares", 5, True),
    ]  # fmt: skip
    graded = "FROM graded g JOIN problems p ON p.run = g.run AND p.split = g.benchmark AND p.problem_id = g.problem_id"
    joined = rows(connection, f"SELECT benchmark, count(*) AS n {graded} GROUP BY ALL ORDER BY ALL")
    assert [(row["benchmark"], row["n"]) for row in joined] == [("heldout", 4), ("squares", 10), ("train", 16)]


@pytest.mark.parametrize("name", ["train", "heldout"])
def test_a_benchmark_is_not_called_as_the_runs_own_problems_are(tmp_path, name):
    path = write(tmp_path / f"{name}.jsonl", [("1 + 1", "2")])
    with pytest.raises(ConfigError, match="called neither 'heldout' nor 'train'"):
        benchmark_name(path)
    assert benchmark_name(write(tmp_path / "training.jsonl", [("1 + 1", "2")])) == "training"


@pytest.fixture(scope="module")
def two_domains(tmp_path_factory):
    """Arms of two domains, one of which is evaluated at other k as well, trained as the flow does."""
    folder = tmp_path_factory.mktemp("domains")
    file = folder / "two.yaml"
    model = {"steps": 150, "hidden_size": 16, "num_heads": 2, "num_layers": 1, "intermediate_size": 32}
    content = small_config(steps=1, policy={"warm_start": model}, sampling={"max_prompt_tokens": 32})
    content["arms"] = {
        "poly": {},
        "product": {
            "domain": {"name": "multiplication"},
            "evaluation": {"num_samples": 3, "k": [1, 2], "max_problems": 3},
            "sampling": {"max_response_tokens": 12},
        },
    }
    file.write_text(yaml.safe_dump(content))
    root = str(folder / "store")
    for seed in (0, 1):
        training = describe(root, file, f"two-seed{seed}", {"seed": seed})
        for arm in prepare(root, training):
            warm_start.fn(root, arm.config, warm_start_digest(arm.config))
            evaluate.fn(root, arm.name, 0)
            train(arm)
            evaluate.fn(root, arm.name, 1)
    return root, file


def test_arms_of_two_domains_end_as_any_others(two_domains):
    root, _ = two_domains
    assert publish_report(root, "two-seed0", ["two-seed0-poly", "two-seed0-product"])
    summary = summarize(root, "two-seed0")
    assert [row.policy for row in summary.rows] == ["base model", "base model of product", "poly", "product"]
    table = markdown(summary)
    assert all(column in table for column in ("pass@1", "pass@2", "pass@4", "–"))
    report = assemble(root, ["two-seed0"])
    assert {policy.label for policy in report.policies} == {"base", "base of product", "poly", "product"}
    assert "no problem in common" in report.policies_note
    assert any("product: pass@1" in f.what and "paired over 3 problems" in f.what for f in report.findings)
    assert {prompt.run for prompt in report.prompts} == {0, 1}
    for prompt in report.prompts:
        assert (prompt.run, prompt.benchmark, prompt.problem_id) in report.problems


def test_an_experiment_with_them_too(two_domains):
    root, file = two_domains
    experiment = Experiment("two", file, [0, 1], ["poly", "product"], {0: {}, 1: {}})
    found = compare_arms(experiment, root)
    assert found.policies == ["base model", "base model of product", "poly", "product"]
    assert "| poly |" in experiment_markdown(found)


def test_runs_without_a_common_problem(two_domains, run, tmp_path):
    root, _ = two_domains
    assert write_report(root, ["two-seed0-poly", "two-seed1-product"], tmp_path / "page.html")


def test_equal_ids_of_other_problems_are_not_compared(run, tmp_path):
    """Two runs, whose held-out problems are all called alike and are not the same."""
    other = run.config.model_dump(mode="json")
    other["domain"]["path"] = write(tmp_path / "other.jsonl", [(f"{i} * 7", str(7 * i)) for i in range(6)])
    other = start(run.store.root, parse_config(other).runs("other")["other"], "other")
    evaluate.fn(run.store.root, "other", 0)
    ids = [rows(connect(run.store.root), "SELECT problem_id FROM problems WHERE run = $run AND split = 'heldout' "
                "ORDER BY ALL", run=name) for name in ("run", "other")]  # fmt: skip
    assert ids[0] == ids[1]
    report = assemble(run.store.root, ["run", "other"])
    assert "no problem in common" in report.policies_note
    assert {key.run: text for key, text in report.problems.items() if key.benchmark == "heldout"}.keys() == {0, 1}
