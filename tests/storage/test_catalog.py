"""Every shipped query against a plain computation of the same number, on random artifacts."""

import math
import re
import shutil
import tempfile
from collections import Counter, defaultdict
from importlib import resources
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polyepo import metrics
from polyepo.objectives import DEGENERATE
from polyepo.schemas import EVALS, JUDGE_CALLS, LABELS, ROLLOUTS, SCORES, TABLES, UPDATES
from storage import ArtifactKey, Catalog, Store, connect
from storage.catalog import queries
from tests.support.artifacts import (
    PROMPTLESS,
    PROVENANCE,
    answer_class,
    ask,
    commit,
    commit_step,
    label_of,
    make_root,
    pick,
    rows_of,
    simple,
)

response = st.fixed_dictionaries(
    {
        "reward": st.sampled_from([0.0, 1.0, 0.0, 1.0, None]),
        "label": st.sampled_from(["degenerate", "missing", 0, 0, 1, 2]),
        "other": st.sampled_from(["degenerate", "missing", 0, 1, 1]),
        "advantage": st.sampled_from([0.0, 0.0, -0.5, 0.25]),
        "other_advantage": st.sampled_from([0.0, -1.0, 0.5, 0.75]),
        "other_reward": st.sampled_from([0.0, 1.0]),
        "parsed_answer": st.sampled_from([None, "1", "2", "';--", "2/2"]),
        "response_token_ids": st.lists(st.integers(0, 2), min_size=1, max_size=5),
        "finish_reason": st.sampled_from(["stop", "length"]),
    }
)
groups = st.integers(1, 5).flatmap(
    lambda n: st.lists(st.lists(response, min_size=n, max_size=n), min_size=1, max_size=3)
)


def mean(values):
    """The mean; None of nothing."""
    values = list(values)
    return sum(values) / len(values) if values else None


def close(value):
    return None if value is None else pytest.approx(value, abs=1e-12)


def known(prompts, labelled=False):
    """The responses of each prompt that have a grade (and a label), of the prompts that have any."""
    kept = [
        [r for r in group if r["reward"] is not None and not (labelled and r["label"] == "missing")]
        for group in prompts
    ]
    return [group for group in kept if group]


def rewards_of(group):
    return [r["reward"] for r in group]


def clusters_of(group):
    return [r["label"] if isinstance(r["label"], int) else DEGENERATE for r in group]


@pytest.fixture(scope="module")
def folder():
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(groups, min_size=1, max_size=2), st.data())
def test_queries_equal_plain_computations(folder, steps, data):
    shutil.rmtree(folder)
    make_root(folder, steps)
    connection = connect(str(folder))
    for step, prompts in enumerate(steps, 1):
        size = len(prompts[0])
        k = data.draw(st.integers(1, size))
        graded, both = known(prompts), known(prompts, labelled=True)

        def one(sql, step=step):
            mine = "" if sql in ("branching()", "lengths()") else " AND scoring = 'own'"
            found = ask(connection, f"SELECT * FROM {sql} WHERE step = {step}{mine}")
            assert len(found) <= 1
            return found[0] if found else defaultdict(lambda: None)  # no row: nothing is known

        assert one(f"pass_at_k({k})")["pass_at_k"] == close(
            mean(metrics.pass_at_k(len(g), sum(rewards_of(g)), k) for g in graded if len(g) >= k)
        )
        assert one(f"div_at_k({k})")["div_at_k"] == close(
            mean(metrics.div_at_k(rewards_of(g), clusters_of(g), k) for g in both if len(g) >= k)
        )
        assert one("coverage()")["coverage"] == close(mean(metrics.coverage([rewards_of(g)]) for g in graded))
        assert one("cover_at_tau(0.5)")["cover_at_tau"] == close(
            mean(metrics.cover_at_tau([rewards_of(g)], 0.5) for g in graded)
        )
        for votes in (1, size):
            expected = [
                metrics.maj_at_k([answer_class(r["parsed_answer"]) for r in g], [r["reward"] > 0.5 for r in g], votes)
                for g in graded
                if len(g) >= votes
            ]
            found = one(f"maj_at_k({votes})")
            assert found["maj_at_k"] == close(mean(e[0] for e in expected))
            assert found["vote_share"] == close(mean(e[1] for e in expected))
        found = one("answers()")
        answers = [[answer_class(r["parsed_answer"]) for r in group] for group in prompts]
        assert found["answer_entropy"] == close(mean(map(metrics.answer_entropy, answers)))
        assert found["distinct_answers"] == close(mean(len(set(given) - {None}) for given in answers))
        found = one("strategies_by_step()")
        pairs = [(rewards_of(g), clusters_of(g)) for g in both]
        assert found["distinct_successful"] == close(mean(metrics.distinct_successful_strategies(*g) for g in pairs))
        assert found["distinct_unsuccessful"] == close(
            mean(metrics.distinct_unsuccessful_strategies(*g) for g in pairs)
        )
        rewards = [[math.nan if r["reward"] is None else r["reward"] for r in group] for group in prompts]
        clusters, advantages = map(clusters_of, prompts), [[r["advantage"] for r in group] for group in prompts]
        labelled = [all(r["label"] != "missing" for r in group) for group in prompts]
        signal = metrics.signal_accounting(rewards, list(clusters), advantages, labelled)
        found = one("signal_accounting()")
        for name in ("with_gradient", "ungraded", "unlabelled", "all_wrong", "one_cluster", "other_zero"):
            assert found[name] == getattr(signal, name), name
        assert found["prompts"] == len(prompts)
        flipped = ask(connection, f"SELECT problem_id FROM sign_flips() WHERE step = {step} AND scoring = 'own'")
        assert {row["problem_id"] for row in flipped} == {
            f"p{p}"
            for p, group in enumerate(prompts)
            if any(r["reward"] == 1 and r["advantage"] < 0 for r in group)
            and any(r["reward"] == 0 and r["advantage"] > 0 for r in group)
        }
        check_branching(one("branching()"), prompts)
        check_lengths(one("lengths()"), prompts)
        check_agreement(ask(connection, f"FROM judge_agreement('first', 'second') WHERE step = {step}"), prompts)
        by_prompt = ask(connection, f"FROM agreement_by_prompt('first', 'second') WHERE step = {step}")
        check_prompt_agreement({row["problem_id"]: row for row in by_prompt}, prompts)
        scorings = ask(connection, f"FROM scoring_agreement('own', 'other') WHERE step = {step}")
        check_scorings({row["problem_id"]: row for row in scorings}, prompts)
        check_regraded(ask(connection, f"FROM regraded('own', 'other') WHERE step = {step}"), prompts)
        check_correctness(
            ask(connection, f"FROM cluster_correctness() WHERE step = {step} AND scoring = 'own'"), prompts
        )
        check_clusters(
            ask(connection, "FROM strategy_clusters('run', ?, 'p0') WHERE scoring = 'own'", step), prompts[0]
        )


def check_branching(found, prompts):
    firsts = [metrics.branching([r["response_token_ids"] for r in group])[1] for group in prompts]
    parted = [first for first in firsts if first is not None]
    assert found["identical"] == len(firsts) - len(parted)
    assert found["first_branching"] == (pytest.approx(mean(parted)) if parted else None)


def check_lengths(found, prompts):
    lengths = sorted(len(r["response_token_ids"]) for group in prompts for r in group)
    assert found["tokens"] == sum(lengths)
    assert found["max_tokens"] == lengths[-1]
    middle = (lengths[(len(lengths) - 1) // 2] + lengths[len(lengths) // 2]) / 2
    assert found["median_tokens"] == middle
    cut = [r["finish_reason"] == "length" for group in prompts for r in group]
    assert found["truncated_rate"] == pytest.approx(mean(cut))


def check_agreement(found, prompts):
    whole = [g for g in prompts if all("missing" not in (r["label"], r["other"]) for r in g)]
    assert len(found) == bool(whole)
    if whole:
        pairs = [([str(r["label"]) for r in g], [str(r["other"]) for r in g]) for g in whole]
        assert found[0]["problems"] == len(whole)
        assert found[0]["ari"] == pytest.approx(mean(metrics.adjusted_rand_index(*pair) for pair in pairs), abs=1e-12)
        assert found[0]["pair_agreement"] == pytest.approx(mean(metrics.pair_agreement(*pair) for pair in pairs))
        assert found[0]["clusters_a"] == mean(len(set(a) - {"degenerate"}) for a, _ in pairs)


def check_prompt_agreement(found, prompts):
    whole = {f"p{p}": g for p, g in enumerate(prompts) if all("missing" not in (r["label"], r["other"]) for r in g)}
    assert found.keys() == whole.keys()
    for problem, group in whole.items():
        a, b = [str(r["label"]) for r in group], [str(r["other"]) for r in group]
        assert found[problem]["ari"] == pytest.approx(metrics.adjusted_rand_index(a, b), abs=1e-12)
        assert found[problem]["v_measure"] == pytest.approx(metrics.v_measure(a, b), abs=1e-9)
        assert found[problem]["pair_agreement"] == pytest.approx(metrics.pair_agreement(a, b))
        assert found[problem]["responses"] == len(group)


def check_scorings(found, prompts):
    for p, group in enumerate(prompts):
        a, b = [r["advantage"] for r in group], [r["other_advantage"] for r in group]
        row = found[f"p{p}"]
        expected = metrics.rank_correlation(a, b)
        assert row["rank_correlation"] == (None if math.isnan(expected) else pytest.approx(expected, abs=1e-12))
        assert row["sign_flips"] == sum(x * y < 0 for x, y in zip(a, b, strict=True))
        assert row["rewards_changed"] == sum(r["reward"] != r["other_reward"] for r in group)


def check_regraded(found, prompts):
    changed = {
        (f"p{p}", i, r["reward"], r["other_reward"], f"r{i}")
        for p, group in enumerate(prompts)
        for i, r in enumerate(group)
        if r["reward"] != r["other_reward"]
    }
    keys = ("problem_id", "sample", "reward_a", "reward_b", "response")
    assert {tuple(row[key] for key in keys) for row in found} == changed
    assert len(found) == len(changed)


def check_correctness(found, prompts):
    counts = Counter((r["label"], r["reward"]) for group in prompts for r in group if r["label"] not in ("degenerate",))
    for row in found:
        label = int(row["macro_strategy"].split()[1]) if row["macro_strategy"] else "missing"
        assert row["correct"] == counts[label, 1.0]
        assert row["incorrect"] == counts[label, 0.0]


def check_clusters(found, group):
    members = defaultdict(list)
    for i, r in enumerate(group):
        cluster = r["label"] if isinstance(r["label"], int) else None
        members[cluster, r["label"] == "degenerate"].append((i, r))
    assert {(row["cluster"], row["degenerate"]) for row in found} == set(members)
    for row in found:
        inside = members[row["cluster"], row["degenerate"]]
        assert row["size"] == len(inside)
        assert row["reward"] == close(mean(r["reward"] for _, r in inside if r["reward"] is not None))
        assert row["advantage"] == pytest.approx(mean(r["advantage"] for _, r in inside))
        assert row["example"] == f"r{inside[0][0]}"


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(groups)
def test_label_rates(folder, prompts):
    shutil.rmtree(folder)
    make_root(folder, [prompts])
    found = {row["judge"]: row for row in ask(connect(str(folder)), "FROM degenerate_rate()")}
    for judge, name in (("first", "label"), ("second", "other")):
        labels = [r[name] for group in prompts for r in group]
        there = [label == "degenerate" for label in labels if label != "missing"]
        assert found[judge]["degenerate_rate"] == close(mean(there))
        assert found[judge]["unlabelled_rate"] == pytest.approx(mean(label == "missing" for label in labels))
        assert found[judge]["statuses"].get("parse_failed", 0) == labels.count("missing")


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(groups, groups)
def test_strategies_gained_and_lost(folder, before, after):
    shutil.rmtree(folder)
    make_root(folder, [before, after])
    found = ask(connect(str(folder)), "FROM strategy_changes('run', 1, 'run', 2)")

    def successful(prompts):
        return Counter(
            (f"p{p}", label_of(r["label"])["macro_strategy"])
            for p, group in enumerate(prompts[: min(len(before), len(after))])
            for r in group
            if r["reward"] and isinstance(r["label"], int)
        )

    a, b = successful(before), successful(after)
    expected = {key: "kept" if a[key] and b[key] else "gained" if b[key] else "lost" for key in a.keys() | b.keys()}
    assert {(row["problem_id"], row["macro_strategy"]): row["change"] for row in found} == expected
    for row in found:
        key = (row["problem_id"], row["macro_strategy"])
        assert (row["responses_a"], row["responses_b"]) == (a[key], b[key])


def test_strategies_of_runs_that_are_scored_differently(tmp_path):
    store = make_root(tmp_path, [[[simple(0), simple(1)]]])
    record = {"config": {"steps": 1, "seed": 0, "domain": {"name": "d"}}, "config_hash": "h", "scoring": "grpo"}
    store.create_run("grpo", record)
    rows = rows_of("grpo", 1, [[simple(0), simple(0)]])
    own = {"scoring": "grpo", "objective": "o", "judge": "first"}
    labels = [pick({**r, **label_of(0), **own}, LABELS) for r in rows]
    commit(store, "grpo", "labels", 1, labels, LABELS, shard=0, judge="first")
    scores = [pick({**r, **label_of(0), **own}, SCORES) for r in rows]
    commit(store, "grpo", "scores", 1, scores, SCORES, scoring="grpo")
    found = ask(connect(str(tmp_path)), "FROM strategy_changes('run', 1, 'grpo', 1)")
    assert {row["macro_strategy"]: row["change"] for row in found} == {"macro 0": "kept", "macro 1": "lost"}


def test_maj_at_k_votes_in_blocks(tmp_path):
    """Samples 0 and 1 vote, then 2 and 3; sample 4 has no partner and stays out."""
    answers = ["1", "1", "2", None, "2"]
    make_root(tmp_path, [[[simple(parsed_answer=a, reward=float(a == "1")) for a in answers]]])
    found = ask(connect(str(tmp_path)), "FROM maj_at_k(2)")[0]
    assert found["maj_at_k"] == pytest.approx((1 + 0) / 2)
    assert found["vote_share"] == pytest.approx((1 + 0.5) / 2)


def test_judge_cost(tmp_path):
    store = make_root(tmp_path, [[[simple()]]])
    call = {
        "run": "run", "step": 1, "judge": "first", "problem_id": "p0", "attempt": 1, "request_sha256": "0",
        "raw_reply": "{}", "prompt_tokens": 10, "completion_tokens": 5, "latency_s": 1.0, "error": None,
        "finish_reason": "stop", "cost": 0.25,
    }  # fmt: skip
    calls = [call, {**call, "attempt": 2, "latency_s": 3.0, "prompt_tokens": None, "error": "timeout", "cost": None}]
    commit(store, "run", "judge_calls", 1, calls, JUDGE_CALLS, shard=0, judge="first")
    found = ask(connect(str(tmp_path)), "FROM judge_cost()")[0]
    assert (found["calls"], found["failed"], found["prompt_tokens"], found["completion_tokens"]) == (2, 1, 10, 10)
    assert found["latency_median_s"] == 2.0
    assert found["cost"] == 0.25


def test_pass_at_k_of_many_samples(tmp_path):
    """Binomials far beyond float64: C(1000, 500) has 300 digits."""
    make_root(tmp_path, [[[simple(reward=float(i == 0)) for i in range(1000)]]])
    found = ask(connect(str(tmp_path)), "FROM pass_at_k(500)")[0]["pass_at_k"]
    exact = 1 - math.comb(999, 500) / math.comb(1000, 500)
    assert found == pytest.approx(exact, abs=1e-11)


def test_held_out_evaluations_answer_the_same_questions(tmp_path):
    store = make_root(tmp_path, [])
    rows = [
        {
            **PROMPTLESS, **label_of(i % 2), "run": "run", "step": 0, "problem_id": "h", "sample": i, "response": "x",
            "response_token_ids": [i], "sampler_logprobs": [0.0], "finish_reason": "stop", "benchmark": "heldout",
            "reward": 1.0, "parsed_answer": "1", "judge": "first",
        }
        for i in range(4)
    ]  # fmt: skip
    commit(store, "run", "evals", 0, [pick(row, EVALS) for row in rows], EVALS, benchmark="heldout")
    found = ask(connect(str(tmp_path)), "FROM div_at_k(2)")
    assert [(row["benchmark"], row["step"]) for row in found] == [("heldout", 0)]
    assert found[0]["div_at_k"] == pytest.approx(2 * (1 - math.comb(2, 2) / math.comb(4, 2)))


def test_an_empty_root_has_every_view_and_query(tmp_path):
    connection = connect(str(tmp_path))
    for view in ("runs", "problems", "rollouts", "labels", "judge_calls", "scores", "updates", "evals", "evaluations"):
        assert ask(connection, f"SELECT * FROM {view}") == []
    arguments = {
        "pass_at_k": "1", "div_at_k": "1", "maj_at_k": "1", "cover_at_tau": "0.5", "judge_agreement": "'a', 'b'",
        "agreement_by_prompt": "'a', 'b'", "scoring_agreement": "'a', 'b'", "regraded": "'a', 'b'",
        "strategy_clusters": "'r', 1, 'p'", "strategy_changes": "'r', 1, 'r', 2",
    }  # fmt: skip
    for name in queries().keys() - {"views"}:
        assert ask(connection, f"SELECT * FROM {name}({arguments.get(name, '')})") == []


def test_a_run_that_is_being_written(tmp_path):
    store = make_root(tmp_path, [[[simple()]]])
    catalog = Catalog(str(tmp_path))
    assert ask(catalog.connection, "SELECT state, steps_done, rollouts FROM runs")[0]["state"] == "unfinished"
    # An attempt without a manifest does not exist; what is committed shows after a refresh, shard by shard.
    stray = tmp_path / "runs/run/rollouts/step=000002/shard=000/0123456789abcdef"
    stray.mkdir(parents=True)
    (stray / "part-00000.parquet").write_bytes(b"half a file")
    catalog.refresh()
    assert ask(catalog.connection, "SELECT max(step) AS step FROM rollouts")[0]["step"] == 1
    rows = [{**r, **PROMPTLESS, "response": "x", "sampler_logprobs": [0.0]} for r in rows_of("run", 2, [[simple()]])]
    for shard in (0, 1):
        some = [{**pick(row, ROLLOUTS), "problem_id": f"p{shard}"} for row in rows]
        commit(store, "run", "rollouts", 2, some, ROLLOUTS, shard=shard)
        catalog.refresh()
        assert ask(catalog.connection, "SELECT count(*) AS n FROM rollouts WHERE step = 2")[0]["n"] == shard + 1
    assert ask(catalog.connection, "SELECT count(*) AS n FROM graded WHERE step = 2")[0]["n"] == 0


def finished_step(store, step):
    """A step whose update names all that it was made from, as tasks/update.py commits it."""
    commit_step(store, "run", step, [[simple()]])
    keys = [
        ArtifactKey("run", "rollouts", step, (), 0),
        ArtifactKey("run", "labels", step, (("judge", "first"),), 0),
        ArtifactKey("run", "scores", step, (("scoring", "own"),)),
    ]
    numbers = {name: 0 for name in UPDATES.names if name not in ("run", "step", "checkpoint")}
    table = pa.Table.from_pylist([{"run": "run", "step": step, "checkpoint": None, **numbers}], schema=UPDATES)
    store.commit_table(
        ArtifactKey("run", "updates", step), table, table_name="updates", provenance=PROVENANCE,
        parents=[store.manifest(key) for key in keys],
    )  # fmt: skip


def test_opening_reads_one_manifest_per_step_and_no_rows(tmp_path, monkeypatch):
    store = Store(str(tmp_path))
    store.create_run("run", {"config": {"steps": 20}})
    for step in range(1, 21):
        finished_step(store, step)
    shutil.rmtree(tmp_path / "runs/run/labels/judge=second")
    parts = sorted(tmp_path.rglob("*.parquet"))
    before = ask(connect(str(tmp_path)), "FROM coverage()")
    assert len(before) == 20
    # The first file of a table tells its columns. With all others emptied, nothing can have been read from them.
    first = {path.relative_to(tmp_path).parts[2]: path for path in reversed(parts)}.values()
    for path in parts:
        if path not in first:
            path.write_bytes(b"")
    reads = []
    original = type(store.files).read

    def read(self, path):
        reads.append(path)
        return original(self, path)

    monkeypatch.setattr(type(store.files), "read", read)
    Catalog(str(tmp_path))
    assert len([path for path in reads if path.endswith("manifest.json")]) == 20


def test_sql_and_the_report_call_correct_what_the_metrics_do(tmp_path):
    connection = connect(str(make_root(tmp_path, []).root))
    edge = metrics.THRESHOLD
    for reward in (0.0, math.nextafter(edge, 0), edge, math.nextafter(edge, 1), 1.0):
        (row,) = ask(connection, "SELECT is_correct($1) AS yes, is_correct(NULL) AS unknown", reward)
        assert row == {"yes": metrics.coverage([[reward]]) == 1.0, "unknown": None}
    script = (resources.files("polyepo.report") / "browser.js").read_text()
    assert re.findall(r"> (0\.\d+)", script) == [str(edge)]


def test_init_sql_makes_the_same_views_in_a_plain_duckdb(tmp_path):
    make_root(tmp_path, [[[simple(), simple(1)]]])
    catalog = Catalog(str(tmp_path))
    plain = duckdb.connect()
    plain.execute(catalog.init_sql())
    for sql in ("FROM runs", "FROM pass_at_k(1)", "SELECT count(*) AS n FROM labels"):
        assert ask(plain, sql) == ask(catalog.connection, sql)


HOSTILE = ["'; DROP TABLE x; --", "p'||(SELECT 1)||'", '"', "\\", "$$", "\x1b[31m", "\u202e", "%_", "'" * 7]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_only_text(tmp_path, text):
    store = Store(str(tmp_path))
    store.create_run("run", {"config": {"steps": 1, "domain": {"name": text}}, "code_version": text})
    rows = [{**r, "problem_id": text, "parsed_answer": text} for r in rows_of("run", 1, [[simple()]])]
    sampled = [{**r, **PROMPTLESS, "response": text, "sampler_logprobs": [0.0]} for r in rows]
    commit(store, "run", "rollouts", 1, [pick(r, ROLLOUTS) for r in sampled], ROLLOUTS, shard=0)
    constant = {"scoring": "own", "objective": "o", "judge": "first"}
    scored = [pick({**r, **label_of(0), **constant}, SCORES) for r in rows]
    commit(store, "run", "scores", 1, scored, SCORES, scoring="own")
    # A folder that is no run, whatever its name.
    (tmp_path / "runs" / "x'); DROP VIEW runs; --").mkdir()
    connection = connect(str(tmp_path))
    assert ask(connection, "SELECT domain, code_version FROM runs") == [{"domain": text, "code_version": text}]
    found = ask(connection, "SELECT example FROM strategy_clusters('run', 1, ?)", text)
    assert found == [{"example": text}]


def test_a_table_of_an_older_version_lacks_columns(tmp_path, monkeypatch):
    """Columns that were added later are null in what was committed before."""
    import storage.store
    from polyepo import schemas

    old = pa.schema([field for field in LABELS if field.name != "micro_strategy"])
    with monkeypatch.context() as patch:
        patch.setitem(schemas.TABLES, "labels", old)
        patch.setitem(storage.store.TABLES, "labels", old)
        store = Store(str(tmp_path))
        store.create_run("run", {"config": {}})
        rows = [pick({**r, **label_of(0), "judge": "first"}, old) for r in rows_of("run", 1, [[simple()]])]
        commit(store, "run", "labels", 1, rows, old, shard=0, judge="first")
    path = tmp_path / "runs/run/labels/judge=first/step=000001/shard=000/manifest.json"
    path.write_text(path.read_text().replace(f'"schema_version": {schemas.SCHEMA_VERSION}', '"schema_version": 1'))
    named = {**label_of(1), "judge": "first", "micro_strategy": "m"}
    rows = [pick({**r, **named}, LABELS) for r in rows_of("run", 2, [[simple()]])]
    commit(Store(str(tmp_path)), "run", "labels", 2, rows, LABELS, shard=0, judge="first")
    found = ask(connect(str(tmp_path)), "SELECT step, micro_strategy FROM labels ORDER BY step")
    assert [row["micro_strategy"] for row in found] == [None, "m"]


@pytest.mark.slow
def test_object_storage_answers_as_a_local_disk_does(tmp_path, s3):
    steps = [[[simple(), simple(1, reward=0.0)]], [[simple(2), simple("degenerate")]]]
    make_root(tmp_path, steps)
    root = f"{s3}/{tmp_path.name}"
    make_root(root, steps)
    local, remote = connect(str(tmp_path)), Catalog(root)
    for sql in (
        "FROM pass_at_k(2)",
        "FROM strategies_by_step()",
        "FROM judge_agreement('first', 'second')",
        "SELECT * FROM rollouts WHERE step = 2",
        "SELECT run, state, rollouts FROM runs",
        "FROM strategy_clusters('run', 1, 'p0')",
    ):
        assert ask(remote.connection, sql) == ask(local, sql)
    commit_step(Store(root), "run", 3, [[simple()]])
    remote.refresh()
    assert len(ask(remote.connection, "FROM coverage()")) == 3


def test_columns_say_what_they_hold(tmp_path):
    connection = connect(str(tmp_path))
    found = dict(connection.sql("SELECT table_name || '.' || column_name, comment FROM duckdb_columns()").fetchall())
    assert found["scores.reward"] == "null if the response could not be graded: never a 0"
    assert found["runs.arm_of"] == "the configuration that the run is an arm of"
    views = dict(connection.sql("SELECT view_name, comment FROM duckdb_views()").fetchall())
    assert {name for name in TABLES if views[name]} == set(TABLES)
