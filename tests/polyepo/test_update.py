"""The update against a plain float64 implementation of the same formula."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polyepo.config import SamplingConfig, UpdateConfig
from polyepo.policy.logprobs import micro_batches
from polyepo.policy.loss import surrogate_loss, token_weights
from polyepo.policy.update import Batch, NonFiniteError, update
from tests.support.tiny_policy import VOCABULARY, tiny_policy


def random_batch(seed, num_problems=4, num_responses=3, zero_problem=True):
    rng = np.random.default_rng(seed)
    ids, prompts, responses, logprobs = [], [], [], []
    for p in range(num_problems):
        prompt = rng.integers(2, VOCABULARY, rng.integers(1, 6)).tolist()
        for _ in range(num_responses):
            response = rng.integers(1, VOCABULARY, rng.integers(1, 9)).tolist()
            ids.append(f"p{p}")
            prompts.append(prompt)
            responses.append(response)
            logprobs.append((-2.4 + 0.2 * rng.standard_normal(len(response))).astype(np.float32))
    advantages = rng.standard_normal(len(ids))
    if zero_problem:
        advantages[:num_responses] = 0.0
    truncated = np.array([len(response) >= 6 for response in responses])
    return Batch(ids, prompts, responses, logprobs, advantages, truncated)


def plain_logprobs(model, prompt, response):
    logits = model(torch.tensor([prompt + response])).logits[0]
    rows = [torch.log_softmax(logits[len(prompt) - 1 + t], -1)[token] for t, token in enumerate(response)]
    return torch.stack(rows)


def plain_loss(model, old_model, batch, config, sampling):
    """One response and one token at a time."""
    total = torch.zeros((), dtype=torch.float64)
    rows = list(zip(batch.prompts, batch.responses, batch.sampler_logprobs, batch.advantages, strict=True))
    if config.overlong_filtering:
        rows = [row for row, truncated in zip(rows, batch.truncated, strict=True) if not truncated]
    num_tokens = sum(len(response) for _, response, _, _ in rows)
    for prompt, response, sampler, advantage in rows:
        new = plain_logprobs(model, prompt, response)
        old = plain_logprobs(old_model, prompt, response).detach()
        for t in range(len(response)):
            ratio = torch.exp(new[t] - old[t])
            inside = 1 - config.clip_low <= float(ratio.detach()) <= 1 + config.clip_high
            clipped = min(max(float(ratio.detach()), 1 - config.clip_low), 1 + config.clip_high)
            clipped_value = ratio * advantage if inside else clipped * advantage
            loss = -torch.minimum(ratio * advantage, torch.as_tensor(clipped_value, dtype=torch.float64))
            if config.importance_cap is not None:
                loss = loss * min(math.exp(float(old[t]) - float(sampler[t])), config.importance_cap)
            if config.loss_norm == "constant":
                loss = loss / (sampling.max_response_tokens * len(rows))
            elif config.loss_norm == "response":
                loss = loss / (len(response) * len(rows))
            else:
                loss = loss / num_tokens
            total = total + loss
    return total


@pytest.mark.parametrize("norm", ["constant", "response", "token"])
@pytest.mark.parametrize("cap", [None, 1.1])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("filtering", [False, True])
def test_one_step_equals_the_plain_loss(norm, cap, seed, filtering):
    config = UpdateConfig(
        lr=1e-2,
        loss_norm=norm,
        importance_cap=cap,
        max_grad_norm=1e9,
        micro_batch_tokens=40,
        overlong_filtering=filtering,
    )
    sampling = SamplingConfig(max_response_tokens=8)
    batch = random_batch(seed)
    assert batch.truncated[batch.advantages != 0].any(), "there is something to filter"
    policy = tiny_policy()
    reference = copy.deepcopy(policy.model)
    loss = plain_loss(reference, copy.deepcopy(reference), batch, config, sampling)
    loss.backward()
    norm_of = torch.sqrt(sum((p.grad**2).sum() for p in reference.parameters()))
    optimizer = torch.optim.AdamW(reference.parameters(), lr=1e-2, weight_decay=0.0)
    optimizer.step()
    metrics = update(policy, batch, config, sampling, seed=0)
    assert metrics.loss == pytest.approx(float(loss), abs=1e-12)
    assert metrics.grad_norm == pytest.approx(float(norm_of), rel=1e-9)
    for mine, theirs in zip(policy.model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-7)


def test_filtered_responses_have_no_influence():
    """Neither their advantages nor their lengths, and a minibatch of nothing else has a loss of 0."""
    sampling = SamplingConfig(max_response_tokens=8)
    config = UpdateConfig(lr=1e-2, overlong_filtering=True, prompts_per_minibatch=2, loss_norm="token")
    results = []
    for advantage, length in ((0.5, 8), (-9.0, 3)):
        batch, policy = random_batch(4), tiny_policy()
        batch.advantages[batch.truncated] = advantage
        for row in np.flatnonzero(batch.truncated):
            batch.responses[row][length:] = []
            batch.sampler_logprobs[row] = batch.sampler_logprobs[row][:length]
        metrics = update(policy, batch, config, sampling, seed=3)
        results.append((metrics.loss, metrics.grad_norm))
    assert batch.truncated.any()
    assert results[0] == pytest.approx(results[1], rel=1e-9)
    batch.truncated[:] = True
    metrics = update(tiny_policy(), batch, config, sampling, seed=3)
    assert (metrics.loss, metrics.grad_norm, metrics.num_responses) == (0.0, 0.0, len(batch.responses))


def test_clipped_loss_and_gradient_off_policy():
    """A second epoch moves ratios out of the clip range: it must equal the plain loss at the moved weights."""
    config = UpdateConfig(lr=3e-2, epochs=2, max_grad_norm=1e9)
    sampling = SamplingConfig(max_response_tokens=8)
    batch = random_batch(3)
    policy = tiny_policy()
    old = copy.deepcopy(policy.model)
    twin = tiny_policy()
    first = update(twin, batch, config.model_copy(update={"epochs": 1}), sampling, seed=0)
    second = plain_loss(twin.model, old, batch, config, sampling)
    metrics = update(policy, batch, config, sampling, seed=0)
    assert metrics.clip_fraction > 0
    assert metrics.loss == pytest.approx((first.loss + float(second)) / 2, abs=1e-10)
    assert metrics.num_optimizer_steps == 2


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10_000))
def test_surrogate_gradient(seed):
    """Inside the clip range the gradient is -A rho; where the clip is active it is exactly 0."""
    rng = np.random.default_rng(seed)
    new = torch.tensor(rng.normal(0, 0.4, (3, 5)), requires_grad=True)
    advantages = torch.tensor(rng.normal(size=3))
    losses, clipped = surrogate_loss(new, torch.zeros(3, 5, dtype=torch.float64), advantages, 0.2, 0.28)
    losses.sum().backward()
    ratio = new.detach().exp()
    outside = ((advantages[:, None] > 0) & (ratio > 1.28)) | ((advantages[:, None] < 0) & (ratio < 0.8))
    torch.testing.assert_close(clipped, outside)
    torch.testing.assert_close(new.grad, torch.where(outside, 0.0, -advantages[:, None] * ratio))


@pytest.mark.parametrize("norm", ["constant", "response", "token"])
def test_same_update_for_any_micro_batch(norm):
    sampling = SamplingConfig(max_response_tokens=8)
    results = []
    for budget in (1, 20, 60, 10_000):
        policy = tiny_policy()
        config = UpdateConfig(lr=1e-2, loss_norm=norm, micro_batch_tokens=budget, prompts_per_minibatch=2)
        metrics = update(policy, random_batch(5), config, sampling, seed=7)
        results.append((metrics, torch.cat([p.detach().ravel() for p in policy.model.parameters()])))
    for metrics, weights in results[1:]:
        assert metrics.loss == pytest.approx(results[0][0].loss, abs=1e-12)
        torch.testing.assert_close(weights, results[0][1], rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    ("changes", "recomputed", "silent"),
    [
        ({}, 0, False),
        ({"epochs": 2}, 0, False),
        ({}, 3, True),  # the prompt without a signal: its entropy and mismatch are recorded all the same
        ({"prompts_per_minibatch": 2}, 6, False),
        ({"overlong_filtering": True}, "truncated", False),
    ],
)
def test_the_old_policy_is_asked_only_where_the_new_one_is_another(changes, recomputed, silent):
    policy, batch = tiny_policy(), random_batch(2, zero_problem=silent)
    asked, compute = [], policy.model.token_logprobs

    def count(engine, prompts, responses, temperature, with_entropy):
        asked.append((torch.is_grad_enabled(), with_entropy, len(prompts)))
        return compute(engine, prompts, responses, temperature, with_entropy)

    policy.model.token_logprobs = count
    metrics = update(policy, batch, UpdateConfig(**changes), SamplingConfig(max_response_tokens=8), seed=0)
    rows = int(batch.truncated.sum()) if recomputed == "truncated" else recomputed
    assert sum(size for grad, _, size in asked if not grad) == rows
    assert sum(size for _, entropy, size in asked if entropy) == len(batch.responses), "each row's, once"
    reference = update(tiny_policy(), batch, UpdateConfig(), SamplingConfig(max_response_tokens=8), seed=0)
    assert metrics.entropy == pytest.approx(reference.entropy, rel=1e-12)
    assert metrics.logprob_mismatch == pytest.approx(reference.logprob_mismatch, rel=1e-12)
    assert metrics.importance_weight_max == pytest.approx(reference.importance_weight_max, rel=1e-12)


def test_update_is_repeatable_bit_for_bit():
    runs = []
    for _ in range(2):
        policy = tiny_policy(dtype=torch.float32)
        update(policy, random_batch(1), UpdateConfig(lr=1e-2), SamplingConfig(max_response_tokens=8), seed=0)
        runs.append([p.detach().clone() for p in policy.model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_gradient_checkpointing_keeps_less_and_changes_nothing():
    runs, kept = [], []
    for checkpointing in (False, True):
        policy = tiny_policy(dtype=torch.float32)
        config = UpdateConfig(lr=1e-2, gradient_checkpointing=checkpointing)
        sizes = []

        def pack(tensor, sizes=sizes):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            metrics = update(policy, random_batch(1), config, SamplingConfig(max_response_tokens=8), seed=0)
        runs.append((metrics, [p.detach().clone() for p in policy.model.parameters()]))
        kept.append(sum(sizes))
        assert not any("forward" in vars(module) for module in policy.model.modules())
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(a, b) for a, b in zip(runs[0][1], runs[1][1], strict=True))
    assert kept[1] < 0.5 * kept[0]


def test_non_finite_never_reaches_the_weights():
    policy = tiny_policy()
    before = [p.detach().clone() for p in policy.model.parameters()]
    batch = random_batch(0)
    batch.advantages[-1] = math.nan
    with pytest.raises(NonFiniteError, match=r"step 1: loss is nan"):
        update(policy, batch, UpdateConfig(lr=1e-2), SamplingConfig(max_response_tokens=8), seed=0)
    batch.advantages[-1] = 1e308
    with pytest.raises(NonFiniteError):
        update(policy, batch, UpdateConfig(lr=1e-2), SamplingConfig(max_response_tokens=1), seed=0)
    assert all(torch.equal(a, b) for a, b in zip(before, policy.model.parameters(), strict=True))
    assert policy.version == 0


def test_damaged_weights_are_noticed():
    policy = tiny_policy()
    with torch.no_grad():
        next(iter(policy.model.parameters())).fill_(math.nan)
    with pytest.raises(NonFiniteError, match="log-probabilities"):
        update(policy, random_batch(0), UpdateConfig(), SamplingConfig(max_response_tokens=8), seed=0)


def test_mismatch_is_measured_against_the_sampler():
    policy = tiny_policy()
    batch = random_batch(2)
    own = [
        plain_logprobs(policy.model, p, r).detach().numpy() for p, r in zip(batch.prompts, batch.responses, strict=True)
    ]
    differences = np.concatenate([o - s for o, s in zip(own, batch.sampler_logprobs, strict=True)])
    metrics = update(policy, batch, UpdateConfig(), SamplingConfig(max_response_tokens=8), seed=0)
    assert metrics.logprob_mismatch == pytest.approx(np.abs(differences).mean(), rel=1e-9)
    assert metrics.logprob_mismatch_max == pytest.approx(np.abs(differences).max(), rel=1e-9)
    assert metrics.importance_weight_max == pytest.approx(np.exp(differences.max()), rel=1e-9)


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=30), st.integers(1, 200))
def test_micro_batches_keep_to_the_budget(lengths, budget):
    groups = micro_batches(lengths, budget)
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    for group in groups:
        size = len(group) * (max(lengths[r][0] for r in group) + max(lengths[r][1] for r in group))
        assert size <= budget or len(group) == 1


def test_token_weights_sum_to_the_mean():
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert float(token_weights(mask, "token", 2, 3, 8).sum()) == pytest.approx(1)
    assert float(token_weights(mask, "response", 2, 3, 8).sum()) == pytest.approx(1)
    assert float(token_weights(mask, "constant", 2, 3, 8).sum()) == pytest.approx(3 / 16)
