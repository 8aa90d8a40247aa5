"""Which runs belong together is what their records say; of older records, what was made together."""

from datetime import UTC, datetime, timedelta

import pytest
import yaml

from flows.views.summary import summarize
from polyepo.config import ConfigError, load_config, parse_config
from storage import connect, open_store, rows
from tasks.evaluate import evaluate
from tasks.runs.groups import members
from tasks.runs.preflight import check, describe, prepare
from tasks.runs.run import RunExistsError, open_run
from tests.support.config import small_config
from tests.support.runs import start

ARMS = {"b": {"scoring": {"method": "grpo"}}, "a": {}, "2-c": {"seed": 3}}


def write_config(folder, name="demo", **changes):
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(small_config(**changes), sort_keys=False))
    return path


def old_record(store, name, minutes, **more):
    """A record as versions wrote it that knew nothing of groups."""
    made = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=minutes)
    config = parse_config(small_config()).runs(name)[name].model_dump(mode="json")
    store.create_run(name, {"run": name, "config": config, "config_hash": "h", "created_at": made.isoformat(), **more})


def test_arms_are_found_by_their_records_in_the_configurations_order(tmp_path):
    root = str(tmp_path / "root")
    prepare(root, describe(root, write_config(tmp_path, arms=ARMS), None, None))
    prepare(root, describe(root, write_config(tmp_path, "demo-2", arms={"a": {}}), None, None))
    prepare(root, describe(root, write_config(tmp_path, "alone"), "demo-x", None))
    old_record(open_store(root), "demo-old", 0)
    assert members(root, "demo") == ["demo-b", "demo-a", "demo-2-c"]
    assert members(root, "demo-2") == ["demo-2-a"]
    assert members(root, "demo-x") == ["demo-x"]
    found = rows(connect(root), "SELECT run, arm_of, arm FROM runs WHERE arm_of IS NOT NULL")
    arms = {row["run"]: (row["arm_of"], row["arm"]) for row in found}
    assert arms == {
        "demo-2-c": ("demo", "2-c"),
        "demo-2-a": ("demo-2", "a"),
        "demo-a": ("demo", "a"),
        "demo-b": ("demo", "b"),
    }


def test_a_run_with_a_like_name_stands_in_nobodys_way(tmp_path):
    """`demo-2-b` was there first, without an evaluation: `demo` is trained and summarized without it."""
    root = str(tmp_path / "root")
    prepare(root, describe(root, write_config(tmp_path, "demo-2", arms={"b": {}}, evaluation=None), None, None))
    config = write_config(tmp_path, arms={"b": {}}, policy={"warm_start": {"steps": 2}}, evaluation={"num_samples": 4})
    for run in prepare(root, describe(root, config, None, None)):
        start(root, run.config, run.name)
        evaluate.fn(root, run.name, 0)
    check(root, describe(root, config, None, None))
    assert [row.policy for row in summarize(root, "demo").rows] == ["base model"]


def test_an_arm_that_is_added_later_is_one_of_them(tmp_path):
    root = str(tmp_path / "root")
    for arms in ({"b": {}}, {"a": {"seed": 1}, "b": {}}):
        prepare(root, describe(root, write_config(tmp_path, arms=arms), None, None))
    assert members(root, "demo") == ["demo-a", "demo-b"]


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (("demo", {"2-a": {}}), ("demo-2", {"a": {}}), r"'demo-2-a' exists as an arm of 'demo'.*choose another --run"),
        (("demo-a", {}), ("demo", {"a": {}}), r"'demo-a' exists as a run of its own"),
        (("demo", {}), ("demo", {"a": {}}), r"'demo' exists .* no configuration with arms; choose another --run"),
        (("demo", {"a": {}}), ("demo", {}), r"'demo' is the name of a configuration with arms .*\(demo-a\)"),
    ],
)
def test_one_name_does_not_stand_for_two_things(tmp_path, first, second, message):
    root = str(tmp_path / "root")
    for name, arms in (first, second):
        training = describe(root, write_config(tmp_path, name, arms=arms), None, None)
        if (name, arms) == first:
            prepare(root, training)
    for refuse in (check, prepare):
        with pytest.raises(RunExistsError, match=message):
            refuse(root, training)
    # The remedy.
    prepare(root, describe(root, tmp_path / f"{second[0]}.yaml", "another", None))


def test_an_arm_can_be_trained_on_alone(tmp_path):
    root = str(tmp_path / "root")
    prepare(root, describe(root, write_config(tmp_path, arms={"a": {}}), None, None))
    prepare(root, describe(root, write_config(tmp_path, "single"), "demo-a", None))
    assert members(root, "demo") == ["demo-a"]


def test_runs_that_exist_need_no_configuration(tmp_path):
    root = str(tmp_path / "root")
    config = write_config(tmp_path, arms=ARMS)
    made = {run.name: run.config for run in prepare(root, describe(root, config, None, None))}
    assert describe(root, None, "demo", None).runs == made
    assert describe(root, None, "demo-a", None).runs == {"demo-a": made["demo-a"]}
    grown = describe(root, None, "demo", {"steps": 7, "arms.b.steps": 8}).runs
    assert {name: run.steps for name, run in grown.items()} == {"demo-b": 8, "demo-a": 7, "demo-2-c": 7}
    prepare(root, describe(root, None, "demo", {"steps": 7, "arms.b.steps": 8}))
    assert members(root, "demo") == list(made)
    with pytest.raises(ConfigError, match="run 'nobody' does not exist"):
        describe(root, None, "nobody", None)
    with pytest.raises(ConfigError, match=r"run 'demo-b' with these settings cannot be used:\n  stepz: unknown key"):
        describe(root, None, "demo", {"stepz": 1})


def test_a_name_that_is_nearly_one(tmp_path):
    root = str(tmp_path / "root")
    prepare(root, describe(root, write_config(tmp_path, arms=ARMS), None, None))
    for given, meant in {"demo-aa": "demo-a", "dmo": "demo", "Demo-b": "demo-b", "DEMO": "demo"}.items():
        for ask in (open_run, members):
            with pytest.raises(ConfigError, match=rf"run '{given}' does not exist under .*; did you mean {meant}\?"):
                ask(root, given)
    with pytest.raises(ConfigError, match="'demo' has several arms: name one of demo-b, demo-a, demo-2-c"):
        open_run(root, "demo")
    prepare(root, describe(root, write_config(tmp_path, "alone", arms={"only": {}}), None, None))
    with pytest.raises(ConfigError, match="'alone' has one arm, which is the run to name: alone-only"):
        open_run(root, "alone")
    with pytest.raises(ConfigError, match="`polyepo runs` lists"):
        members(root, "something else entirely".replace(" ", "-"))
    for name in ("a/b", "..", "a..b", "", "-x"):
        with pytest.raises(ConfigError, match=r"must be 1 to 100 letters"):
            members(root, name)


@pytest.mark.parametrize(
    ("made", "group", "expected"),
    [
        # Minutes at which records without groups were made.
        ({"demo-grpo": 0, "demo-poly": 0}, "demo", ["demo-grpo", "demo-poly"]),
        ({"demo-grpo": 0, "demo-poly": 0, "demo-2-grpo": 9, "demo-2-poly": 9}, "demo", ["demo-grpo", "demo-poly"]),
        (
            {"demo-grpo": 0, "demo-poly": 0, "demo-2-grpo": 9, "demo-2-poly": 9},
            "demo-2",
            ["demo-2-grpo", "demo-2-poly"],
        ),
        ({"q-grpo": 0, "q-grpo-div": 0.1, "q-poly-epo": 0.2}, "q", ["q-grpo", "q-grpo-div", "q-poly-epo"]),
        ({"q-z": 0, "q-a": 0.1}, "q", ["q-z", "q-a"]),
        ({"demo-2-grpo": 0, "demo-2-poly": 0}, "demo", None),
        ({"demo-grpo": 0, "demo-poly": 30}, "demo", None),
        ({"demo-x": 0}, "demo", None),
    ],
)
def test_older_runs_belong_together_if_they_were_made_together(tmp_path, made, group, expected):
    store = open_store(str(tmp_path))
    for name, minutes in made.items():
        old_record(store, name, minutes)
    if expected is None:
        with pytest.raises(ConfigError, match="does not exist"):
            members(str(tmp_path), group)
    else:
        assert members(str(tmp_path), group) == expected


def test_older_arms_are_resumed_and_stay_together(tmp_path):
    root = str(tmp_path / "root")
    config = write_config(tmp_path, arms={"a": {}, "b": {}})
    for name, run in load_config(config).runs("demo").items():
        old = {"config": run.model_dump(mode="json"), "config_hash": "older"}
        open_store(root).create_run(name, {"run": name, **old})
    before = {path: path.read_bytes() for path in (tmp_path / "root").rglob("run.json")}
    runs = prepare(root, describe(root, config, None, None))
    assert [run.config_hash for run in runs] == ["older", "older"], "what it makes from now on carries the hash it had"
    assert members(root, "demo") == ["demo-a", "demo-b"]
    assert all(path.read_bytes() == content for path, content in before.items())


def test_what_is_suggested_exists(tmp_path):
    """`my-run` is nobody's arm: there is no `my`."""
    root = str(tmp_path / "root")
    prepare(root, describe(root, write_config(tmp_path), "my-run", None))
    old_record(open_store(root), "old-a", 0)
    old_record(open_store(root), "old-b", 0)
    for given, suggested in {"mi": None, "ol": "old", "my-rum": "my-run"}.items():
        with pytest.raises(ConfigError, match="does not exist") as caught:
            members(root, given)
        found = str(caught.value).partition("did you mean ")[2].rstrip("?")
        assert found == (suggested or "")
        assert not found or members(root, found)


def test_an_arm_that_cannot_be_read_is_left_out_unless_asked_for(tmp_path, caplog):
    root = str(tmp_path / "root")
    prepare(root, describe(root, write_config(tmp_path, arms=ARMS), None, None))
    (tmp_path / "root/runs/demo-a/run.json").write_bytes(b"")
    assert members(root, "demo") == ["demo-b", "demo-2-c"]
    assert "demo-a is left out" in caplog.text
    assert members(root, "demo", unreadable=True) == ["demo-b", "demo-a", "demo-2-c"]
