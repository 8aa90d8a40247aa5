"""Data sets from files and through the `datasets` library, filters by difficulty, and leakage."""

import json
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from polyepo.domains import Maths, Problem
from polyepo.domains.dataset import ColumnFilter, read_rows
from polyepo.domains.leakage import leaks

LEVELS = [
    {"problem": f"P{i}", "answer": str(i), "level": i % 5, "rate": f"{i}/8", "kind": "AB"[i % 2]} for i in range(9)
]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def folder(tmp_path):
    """A data set with two splits, as `datasets` finds it in a folder."""
    (tmp_path / "sums").mkdir()
    write(tmp_path / "sums" / "train.jsonl", LEVELS[:6])
    write(tmp_path / "sums" / "test.jsonl", LEVELS[6:])
    return str(tmp_path / "sums")


def all_problems(domain):
    return [*domain.problems("train"), *domain.problems("heldout")]


def test_a_data_set_through_the_library(folder, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    domain = Maths(path=folder, heldout_split="test")
    assert [p.prompt.split("\n")[0] for p in domain.problems("train")] == [f"P{i}" for i in range(6)]
    assert [p.answer for p in domain.problems("heldout")] == ["6", "7", "8"]
    files = Maths(path=f"{folder}/train.jsonl", heldout_path=f"{folder}/test.jsonl")
    assert [domain.problems(s) for s in ("train", "heldout")] == [files.problems(s) for s in ("train", "heldout")]
    same = Maths(path=folder, heldout_path=folder, heldout_split="test")
    assert same.problems("heldout") == files.problems("heldout")
    with pytest.raises(ValueError, match=r"cannot be loaded as a data set.*validation"):
        Maths(path=folder, split="validation").problems("train")
    with pytest.raises(ValueError, match="cannot be loaded as a data set"):
        Maths(path="nobody/nothing").problems("train")


def test_without_the_library_it_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"no such file.*pip install 'poly-epo\[datasets\]'"):
        Maths(path=folder).problems("train")


def test_files_have_no_splits(folder):
    with pytest.raises(ValueError, match="is a file: it has no subset None and no split 'test'"):
        read_rows(f"{folder}/train.jsonl", split="test")


@pytest.mark.parametrize(
    ("filters", "kept"),
    [
        ({"level": {"min": 3}}, [3, 4, 8]),
        ({"level": {"min": 1, "max": 2}}, [1, 2, 6, 7]),
        ({"rate": {"min": 0.125, "max": 0.5}}, [1, 2, 3, 4]),
        ({"kind": {"values": ["B"]}}, [1, 3, 5, 7]),
        ({"level": {"values": [0, 4]}, "kind": {"values": ["A"]}}, [0, 4]),
    ],
)
def test_problems_are_filtered_by_column(tmp_path, filters, kept):
    domain = Maths(path=write(tmp_path / "p.jsonl", LEVELS), filters=filters)
    assert sorted(int(p.answer) for p in all_problems(domain)) == kept
    ids = {p.answer: p.problem_id for p in all_problems(Maths(path=domain.path))}
    assert all(ids[p.answer] == p.problem_id for p in all_problems(domain)), "a filter renames nothing"


def test_filters_are_for_training_and_what_they_leave_out_may_be_broken(tmp_path):
    rows = [*LEVELS, {"problem": "no answer", "level": 0}]
    path, heldout = write(tmp_path / "p.jsonl", rows), write(tmp_path / "h.jsonl", [{"problem": "x", "answer": "1"}])
    domain = Maths(path=path, heldout_path=heldout, filters={"level": {"min": 1}})
    assert len(domain.problems("train")) == 7
    assert len(domain.problems("heldout")) == 1
    assert len(all_problems(domain.of_file(write(tmp_path / "b.jsonl", LEVELS)))) == 9


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"grade": {"min": 1}}, "row 1: no column 'grade' among .*domain.filters"),
        ({"kind": {"min": 1}}, "row 1, column 'kind': .*it is 'A'; use values"),
        ({"level": {"min": 9}}, "filters leave none of the 9 problems"),
        ({"level": {"values": [None]}}, "values"),
        ({"level": {}}, "set either min or max, or both, or values"),
        ({"level": {"min": 1, "values": [1]}}, "set either min or max, or both, or values"),
        ({"level": {"min": 2, "max": 1}}, "min 2 must not exceed max 1"),
    ],
)
def test_filters_that_cannot_be_used_are_named(tmp_path, filters, message):
    with pytest.raises((ValueError, ValidationError), match=message):
        Maths(path=write(tmp_path / "p.jsonl", LEVELS), filters=filters).problems("train")


def test_rows_that_cannot_be_used_are_refused_or_dropped(tmp_path, caplog):
    rows = [*LEVELS, LEVELS[3], {"problem": "no answer", "answer": " "}]
    domain = Maths(path=write(tmp_path / "p.jsonl", rows))
    with pytest.raises(ValueError, match=r"row 10: problem_id .* is that of row 4 already; .*unusable: drop"):
        domain.problems("train")
    dropping = domain.model_copy(update={"unusable": "drop"})
    whole = Maths(path=write(tmp_path / "q.jsonl", LEVELS))
    assert all_problems(dropping) == all_problems(whole)
    assert "2 of 11 rows are left out, the first: " in caplog.text
    with pytest.raises(ValueError, match="the answer is empty"):
        Maths(path=write(tmp_path / "e.jsonl", rows[-1:] * 3), unusable="drop").problems("train")


def test_a_row_without_a_value_does_not_stay():
    assert not ColumnFilter(min=0).keeps(None)
    assert not ColumnFilter(values=["A"]).keeps(None)


def test_nested_columns_of_verls_layout(tmp_path):
    rows = [
        {
            "prompt": [{"role": "user", "content": f"Q{i}? Use \\boxed{{}}."}],
            "reward_model": {"ground_truth": str(i), "style": "rule"},
            "extra_info": {"index": i, "split": "train", "question": f"Q{i}?", "pass_rate": i / 4},
        }
        for i in range(4)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "v.parquet")
    chat = Maths(path=str(tmp_path / "v.parquet"), filters={"extra_info.pass_rate": {"min": 0.25}})
    assert {p.problem_id for p in all_problems(chat)} == {"train-1", "train-2", "train-3"}
    text = Maths(path=chat.path, problem_column="extra_info.question", template="{problem}")
    assert {p.prompt for p in all_problems(text)} == {"Q0?", "Q1?", "Q2?", "Q3?"}


def numbered(texts, start=0):
    return [{"id": i, "problem": text, "answer": str(i)} for i, text in enumerate(texts, start)]


def test_files_that_both_number_from_0_hold_different_problems(tmp_path):
    train = write(tmp_path / "train.jsonl", numbered(f"train {i}" for i in range(5)))
    heldout = write(tmp_path / "test.jsonl", numbered(f"test {i}" for i in range(7)))
    apart = write(tmp_path / "apart.jsonl", numbered((f"test {i}" for i in range(7)), start=100))

    def ids(**changes):
        domain = Maths(path=train, **changes)
        return [[p.problem_id for p in domain.problems(split)] for split in ("train", "heldout")]

    digits = [str(i) for i in range(5)]
    qualified = [f"heldout-{i}" for i in range(7)]
    assert ids(heldout_path=heldout) == [digits, qualified]
    assert ids(heldout_path=heldout, filters={"id": {"max": 2}}) == [digits[:3], qualified], "all of a file, or none"
    assert ids(heldout_path=apart) == [digits, [str(100 + i) for i in range(7)]], "ids that differ stay as they are"
    assert [p.problem_id for p in all_problems(Maths(path=heldout))] == [str(i) for i in range(7)]


def test_problems_that_both_files_hold_are_refused_or_left_out_of_training(tmp_path):
    train = write(tmp_path / "train.jsonl", numbered(f"P{i}" for i in range(5)))
    same = write(tmp_path / "same.jsonl", numbered(["P0", "P1"]))
    moved = write(tmp_path / "moved.jsonl", numbered(["Q", "P3"]))
    with pytest.raises(ValueError, match=r"shares 2 problem_ids .* such as '0'; .*domain.unusable: drop"):
        Maths(path=train, heldout_path=same).problems("train")
    for heldout, left in ((same, ["2", "3", "4"]), (moved, ["0", "1", "2", "4"])):
        domain = Maths(path=train, heldout_path=heldout, unusable="drop")
        assert [p.problem_id for p in domain.problems("train")] == left
        assert len(domain.problems("heldout")) == 2


def test_two_rows_of_one_id_are_an_error(tmp_path):
    rows = [*numbered(["a", "b"]), {"id": 1, "problem": "c", "answer": "2"}]
    path = write(tmp_path / "p.jsonl", rows)
    with pytest.raises(ValueError, match="row 3: problem_id '1' is that of row 2 already"):
        Maths(path=path, id_column="id").problems("train")
    assert len(all_problems(Maths(path=path))) == 3, "a column that is no id is none"


def test_chat_messages_in_parts(tmp_path):
    parts = [{"type": "text", "text": "1 + 1"}, {"type": "text", "text": " = ?"}]
    rows = [{"prompt": [{"role": "user", "content": parts}], "answer": str(i)} for i in range(2)]
    path = write(tmp_path / "p.jsonl", rows)
    assert all_problems(Maths(path=path))[0].prompt == [{"role": "user", "content": "1 + 1 = ?"}]
    rows[1]["prompt"][0]["content"] = [{"type": "image"}]
    with pytest.raises(ValueError, match="row 2: the problem's content must be text"):
        all_problems(Maths(path=write(tmp_path / "q.jsonl", rows)))


def asked(name, prompt):
    return Problem(problem_id=name, domain="maths", prompt=prompt)


def test_leakage_is_found_by_text():
    train = [asked("a", "What is $1 + 1$?\n"), asked("b", "what is 1 - 1?"), asked("c", "What is 1 + 1?")]
    heldout = [
        asked("x", "what  is 1+1 ?"),
        asked("y", "What is 1 \u2212 1?"),  # another sign, and no NFKC form of "-"
        asked("z", [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 1 - 1?"}]),
    ]
    assert leaks(train, heldout) == [("a", "x"), ("b", "z")]


def test_real_data_leak_nothing(real_data):
    gsm8k = [Maths(path=str(real_data / "gsm8k" / f"{name}.jsonl")) for name in ("train", "test")]
    assert leaks(all_problems(gsm8k[0]), all_problems(gsm8k[1])) == []
    years = [Maths(path=str(real_data / f"aime{year}" / "test.jsonl")) for year in (24, 25)]
    assert leaks(all_problems(years[0]), all_problems(years[1])) == []
    assert len(leaks(all_problems(years[0]), all_problems(years[0]))) == 30
    levels = Maths(path=str(real_data / "math500" / "test.jsonl"), filters={"level": {"min": 5}})
    algebra = levels.model_copy(update={"filters": {"subject": ColumnFilter(values=["Algebra"])}})
    rows = read_rows(levels.path)
    assert len(all_problems(levels)) == sum(row["level"] == 5 for row in rows)
    assert len(all_problems(algebra)) == sum(row["subject"] == "Algebra" for row in rows)
