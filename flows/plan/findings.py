"""What of a run will not work, and what is unwise, by what it would take and hold."""

from __future__ import annotations

import math
from collections.abc import Iterator

from flows.plan.amounts import PROCESS_BYTES, Amounts, Memory, Problems
from flows.plan.facts import ModelFacts
from polyepo.config import RunConfig
from polyepo.findings import Finding, Severity, config_findings, objective_findings
from polyepo.judges import LLMJudge
from polyepo.policy.schedule import learning_rate
from polyepo.samplers.settings import VLLMSampling
from polyepo.scoring import SetScoring

# malloc and CUDA's allocator keep freed pieces that fit nowhere: up to 1.4 times what is used was seen on the CPU.
_ALLOCATOR = 1.4
_MANY_REPEATS = 20


def findings(
    config: RunConfig,
    problems: Problems,
    model: ModelFacts | None,
    found: Amounts,
    memory: Memory | None,
    free_memory: int | None,
) -> list[Finding]:
    """Findings about one run, from its amounts and its model."""
    every = [
        *config_findings(config),
        *objective_findings(config),
        *_lengths(config, problems, model),
        *_signal(config, found),
        *_judge(config, found),
        *_update(config, problems),
        *_sampler(config),
    ]
    if memory is not None and free_memory is not None:
        every += _memory(config, memory, free_memory)
    return every


def gigabytes(size: float) -> str:
    """A number of bytes, for people."""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if size >= unit:
            return f"{size / unit:,.1f} {name}"
    return f"{size / 1e3:,.0f} kB"


def _lengths(config: RunConfig, problems: Problems, model: ModelFacts | None) -> Iterator[Finding]:
    sampling = config.sampling
    context = sampling.max_prompt_tokens + sampling.max_response_tokens
    if model and model.positions and context > model.positions:
        yield Finding(
            Severity.FATAL,
            f"sampling.max_prompt_tokens {sampling.max_prompt_tokens} + sampling.max_response_tokens "
            f"{sampling.max_response_tokens} = {context} is more than the model's {model.positions} positions",
            f"lower one of them by {context - model.positions}",
        )
    lengths = problems.lengths or {}
    if empty := [name for name, count in lengths.items() if not count]:
        yield Finding(
            Severity.FATAL,
            f"domain: {len(empty)} prompts are empty, such as that of problem {empty[0]!r}",
            "leave these problems out, or put words around them by domain.template",
        )
    if too_long := {name: count for name, count in lengths.items() if count > sampling.max_prompt_tokens}:
        worst = max(too_long, key=lambda name: too_long[name])
        yield Finding(
            Severity.FATAL,
            f"domain: {len(too_long)} prompts are longer than sampling.max_prompt_tokens {sampling.max_prompt_tokens}",
            f"raise it to {too_long[worst]} (problem {worst!r} has so many), or leave these problems out",
        )


def _signal(config: RunConfig, found: Amounts) -> Iterator[Finding]:
    scoring, size = config.scoring, config.sampling.num_responses
    if isinstance(scoring, SetScoring) and 1 < (scoring.num_sets or 0) < math.comb(size, scoring.set_size):
        yield _unwise(
            f"scoring.num_sets {scoring.num_sets} of {math.comb(size, scoring.set_size):,} sets adds noise to the "
            "advantages and saves nothing",
            "leave it out for all sets in closed form",
        )
    if found.repeats > _MANY_REPEATS and config.policy.model is not None:
        yield _unwise(
            f"steps {config.steps} x sampling.prompts_per_step {config.sampling.prompts_per_step} show each of the "
            f"training problems {found.repeats:.0f} times",
            "have more problems, or fewer steps",
        )


def _judge(config: RunConfig, found: Amounts) -> Iterator[Finding]:
    judge = config.judge
    if not isinstance(judge, LLMJudge):
        return
    if not judge.has_prices:
        yield _unwise(
            "judge.price_per_million_input and price_per_million_output are not set: nobody knows what the judge's "
            f"{found.judge_calls:,} calls cost",
            "set them; a server of your own has prices of 0",
        )
    elif judge.max_cost is None:
        yield _unwise(
            f"judge.max_cost is not set: the calls may cost {found.judge_cost:,.2f}, or more",
            "set it to what they may cost at most",
        )
    elif found.judge_cost > judge.max_cost:
        yield _unwise(
            f"judge.max_cost {judge.max_cost:g} stops the run if responses are as long as they may be: its calls would "
            f"cost {found.judge_cost:,.2f}",
            "raise it, or lower steps or evaluation.num_samples",
        )


def _update(config: RunConfig, problems: Problems) -> Iterator[Finding]:
    update, sampling = config.update, config.sampling
    row = problems.longest(sampling.max_prompt_tokens) + sampling.max_response_tokens
    if update.micro_batch_tokens < row:
        yield _unwise(
            f"update.micro_batch_tokens {update.micro_batch_tokens} is less than one response with its prompt: a "
            f"micro-batch then takes up to {row} tokens all the same",
            f"set it to {row} or more",
        )
    if update.schedule_steps and config.steps > update.schedule_steps:
        yield _unwise(
            f"steps {config.steps} go on after update.schedule_steps {update.schedule_steps} with the learning rate of "
            f"its last step, {learning_rate(update, update.schedule_steps):.2g}",
            "leave update.schedule_steps out, and the schedule is as long as the run begins",
        )


def _sampler(config: RunConfig) -> Iterator[Finding]:
    sampler = config.sampler
    if isinstance(sampler, VLLMSampling) and sampler.launch and not sampler.sleep and config.policy.device != "cpu":
        yield _unwise(
            "sampler.sleep false: a launched server keeps its memory, most of its GPU unless sampler.launch.args has a "
            "--gpu-memory-utilization, while the update runs",
            "set it to true if they share a GPU",
        )


def _memory(config: RunConfig, memory: Memory, free: int) -> Iterator[Finding]:
    sampling, held = config.sampling, memory.weights + memory.optimizer + PROCESS_BYTES
    room = free - held
    if memory.update + PROCESS_BYTES > free:
        one = memory.micro_batch / memory.shape.rows
        rows = int((room - memory.weights) // one)
        row = memory.shape.prompt + memory.shape.response
        needed = gigabytes(memory.update + PROCESS_BYTES)
        yield Finding(
            Severity.FATAL,
            f"the update needs {needed} of {gigabytes(free)} that are free",
            f"update.micro_batch_tokens {config.update.micro_batch_tokens} should be at most {rows * row}"
            if 1 <= rows < memory.shape.rows
            else f"not even one row of {row} tokens fits; use a smaller model, shorter responses or a larger device",
        )
    if memory.sampled_rows and memory.sampling + PROCESS_BYTES > free:
        rows = int(room // (memory.cache_row + memory.draw_row))
        rows -= rows % sampling.num_responses
        advice = f"should be at most {rows}" if rows > 0 else "cannot be small enough: use the vllm sampler"
        yield Finding(
            Severity.FATAL,
            f"sampling {memory.sampled_rows} responses at a time needs {gigabytes(memory.sampling + PROCESS_BYTES)} of "
            f"{gigabytes(free)} that are free",
            f"sampling.batch_size {sampling.batch_size} {advice}",
        )
    if memory.peak <= free < _ALLOCATOR * memory.peak:
        yield _unwise(
            f"the peak of {gigabytes(memory.peak)} is close to the {gigabytes(free)} that are free: what an allocator "
            "keeps of freed pieces may not fit",
            "lower update.micro_batch_tokens or sampling.batch_size",
        )


def _unwise(what: str, remedy: str) -> Finding:
    return Finding(Severity.WARNING, what, remedy)
