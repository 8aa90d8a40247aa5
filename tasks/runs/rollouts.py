"""Rows of rollouts: responses of a policy to problems, seeded so that they are the same whenever they are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from polyepo.config import RunConfig
from polyepo.domains import Problem
from polyepo.policy.model import Policy
from polyepo.samplers.base import Sampler
from polyepo.samplers.settings import VLLMSampling
from polyepo.samplers.transformers import TransformersSampler
from polyepo.seeds import derive_seed
from tasks.runs.run import Run


def sample_rows(
    run: Run, policy: Policy, problems: Sequence[Problem], step: int, numbers: range, purpose: str
) -> list[dict[str, Any]]:
    """Rows of the rollouts table, these samples per problem, seeded by (run, purpose, step, problem, sample)."""
    num_responses = len(numbers)
    seeds = [
        [derive_seed(run.config.seed, purpose, step, problem.problem_id, i) for i in numbers] for problem in problems
    ]
    prompts = [policy.encode(problem) for problem in problems]
    groups = _sampler(run.config, policy).sample(prompts, seeds)
    samples = [sample for group in groups for sample in group]
    texts = policy.tokenizer.batch_decode([s.token_ids for s in samples], skip_special_tokens=True)
    return [
        {
            "run": run.name,
            "step": step,
            "problem_id": problems[i // num_responses].problem_id,
            "sample": numbers[i % num_responses],
            "prompt_token_ids": prompts[i // num_responses],
            "response": texts[i],
            "response_token_ids": sampled.token_ids,
            "sampler_logprobs": sampled.logprobs,
            "finish_reason": sampled.finish_reason,
            "temperature": run.config.sampling.temperature,
            "top_p": 1.0,
            "seed": seeds[i // num_responses][i % num_responses],
            "policy_version": policy.version,
            "sampler": run.config.sampler.name,
        }
        for i, sampled in enumerate(samples)
    ]


def _sampler(config: RunConfig, policy: Policy) -> Sampler:
    if isinstance(config.sampler, VLLMSampling):
        from polyepo.samplers.vllm import VLLMSampler

        return VLLMSampler(policy, config.sampler, config.sampling)
    return TransformersSampler(policy, config.sampling)
