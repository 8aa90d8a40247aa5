"""Rollouts that others made: their formats, what is wrong with them, and that the same files give the same run."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.views.compare import compare
from flows.views.export import export_run
from polyepo import metrics
from polyepo.config import ConfigError
from polyepo.domains import Countdown, Maths, Ungraded
from polyepo.imports import BadRow, Columns, read_responses
from polyepo.judges import AnswerJudge, ProgramJudge
from polyepo.scoring import SetScoring, scoring_id
from storage import connect, open_store, rows
from storage.verify import verify_run
from tasks.runs.choices import choose_scoring
from tasks.runs.imports import import_rollouts
from tasks.runs.labels import commit_labels
from tasks.runs.run import open_run
from tasks.runs.scores import commit_scores

MATHS = Maths(path="file")
NONE = Columns()


def lines(path, *records):
    path.write_text("".join(f"{record if isinstance(record, str) else json.dumps(record)}\n" for record in records))
    return path


def take(root, *files, form="auto", columns=NONE, domain=MATHS, name="run", strict=False):
    return import_rollouts(str(root), list(files), form, columns, domain, name, strict)


def verl(question, output, score, step=1):
    return {"input": question, "output": output, "gts": "4", "score": score, "step": step, "acc": score}


def test_verl_dumps(tmp_path):
    """`trainer.rollout_data_dir` writes one JSONL per step, one line per response."""
    first = lines(tmp_path / "1.jsonl", verl("2+2?", "\\boxed{4}", 1.0), verl("2+2?", "\\boxed{5}", 0.0))
    second = lines(tmp_path / "2.jsonl", verl("2+2?", "\\boxed{4}", 1.0, step=2))
    for form in ("verl", "auto"):
        found = take(tmp_path / form, first, second, form=form)
        assert (found.num_responses, found.num_problems, found.steps, found.bad) == (3, 1, [1, 2], [])
        stored = rows(connect(str(tmp_path / form)), "FROM rollouts ORDER BY step, sample")
        assert [(row["step"], row["sample"], row["response"]) for row in stored] == [
            (1, 0, "\\boxed{4}"), (1, 1, "\\boxed{5}"), (2, 0, "\\boxed{4}"),
        ]  # fmt: skip
        assert {row["seed"] for row in stored} == {None}, "what the source does not say is not made up"


def test_trl_completion_tables(tmp_path):
    """`log_completions` writes prompts, completions, a column per reward function, and advantages."""
    chat = [[{"role": "user", "content": "2+2?"}]] * 2
    table = pa.table(
        {
            "step": [3, 3],
            "prompt": chat,
            "completion": [[{"role": "assistant", "content": text}] for text in ("four", "five")],
            "accuracy_reward": [1.0, 0.0],
            "format_reward": [0.5, 0.5],
            "advantage": [0.7, -0.7],
        }
    )
    path = tmp_path / "completions_00003.parquet"
    pq.write_table(table, path)
    found = take(tmp_path / "root", path, domain=Ungraded())
    assert (found.steps, found.num_graded, found.bad) == ([3], 2, [])
    stored = rows(connect(str(tmp_path / "root")), "FROM scores ORDER BY sample")
    assert [(row["reward"], row["advantage"]) for row in stored] == [(1.5, 0.7), (0.5, -0.7)]
    assert (
        rows(connect(str(tmp_path / "root")), "SELECT response FROM rollouts WHERE sample = 1")[0]["response"] == "five"
    )


def test_trl_reward_functions_that_do_not_apply(tmp_path):
    """A reward function says None for a response that it is not for; TRL logs NaN, and adds up the others."""
    nan = math.nan
    table = pa.table(
        {
            "step": [1, 1, 1],
            "prompt": ["q"] * 3,
            "completion": ["a", "b", "c"],
            "maths_reward": [1.0, nan, nan],
            "code_reward": [0.5, 0.25, nan],
            "logged_length": [10, 20, 30],
            "advantage": [0.7, -0.7, 0.0],
        }
    )
    path = tmp_path / "completions_00001.parquet"
    pq.write_table(table, path)
    columns = Columns.parse(["reward=maths_reward", "reward=code_reward"])
    assert [row.reward for row in read_responses(path, "auto", columns)] == [1.5, 0.25, None]
    found = take(tmp_path / "root", path, columns=columns, domain=Ungraded())
    assert (found.num_responses, found.num_graded, found.bad) == (3, 2, [])


def test_chat_messages_without_text(tmp_path):
    """A message that only calls a tool has no content: that is no text, and not the text "None"."""
    ask = [{"role": "user", "content": [{"type": "text", "text": "2+"}, {"type": "text", "text": "2?"}]}]
    call = [{"role": "assistant", "content": None, "tool_calls": []}, {"role": "assistant", "content": "four"}]
    image = [{"role": "user", "content": [{"type": "image"}]}]
    path = lines(tmp_path / "x.jsonl", {"prompt": ask, "response": call}, {"prompt": image, "response": "x"})
    good, bad = read_responses(path, "auto", NONE)
    assert (good.prompt, good.response) == ([{"role": "user", "content": "2+2?"}], "four")
    assert isinstance(bad, BadRow)
    assert "content must be text" in bad.reason


def test_fields_that_the_files_do_not_have(tmp_path):
    """verl's ground truth may be an object; ids may be unique within a competition only."""
    truth = {"target": ["a", "b"]}
    rows = [{**verl(question, "o", 1.0), "gts": truth, "problem_id": 1} for question in ("q", "p")]
    path = lines(tmp_path / "x.jsonl", *rows)
    found = take(tmp_path / "root", path, columns=Columns.parse(["answer="]), domain=Ungraded())
    assert [bad.row for bad in found.bad] == [2]
    assert "--map id=" in found.bad[0].reason
    columns = Columns.parse(["answer=", "id=", "reward="])
    found = take(tmp_path / "hashed", path, columns=columns, domain=Ungraded())
    assert (found.num_problems, found.num_graded, found.bad) == (2, 0, [])


def test_numbers_from_columns_with_gaps(tmp_path):
    """pandas turns whole numbers into floats where a value is missing."""
    path = tmp_path / "x.parquet"
    names = {"problem": ["p", "q"], "response": ["r", "s"], "answer": [4.0, 0.5], "step": [3.0, None]}
    pq.write_table(pa.table({**names, "problem_id": [7.0, None]}), path)
    found = list(read_responses(path, "auto", NONE))
    assert [(r.answer, r.step, r.problem_id) for r in found] == [("4", 3, "7"), ("0.5", 1, None)]


def test_strings_that_are_no_text_in_parquet(tmp_path):
    texts = pa.array([b"fine", b"\xff", b"good"], pa.binary())
    responses = pa.Array.from_buffers(pa.string(), 3, texts.buffers())
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"question": ["q"] * 3, "answer": ["1"] * 3, "response": responses}), path)
    found = take(tmp_path / "root", path)
    assert found.num_responses == 2
    assert [(bad.row, "UTF-8" in bad.reason) for bad in found.bad] == [(2, True)]


def test_lists_and_nested_columns(tmp_path):
    path = lines(
        tmp_path / "x.jsonl",
        {"q": "2+2?", "gold": 4.0, "a": {"text": "\\boxed{4}", "ok": True}, "b": {"text": "no", "ok": False}},
    )
    columns = Columns.parse(
        ["problem=q", "answer=gold", "response=a.text", "response=b.text", "reward=a.ok", "reward=b.ok"]
    )
    found = list(read_responses(path, "generic", columns))
    assert [(r.response, r.reward, r.answer) for r in found] == [("\\boxed{4}", 1.0, "4"), ("no", 0.0, "4")]
    listed = lines(tmp_path / "y.jsonl", {"question": "2+2?", "answer": "4", "responses": ["a", "b"], "score": [1, 0]})
    assert [(r.response, r.reward) for r in read_responses(listed, "auto", NONE)] == [("a", 1.0), ("b", 0.0)]
    numbered = {"problem": "q", "solutions": {"1": "first", "2": "second"}, "infos": [{"r": 1}, {"r": 0}]}
    path = lines(tmp_path / "z.jsonl", numbered)
    columns = Columns.parse(["response=solutions", "reward=infos.r"])
    assert [(r.response, r.reward) for r in read_responses(path, "auto", columns)] == [("first", 1.0), ("second", 0.0)]
    for wrong in (["problem"], ["nothing=x"], ["problem="], ["response=a", "response=b", "reward=c"]):
        with pytest.raises(ValueError, match="--map"):
            Columns.parse(wrong)


ASK = {"role": "user", "content": "2+2?"}
CALL = {"type": "function_call", "name": "add", "arguments": "{}", "call_id": "c"}
RESULT = {"type": "function_call_output", "call_id": "c", "output": "prints \\boxed{9}"}
THOUGHT = {"type": "reasoning", "id": "r", "summary": [], "content": [{"type": "reasoning_text", "text": "\\boxed{8}"}]}


def says(text, role="assistant"):
    return {"role": role, "content": text}


def item(*texts):
    parts = [{"type": "output_text", "text": text, "annotations": []} for text in texts]
    return {"type": "message", "id": "m", "role": "assistant", "content": parts}


@pytest.mark.parametrize(
    ("completion", "response"),
    [
        ([says("four")], "four"),
        (says("four"), "four"),
        ([says("four", "model")], "four"),
        ([says(""), says("prints 9", "tool"), says("four")], "four"),
        ([says("let me see"), says("prints 9", "tool"), says("four")], "let me see\nfour"),
        ([{"role": "assistant", "tool_calls": []}, says("prints 9", "function"), says("four")], "four"),
        ([ASK, says("four")], "four"),
        ([says("Be brief.", "system"), says("Be brief.", "developer"), ASK, says("four")], "four"),
        ([says("five"), says("Are you sure?", "user"), says("four")], "five\nfour"),
        ([says([{"type": "thinking", "thinking": "9"}, {"type": "text", "text": "four"}])], "four"),
        ([says([{"type": "text", "text": "fo"}, {"type": "text", "text": "ur"}, {"type": "tool_use"}])], "four"),
        ([{"type": "text", "text": "fo"}, {"type": "text", "text": "ur"}], "four"),
        ([THOUGHT, item("fo", "ur")], "four"),
        ([THOUGHT, item("let me see"), CALL, RESULT, THOUGHT, item("four")], "let me see\nfour"),
        ({"id": "resp", "output": [THOUGHT, item("four")]}, "four"),
        ([THOUGHT, CALL], ""),
        ([[says("four")]], "four"),
    ],
)
def test_only_what_the_assistant_says_is_the_response(tmp_path, completion, response):
    path = lines(tmp_path / "x.jsonl", {"prompt": [ASK], "completion": completion, "answer": "4", "reward": [1.0]})
    (found,) = read_responses(path, "auto", NONE)
    assert (found.response, found.reward, found.prompt) == (response, 1.0, [ASK])


@pytest.mark.parametrize(
    ("completion", "said"),
    [
        ([ASK], "no turn is the assistant's, only user"),
        ([says("prints 9", "tool"), ASK], "only tool, user"),
        ([RESULT], "only tool"),
        ([says([{"type": "image"}])], "content must be text"),
        (None, "is None"),
        ({"text": "four", "finish_reason": "stop"}, "must be text"),
    ],
)
def test_completions_that_nobody_said(tmp_path, completion, said):
    path = lines(tmp_path / "x.jsonl", {"prompt": [ASK], "completion": completion})
    (found,) = read_responses(path, "auto", NONE)
    assert isinstance(found, BadRow)
    assert said in found.reason


@pytest.mark.parametrize(
    "column", ["response.output", "response.output.content", "response.output.content.text", "response"]
)
def test_replies_of_the_responses_api(tmp_path, column):
    """As NeMo Gym stores them; no column need be named."""
    record = {
        "responses_create_params": {"input": [{**ASK, "type": "message"}]},
        "response": {"id": "r", "output": [THOUGHT, item("So"), CALL, RESULT, item("four")]},
        "reward": 1.0,
        "expected_answer": "4",
    }
    path = lines(tmp_path / "x.jsonl", record)
    for columns in (NONE, Columns.parse(["problem=responses_create_params.input", f"response={column}"])):
        (found,) = read_responses(path, "auto", columns)
        assert (found.prompt, found.response, found.answer, found.reward) == ([ASK], "So\nfour", "4", 1.0)
    text = lines(tmp_path / "y.jsonl", {**record, "responses_create_params": {"input": "2+2?"}})
    assert [row.prompt for row in read_responses(text, "auto", NONE)] == ["2+2?"]


def test_whole_conversations(tmp_path):
    """The response is what the assistant says after the last turn of the user's; what comes before is the prompt."""
    shots = [says("Be brief.", "system"), says("1+1?", "user"), says("two"), ASK]
    path = lines(
        tmp_path / "x.jsonl",
        {"messages": [*shots, says("four")], "answer": "4", "score": 1},
        {"messages": [ASK, says("let me see"), says("prints 9", "tool"), says("four")], "question": "2+2?"},
        {"messages": [ASK], "response": "four"},
        {"messages": [ASK]},
    )
    *good, bad = read_responses(path, "auto", NONE)
    assert [(row.prompt, row.response) for row in good] == [
        (shots, "four"), ([ASK], "let me see\nfour"), ([ASK], "four"),
    ]  # fmt: skip
    assert "the list of responses is empty" in bad.reason
    columns = Columns.parse(["problem=chat", "response=chat"])
    named = lines(tmp_path / "y.jsonl", {"chat": [*shots, says("four")]})
    assert [(row.prompt, row.response) for row in read_responses(named, "auto", columns)] == [(shots, "four")]


@pytest.mark.parametrize(
    ("resps", "rewards", "expected"),
    [
        ([["a", "b"]], None, [("a", None), ("b", None)]),
        ([["a"], ["b"]], [[1], [0]], [("a", 1.0), ("b", 0.0)]),
        ([["a"], ["b"]], [1, 0], [("a", 1.0), ("b", 0.0)]),
        ([["a", "b"]], [[True, False]], [("a", 1.0), ("b", 0.0)]),
        ([["a"]], [True], [("a", 1.0)]),
        (["a"], [[0.5]], [("a", 0.5)]),
        ("a", [[1]], [("a", 1.0)]),
        ("a", [None], [("a", None)]),
        (["a", "b"], [None, 1], [("a", None), ("b", 1.0)]),
        (["a", "b"], None, [("a", None), ("b", None)]),
        ([[says("a")], [says("b")]], [1, 0], [("a", 1.0), ("b", 0.0)]),
    ],
)
def test_lists_in_lists_and_lists_of_one(tmp_path, resps, rewards, expected):
    row = {"doc_id": 0, "doc": {"question": "q"}, "target": ["4"], "resps": resps, "reward": rewards, "step": [2]}
    for name in ("resps", "filtered_resps"):
        path = lines(tmp_path / "x.jsonl", {name if column == "resps" else column: v for column, v in row.items()})
        found = list(read_responses(path, "auto", NONE))
        assert [(r.response, r.reward) for r in found] == expected
        assert {(r.prompt, r.answer, r.step) for r in found} == {("q", "4", 2)}


def test_numbers_that_do_not_belong_to_the_responses(tmp_path):
    rows = [
        {"question": "q", "resps": [["a", "b"]], "reward": 1},
        {"question": "q", "response": "a", "reward": [1, 0]},
        {"question": "q", "responses": ["a", "b"], "advantage": [0.5]},
        {"question": "q", "responses": ["a", "b"], "advantage": [0.5, -0.5]},
    ]
    path = lines(tmp_path / "x.jsonl", *rows)
    one, two, three, *good = read_responses(path, "auto", NONE)
    assert "2 responses but 1 rewards; --map reward= leaves them out" in one.reason
    assert "1 responses but 2 rewards" in two.reason
    assert "2 responses but 1 advantages; --map advantage= leaves them out" in three.reason
    assert [row.advantage for row in good] == [0.5, -0.5]
    remedied = list(read_responses(path, "auto", Columns.parse(["reward=", "advantage="])))
    assert [(row.response, row.reward) for row in remedied] == [(r, None) for r in "abaabab"]
    both = lines(tmp_path / "y.jsonl", {"question": "q", "responses": ["a", "b"], "r": [1, 0], "s": [0.5, 0.25]})
    found = list(read_responses(both, "auto", Columns.parse(["reward=r", "reward=s"])))
    assert [row.reward for row in found] == [1.5, 0.25]
    each = lines(tmp_path / "z.jsonl", {"question": "q", "a": "x", "b": "y", "r": None, "s": [1]})
    columns = Columns.parse(["response=a", "response=b", "reward=r", "reward=s"])
    assert [row.reward for row in read_responses(each, "auto", columns)] == [None, 1.0]


def test_responses_that_lm_eval_writes_once_for_each_filter(tmp_path):
    row = {"doc": {"question": "q"}, "resps": [["a"]], "target": "4"}
    rows = [{**row, "doc_id": i, "filter": name} for name in ("strict-match", "flexible-extract") for i in range(2)]
    found = list(read_responses(lines(tmp_path / "x.jsonl", *rows), "auto", NONE))
    assert [isinstance(row, BadRow) for row in found] == [False, False, True, True]
    assert "under filter 'strict-match' already" in found[2].reason


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ([r"$\frac{1}{2}$"], r"$\frac{1}{2}$"),
        ([r"$\frac{1}{2}$", "3"], r"\frac{1}{2}, 3"),
        ([1, 2.5], "1, 2.5"),
        (1e-5, "0.00001"),
        (1e22, "1" + "0" * 22),
        ("work\n#### 18", "18"),
    ],
)
def test_answers_are_read_as_those_of_data_sets(tmp_path, answer, reference):
    path = lines(tmp_path / "x.jsonl", {"question": "q", "answer": answer, "response": "r"})
    take(tmp_path / "root", path)
    assert rows(connect(str(tmp_path / "root")), "FROM problems")[0]["answer"] == reference


def test_answers_that_no_verifier_can_use(tmp_path):
    path = lines(tmp_path / "x.jsonl", {"question": "q", "answer": "proof", "response": "r", "reward": 1})
    with pytest.raises(ConfigError, match=r"'proof' is a placeholder; --domain ungraded"):
        take(tmp_path / "root", path)
    assert take(tmp_path / "root", path, domain=Ungraded()).num_graded == 1


def test_lists_that_are_too_deep(tmp_path):
    deep = "[" * 600 + '"a"' + "]" * 600
    path = lines(tmp_path / "x.jsonl", f'{{"question": "q", "response": {deep}}}')
    (found,) = read_responses(path, "auto", NONE)
    assert found.response == "a" if not isinstance(found, BadRow) else "deep" in found.reason


MALFORMED = [
    ("{", "JSON"),
    ("[1]", "object"),
    ('{"question": "q"}', "response"),
    ('{"question": 5, "response": "x"}', "problem"),
    ('{"question": "q", "response": 5}', "text"),
    ('{"question": "q", "response": "x", "reward": NaN}', "finite"),
    ('{"question": "q", "response": "x", "reward": "good"}', "finite"),
    ('{"question": "q", "response": ["x", "y"], "reward": [1]}', "2 responses but 1"),
    ('{"question": "q", "response": []}', "empty"),
    ('{"question": "q", "response": "\\ud800"}', "surrogate"),
    ('{"question": "q", "response": "x", "answer": {"a": 1}}', "answer"),
    ('{"question": "q", "response": "x", "answer": NaN}', "answer"),
    ('{"question": "q", "response": "x", "step": -1}', "step"),
    ('{"question": "q", "response": "x", "step": 2147483648}', "step"),
    ('{"question": "q", "response": "x", "step": true}', "step"),
    (f'{{"question": "q", "response": "x", "reward": 1{"0" * 400}}}', "finite"),
    (f'{{"question": "q", "response": "x", "reward": 1{"0" * 5000}}}', "JSON"),
    ('{"question": "q", "response": "x", "problem_id": {"a": 1}}', "id"),
]


def test_malformed_rows_are_listed_with_their_lines(tmp_path):
    good = {"question": "q", "answer": "1", "response": "\\boxed{1}", "reward": 1}
    path = lines(tmp_path / "x.jsonl", good, *(text for text, _ in MALFORMED))
    with path.open("ab") as file:
        file.write(b'{"question": "\xff"}\n' + b"\x00\n\n")
    found = take(tmp_path / "root", path)
    assert found.num_responses == 1
    assert [bad.row for bad in found.bad] == list(range(2, len(MALFORMED) + 4))
    for bad, (_, said) in zip(found.bad, MALFORMED, strict=False):
        assert said in bad.reason, bad
    with pytest.raises(ConfigError, match=rf"{len(found.bad)} malformed rows, the first x\.jsonl, row 2"):
        take(tmp_path / "strict", path, strict=True)
    assert not open_store(str(tmp_path / "strict")).runs()


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_rows_or_reasons(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("bytes") / "x.jsonl"
    path.write_bytes(data)
    if any(line.strip() for line in data.split(b"\n")):
        assert all(isinstance(row, BadRow) for row in read_responses(path, "auto", NONE))
    else:
        with pytest.raises(ValueError, match="no rows"):
            list(read_responses(path, "auto", NONE))


def test_files_that_cannot_be_read_at_all(tmp_path):
    for name, content, said in [
        ("x.jsonl", b"", "no rows"), ("x.parquet", b"PAR1", "Parquet"), ("x.json", b"{}", "list"),
        ("deep.json", b"[" * 100_000, "JSON"),
    ]:  # fmt: skip
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=said):
            take(tmp_path / "root", path)
    with pytest.raises(ConfigError, match="cannot be read"):
        take(tmp_path / "root", tmp_path / "missing.jsonl")


def contents(root):
    return {path.relative_to(root): path.read_bytes() for path in Path(root).rglob("*") if path.is_file()}


def test_the_same_files_are_the_same_run(tmp_path):
    path = lines(tmp_path / "x.jsonl", {"question": "q", "answer": "1", "response": "\\boxed{1}", "reward": 1})
    root = tmp_path / "root"
    assert not take(root, path).existed
    before = contents(root)
    assert take(root, path).existed
    assert contents(root) == before
    other = lines(tmp_path / "y.jsonl", {"question": "q", "answer": "1", "response": "two", "reward": 0})
    with pytest.raises(ConfigError, match="other content"):
        take(root, other)
    assert contents(root) == before
    first, second = take(root, path, name=None).run, take(root, other, name=None).run
    assert first != second


@pytest.mark.parametrize("name", ["a..b.jsonl", "数据.jsonl", "_x-.jsonl", f"{'n' * 200}.jsonl"])
def test_any_file_name_makes_a_run_name(tmp_path, name):
    path = lines(tmp_path / name, {"question": "q", "answer": "1", "response": "r"})
    run = take(tmp_path / "root", path, name=None).run
    assert open_store(str(tmp_path / "root")).runs() == [run]


def test_a_run_that_takes_the_name_meanwhile_is_no_import(tmp_path, monkeypatch):
    path = lines(tmp_path / "x.jsonl", {"question": "q", "answer": "1", "response": "r"})
    store = open_store(str(tmp_path / "root"))
    original = type(store).create_run

    def create_second(self, run, record):
        original(self, run, {"config": {}})
        return original(self, run, record)

    monkeypatch.setattr(type(store), "create_run", create_second)
    with pytest.raises(ConfigError, match="meanwhile"):
        take(tmp_path / "root", path)


@pytest.mark.slow
def test_an_import_killed_at_random_is_invisible_and_then_whole(tmp_path):
    path = tmp_path / "x.jsonl"
    records = [
        {"question": f"q{i % 7}", "answer": "1", "response": f"\\boxed{{{i}}}", "reward": i % 2, "step": i // 20}
        for i in range(400)
    ]
    lines(path, *records)
    root = tmp_path / "root"
    code = (
        "from pathlib import Path; from polyepo.domains import Maths; from polyepo.imports import Columns;"
        "from tasks.runs.imports import import_rollouts;"
        f"import_rollouts({str(root)!r}, [Path({str(path)!r})], 'auto', Columns(), Maths(path='file'), 'run', False)"
    )
    generator = random.Random(0)
    for _ in range(6):
        before = len(list(root.rglob("manifest.json")))
        process = subprocess.Popen([sys.executable, "-c", code])
        wanted = before + generator.choice([0, 1, 3, 6])
        while len(list(root.rglob("manifest.json"))) < wanted and process.poll() is None:
            time.sleep(0.002)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            assert open_store(str(root)).runs() == []
    assert take(root, path).num_responses == 400
    again = tmp_path / "again"
    take(again, path)
    for sql in ("FROM rollouts ORDER BY ALL", "FROM scores ORDER BY ALL", "FROM problems ORDER BY ALL"):
        assert rows(connect(str(root)), sql) == rows(connect(str(again)), sql)


def test_groups_of_any_size_are_scored(tmp_path):
    """A group's advantages are those it would have alone."""
    groups = {"a": [1, 0, 1, 0, 1], "b": [1, 0], "c": [0, 0, 1, 0, 1], "d": [1]}
    records = [
        {"question": name, "answer": "1", "response": f"\\boxed{{{1 if reward else 2 + i}}}", "reward": reward}
        for name, rewards in groups.items()
        for i, reward in enumerate(rewards)
    ]
    take(tmp_path / "root", lines(tmp_path / "x.jsonl", *records))
    run = open_run(str(tmp_path / "root"), "run")
    judge, scoring = AnswerJudge(), SetScoring(set_size=2)
    commit_labels(run, judge, 1, 0)
    scores = run.store.read_table(commit_scores(run, scoring, judge, 1)).to_pylist()
    from polyepo.advantages import marginal_set_advantages

    ids = {row["prompt"]: row["problem_id"] for row in rows(connect(str(tmp_path / "root")), "FROM problems")}
    for name, rewards in groups.items():
        mine = [row for row in scores if row["problem_id"] == ids[name]]
        assert [row["reward"] for row in mine] == rewards
        clusters = [row["cluster"] for row in mine]
        expected = marginal_set_advantages(rewards, clusters, 2) if len(rewards) >= 2 else [0.0]
        assert [row["advantage"] for row in mine] == pytest.approx(list(expected))


def test_nobody_makes_up_how_likely_responses_were(tmp_path):
    records = [{"prompt": "write", "response": text, "score": 1.0} for text in "ab"]
    take(tmp_path / "root", lines(tmp_path / "x.jsonl", *records), domain=Ungraded())
    run = open_run(str(tmp_path / "root"), "run")
    commit_labels(run, ProgramJudge(), 1, 0)
    unlikeliness = choose_scoring(run, {"method": "unlikeliness"}, None, None)
    with pytest.raises(ConfigError, match=r"step 1: scoring\.method 'unlikeliness' .* take another scoring"):
        commit_scores(run, unlikeliness, ProgramJudge(), 1)
    commit_scores(run, choose_scoring(run, {"method": "dsdr"}, None, None), ProgramJudge(), 1)


def test_rewards_of_a_foreign_verifier_are_kept(tmp_path):
    records = [
        {"prompt": "write", "response": text, "score": score} for text, score in (("a", 0.3), ("b", 0.9), ("a", 0.1))
    ]
    take(tmp_path / "root", lines(tmp_path / "x.jsonl", *records), domain=Ungraded())
    run = open_run(str(tmp_path / "root"), "run")
    judge = ProgramJudge()
    commit_labels(run, judge, 1, 0)
    scores = run.store.read_table(commit_scores(run, SetScoring(set_size=2), judge, 1)).to_pylist()
    assert [row["reward"] for row in scores] == [0.3, 0.9, 0.1]
    assert [row["cluster"] for row in scores] == [0, 1, 0]


@pytest.mark.parametrize("rewards", [[1.0, None, 0.5], [None] * 3])
def test_no_reward_is_made_up_for_responses_that_came_without(tmp_path, rewards):
    records = [{"prompt": "write", "response": text, "score": r} for text, r in zip("abc", rewards, strict=True)]
    path = lines(tmp_path / "x.jsonl", *records)
    take(tmp_path / "root", path, domain=Ungraded())
    run = open_run(str(tmp_path / "root"), "run")
    commit_labels(run, ProgramJudge(), 1, 0)
    missing = rewards.count(None)
    with pytest.raises(ConfigError, match=rf"step 1: {missing} of 3 responses .* without a reward.*verifier"):
        commit_scores(run, SetScoring(set_size=2), ProgramJudge(), 1)
    assert sum(row["reward"] is not None for row in rows(connect(str(tmp_path / "root")), "FROM scores")) == 3 - missing


def test_export_of_some_steps(tmp_path):
    records = [{"question": "q", "answer": "1", "response": f"r{i}", "reward": 1, "step": i % 4} for i in range(12)]
    take(tmp_path / "root", lines(tmp_path / "x.jsonl", *records))
    root, folder = str(tmp_path / "root"), tmp_path / "out" / "export"
    with pytest.raises(ConfigError, match=r"steps \[7\] .* it has 0 to 3"):
        export_run(root, "run", folder, "parquet", None, [1, 7])
    assert export_run(root, "run", folder, "parquet", None, [3, 1, 3]) == 6
    table = pq.read_table(folder / "data")
    assert table["step"].to_pylist() == [1] * 3 + [3] * 3
    front, card = (folder / "README.md").read_text().split("---\n")[1:]
    assert yaml.safe_load(front)["configs"] == [{"config_name": "default", "data_files": "data/rollouts.parquet"}]
    assert "6 responses" in card


def test_an_export_that_fails_leaves_nothing(tmp_path, monkeypatch):
    records = [{"question": "q", "answer": "1", "response": f"r{i}", "step": i} for i in range(3)]
    take(tmp_path / "root", lines(tmp_path / "x.jsonl", *records))
    folder = tmp_path / "out" / "export"
    with monkeypatch.context() as patch:
        patch.setattr(pq.ParquetWriter, "write_table", lambda *_: (_ for _ in ()).throw(OSError("full")))
        with pytest.raises(OSError, match="full"):
            export_run(str(tmp_path / "root"), "run", folder, "parquet", None)
    assert list((tmp_path / "out").iterdir()) == []
    assert export_run(str(tmp_path / "root"), "run", folder, "parquet", None) == 3


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_export_and_import_again(tmp_path, form):
    records = [
        {"question": f"q{i % 3}", "answer": "1", "response": f"\\boxed{{{i}}} é\n\u2028", "reward": i % 2}
        for i in range(12)
    ]
    take(tmp_path / "root", lines(tmp_path / "x.jsonl", *records))
    folder = tmp_path / "export"
    assert export_run(str(tmp_path / "root"), "run", folder, form, None) == 12
    with pytest.raises(ConfigError, match="exists already"):
        export_run(str(tmp_path / "root"), "run", folder, form, None)
    again = take(tmp_path / "again", folder / "data" / f"rollouts.{form}")
    assert again.bad == []
    sql = (
        "SELECT problem_id, sample, response, reward FROM rollouts JOIN scores USING (problem_id, sample) ORDER BY ALL"
    )
    assert rows(connect(str(tmp_path / "again")), sql) == rows(connect(str(tmp_path / "root")), sql)
    if form == "parquet":
        datasets = pytest.importorskip("datasets", reason="Hugging Face datasets is not installed")
        assert len(datasets.load_dataset(str(folder))["train"]) == 12


def test_real_maths_rollouts(tmp_path, real_data):
    """pass@k by SQL, from the rewards of the source and from our own verifier, against binomials computed here."""
    source = real_data / "qwen_math_100x8" / "rollouts.parquet"
    found = take(tmp_path, source)
    assert (found.num_problems, found.num_responses, found.bad) == (100, 800, [])
    original = pq.read_table(source).to_pylist()
    correct = {}
    for row in original:
        correct.setdefault(row["problem_id"], []).append(row["reward"])
    for k in (1, 4, 8):
        chances = [1 - math.comb(8 - int(sum(c)), k) / math.comb(8, k) for c in correct.values()]
        by_sql = rows(connect(str(tmp_path)), "FROM pass_at_k($k)", k=k)[0]
        assert by_sql["pass_at_k"] == pytest.approx(sum(chances) / 100)
    run = open_run(str(tmp_path), "run")
    scoring, judge = SetScoring(set_size=4), AnswerJudge()
    commit_labels(run, judge, 1, 0)
    commit_scores(run, scoring, judge, 1)
    changed = rows(connect(str(tmp_path)), "FROM regraded('imported', $id)", id=scoring_id(scoring, judge))
    # The source's grades are wrong there: 4:30 p.m. in another notation, and 10000 for 10{,}000.
    assert {(row["problem_id"], row["reward_b"]) for row in changed} == {("math-test-3", 1.0), ("math-test-72", 1.0)}
    assert list(verify_run(run.store, "run")) == []


def test_real_game_of_24_rollouts_with_two_judges(tmp_path, real_data):
    source = real_data / "game24_gpt4_100x100" / "rollouts.parquet"
    domain = Countdown(path="24.csv", target=24, operators="+-*/")
    found = take(tmp_path, source, domain=domain)
    assert (found.num_problems, found.num_responses, found.bad) == (100, 10_000, [])
    run = open_run(str(tmp_path), "run")
    for judge in (ProgramJudge(), AnswerJudge()):
        commit_labels(run, judge, 1, 0)
        commit_scores(run, SetScoring(set_size=4), judge, 1)
    comparison = compare(str(tmp_path), "run", ("program", None), ("answer", None))
    assert comparison.labels["prompts"] == 100
    # Both go by the expression's normal form here.
    assert comparison.labels["ari"] == pytest.approx(1.0)
    original = {(row["problem_id"], row["sample_index"]): row for row in pq.read_table(source).to_pylist()}
    correct = [
        sum(original[problem, i]["reward"] for i in range(100)) for problem in sorted({key[0] for key in original})
    ]
    for k in (1, 10, 100):
        expected = sum(metrics.pass_at_k(100, int(c), k) for c in correct) / 100
        by_sql = rows(connect(str(tmp_path)), "FROM pass_at_k($k) WHERE scoring = 'imported'", k=k)[0]["pass_at_k"]
        assert by_sql == pytest.approx(expected, abs=1e-9)


def test_real_answers_of_four_systems(tmp_path, real_data):
    systems = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
    mapping = [f"{what}={name}.{column}" for name in systems for what, column in
               (("response", "solution"), ("reward", "is_correct"))]  # fmt: skip
    source = real_data / "gsm8k_model_solutions" / "example_model_solutions.jsonl"
    found = take(tmp_path, source, columns=Columns.parse(mapping), domain=Ungraded())
    assert (found.num_problems, found.num_responses, found.num_graded, found.bad) == (1319, 4 * 1319, 4 * 1319, [])
    original = [json.loads(line) for line in source.read_text().splitlines()]
    for sample, name in enumerate(systems):
        mean = sum(row[name]["is_correct"] for row in original) / 1319
        by_sql = rows(connect(str(tmp_path)), "SELECT avg(reward) AS m FROM scores WHERE sample = $s", s=sample)
        assert by_sql[0]["m"] == pytest.approx(mean)


def test_real_solutions_by_people(tmp_path, real_data):
    """One to five solutions per problem as a mapping, no answers, and ids that are not unique."""
    source = real_data / "creativemath" / "subset.json"
    found = take(tmp_path, source, columns=Columns.parse(["response=solutions", "id="]), domain=Ungraded())
    original = json.loads(source.read_text())
    assert found.num_responses == sum(len(row["solutions"]) for row in original)
    assert found.num_problems == len({row["problem"] for row in original})
    assert (found.num_graded, found.bad) == (0, [])


def test_real_rollouts_as_they_were_published(tmp_path, real_data):
    """The raw file, with eight responses in one row, is the same run as the table made of it."""
    folder = real_data / "qwen_math_100x8"
    raw = take(tmp_path / "raw", folder / "math_cot_100.jsonl", columns=Columns.parse(["response=code"]))
    table = take(tmp_path / "table", folder / "rollouts.parquet")
    assert (raw.num_responses, raw.bad) == (table.num_responses, []) == (800, [])
    sql = "SELECT response, reward FROM rollouts JOIN scores USING (problem_id, sample) ORDER BY ALL"
    assert rows(connect(str(tmp_path / "raw")), sql) == rows(connect(str(tmp_path / "table")), sql)
