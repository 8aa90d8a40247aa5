"""Learning rates against torch's own schedulers; which parameters decay; schedules that cannot be."""

import copy
from functools import partial

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LinearLR, SequentialLR

from polyepo.config import ConfigError, SamplingConfig, UpdateConfig, parse_config
from polyepo.policy.schedule import learning_rate
from polyepo.policy.update import update
from tests.polyepo.test_update import random_batch
from tests.support.config import small_config
from tests.support.tiny_policy import tiny_policy

LR = 0.3


def torch_rates(schedule, warmup, steps):
    """What torch's schedulers give an optimizer, step by step."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=LR)
    falls = {
        "constant": partial(LambdaLR, lr_lambda=lambda step: 1.0),
        "linear": partial(LinearLR, start_factor=1.0, end_factor=0.0, total_iters=steps - warmup),
        "cosine": partial(CosineAnnealingLR, T_max=steps - warmup),
    }[schedule]
    if warmup == 0:
        scheduler = falls(optimizer)
    else:
        rises = LinearLR(optimizer, start_factor=1 / warmup, total_iters=max(warmup - 1, 1))
        scheduler = SequentialLR(optimizer, [rises, falls(optimizer)], milestones=[warmup])
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize(("warmup", "steps"), [(0, 1), (0, 7), (1, 5), (3, 4), (10, 200)])
def test_rates_are_those_of_torchs_schedulers(schedule, warmup, steps):
    horizon = None if schedule == "constant" else steps
    config = UpdateConfig(lr=LR, warmup_steps=warmup, schedule=schedule, schedule_steps=horizon)
    rates = [learning_rate(config, step) for step in range(1, steps + 1)]
    assert rates == pytest.approx(torch_rates(schedule, warmup, steps), rel=1e-9)
    assert min(rates) > 0, "no step learns nothing"
    beyond = [learning_rate(config, step) for step in (steps + 1, 2 * steps)]
    assert beyond == rates[-1:] * 2


def test_a_schedule_without_steps_has_no_rates():
    with pytest.raises(ValueError, match=r"update\.schedule cosine needs update\.schedule_steps"):
        learning_rate(UpdateConfig(schedule="cosine"), 1)


def test_every_update_has_its_rate():
    config = UpdateConfig(lr=LR, warmup_steps=1, schedule="linear", schedule_steps=3)
    policy = tiny_policy()
    for rate in torch_rates("linear", 1, 3):
        measured = update(policy, random_batch(0), config, SamplingConfig(max_response_tokens=8), seed=0)
        assert measured.lr == pytest.approx(rate)
        assert [group["lr"] for group in policy.optimizer.param_groups] == [measured.lr] * 2


@pytest.mark.parametrize("norms", [True, False])
def test_weight_decay_leaves_norms_alone_if_it_is_to(norms):
    """Without a gradient an update is the decay alone: w (1 - lr weight_decay), by AdamW's definition."""
    config = UpdateConfig(lr=0.1, weight_decay=0.5, decay_norms_and_biases=norms)
    batch, policy = random_batch(0), tiny_policy()
    batch.advantages[:] = 0
    before = copy.deepcopy(policy.model)
    update(policy, batch, config, SamplingConfig(max_response_tokens=8), seed=0)
    assert {p.ndim for p in before.parameters()} == {1, 2}
    for mine, was in zip(policy.model.parameters(), before.parameters(), strict=True):
        torch.testing.assert_close(mine, was * (0.95 if norms or was.ndim == 2 else 1.0), rtol=1e-12, atol=0)


def configured(**changes):
    return parse_config(small_config(**changes)).runs("run")["run"]


@pytest.mark.parametrize(
    ("changes", "said", "remedy"),
    [
        (
            {"steps": 6, "update": {"schedule": "cosine", "schedule_steps": 7}},
            r"update\.schedule_steps 7 is longer than the run: it must not exceed steps 6",
            {"update": {"schedule": "cosine", "schedule_steps": 6}},
        ),
        (
            {"steps": 6, "update": {"schedule": "linear", "warmup_steps": 6}},
            r"needs more steps than update\.warmup_steps 6, and steps is 6: lower the warm-up, raise steps",
            {"steps": 7},
        ),
        ({"steps": 0, "update": {"schedule": "linear"}}, r"steps is 0.*schedule: constant", {"update": {}}),
        (
            {"update": {"schedule": "linear", "warmup_steps": 4, "schedule_steps": 4}},
            r"update: .*warmup_steps 4 must be fewer than schedule_steps 4",
            {"update": {"schedule": "linear", "warmup_steps": 3, "schedule_steps": 4}},
        ),
        ({"update": {"schedule_steps": 4}}, r"goes with schedule linear or", {"update": {"schedule_steps": None}}),
        ({"update": {"schedule": "step"}}, r"update\.schedule.*'constant', 'linear' or 'cosine'", {"update": {}}),
    ],
)  # fmt: skip
def test_schedules_that_cannot_be_are_refused(changes, said, remedy):
    with pytest.raises(ConfigError, match=said):
        configured(**changes)
    configured(**changes | remedy)


def test_an_arms_schedule_is_refused_by_the_arms_name():
    arms = {"a": {"update": {"schedule": "cosine", "schedule_steps": 9}}}
    with pytest.raises(ConfigError, match=r"arms\.a.*schedule_steps 9 is longer than the run"):
        parse_config(small_config(arms=arms))


def test_configurations_of_before_have_the_digests_that_they_had():
    new = {"schedule", "schedule_steps", "decay_norms_and_biases"}
    assert not new & configured().model_dump(mode="json")["update"].keys()
    assert configured().begun() == configured()
    scheduled = {"schedule": "linear"}
    digests = [configured(update=scheduled, steps=steps).begun().digest for steps in (5, 6)]
    assert len({*digests, configured().digest}) == 3, "another number of steps is another schedule"
