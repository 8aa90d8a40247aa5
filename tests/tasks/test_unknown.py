"""What is not known is null: responses that nobody could grade, labels that are missing, answers that nobody read."""

import json
import math

import numpy as np
import pytest

from flows.views.export import export_run
from flows.views.report import write_report
from flows.views.results import markdown, results
from flows.views.show import show_prompt
from flows.views.summary import markdown as summary_markdown
from flows.views.summary import summarize
from polyepo.advantages import grpo_advantages
from polyepo.config import parse_config
from polyepo.domains import Domain, Maths, Polynomial, Ungraded, Verdict
from polyepo.imports import Columns
from polyepo.judges import AnswerJudge, Judge, Label, ProgramJudge
from storage import connect, rows
from tasks.evaluate import evaluate
from tasks.judge import judge
from tasks.runs.benchmarks import heldout
from tasks.runs.evaluating import evaluate_missing
from tasks.runs.imports import import_rollouts
from tasks.runs.labels import commit_labels
from tasks.runs.run import create_or_resume, open_run
from tasks.runs.scores import UngradedError, commit_scores
from tasks.sample import sample
from tasks.score import score
from tasks.update import update
from tests.support.config import small_config
from tests.support.runs import start, train


def ungraded_where(monkeypatch, fails):
    """The domain's verifier cannot grade some responses: those of which `fails(problem, response)` holds."""
    original = Polynomial.verify

    def verify(self, problem, response):
        verdict = original(self, problem, response)
        return Verdict(None, verdict.parsed_answer, "timeout") if fails(problem, response) else verdict

    monkeypatch.setattr(Polynomial, "verify", verify)


def small(**changes):
    return parse_config(small_config(**changes)).runs("run")["run"]


LENIENT = {"method": "grpo", "max_ungraded_rate": 1.0}


def rollouts(run, step=1):
    sample.fn(run.store.root, "run", step, 0)
    judge.fn(run.store.root, "run", step, 0)


def test_a_prompt_with_an_ungraded_response_takes_no_part(tmp_path, monkeypatch):
    run = start(str(tmp_path), small(scoring=LENIENT, sampling={"temperature": 2.0}))
    rollouts(run)
    first = run.store.read_table(run.key("rollouts", 1, 0)).to_pylist()[0]
    ungraded_where(monkeypatch, lambda p, r: p.problem_id == first["problem_id"] and r == first["response"])
    train(run, until=1)
    scores = run.store.read_table(run.scores_key(1)).to_pylist()
    for row in scores:
        failed = (row["problem_id"], row["sample"]) == (first["problem_id"], 0)
        assert failed <= (row["reward"] is None)
        assert (row["reward"] is None) == (row["ungraded"] == "timeout")
        assert row["problem_id"] != first["problem_id"] or row["advantage"] == 0
    others = [row for row in scores if row["problem_id"] != first["problem_id"]]
    rewards = np.array([row["reward"] for row in others]).reshape(-1, 4)
    np.testing.assert_allclose([row["advantage"] for row in others], grpo_advantages(rewards).ravel())
    graded = [row["reward"] for row in scores if row["reward"] is not None]
    step = run.store.read_table(run.key("updates", 1)).to_pylist()[0]
    assert step["prompts_ungraded"] == 1
    assert step["ungraded_rate"] == (16 - len(graded)) / 16 > 0
    assert step["reward_mean"] == pytest.approx(np.mean(graded))
    reasons = [step[f"prompts_{name}"] for name in
               ("with_signal", "all_wrong", "one_cluster", "unlabelled", "other_zero", "ungraded")]  # fmt: skip
    assert sum(reasons) == step["prompts"] == 4
    connection = connect(str(tmp_path))
    signal = rows(connection, "FROM signal_accounting()")[0]
    names = ("with_gradient", "all_wrong", "one_cluster", "unlabelled", "other_zero", "ungraded")
    assert [signal[name] for name in names] == reasons
    coverage = rows(connection, "FROM coverage()")[0]
    assert coverage["coverage"] == pytest.approx(step["coverage"])
    show_prompt(str(tmp_path), "run", 1, first["problem_id"])
    assert export_run(str(tmp_path), "run", tmp_path / "export", "jsonl", None) == 16
    assert write_report(str(tmp_path), ["run"], tmp_path / "page.html")


def test_scoring_again_gives_the_same_table(tmp_path, monkeypatch):
    tables = []
    for name in ("a", "b"):
        run = start(str(tmp_path / name), small(scoring=LENIENT))
        rollouts(run)
        ungraded_where(monkeypatch, lambda p, r: len(r) % 3 == 0)
        tables.append(run.store.read_table(commit_scores(run, run.config.scoring, ProgramJudge(), 1)))
    assert tables[0].equals(tables[1])


def test_a_step_with_too_many_stops_before_anything_is_committed(tmp_path, monkeypatch):
    run = start(str(tmp_path), small(scoring={"method": "poly_epo", "set_size": 2, "max_ungraded_rate": 0.25}))
    rollouts(run)
    with monkeypatch.context() as patch:
        ungraded_where(patch, lambda p, r: True)
        with pytest.raises(UngradedError, match=r"16 of 16 .*16 timeout.*scoring\.max_ungraded_rate 0\.25"):
            score.fn(str(tmp_path), "run", 1)
        assert not run.store.exists(run.scores_key(1))
    score.fn(str(tmp_path), "run", 1)  # the machine is quiet again
    assert run.store.read_table(run.scores_key(1))["reward"].null_count == 0


def test_the_limit_is_no_part_of_the_scoring(tmp_path):
    configs = [small(scoring={"method": "grpo", **more}) for more in ({}, {"max_ungraded_rate": 0.5})]
    assert configs[0].scoring_id == configs[1].scoring_id
    assert "max_ungraded_rate" not in configs[0].model_dump(mode="json")["scoring"], "older runs keep their digest"


def test_nothing_known_at_all_is_null(tmp_path, monkeypatch):
    run = start(str(tmp_path), small(scoring=LENIENT))
    ungraded_where(monkeypatch, lambda p, r: True)
    train(run, until=1)
    evaluate.fn(str(tmp_path), "run", 0)
    step = run.store.read_table(run.key("updates", 1)).to_pylist()[0]
    for name in ("reward_mean", "coverage", "distinct_successful", "distinct_unsuccessful"):
        assert step[name] is None, name
    connection = connect(str(tmp_path))
    for query in ("pass_at_k(1)", "coverage()", "cover_at_tau(0.5)", "div_at_k(1)", "maj_at_k(1)"):
        assert rows(connection, f"FROM {query}") == [], query
    found = results(run, "heldout", 0)
    assert found.num_ungraded == found.num_responses > 0
    assert found.by_k == {}
    assert math.isnan(found.overall["coverage"][0])
    assert "could not be graded" in markdown(found)
    summary = summarize(str(tmp_path), "run")
    assert set(summary.rows[0].pass_at.values()) == {None}
    assert "could not be graded" in summary_markdown(summary)
    assert write_report(str(tmp_path), ["run"], tmp_path / "page.html")


def test_an_evaluation_leaves_out_what_is_not_graded(tmp_path, monkeypatch):
    run = start(str(tmp_path), small(evaluation={"num_samples": 8, "k": [1, 8]}))
    evaluate_missing(run, heldout(run), 0, 8, ProgramJudge())
    whole = results(run, "heldout", 0)
    other = start(str(tmp_path / "other"), small(evaluation={"num_samples": 8, "k": [1, 8]}))
    ungraded_where(monkeypatch, lambda p, r: len(r) % 2 == 1)
    evaluate_missing(other, heldout(other), 0, 8, ProgramJudge())
    found = results(other, "heldout", 0)
    graded = rows(connect(other.store.root), "SELECT problem_id, list(reward) FILTER (reward IS NOT NULL) AS rewards "
                  "FROM evals GROUP BY 1")  # fmt: skip
    assert 0 < found.num_ungraded < found.num_responses == whole.num_responses
    assert found.by_k[1]["pass@k"][0] == pytest.approx(np.mean([np.mean(r["rewards"]) for r in graded if r["rewards"]]))
    assert rows(connect(other.store.root), "FROM pass_at_k(1)")[0]["pass_at_k"] == pytest.approx(
        found.by_k[1]["pass@k"][0]
    )


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_reward_that_is_no_number_is_an_error_and_none_is_not(tmp_path, monkeypatch, value):
    run = start(str(tmp_path), small())
    rollouts(run)
    monkeypatch.setattr(Polynomial, "verify", lambda self, problem, response: Verdict(value, None))
    with pytest.raises(ValueError, match="must return finite numbers, or None"):
        score.fn(str(tmp_path), "run", 1)


class Silent(Judge):
    """Labels the responses of some problems, and has nothing to say of the others."""

    name: str = "silent"

    def label(self, domain, groups, calls=None):
        return [
            [Label(None, False, None, None, "refused") for _ in group.responses]
            if i % 2
            else [Label(j, False, "macro", str(j), "ok") for j, _ in enumerate(group.responses)]
            for i, group in enumerate(groups)
        ]


@pytest.mark.parametrize(
    ("scoring", "uses_clusters"),
    [
        ({"method": "grpo"}, False),
        ({"method": "poly_epo", "set_size": 2, "objective": "pass_at_n"}, False),
        ({"method": "poly_epo", "set_size": 2, "objective": "mean_reward"}, False),
        ({"method": "poly_epo", "set_size": 2, "objective": "polychromic"}, True),
        ({"method": "grpo_div"}, True),
    ],
)
def test_only_scorings_that_use_labels_miss_them(tmp_path, monkeypatch, scoring, uses_clusters):
    run = start(str(tmp_path), small(scoring=scoring))
    rollouts(run)
    commit_labels(run, Silent(), 1, 0)
    monkeypatch.setattr(Polynomial, "verify", lambda self, problem, text: Verdict(float(sum(map(ord, text)) % 7), None))
    table = run.store.read_table(commit_scores(run, run.config.scoring, Silent(), 1)).to_pylist()
    assert {row["uses_clusters"] for row in table} == {uses_clusters}
    groups = [table[i : i + 4] for i in range(0, 16, 4)]
    varied = [g for g in groups[1::2] if len({row["reward"] for row in g}) > 1]
    assert varied, "rewards differ within a prompt without labels"
    assert any(row["advantage"] for group in varied for row in group) == (not uses_clusters)
    signal = rows(connect(str(tmp_path)), "FROM signal_accounting()")[0]
    assert signal["unlabelled"] == (2 if uses_clusters else 0)
    strategies = rows(connect(str(tmp_path)), "FROM strategies_by_step()")[0]
    assert strategies["problems"] == 2, "of those that have labels"


def imported(tmp_path, domain, *records):
    path = tmp_path / "rollouts.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    import_rollouts(str(tmp_path / "store"), [path], "auto", Columns(), domain, "run", True)
    return open_run(str(tmp_path / "store"), "run")


def test_imported_rewards_say_nothing_of_answers_and_strategies(tmp_path):
    response = {"question": "q", "answer": "1", "response": "\\boxed{1}", "reward": 1}
    run = imported(tmp_path, Ungraded(), response, response)
    connection = connect(run.store.root)
    assert rows(connection, "FROM pass_at_k(2)")[0]["pass_at_k"] == 1
    unknown = ["answers()", "div_at_k(2)", "maj_at_k(2)", "strategies_by_step()", "signal_accounting()", "sign_flips()"]
    for query in unknown:
        assert rows(connection, f"FROM {query}") == [], query
    assert rows(connection, "SELECT sign_flips FROM scoring_agreement('imported', 'imported')") == [
        {"sign_flips": None}
    ]
    # Scored anew without a verifier, nobody has read them either.
    commit_labels(run, ProgramJudge(), 1, 0)
    commit_scores(run, run.config.scoring, ProgramJudge(), 1)
    assert rows(connect(run.store.root), "FROM answers()") == []
    assert rows(connect(run.store.root), "FROM div_at_k(2)")[0]["div_at_k"] == 1


class Halves(Domain):
    """Answers are fractions; the verifier reads the whole response, and the classes are their values."""

    name: str = "halves"

    def verify(self, problem, response):
        return Verdict(float(response != "0" and bool(response)), response or None)

    def answer_classes(self, groups):
        value = {"1/2": 0.5, "0.5": 0.5, "2/4": 0.5, "\\frac12": 0.5, "x=1/2": 0.5}
        found = []
        for _, answers in groups:
            numbers = {}
            found.append(
                [None if a is None else numbers.setdefault(value.get(a, a), len(numbers)) for a in answers]
            )  # fmt: skip
        return found


NOTATIONS = ["1/2", "0.5", "\\frac12", "x=1/2", "2/4", "0", "0", "3"]


def test_answers_are_counted_by_what_they_mean(tmp_path):
    records = [{"problem_id": "p", "question": "q", "answer": "1/2", "response": text, "reward": 1.0 if i < 5 else 0.0}
               for i, text in enumerate(NOTATIONS)]  # fmt: skip
    run = imported(tmp_path, Ungraded(), *records)
    commit_labels(run, ProgramJudge(), 1, 0)
    commit_scores(run, run.config.scoring, ProgramJudge(), 1, Halves())
    connection = connect(run.store.root)
    where = "WHERE scoring != 'imported'"
    found = rows(connection, f"FROM maj_at_k(8) {where}")[0]
    assert (found["maj_at_k"], found["vote_share"]) == (1.0, 0.625)
    assert rows(connection, f"FROM answers() {where}")[0]["distinct_answers"] == 3
    stored = rows(connection, f"SELECT parsed_answer, answer_class FROM scores {where} ORDER BY sample")
    assert [row["answer_class"] for row in stored] == [0, 0, 0, 0, 0, 1, 1, 2]
    assert [row["parsed_answer"] for row in stored] == NOTATIONS, "the texts stay"


def test_classes_of_an_evaluation_that_is_extended_never_change(tmp_path, monkeypatch):
    """Whatever numbers the domain gives, those that stand are kept, and new answers are put to them by meaning."""
    run = start(str(tmp_path), small())
    monkeypatch.setattr("tasks.runs.evaluations.SAMPLES_PER_SHARD", 3)

    def by_length(self, groups):
        assert all(len(answers) <= 7 for _, answers in groups), "one of each class, and the new ones"
        return [[None if a is None else 100 - len(a) for a in answers] for _, answers in groups]

    monkeypatch.setattr(Polynomial, "answer_classes", by_length)
    seen = {}
    for num_samples in (3, 4, 12):
        evaluate_missing(run, heldout(run), 0, num_samples, ProgramJudge())
        found = rows(connect(str(tmp_path)), "SELECT problem_id, sample, parsed_answer, answer_class FROM evals")
        for row in found:
            key = row["problem_id"], row["sample"]
            assert seen.setdefault(key, row["answer_class"]) == row["answer_class"]
        for problem in {row["problem_id"] for row in found}:
            mine = [row for row in found if row["problem_id"] == problem and row["parsed_answer"] is not None]
            pairs = {(len(row["parsed_answer"]), row["answer_class"]) for row in mine}
            assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})
            assert {b for _, b in pairs} == set(range(len(pairs)))


def test_update_rows_of_label_free_arms_count_no_prompt_as_unlabelled(tmp_path, monkeypatch):
    monkeypatch.setattr(ProgramJudge, "label", Silent.label)
    run = start(str(tmp_path), small(scoring={"method": "grpo"}))
    rollouts(run)
    score.fn(str(tmp_path), "run", 1)
    update.fn(str(tmp_path), "run", 1)
    step = run.store.read_table(run.key("updates", 1)).to_pylist()[0]
    assert step["prompts_unlabelled"] == 0
    assert step["missing_label_rate"] == 0.5


HALVES = ["\\boxed{\\frac{1}{2}}", "\\boxed{0.5}", "\\boxed{1/2}", "\\boxed{x=\\frac12}", "\\boxed{\\dfrac{2}{4}}",
          "\\boxed{2}", "\\boxed{2.0}", "I do not know."]  # fmt: skip


def test_notations_of_mathematics_are_one_answer(tmp_path):
    """Graded, labelled and counted by the domain's own equivalence: five of eight are right, and vote alike."""
    records = [{"problem_id": "p", "question": "Half of 1?", "answer": "1/2", "response": text} for text in HALVES]
    run = imported(tmp_path, Maths(path="rollouts.jsonl"), *records)
    judge = AnswerJudge()
    commit_labels(run, judge, 1, 0)
    table = run.store.read_table(commit_scores(run, run.config.scoring, judge, 1)).to_pylist()
    assert [row["reward"] for row in table] == [1, 1, 1, 1, 1, 0, 0, 0]
    assert [row["answer_class"] for row in table] == [0, 0, 0, 0, 0, 1, 1, None]
    assert [row["cluster"] for row in table] == [0, 0, 0, 0, 0, 1, 1, None], "training does not pay for notation"
    connection = connect(run.store.root)
    found = rows(connection, "FROM maj_at_k(8)")[0]
    assert (found["maj_at_k"], found["vote_share"]) == (1.0, 0.625)
    assert rows(connection, "FROM answers()")[0]["distinct_answers"] == 2
    assert rows(connection, "FROM div_at_k(8)")[0]["div_at_k"] == 1


def test_the_stated_remedy_of_too_many_ungraded_works(tmp_path, monkeypatch):
    """The run stops; a higher limit is taken when it is resumed, is noted, and the prompts are left out."""
    root = str(tmp_path)
    run = start(root, small(scoring={"method": "grpo"}))
    rollouts(run)
    ungraded_where(monkeypatch, lambda p, r: p.problem_id == run.problems_of_step(1)[0].problem_id)
    with pytest.raises(UngradedError, match=r"4 of 16 .* a higher scoring\.max_ungraded_rate leaves their prompts out"):
        score.fn(root, "run", 1)
    create_or_resume(root, "run", small(scoring={"method": "grpo", "max_ungraded_rate": 0.3}))
    score.fn(root, "run", 1)
    update.fn(root, "run", 1)
    step = run.store.read_table(run.key("updates", 1)).to_pylist()[0]
    assert (step["prompts_ungraded"], step["ungraded_rate"]) == (1, 0.25)
