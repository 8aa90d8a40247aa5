"""Judges that need no language model: similar texts, and labels by hand."""

import csv

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.cluster.hierarchy import fcluster, linkage

from polyepo.config import ConfigError, load_judge
from polyepo.domains import Polynomial, Problem
from polyepo.judges import EmbeddingJudge, Group, SheetJudge, TextJudge
from polyepo.judges.sheet import read_sheet, response_id, write_sheet
from polyepo.judges.similarity import agglomerate
from polyepo.metrics import adjusted_rand_index

DOMAIN = Polynomial()
PROBLEM = Problem(problem_id="p", domain="maths", prompt="=2+2")


@given(st.integers(2, 12), st.integers(0, 10**6), st.floats(0.05, 1.5))
def test_clusters_are_those_of_scipy(size, seed, distance):
    vectors = np.random.default_rng(seed).normal(size=(size, 5))
    wanted = fcluster(linkage(vectors, "average", "cosine"), distance, "distance")
    assert adjusted_rand_index(wanted, agglomerate(vectors, distance)) == pytest.approx(1)


def test_similar_texts_share_a_cluster():
    texts = [
        "Factor the quadratic: (x - 2)(x - 3) = 0, so x is 2 or 3.",
        "",
        "Count the marbles one by one in every bag.",
        "We factor the quadratic into (x - 3)(x - 2) = 0, so x is 3 or 2.",
        "  \n",
        "Count the marbles one by one in every bag.",
    ]
    (labels,) = TextJudge(max_distance=0.7).label(DOMAIN, [Group(PROBLEM, texts)])
    assert [label.cluster for label in labels] == [0, None, 1, 0, None, 1]
    assert [label.degenerate for label in labels] == [False, True, False, False, True, False]


@given(st.lists(st.text(max_size=30), max_size=8))
def test_every_text_gets_one_label(texts):
    (labels,) = TextJudge().label(DOMAIN, [Group(PROBLEM, texts)])
    assert len(labels) == len(texts)
    assert all(label.degenerate == (not text.strip()) for label, text in zip(labels, texts, strict=True))
    for label, text in zip(labels, texts, strict=True):
        assert label.cluster == next(b.cluster for b, other in zip(labels, texts, strict=True) if other == text)


def test_an_extra_that_is_not_installed_is_named():
    pytest.importorskip("sklearn")
    try:
        import sentence_transformers  # noqa: F401
    except ImportError:
        for asked in (EmbeddingJudge.check_ready, lambda j: j.label(DOMAIN, [Group(PROBLEM, ["a", "b"])])):
            with pytest.raises(ConfigError, match=r"poly-epo\[embedding\]"):
                asked(EmbeddingJudge(model="m"))
    assert EmbeddingJudge(model="BAAI/bge-small", max_distance=0.3).judge_id == "embedding-baai-bge-small-0.3"


@pytest.fixture
def sheet(tmp_path):
    groups = [
        Group(PROBLEM, ["=HYPERLINK(1)", "b", "a", "a"]),
        Group(Problem(problem_id="q", domain="maths", prompt="?"), ["b", "\x1b[31mred", "line\nline"]),
    ]
    assert write_sheet(tmp_path / "sheet.csv", groups, seed=3) == 6
    return tmp_path / "sheet.csv", groups


def fill(path, marks):
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["cluster"] = marks.get(row["id"], "")
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return rows


def test_a_sheet_filled_in_is_a_judge(sheet, tmp_path):
    path, groups = sheet
    marks = {"=HYPERLINK(1)": "X ", "b": "Sum", "a": " sum"}
    rows = fill(path, {response_id("p", text): mark for text, mark in marks.items()})
    cells = [cell for row in rows for cell in row.values()]
    assert not any(cell.startswith(("=", "+", "-", "@")) for cell in cells), "a spreadsheet would run it"
    assert not any("\x1b" in cell for cell in cells)
    assert {tuple(row) for row in rows} == {("problem_id", "prompt", "response", "cluster", "id")}
    config = tmp_path / "judge.yaml"
    config.write_text(f"name: sheet\npath: {path}\n")
    judge = load_judge(config)
    first, second = judge.label(DOMAIN, groups)
    assert [(label.cluster, label.degenerate) for label in first] == [(None, True), (0, False), (0, False), (0, False)]
    assert {(label.cluster, label.degenerate, label.status) for label in second} == {(None, False, "unlabelled")}
    fill(path, {})
    read_sheet.cache_clear()
    with pytest.raises(ValueError, match="has changed"):
        judge.label(DOMAIN, groups)
    assert load_judge(config).judge_id != judge.judge_id


def test_a_sheet_is_not_overwritten(sheet):
    with pytest.raises(FileExistsError):
        write_sheet(*sheet, seed=0)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read"),
        ("a,b\n1,2\n", r"columns \['cluster', 'id'\]"),
        ("cluster,id\n1,r1\n2,r1\n", "row 3: id 'r1'"),
        (b"cluster,id\n\xff,r1\n", "no UTF-8"),
    ],
)
def test_sheets_that_cannot_be_used(tmp_path, content, said):
    path = tmp_path / "sheet.csv"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=said):
        SheetJudge(path=str(path))
    (tmp_path / "judge.yaml").write_text(f"name: sheet\npath: {path}\n")
    with pytest.raises(ConfigError, match=said):
        load_judge(tmp_path / "judge.yaml")


def test_a_recorded_sheet_need_not_be_there_until_it_is_read(sheet):
    """A run that was labelled by hand is opened, shown and exported where the sheet is gone."""
    path, groups = sheet
    recorded = SheetJudge(path=str(path)).model_dump()
    path.unlink()
    read_sheet.cache_clear()
    opened = SheetJudge.model_validate(recorded)
    assert opened.judge_id == f"sheet-{recorded['sha256'][:8]}"
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        opened.label(DOMAIN, groups)
