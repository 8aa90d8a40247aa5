"""Maths: files load as they are or say why not, answers are compared in time, hedging earns nothing."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from polyepo.domains import Maths, Problem, Strategy, equivalence
from polyepo.domains.answers import final_answer
from polyepo.domains.equivalence import EquivalencePool
from polyepo.judges.base import Group
from polyepo.judges.program import AnswerJudge, ProgramJudge

DOMAIN = Maths(path="unread.jsonl")


def problem(answer: str) -> Problem:
    return Problem(problem_id="p", domain="maths", prompt="?", answer=answer)


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def rows_of(n):
    return [{"problem": f"What is {i}?", "answer": str(i)} for i in range(n)]


CASES = [json.loads(line) for line in (Path(__file__).parent / "grading_cases.jsonl").read_text().split("\n") if line]


def test_every_case_of_the_table_gives_its_reward():
    verdicts = DOMAIN.verify_batch([problem(case["reference"]) for case in CASES], [case["response"] for case in CASES])
    wrong = [(case, verdict) for case, verdict in zip(CASES, verdicts, strict=True) if verdict[0] != case["expected"]]
    assert wrong == []
    assert {case["expected"] for case in CASES} == {0.0, 1.0}


@pytest.mark.parametrize(
    ("reference", "response"),
    [
        ("3", r"So \boxed{3}."),
        ("3", r"\boxed{3} and again \boxed{ 3 }"),
        ("3", r"\boxed{\phantom{2}} and \boxed{} hold \boxed{3}"),
        ("3", "Answer: 3"),
        ("3", "**Final answer:** $3$."),
        ("3", "The sum.\nAnswer: The value is $3$"),
        ("3", "She has 3.\n#### 3"),
        ("3", r"\boxed{6/2}"),
        ("3", r"\boxed{x = 3}"),
        ("3", r"\boxed{1 + 2 = 3}"),
        ("3", r"\boxed{3.0 = 3}"),
        ("3", r"\boxed{3 \text{ cm}}"),
        ("3", r"\boxed{\$3}"),
        (".5", r"\boxed{.5}"),
        (".35625", "Answer: .35625."),
        ("0.5", r"\boxed{.5}"),
        ("4:40 a.m.", r"\boxed{4:40 a.m.}"),
        ("$8 \\sqrt{10}$.", r"\boxed{8\sqrt{10}}"),
        ("3", "Answer: x_1 = $3$ in the end."),
        ("3", r"\fbox{3}"),
        ("18000", "#### 18,000"),
        ("\\frac{1}{2}", r"\boxed{0.5}"),
        ("\\frac{1}{2}", r"\boxed{\frac{2}{4}}"),
        ("\\left( 3, \\frac{\\pi}{2} \\right)", r"\boxed{(3, \pi/2)}"),
        ("\\text{Evelyn}", r"\boxed{\text{Evelyn}}"),
        ("{1,2}", r"\boxed{\{2,1\}}"),
    ],
)
def test_equal_answers_are_right(reference, response):
    assert DOMAIN.verify(problem(reference), response).reward == 1.0


@pytest.mark.parametrize(
    "response",
    [
        "",
        "3",
        "The answer might be 3",
        "Answer:",
        r"\boxed{}",
        r"\boxed{4}",
        r"\boxed{3",
        r"\boxed{3} or \boxed{5}",
        r"\boxed{5} \boxed{3}",
        "Answer: 3 or 5",
        "Answer: 5 (or 3)",
        "Answer: $5$ or $3$",
        "Answer: $3$ or 5",
        r"\boxed{$3$ + 1}",
        r"\boxed{.3}",
        "Answer: $5$ $3$",
        r"\boxed{5$ $3}",
        r"\boxed{5 = 3}",
        r"\boxed{3 = 5}",
        r"\boxed{3, 5}",
        r"\boxed{\{3, 5\}}",
        r"\boxed{5 \\ 3}",
        r"\boxed{5 | 3}",
        r"\boxed{5 -> 3}",
        r"\boxed{5 \to 3}",
        r"\boxed{1 \quad 2 \quad 3}",
        "Answer: 1 2 3 4 5",
        r"\boxed{\pm 3}",
        r"\boxed{x \in \{3, 5\}}",
        r"\boxed{٣}",
        r"\boxed{" + "3" * 300 + "}",
        r"\boxed{" + " 3 or" * 3000 + "}",
        r"\boxed{import os}",
        "\ud800",
        r"\boxed{" + "\ud800" + "}",
        "\x00",
    ],
)
def test_hedging_and_nonsense_earn_nothing(response):
    assert DOMAIN.verify(problem("3"), response).reward == 0.0


def test_a_wrong_answer_is_kept_and_is_the_strategy():
    assert DOMAIN.verify(problem("3"), r"\boxed{ 4 }") == (0.0, "4", None)
    assert DOMAIN.strategy(problem("3"), r"\boxed{x = 4}") == Strategy("final answer", "x=4")
    assert DOMAIN.strategy(problem("3"), "no idea") is None


@given(
    st.one_of(
        st.text(),
        st.text("\\boxed{}$#=:answr 123\n,"),
        st.lists(
            st.sampled_from(
                ["\\boxed{", "}", "{", "3", "$", "\n", "Answer:", "####", "=", "\\", " ", "٣", "\\phantom{2}"]
            ),
            max_size=20,
        ).map("".join),
    )
)
@settings(max_examples=300)
def test_reading_answers_never_raises(response):
    answer = final_answer(response)
    assert answer is None or (answer and len(answer) <= 200)
    assert (DOMAIN.strategy(problem("3"), response) is None) == (answer is None)


@pytest.mark.parametrize(
    "unit", ["\n", " ", "\\boxed{", "\\boxed ", "$", "#", "answer ", "answer:\n", "{", "}", "**", "Answer: $", "= 3 "]
)
def test_long_responses_are_read_in_linear_time(unit):
    # Two million characters: whatever looks at them more than once each runs into the suite's timeout.
    final_answer(unit * (2_000_000 // len(unit)))
    final_answer("Answer: " + unit * (2_000_000 // len(unit)))


ENDLESS = "9^{9^{9^{9}}}"


def test_endless_comparisons_are_stopped_and_have_no_reward():
    domain = Maths(path="unread", num_workers=1, timeout_s=1.0)
    verdicts = domain.verify_batch([problem("3")] * 3, [rf"\boxed{{{ENDLESS}}}", r"\boxed{6/2}", r"\boxed{3}"])
    assert verdicts == [(None, ENDLESS, verdicts[0].ungraded), (1.0, "6/2", None), (1.0, "3", None)]
    assert verdicts[0].ungraded in ("timeout", "memory"), "whichever limit it reaches first"


def test_waiting_is_no_processor_time(monkeypatch):
    # As on a machine whose processors are all taken: the worker stands still for longer than its limit.
    ask = equivalence._Worker.ask

    def ask_one_that_stands_still(worker, pair):
        pid = worker._process.pid
        os.kill(pid, signal.SIGSTOP)
        threading.Timer(1.5, os.kill, (pid, signal.SIGCONT)).start()
        ask(worker, pair)

    pool = EquivalencePool(1, 1.0)
    assert pool.compare([("3", "6/2")]) == [(True, None)]
    monkeypatch.setattr(equivalence._Worker, "ask", ask_one_that_stands_still)
    assert pool.compare([("3", "9/3")]) == [(True, None)]
    assert pool.compare([("3", ENDLESS)])[0].equal is None
    pool.close()


POPEN = subprocess.Popen


def replying(monkeypatch, code):
    """A pool whose workers run this in place of a comparison."""
    program = "import sys\nfor line in sys.stdin:\n" + textwrap.indent(code, "    ")
    monkeypatch.setattr(subprocess, "Popen", lambda args, **kw: POPEN([sys.executable, "-c", program], **kw))
    return EquivalencePool(1, 1.0)


def test_what_ends_a_worker_is_named_and_tried_once_more(monkeypatch, tmp_path):
    once = f"import pathlib; tries = pathlib.Path({str(tmp_path / 'tries')!r}); tries.open('a').write('x')\n"
    for code, result, tries in [
        ("sys.exit(1)", (None, "crashed"), 2),
        ("print('\"memory\"', flush=True)", (None, "memory"), 2),
        ("print('nonsense', flush=True); sys.exit(1)", (None, "crashed"), 2),
        ("if len(tries.read_text()) == 1: sys.exit(1)\nprint('true', flush=True)", (True, None), 2),
        ("print('false', flush=True)", (False, None), 1),
    ]:
        pool = replying(monkeypatch, once + code)
        assert pool.compare([("1", "2")]) == [result]
        assert len((tmp_path / "tries").read_text()) == tries
        (tmp_path / "tries").unlink()
        pool.close()


def test_workers_are_reused_and_threads_share_them():
    pool = EquivalencePool(1, 20.0)
    assert pool.compare([("1", " 1 "), ("5 cm", "5cm")]) == [(True, None)] * 2
    assert not pool._idle, "equal texts need no worker"
    with ThreadPoolExecutor(2) as threads:
        results = list(threads.map(pool.compare, [[("3", "6/2"), ("3", "7/2"), ("1/2", "0.5")]] * 4))
    assert results == [[(True, None), (False, None), (True, None)]] * 4
    workers = {w._process.pid for w in pool._idle}
    assert pool.compare([("4", "8/2")]) == [(True, None)]
    assert {w._process.pid for w in pool._idle} == workers
    pool._idle[-1]._process.kill()
    pool._idle[-1]._process.wait()
    assert pool.compare([("3", "6/2"), ("3", "9/3")]) == [(True, None)] * 2, "a lost worker costs no answer"
    pool.close()
    assert not pool._idle


def test_equal_questions_are_asked_once(monkeypatch):
    pool = EquivalencePool(2, 20.0)
    asked = []
    ask = equivalence._Worker.ask
    monkeypatch.setattr(equivalence._Worker, "ask", lambda self, pair: (asked.append(pair), ask(self, pair)))
    assert pool.compare([("3", "6/2"), ("3", "3"), ("3", "6/2")]) == [(True, None)] * 3
    assert asked == [("3", "6/2")]
    pool.close()


HALVES = [r"\frac{1}{2}", "0.5", "1/2", r"x=\frac12", "0.6", None, "50\\%", "3/5"]


def test_answers_are_numbered_by_what_they_mean():
    groups = [(problem("1/2"), HALVES), (problem("3"), [None, None]), (problem("3"), ["4", "3", "8/2", "4"])]
    assert DOMAIN.answer_classes(groups) == [[0, 0, 0, 0, 1, None, 0, 1], [None, None], [0, 1, 0, 0]]
    assert DOMAIN.answer_classes([]) == []


def test_classes_take_one_comparison_per_answer_and_class_before_it(monkeypatch):
    asked = []
    compare = EquivalencePool.compare
    monkeypatch.setattr(EquivalencePool, "compare", lambda self, pairs: (asked.append(pairs), compare(self, pairs))[1])
    classes = DOMAIN.answer_classes([(problem("1"), ["1", "2", "3", "2/2", "4/2"] * 8)] * 3)
    assert classes == [[0, 1, 2, 0, 1] * 8] * 3
    assert [sum(one != other for one, other in pairs) for pairs in asked] == [12, 6, 0], "all problems at once"


def test_what_cannot_be_compared_is_a_class_of_its_own():
    domain = Maths(path="unread", num_workers=1, timeout_s=1.0)
    assert domain.answer_classes([(problem("3"), ["3", "9^{9^{9^{9}}}", "6/2"])]) == [[0, 1, 0]]


@pytest.mark.parametrize("judge", [ProgramJudge(), AnswerJudge()])
def test_both_exact_judges_cluster_by_what_the_answer_means(judge):
    responses = [f"So \\boxed{{{answer}}}" if answer else "no idea" for answer in HALVES]
    labels = judge.label(DOMAIN, [Group(problem("1/2"), responses), Group(problem("3"), ["no idea"])])
    assert [label.cluster for label in labels[0]] == [0, 0, 0, 0, 1, None, 0, 1]
    assert [label.degenerate for label in labels[0]] == [answer is None for answer in HALVES]
    assert len({label.micro_strategy for label in labels[0]}) == 3
    assert [label.cluster for label in labels[1]] == [None]


def test_the_load_of_the_machine_changes_no_reward():
    # A comparison that took seconds of symbolic simplification, with as many busy processes as processors twice over.
    reference = r"(2\cos(\pi^{2})+\pi^{4}-2)/4"
    response = r"\boxed{\frac{\pi^4}{4} - \frac{1}{2} + \frac{\cos(\pi^2)}{2}}"
    spinners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * (os.cpu_count() or 1))]
    try:
        assert DOMAIN.verify(problem(reference), response) == (1.0, response[7:-1], None)
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()


AGREE = Maths(path="unread", boxes="agree")


@pytest.mark.parametrize(
    ("response", "last", "agree"),
    [
        (r"\boxed{5}. No: \boxed{3}", 1.0, 0.0),
        (r"\boxed{\frac{6}{2}}. So \boxed{3}", 1.0, 1.0),
        (r"\boxed{3}. No: \boxed{5}", 0.0, 0.0),
        ("Answer: 5\nNo.\nAnswer: 3", 1.0, 0.0),
        ("Answer: x = 3\nAnswer: 3", 1.0, 1.0),
        ("#### 5\n#### 3", 1.0, 0.0),
    ],
)
def test_of_several_answers_the_last_counts_or_all_must_agree(response, last, agree):
    assert DOMAIN.verify(problem("3"), response).reward == last
    assert AGREE.verify(problem("3"), response).reward == agree


def test_workers_end_with_their_parent():
    code = (
        "import os; from polyepo.domains.equivalence import EquivalencePool; p = EquivalencePool(1, 5.0);"
        "p.compare([('3', '6/2')]); print(p._idle[0]._process.pid, flush=True); os._exit(9)"
    )
    env = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    child = int(subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True).stdout)
    for _ in range(100):
        try:
            state = Path(f"/proc/{child}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            return
        if state == "Z":
            return
        time.sleep(0.1)
    pytest.fail("the worker outlived its parent by ten seconds")


def test_layouts_load_without_edits(tmp_path):
    gsm8k = [{"question": f"Q{i}?", "answer": f"Work: {i} * 1000.\n#### {i},000"} for i in range(1, 5)]
    verl = [
        {
            "prompt": [{"role": "user", "content": "The same?"}],
            "reward_model": {"ground_truth": str(i), "style": "rule"},
            "extra_info": {"index": i, "split": "train"},
        }
        for i in range(4)
    ]
    solutions = [{"problem": f"P{i}", "solution": f"Thus $\\boxed{{\\frac{{{i}}}{{2}}}}$."} for i in range(4)]
    solutions[3]["solution"] = "Thus $\\boxed 7$."
    numbers = [{"id": i, "problem": f"A line\u2028separator {i}", "expected_answer": i} for i in range(4)]
    pq.write_table(pa.Table.from_pylist(verl), tmp_path / "verl.parquet")
    found = {}
    for name, rows in (("gsm8k", gsm8k), ("solutions", solutions), ("numbers", numbers), ("verl", None)):
        path = str(tmp_path / "verl.parquet") if rows is None else write(tmp_path / f"{name}.jsonl", rows)
        domain = Maths(path=path)
        found[name] = sorted([*domain.problems("train"), *domain.problems("heldout")], key=lambda p: str(p.answer))
        assert len({p.problem_id for p in found[name]}) == 4
    assert [p.answer for p in found["gsm8k"]] == ["1000", "2000", "3000", "4000"]
    assert found["gsm8k"][0].prompt == "Q1?\nReason step by step and put the final answer in \\boxed{}.\n"
    assert [p.answer for p in found["solutions"]] == ["7", *(rf"\frac{{{i}}}{{2}}" for i in range(3))]
    assert [p.problem_id for p in found["numbers"]] == ["0", "1", "2", "3"]
    assert [p.problem_id for p in found["verl"]] == [f"train-{i}" for i in range(4)]
    assert found["verl"][0].prompt == [{"role": "user", "content": "The same?"}]


def test_ids_are_the_files_own_if_unique_else_of_the_content(tmp_path):
    rows = rows_of(10)
    plain = Maths(path=write(tmp_path / "a.jsonl", rows))
    shuffled = Maths(path=write(tmp_path / "b.jsonl", rows[::-1]))
    assert {p.problem_id for p in plain.problems("heldout")} == {p.problem_id for p in shuffled.problems("heldout")}
    repeated = Maths(path=write(tmp_path / "c.jsonl", [{**row, "id": "same"} for row in rows]))
    assert repeated.problems("train") == plain.problems("train")


def test_columns_and_template_can_be_set(tmp_path):
    rows = [{"q": f"{{0}} {{problem}} {i}", "a": i, "key": f"k{i}", "answer": "no"} for i in range(5)]
    domain = Maths(
        path=write(tmp_path / "a.jsonl", rows),
        problem_column="q",
        answer_column="a",
        id_column="key",
        template="{x} {{ {problem} }",
    )
    first = min([*domain.problems("train"), *domain.problems("heldout")], key=lambda p: p.problem_id)
    assert first.problem_id == "k0"
    assert first.answer == "0"
    assert first.prompt == "{x} {{ {0} {problem} 0 }"


def test_a_held_out_file(tmp_path):
    rows = rows_of(6)
    train, heldout = write(tmp_path / "a.jsonl", rows[:4]), write(tmp_path / "b.jsonl", rows[4:])
    domain = Maths(path=train, heldout_path=heldout)
    assert [len(domain.problems(s)) for s in ("train", "heldout")] == [4, 2]
    overlapping = Maths(path=train, heldout_path=write(tmp_path / "c.jsonl", rows[3:]))
    for split in ("train", "heldout"):
        with pytest.raises(ValueError, match=r"heldout_path.*shares 1 problem_ids"):
            overlapping.problems(split)


GOOD = '{"problem": "p", "answer": "1"}\n'


@pytest.mark.parametrize(
    ("content", "changes", "message"),
    [
        (None, {}, "no such file"),
        ("", {}, "holds no problems"),
        ("\n\n", {}, "holds no problems"),
        (GOOD, {}, "1 problem"),
        (GOOD + "{broken\n", {}, "line 2: no valid JSON"),
        (GOOD + "[1]\n", {}, "line 2: must be a JSON object"),
        (GOOD + GOOD, {}, "row 2: problem_id .* is that of row 1"),
        (GOOD + '{"problem": "q", "answer": ""}', {}, "row 2: the answer is empty"),
        (GOOD + json.dumps({"problem": "q", "solution": "No box. " * 30}), {}, "row 2: the answer has 239 characters"),
        (GOOD + '{"problem": "q", "answer": null}', {}, "row 2: the answer is empty"),
        (GOOD + '{"problem": "q", "reward_model": {}}', {}, "row 2: the answer is empty"),
        (GOOD + '{"problem": "q"}', {}, "row 2: no column answer or .*answer_column"),
        (GOOD + '{"answer": "q"}', {}, "row 2: no column problem or .*problem_column"),
        (GOOD + '{"problem": " ", "answer": "1"}', {}, "row 2: the problem must be text"),
        (GOOD + '{"problem": 7, "answer": "1"}', {}, "row 2: the problem must be text.*7"),
        (GOOD + '{"problem": [{"role": "user"}], "answer": "1"}', {}, "row 2: the problem must be text or chat"),
        (GOOD, {"answer_column": "gold"}, "no column 'gold' among .*domain.answer_column"),
        (GOOD, {"problem_column": "text"}, "no column 'text' among .*domain.problem_column"),
        (GOOD, {"id_column": "key"}, "row 1: the id is empty, column 'key'"),
        (b"\xff\xfe", {}, "cannot be read"),
    ],
)
def test_files_that_cannot_be_used_are_named(tmp_path, content, changes, message):
    path = tmp_path / "problems.jsonl"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message) as raised:
        Maths(path=str(path), **changes).problems("train")
    assert not isinstance(raised.value, UnicodeDecodeError)


def test_a_broken_parquet_file_is_named(tmp_path):
    (tmp_path / "p.parquet").write_text("no")
    with pytest.raises(ValueError, match=r"p\.parquet.*no valid Parquet"):
        Maths(path=str(tmp_path / "p.parquet")).problems("train")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"template": "no place"}, "template must contain"),
        ({"template": "{problem} {problem}"}, "template must contain"),
        ({"heldout_fraction": 1.0}, "heldout_fraction"),
        ({"num_workers": 0}, "num_workers"),
        ({"timeout_s": 0}, "timeout_s"),
    ],
)
def test_bad_settings_are_named(changes, message):
    with pytest.raises(ValidationError, match=message):
        Maths(path="x", **changes)
    with pytest.raises(ValidationError, match="path"):
        Maths()


def test_real_gold_solutions_are_right(real_data):
    for name, column in (("gsm8k", "answer"), ("math500", "solution")):
        path = real_data / name / "test.jsonl"
        rows = [json.loads(line) for line in path.read_text().split("\n") if line]
        domain = Maths(path=str(path))
        problems = {p.problem_id: p for s in ("train", "heldout") for p in domain.problems(s)}
        by_text = {str(p.prompt).removesuffix(domain.template.removeprefix("{problem}")): p for p in problems.values()}
        assert len(problems) == len(rows)
        chosen = rows[:: max(1, len(rows) // 100)]
        asked = [by_text[row.get("problem") or row["question"]] for row in chosen]
        verdicts = domain.verify_batch(asked, [row[column] for row in chosen])
        assert [r[column] for r, v in zip(chosen, verdicts, strict=True) if v.reward != 1.0] == []
        shifted = domain.verify_batch(asked[1:] + asked[:1], [row[column] for row in chosen])
        assert sum(v.reward for v in shifted) < 0.1 * len(chosen)


def test_real_responses_are_graded_as_published(real_data):
    rows = pq.read_table(real_data / "qwen_math_100x8" / "rollouts.parquet").to_pylist()
    verdicts = DOMAIN.verify_batch([problem(row["gold_answer"]) for row in rows], [row["response"] for row in rows])
    different = {
        (r["gold_answer"], v.parsed_answer) for r, v in zip(rows, verdicts, strict=True) if v.reward != r["reward"]
    }
    right = {("10{,}000", "10000"), (r"\text{4:30 p.m.}", r"4:30 \text{ p.m.}")}
    assert different == right, "published as wrong, but right"


def test_real_files_load_without_edits(real_data):
    for name, count in (("amc23", 40), ("hmmt_feb_2025", 29), ("aime24", 30), ("aime25", 30)):
        domain = Maths(path=str(real_data / name / "test.jsonl"))
        problems = [*domain.problems("train"), *domain.problems("heldout")]
        assert len({p.problem_id for p in problems} - {""}) == count
    table = pq.read_table(real_data / "deepscaler_sub1209" / "dsr_sub.parquet")
    with pytest.raises(ValueError, match="row 266: the answer is empty"):
        Maths(path=str(real_data / "deepscaler_sub1209" / "dsr_sub.parquet")).problems("train")
    dropping = Maths(path=str(real_data / "deepscaler_sub1209" / "dsr_sub.parquet"), unusable="drop")
    assert len(dropping.problems("train")) + len(dropping.problems("heldout")) == 1208
    assert table.num_rows == 1209


def test_verls_real_layout(real_data, tmp_path):
    rows = pq.read_table(real_data / "deepscaler_sub1209" / "dsr_sub.parquet").to_pylist()
    kept = [row for row in rows if row["reward_model"]["ground_truth"]]
    pq.write_table(pa.Table.from_pylist(kept), tmp_path / "kept.parquet")
    domain = Maths(path=str(tmp_path / "kept.parquet"))
    problems = [*domain.problems("train"), *domain.problems("heldout")]
    assert len({p.problem_id for p in problems}) == len(kept) == 1208
    assert problems[0].prompt[0]["role"] == "user"
