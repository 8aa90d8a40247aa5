"""A model of the hub is the commit that a run began with, whatever its branch holds by now: in the hub's own cache."""

import json
import shutil

import pytest

from polyepo.config import ConfigError, parse_config
from polyepo.policy.model import load_policy
from polyepo.policy.source import resolve_revision
from storage import open_store
from tasks.runs.models import load_decoder
from tasks.runs.policies import policy_at
from tasks.runs.preflight import check, describe
from tasks.runs.replaying import replay_policy
from tasks.runs.run import RunExistsError, create_or_resume, open_run
from tests.support.config import small_config
from tests.support.runs import forget, start, train

MODEL = "somebody/small"
OLD, NEW, TAGGED = "a" * 40, "b" * 40, "c" * 40


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    run = start(str(tmp_path_factory.mktemp("weights")))
    train(run, until=4)
    forget()
    return run.store.local_files(run.key("checkpoints", 4))


@pytest.fixture
def hub(weights, tmp_path, monkeypatch):
    """A cache as huggingface_hub writes it: a snapshot for each commit, and the commits of branches and tags."""
    cache = tmp_path / "hub"
    folder = cache / f"models--{MODEL.replace('/', '--')}"
    for number, commit in enumerate((OLD, NEW, TAGGED)):
        shutil.copytree(weights, folder / "snapshots" / commit, ignore=shutil.ignore_patterns("optimizer*", "trainer*"))
        path = folder / "snapshots" / commit / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"initializer_range": 0.01 * (number + 1)}))
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(OLD)
    (folder / "refs" / "v1").write_text(TAGGED)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("transformers.utils.hub.HF_HUB_CACHE", str(cache), raising=False)
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(cache))
    return folder


def move(hub, commit, branch="main"):
    (hub / "refs" / branch).write_text(commit)


def configured(**policy):
    raw = small_config(scoring={"method": "grpo"}, steps=3, checkpoint_every=100)
    raw["policy"] = {"model": MODEL, "device": "cpu", "num_threads": 1, **policy}
    return parse_config(raw).runs("run")["run"]


def commit_of(run):
    return {OLD: 0.01, NEW: 0.02, TAGGED: 0.03}[run.config.policy.revision]


def test_a_run_keeps_the_commit_that_it_began_with(hub, tmp_path):
    root = str(tmp_path / "root")
    run = create_or_resume(root, "run", configured())
    assert open_store(root).run_record("run")["model"] == {"revision": OLD}
    assert run.config.policy.revision == OLD
    assert policy_at(run, 0).policy.model.config.initializer_range == 0.01
    train(run, until=2)
    move(hub, NEW)
    forget()
    open_run.cache_clear()
    again = create_or_resume(root, "run", configured())
    assert (again.config.policy.revision, again.config_hash) == (OLD, run.config_hash)
    assert open_store(root).settings_changes("run") == []
    assert policy_at(again, 0).policy.model.config.initializer_range == 0.01
    assert load_decoder(again) is not None
    forget()
    train(again)
    assert replay_policy(again, 3)["weights"] == replay_policy(run, 3)["weights"]
    other = create_or_resume(root, "other", configured())
    assert other.config.policy.revision == NEW
    forget()


@pytest.mark.parametrize(("given", "commit"), [("v1", TAGGED), ("main", OLD), (NEW, NEW)])
def test_a_branch_tag_or_commit_can_be_asked_for(hub, tmp_path, given, commit):
    root = str(tmp_path / "root")
    run = create_or_resume(root, "run", configured(revision=given))
    assert run.config.policy.revision == commit
    policy = load_policy(MODEL, run.config.policy, run.config.update)
    assert policy.model.config.initializer_range == commit_of(run)
    if given != commit:
        move(hub, NEW, branch=given)
    for same in (given, commit, None):
        assert create_or_resume(root, "run", configured(revision=same)).config.policy.revision == commit
    different = OLD if commit != OLD else TAGGED
    with pytest.raises(RunExistsError, match=rf"policy.revision: .{commit}. -> .{different}."):
        create_or_resume(root, "run", configured(revision=different))


def test_the_command_refuses_what_the_hub_does_not_have(hub, tmp_path):
    config = tmp_path / "c.yaml"
    for policy, message in [
        ({"model": "somebody/smal"}, r"'somebody/smal' is no directory here, and no model that the Hugging Face hub"),
        ({"model": MODEL, "revision": "v2"}, r"with policy\.revision 'v2' is no directory"),
        ({"model": "not a name"}, "is no directory here"),
        ({"model": "./models/small"}, "no such directory"),
    ]:
        config.write_text(json.dumps(small_config(policy={}) | {"policy": policy}))
        root = str(tmp_path / "root")
        with pytest.raises(ConfigError, match=message):
            check(root, describe(root, config, None, None))
    config.write_text(json.dumps(small_config(scoring={"method": "grpo"}) | {"policy": {"model": MODEL}}))
    check(root, describe(root, config, None, None))
    assert open_store(root).runs() == []


def test_a_run_of_an_older_version_is_pinned_when_it_goes_on(hub, tmp_path):
    root = str(tmp_path / "root")
    record = {"run": "run", "config": configured().model_dump(mode="json"), "config_hash": "h"}
    open_store(root).create_run("run", record)
    run = create_or_resume(root, "run", configured())
    assert run.config.policy.revision == OLD
    (change,) = open_store(root).settings_changes("run")
    assert change["changes"] == [f'model: {{"revision": "{OLD}"}}']
    move(hub, NEW)
    assert create_or_resume(root, "run", configured()).config.policy.revision == OLD
    # The commit stays when something else is changed.
    grown = configured().model_copy(update={"steps": 9})
    assert create_or_resume(root, "run", grown).config.policy.revision == OLD


def test_a_run_of_an_older_version_whose_model_is_gone_goes_on_from_its_checkpoint(hub, tmp_path):
    root = str(tmp_path / "root")
    config = configured().model_copy(update={"checkpoint_every": 2})
    train(create_or_resume(root, "run", config), until=2)
    record = tmp_path / "root" / "runs" / "run" / "run.json"
    content = json.loads(record.read_text())
    record.write_text(json.dumps({key: value for key, value in content.items() if key not in ("model", "device")}))
    shutil.rmtree(hub)
    forget()
    open_run.cache_clear()
    train(create_or_resume(root, "run", config))
    shutil.rmtree(tmp_path / "root" / "runs" / "run" / "checkpoints")
    forget()
    for refuse in (lambda: create_or_resume(root, "run", config), lambda: policy_at(open_run(root, "run"), 3)):
        with pytest.raises(ConfigError, match=r"policy\.model 'somebody/small'"):
            refuse()


def test_what_a_branch_means_is_a_commit(hub):
    assert resolve_revision(MODEL, None) == OLD
    assert resolve_revision(MODEL, "v1") == TAGGED
