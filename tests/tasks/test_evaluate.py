"""Evaluations: extended, resumed, of other benchmarks and of models without a run."""

import json
from collections.abc import Sequence
from math import comb
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from flows.views.results import markdown, results
from polyepo.config import ConfigError, parse_config
from polyepo.judges import AnswerJudge, Judge, Label, ProgramJudge
from polyepo.schemas import EVALS
from storage import Catalog, connect
from storage.verify import verify_run
from tasks.evaluate import evaluate
from tasks.runs import evaluations
from tasks.runs.benchmarks import heldout
from tasks.runs.evaluating import add_benchmark, evaluate_missing, model_run
from tasks.runs.evaluations import (
    HELDOUT,
    Benchmark,
    choose_judge,
    choose_step,
    parts,
    read_evaluation,
)
from tests.support.config import small_config
from tests.support.runs import forget, start


def extend(run, num_samples, benchmark=None, judge=None):
    benchmark = benchmark or heldout(run)
    evaluate_missing(run, benchmark, 0, num_samples, judge or run.config.judge)


@pytest.fixture(scope="module", autouse=True)
def _small_shards():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluations, "SAMPLES_PER_SHARD", 4)
        yield


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    run = start(str(tmp_path_factory.mktemp("large")))
    extend(run, 16)
    return run


def test_an_extension_is_one_larger_evaluation_bit_for_bit(large, tmp_path):
    run = start(str(tmp_path))
    evaluate.fn(str(tmp_path), "run", 0)  # in training: four samples
    before = {path: path.read_bytes() for path in tmp_path.rglob("evals/**/*.*")}
    for num_samples in (8, 16):
        forget()
        extend(run, num_samples)
    assert all(path.read_bytes() == content for path, content in before.items())
    assert len(parts(run, HELDOUT, 0)) == 16 // 4
    assert read_evaluation(run, HELDOUT, 0, EVALS.names) == read_evaluation(large, HELDOUT, 0, EVALS.names)
    for mine, theirs in zip(parts(run, HELDOUT, 0), parts(large, HELDOUT, 0), strict=True):
        assert [f.sha256 for f in run.store.manifest(mine).files] == [
            f.sha256 for f in large.store.manifest(theirs).files
        ]
    assert list(verify_run(run.store, "run")) == []


def test_an_extension_by_any_number_draws_the_same_samples(large, tmp_path):
    run = start(str(tmp_path))
    for num_samples in (3, 3, 8, 2, 16):
        extend(run, num_samples)
    assert [1 + max(run.store.read_table(key)["sample"].to_pylist()) for key in parts(run, HELDOUT, 0)] == [
        3,
        7,
        8,
        12,
        16,
    ]
    mine, theirs = (read_evaluation(r, HELDOUT, 0, EVALS.names) for r in (run, large))
    for row, other in zip(mine, theirs, strict=True):
        # The last bits of a log-probability depend on what was computed side by side.
        np.testing.assert_allclose(row.pop("sampler_logprobs"), other.pop("sampler_logprobs"), atol=1e-5)
        assert row == other


def test_labels_of_shards_are_those_of_all_samples_at_once(large):
    rows = read_evaluation(large, HELDOUT, 0, EVALS.names)
    problems = heldout(large).problems
    for i, problem in enumerate(problems):
        group = rows[16 * i : 16 * (i + 1)]
        assert [row["sample"] for row in group] == list(range(16))
        assert {row["problem_id"] for row in group} == {problem.problem_id}
        strategies = [large.config.domain.strategy(problem, row["response"]) for row in group]
        seen = list(dict.fromkeys(s for s in strategies if s is not None))
        assert [row["cluster"] for row in group] == [None if s is None else seen.index(s) for s in strategies]


class Moody(Judge):
    """Clusters by the first character, and numbers clusters as no other call does."""

    name: str = "moody"
    sizes: list[int] = []

    def label(self, domain, groups: Sequence, calls=None) -> list[list[Label]]:
        self.sizes.extend(len(group.responses) for group in groups)
        return [
            [Label(1000 - ord((text or " ")[0]), False, text[:1], "", "ok") for text in group.responses]
            for group in groups
        ]


def test_a_judge_that_numbers_at_will_extends_its_own_clusters(tmp_path):
    run, judge = start(str(tmp_path)), Moody()
    extend(run, 12, judge=judge)
    rows = read_evaluation(run, HELDOUT, 0, EVALS.names)
    for i in range(0, len(rows), 12):
        of_character = {(row["response"] or " ")[0]: row["cluster"] for row in rows[i : i + 12]}
        assert all(of_character[(row["response"] or " ")[0]] == row["cluster"] for row in rows[i : i + 12])
        assert sorted(of_character.values()) == list(range(len(of_character)))
    assert max(judge.sizes) < 12, "the judge sees one response of each cluster, and the new ones"


def test_evaluations_that_are_no_shards_are_read_and_extended(large, tmp_path):
    run = start(str(tmp_path))
    rows = [row for row in read_evaluation(large, HELDOUT, 0, EVALS.names) if row["sample"] < 6]
    run.store.commit_table(
        run.key("evals", 0, benchmark=HELDOUT),
        pa.Table.from_pylist(rows, schema=EVALS),
        table_name="evals",
        provenance=run.provenance(0),
    )
    catalog = Catalog(str(tmp_path))
    count = "SELECT count(*), count(DISTINCT (problem_id, sample)) FROM evals"
    assert catalog.connection.execute(count).fetchone() == (len(rows), len(rows))
    extend(run, 14)
    found = read_evaluation(run, HELDOUT, 0, EVALS.names)
    assert [(r["problem_id"], r["sample"]) for r in found] == [
        (p.problem_id, i) for p in heldout(run).problems for i in range(14)
    ]
    wanted = [r for r in read_evaluation(large, HELDOUT, 0, EVALS.names) if r["sample"] < 14]
    assert [(r["seed"], r["response"], r["cluster"]) for r in found] == [
        (r["seed"], r["response"], r["cluster"]) for r in wanted
    ]
    catalog.refresh()  # the artifact that was known, and the shards below it
    assert catalog.connection.execute(count).fetchone() == (len(found), len(found))
    assert connect(str(tmp_path)).execute(count).fetchone() == (len(found), len(found))


def test_results_against_a_plain_computation(large):
    found = results(large, HELDOUT, 0)
    rows = read_evaluation(large, HELDOUT, 0, EVALS.names)
    groups = [rows[i : i + 16] for i in range(0, len(rows), 16)]
    assert (found.num_problems, found.num_samples, list(found.by_k)) == (len(groups), 16, [1, 2, 4, 8, 16])
    correct = [sum(row["reward"] > 0.5 for row in group) for group in groups]
    for k, values in found.by_k.items():
        mean, low, high = values["pass@k"]
        assert mean == pytest.approx(np.mean([1 - comb(16 - c, k) / comb(16, k) for c in correct]))
        assert low <= mean <= high
    strategies = [len({r["cluster"] for r in g if r["reward"] > 0.5 and not r["degenerate"]}) for g in groups]
    wanted = {
        "coverage": np.mean([c > 0 for c in correct]),
        "cover@0.5": np.mean([c >= 8 for c in correct]),
        "distinct successful strategies": np.mean(strategies),
        "response tokens": np.mean([len(r["response_token_ids"]) for r in rows]),
        "truncated": np.mean([r["finish_reason"] == "length" for r in rows]),
    }
    assert {name: found.overall[name][0] for name in wanted} == pytest.approx(wanted)
    assert found.by_k[16]["distinct@k"][0] == pytest.approx(np.mean(strategies))
    votes = []
    for group in groups:
        answers = [r["parsed_answer"] for r in group if r["parsed_answer"] is not None]
        votes.append(max(map(answers.count, answers), default=0) / 16)
    assert found.by_k[16]["vote share"][0] == pytest.approx(np.mean(votes))
    assert "| 16 | " in markdown(found)


@pytest.fixture
def maths(tmp_path):
    """A file of problems whose words the small model knows."""
    file = tmp_path / "sums.jsonl"
    problems = [{"id": f"sum-{i}", "problem": f"{i} + 1", "answer": str(i + 1)} for i in range(6)]
    file.write_text("\n".join(map(json.dumps, problems)))
    return file


def test_a_file_of_mathematics_is_a_benchmark(maths, tmp_path):
    config = parse_config(small_config(sampling={"max_prompt_tokens": 64})).runs("run")["run"]
    run = start(str(tmp_path / "store"), config)
    benchmark = add_benchmark(run, str(maths), 0)
    assert benchmark.name == "sums"
    assert sorted(p.answer for p in benchmark.problems) == ["1", "2", "3", "4", "5", "6"]
    extend(run, 4, benchmark)
    found = results(run, "sums", 0)
    assert (found.num_problems, found.num_samples) == (6, 4)
    connection = connect(run.store.root)
    assert connection.execute("SELECT count(*) FROM evals WHERE benchmark = 'sums'").fetchone() == (24,)
    assert connection.execute("SELECT count(*) FROM problems WHERE split = 'sums'").fetchone() == (6,)
    assert connection.execute("FROM pass_at_k(4) WHERE benchmark = 'sums'").fetchall()
    assert add_benchmark(run, str(maths), 0) == benchmark
    maths.write_text(maths.read_text().replace("3 + 1", "3 + 9"))
    with pytest.raises(ConfigError, match=r"other problems under the name 'sums'"):
        add_benchmark(run, str(maths), 0)


def test_a_model_without_a_run_gets_one(large, maths, tmp_path):
    model = next(path for path in Path(large.store.root).glob("models/warm-start/*/*") if path.is_dir())
    run = model_run(str(tmp_path / "store"), str(model), str(maths), None, None)
    assert (run.config.steps, choose_step(run, None)) == (0, 0)
    benchmark = add_benchmark(run, str(maths), 0)
    extend(run, 4, benchmark)
    assert results(run, "sums", 0).num_problems == 6
    assert model_run(str(tmp_path / "store"), str(model), str(maths), None, None).name == run.name
    file = tmp_path / "small.yaml"
    file.write_text(json.dumps(small_config()))
    same = model_run(str(tmp_path / "store"), str(model), HELDOUT, str(file), None)
    extend(same, 4)
    pick = ["response", "cluster", "reward", "seed"]
    mine, theirs = (read_evaluation(r, HELDOUT, 0, pick) for r in (same, large))
    assert mine == [row for row in theirs if row["sample"] < 4], "the run's base model, by another way"
    assert connect(str(tmp_path / "store")).execute("SELECT DISTINCT state FROM runs").fetchall() == [("finished",)]


def test_what_cannot_be_evaluated_is_refused(large, maths, tmp_path):
    with pytest.raises(ConfigError, match="step 3 of run 'run' must lie between 0 and 0"):
        choose_step(large, 3)
    with pytest.raises(ConfigError, match=r"judge 'answer' cannot extend .* judge 'program' labelled it"):
        choose_judge(large, heldout(large), 0, AnswerJudge())
    assert choose_judge(large, Benchmark("new", large.config.domain, ()), 0, AnswerJudge()) == AnswerJudge()
    assert choose_judge(large, heldout(large), 0, None) == ProgramJudge()
    with pytest.raises(ConfigError, match=r"must be 'heldout'.* or a JSONL or Parquet file"):
        add_benchmark(large, "aime24", 0)
    with pytest.raises(ConfigError, match=r"prompt of problem 'sum-0' has .* tokens"):
        add_benchmark(large, str(maths), 0)
    with pytest.raises(ConfigError, match="needs benchmark=FILE"):
        model_run(str(tmp_path), "some/model", HELDOUT, None, None)
    maths.write_text('{"problem": "1 + 1"}\n')
    with pytest.raises(ConfigError, match="row 1"):
        add_benchmark(large, str(maths), 0)
