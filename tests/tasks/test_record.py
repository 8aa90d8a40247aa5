"""A run's record, as it is written and as any version's is read."""

import json

import pytest

from polyepo.config import ConfigError, parse_config
from storage import open_store
from tasks.runs.groups import Arm
from tasks.runs.record import ImportRecord, Parent, RunRecord, as_record, new_record, read_record
from tests.support.config import small_config


@pytest.fixture
def config():
    return parse_config(small_config()).runs("run")["run"]


def test_what_is_written_comes_back(config, tmp_path):
    store = open_store(str(tmp_path))
    whole = new_record("a", config, Arm("g", "a", ["a", "b"]), Parent(run="p", step=3, changes=["x: 1 -> 2"]))
    source = ImportRecord(digest="d", files=[], malformed_rows=0)
    whole = whole.model_copy(update={"model": {}, "device": "cpu", "imported": source})
    store.create_run("a", whole.written())
    found = read_record(store, "a")
    assert found.written() == whole.written() | {"created_at": found.created_at}
    assert found.place == Arm("g", "a", ["a", "b"])
    assert found.run_config("a") == config
    assert read_record(store, "b") is None


def test_what_was_not_said_is_not_written(config):
    written = new_record("a", config).written()
    assert written["group"] is None
    assert not {"arm", "arms", "parent", "imported", "model", "device", "code", "created_at"} & written.keys()
    assert json.loads(json.dumps(written)) == written


def test_older_records_say_less():
    old = as_record("a", {"run": "a", "config": {"steps": 1}, "packages": {"torch": "2"}, "later": 1})
    assert old.knows_groups is False
    assert (old.place, old.parent, old.model, old.device, old.imported) == (None,) * 5
    assert old.model_extra == {"later": 1}
    assert RunRecord(group=None).knows_groups


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"parent": {"run": "p"}}, "parent.step"), ({"device": 3}, "device"), ({"arms": "a"}, "arms")],
    ids=["parent", "device", "arms"],
)
def test_what_is_no_record_is_named(changes, message):
    with pytest.raises(ConfigError, match=rf"^the record of run 'a' cannot be used:\n  {message}"):
        as_record("a", {"run": "a", **changes})
