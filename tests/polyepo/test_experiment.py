"""Experiment files: what they describe, and what is refused."""

import math
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy import stats

from flows.experiment import Comparison, markdown
from polyepo.config import ConfigError, load_config
from polyepo.experiment import load_experiment
from polyepo.metrics import t_interval
from tests.support.config import ARMS, small_config


def write(tmp_path, base=None, **experiment):
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(base or small_config()))
    path = tmp_path / "trial.yaml"
    path.write_text(yaml.safe_dump({"config": "small.yaml", "seeds": [0, 3], "arms": ARMS, **experiment}))
    return path


def test_every_seed_has_its_own_base_model_and_every_arm_its_own_run(tmp_path):
    found = load_experiment(write(tmp_path, settings={"steps": 3}))
    assert (found.name, found.seeds, found.arms) == ("trial", [0, 3], ["grpo", "poly"])
    for seed in found.seeds:
        runs = load_config(found.config, found.settings[seed]).runs(found.run(seed))
        assert list(runs) == [f"trial-seed{seed}-grpo", f"trial-seed{seed}-poly"]
        assert {run.seed for run in runs.values()} == {seed}
        assert {run.policy.warm_start.seed for run in runs.values()} == {seed}
        assert {run.steps for run in runs.values()} == {3}
        assert [run.scoring.method for run in runs.values()] == ["grpo", "poly_epo"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seeds": []}, "seeds"),
        ({"seeds": [1, 1]}, "each seed must stand there once"),
        ({"arms": {}}, "arms are missing"),
        ({"config": "nothing.yaml"}, "nothing.yaml"),
        ({"settings": {"stepps": 1}}, "stepps"),
        ({"arm": {}}, "arm"),
        ({"arms": {"a": {"scoring": {"method": "grpoo"}}}}, "grpoo"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, changes, said):
    with pytest.raises(ConfigError, match=said):
        load_experiment(write(tmp_path, **changes))


def test_an_experiment_without_evaluation_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="evaluation"):
        load_experiment(write(tmp_path, base={**small_config(), "evaluation": None}))
    with pytest.raises(ConfigError, match="name"):
        load_experiment(write(tmp_path), "a/b")


@pytest.mark.parametrize("size", [2, 3, 10])
def test_t_interval_is_scipys(size):
    values = np.random.default_rng(size).normal(3, 2, size)
    wanted = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert t_interval(values) == pytest.approx((wanted.low, wanted.high))
    with pytest.raises(ValueError, match="at least two"):
        t_interval(values[:1])


def test_differences_are_paired_by_seed():
    values = {
        "pass@1": np.array([[0.5, 0.1], [0.6, 0.2], [0.7, 0.3]]),
        "distinct@8": np.array([[4, 3], [1, 1], [5, 4.0]]),
    }
    found = Comparison([0, 1], ["base model", "grpo", "poly"], values)
    mean, low, high = found.difference("pass@1", 2)
    assert (mean, low, high) == pytest.approx((0.1, 0.1, 0.1)), "the seeds differ, their difference does not"
    assert "| poly | +0.100 (+0.100 to +0.100) | +3.50 (" in markdown(found)
    alone = Comparison([0], ["base model", "grpo", "poly"], {name: array[:, :1] for name, array in values.items()})
    assert math.isnan(alone.difference("pass@1", 2)[1])
    assert "| poly | +0.100 | +4.00 |" in markdown(alone)


@pytest.mark.parametrize("path", sorted(Path("configs/experiments").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_experiments_can_be_read(path):
    assert len(load_experiment(path).arms) >= 3
