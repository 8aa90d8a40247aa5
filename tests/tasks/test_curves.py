"""Curves of a run, read back by TensorBoard's own reader, against the updates table."""

import json
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner

from flows.cli import app
from polyepo.config import ConfigError, parse_config
from polyepo.schemas import UPDATES
from storage import connect, rows
from tasks.runs import curves
from tasks.runs.curves import NAMES, LiveCurves, check_metrics
from tasks.runs.forking import fork
from tasks.runs.preflight import check, describe
from tasks.runs.run import create_or_resume, open_run
from tests.support.config import small_config
from tests.support.runs import copied, forget, start, train

STEPS = 4


def configured(**changes):
    return parse_config(small_config(**{"steps": STEPS, **changes})).runs("run")["run"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run = start(str(tmp_path_factory.mktemp("trained")), configured(metrics=["tensorboard"]))
    train(run)
    return run


@pytest.fixture
def root(trained, tmp_path):
    with copied(trained, tmp_path / "root") as root:
        yield root


def read(folder):
    """The points in a folder of event files, by curve and step; each curve's steps ascend, and are there once."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    found = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert all([step for step, _ in points] == sorted({step for step, _ in points}) for points in found.values())
    return {tag: dict(points) for tag, points in found.items()}


def points_of(root, name="run"):
    """What an event file must hold: every number of the updates table that is known, as float32."""
    expected = {}
    for row in rows(connect(root), "SELECT * FROM updates WHERE run = $run ORDER BY step", run=name):
        for column, value in row.items():
            number = pa.types.is_floating(kind := UPDATES.field(column).type) or pa.types.is_integer(kind)
            if number and value is not None and column not in ("step", "policy_version"):
                curve = expected.setdefault(NAMES.get(column, f"poly_epo/{column}"), {})
                curve[row["step"]] = float(np.float32(value))
        length = float(np.float32(row["num_tokens"] / row["num_responses"]))
        expected.setdefault("train/completions/mean_length", {})[row["step"]] = length
    return expected


def test_the_event_file_of_a_run_whose_process_was_killed_is_its_updates_table(root, tmp_path):
    """Killed while it wrote, after the first steps; the process after it knows only the store."""
    first = LiveCurves(open_run(root, "run"))
    first.write(1)
    (file,) = (tmp_path / "root" / "tensorboard" / "run").iterdir()
    file.write_bytes(file.read_bytes()[:-7])
    again = LiveCurves(open_run(root, "run"))
    again.write(STEPS)
    again.close()
    assert len(list(file.parent.iterdir())) == 2
    expected = points_of(root)
    assert set(expected["train/loss"]) == set(range(1, STEPS + 1))
    assert {"train/reward", "timing_s/gen", "poly_epo/distinct_successful"} <= expected.keys()
    assert read(file.parent) == expected


def test_points_come_while_the_run_trains(tmp_path):
    run = start(str(tmp_path), configured(metrics=["tensorboard"]))
    live = LiveCurves(run)
    for step in (1, 2):
        forget()
        train(run, until=step)
        live.write(step)
        assert set(read(tmp_path / "tensorboard" / "run")["train/loss"]) == set(range(1, step + 1))
    live.close()


def test_a_run_without_metrics_writes_none(root, tmp_path):
    live = LiveCurves(create_or_resume(root, "run", configured()))
    live.write(1)
    live.close()
    assert not (tmp_path / "root" / "tensorboard").exists()


def test_what_is_not_known_is_no_point():
    row = {"run": "r", "step": 3, "policy_version": 3, "loss": 0.5, "reward_mean": None, "checkpoint": "c",
           "num_responses": 4, "num_tokens": 10}  # fmt: skip
    assert curves.curves(row) == {
        "train/loss": 0.5,
        "poly_epo/num_responses": 4.0,
        "poly_epo/num_tokens": 10.0,
        "train/completions/mean_length": 2.5,
    }
    assert NAMES.keys() <= set(UPDATES.names)


def test_the_command_writes_curves_afterwards_also_of_a_fork(root, tmp_path):
    fork(root, "run", 2, "other", {})
    forget()
    train(open_run(root, "other"))
    for name, times in (("run", 1), ("run", 2), ("other", 1)):
        done = CliRunner().invoke(app, ["metrics", name, str(tmp_path / "out"), "--to", "tensorboard", "--root", root])
        assert done.exit_code == 0, done.output
        assert "tensorboard --logdir" in done.output
        assert len(list((tmp_path / "out" / name).iterdir())) == times
    assert read(tmp_path / "out" / "run") == points_of(root)
    of_fork = read(tmp_path / "out" / "other")
    assert {
        curve: {step: of_fork[curve][step] for step in points} for curve, points in points_of(root, "other").items()
    }
    assert of_fork["train/loss"] == read(tmp_path / "out" / "run")["train/loss"], "its parent's steps, then its own"


def test_what_cannot_be_written_is_refused_before_anything_starts(tmp_path, monkeypatch, root):
    config = tmp_path / "run.yaml"
    config.write_text(json.dumps(small_config(metrics=["tensorboard"])))
    check(str(tmp_path), describe(str(tmp_path), config, "new", None))
    monkeypatch.setattr(curves, "find_spec", lambda name: None)
    said = r"metrics: tensorboard needs its package: pip install 'poly-epo\[tensorboard\]', or leave it out"
    with pytest.raises(ConfigError, match=said):
        check(str(tmp_path), describe(str(tmp_path), config, "new", None))
    done = CliRunner().invoke(app, ["metrics", "run", str(tmp_path / "out"), "--root", root])
    assert (done.exit_code, (tmp_path / "out").exists()) == (2, False)
    check(str(tmp_path), describe(str(tmp_path), config, "new", {"metrics": []}))


def test_no_such_sink_run_steps_or_folder(tmp_path, trained, root):
    with pytest.raises(ConfigError, match=r"metrics\.0: .*'tensorboard'"):
        configured(metrics=["tensorbord"])
    bucket = SimpleNamespace(files=SimpleNamespace(fs=object()), root="s3://bucket/runs")
    check_metrics(bucket, configured())
    with pytest.raises(
        ConfigError, match=r"metrics: tensorboard writes into .* 's3://bucket/runs' is none.*RUN FOLDER"
    ):
        check_metrics(bucket, configured(metrics=["tensorboard"]))
    create_or_resume(root, "begun", configured())
    (tmp_path / "file").write_text("")
    for name, folder, code, words in (
        ("begun", "out", 2, "has no training steps"),
        ("none", "out", 2, "none"),
        ("run", "file", 1, "file cannot be written: "),
    ):
        done = CliRunner().invoke(app, ["metrics", name, str(tmp_path / folder), "--root", root])
        assert (done.exit_code, words in " ".join(done.output.split())) == (code, True), done.output
