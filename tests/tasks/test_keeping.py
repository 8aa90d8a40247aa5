"""Room is made of old checkpoints alone, with a record, and nothing that replays needs them."""

import shutil

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from flows.cli import app
from polyepo.config import KeepCheckpoints, parse_config
from storage import StoreError, open_store
from storage.gc import find_garbage, remove_garbage
from storage.removal import removal, remove_files
from storage.verify import verify_run
from tasks.runs.exporting import export_policy
from tasks.runs.keeping import remove_old_checkpoints
from tasks.runs.replaying import replay_policy
from tasks.runs.run import create_or_resume, open_run
from tests.support.config import small_config
from tests.support.runs import copied, forget, start, train

STEPS = 6


def configured(**changes):
    return parse_config(small_config(steps=STEPS, checkpoint_every=1, **changes)).runs("run")["run"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run = start(str(tmp_path_factory.mktemp("trained")), configured())
    train(run)
    return run


@pytest.fixture
def root(trained, tmp_path):
    with copied(trained, tmp_path / "root") as root:
        yield root


def keeping(root, **keep):
    open_run.cache_clear()
    return create_or_resume(root, "run", configured(keep_checkpoints=keep))


@pytest.mark.parametrize(
    ("keep", "there"),
    [
        ({"last": 1}, [6]),
        ({"last": 2}, [5, 6]),
        ({"last": 1, "every": 2}, [2, 4, 6]),
        ({"last": 9}, [1, 2, 3, 4, 5, 6]),
    ],
)
def test_what_is_kept(root, keep, there):
    run = keeping(root, **keep)
    before = {step: replay_policy(run, step)["weights"] for step in (3, STEPS)}
    assert remove_old_checkpoints(run) == [step for step in range(1, STEPS + 1) if step not in there]
    assert remove_old_checkpoints(run) == [], "once"
    fresh = open_store(root)
    assert fresh.steps("run", "checkpoints") == there
    for step in range(1, STEPS + 1):
        folder = next((fresh.files._root / run.key("checkpoints", step).path).glob("[0-9a-f]*"), None)
        assert (folder is not None) == (step in there)
        assert (removal(fresh.files, run.key("checkpoints", step).path) is None) == (step in there)
    assert list(verify_run(fresh, "run")) == []
    forget()
    assert {step: replay_policy(run, step)["weights"] for step in (3, STEPS)} == before, "any step is replayed still"


def test_a_removed_checkpoint_is_made_again_where_it_is_asked_for(root, tmp_path):
    run = keeping(root, last=1)
    export_policy(run, 2, tmp_path / "before")
    remove_old_checkpoints(run)
    with pytest.raises(StoreError, match="were removed to make room"):
        run.store.local_files(run.key("checkpoints", 2))
    export_policy(run, 2, tmp_path / "after")
    name = "model.safetensors"
    assert (tmp_path / "before" / name).read_bytes() == (tmp_path / "after" / name).read_bytes()


def test_the_first_checkpoint_stays_where_the_model_it_began_with_is_gone(root, tmp_path):
    model = tmp_path / "model"
    export_policy(open_run(root, "run"), 1, model)
    own = start(str(tmp_path / "own"), configured(policy={"model": str(model), "warm_start": None}))
    train(own)
    run = keeping_own(own.store.root, model)
    shutil.rmtree(model)
    assert remove_old_checkpoints(run) == [2, 3, 4, 5]
    forget()
    assert replay_policy(run, 4)["step"] == 4


def keeping_own(root, model):
    open_run.cache_clear()
    config = configured(policy={"model": str(model), "warm_start": None}, keep_checkpoints={"last": 1})
    return create_or_resume(root, "run", config)


def test_whoever_is_killed_in_between_leaves_what_gc_finds(root, monkeypatch):
    run = keeping(root, last=1)
    monkeypatch.setattr(run.store.files, "remove", lambda path: (_ for _ in ()).throw(OSError("killed")))
    with pytest.raises(StoreError, match="could not be removed"):
        remove_files(run.store, run.key("checkpoints", 1), "test")
    monkeypatch.undo()
    fresh = open_store(root)
    assert 1 not in fresh.steps("run", "checkpoints")
    assert list(verify_run(fresh, "run")) == []
    found = find_garbage(fresh, -1)
    assert [item.path.rpartition("/")[0] for item in found] == [run.key("checkpoints", 1).path]
    assert remove_garbage(fresh, found) > 0
    assert find_garbage(fresh, -1) == []


def test_settings_that_would_keep_nothing_are_refused():
    with pytest.raises(ValidationError):
        KeepCheckpoints(last=0)
    with pytest.raises(ValueError, match="must be a multiple of checkpoint_every 4"):
        parse_config(small_config(checkpoint_every=4, keep_checkpoints={"every": 6}))


def test_du_counts_every_byte(root):
    result = CliRunner().invoke(app, ["du", "--root", root], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    files = [path for path in open_store(root).files._root.rglob("*") if path.is_file()]
    total = sum(path.stat().st_size for path in files if ".probe" not in path.parts)
    assert result.output.rstrip().splitlines()[-1].split()[-1] == f"{total / 1e6:,.1f}"
    alone = CliRunner().invoke(app, ["du", "run", "--root", root], env={"COLUMNS": "200"})
    assert "run" in alone.output
    assert "base models" not in alone.output
    missing = CliRunner().invoke(app, ["du", "nobody", "--root", root])
    assert (missing.exit_code, "does not exist" in missing.output) == (2, True)
