"""What of a run will not work, and what is unwise: each names the field, its value and what would be right."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from flows.plan.amounts import PROCESS_BYTES, Amounts, Memory, Problems
from flows.plan.model import ModelFacts
from polyepo.config import RunConfig, SetScoring
from polyepo.judges import LLMJudge
from polyepo.judges.llm.limits import JudgeError

# malloc and CUDA's allocator keep freed pieces that fit nowhere: up to 1.4 times what is used was seen on the CPU.
_ALLOCATOR = 1.4
_MANY_REPEATS = 20


@dataclass(frozen=True)
class Finding:
    """One thing about a configuration; `fatal` if the run would stop or teach nothing."""

    fatal: bool
    text: str


def findings(
    config: RunConfig,
    problems: Problems,
    model: ModelFacts | None,
    found: Amounts,
    memory: Memory | None,
    free_memory: int | None,
) -> list[Finding]:
    """All findings about one run, fatal ones first."""
    every = [
        *_lengths(config, problems, model),
        *_signal(config, found),
        *_judge(config, found),
        *_update(config, problems),
        *_sampler(config),
    ]
    if memory is not None and free_memory is not None:
        every += _memory(config, memory, free_memory)
    return sorted(every, key=lambda finding: not finding.fatal)


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
            True,
            f"sampling.max_prompt_tokens {sampling.max_prompt_tokens} + sampling.max_response_tokens "
            f"{sampling.max_response_tokens} = {context} is more than the model's {model.positions} positions: "
            f"lower one of them by {context - model.positions}",
        )
    too_long = {name: n for name, n in (problems.lengths or {}).items() if not 0 < n <= sampling.max_prompt_tokens}
    if too_long:
        worst = max(too_long, key=lambda name: too_long[name])
        yield Finding(
            True,
            f"domain: {len(too_long)} prompts are empty or longer than sampling.max_prompt_tokens "
            f"{sampling.max_prompt_tokens}; problem {worst!r} has {too_long[worst]} tokens",
        )


def _signal(config: RunConfig, found: Amounts) -> Iterator[Finding]:
    scoring, size = config.scoring, config.sampling.num_responses
    silent = "every advantage is 0, and nothing is learnt"
    if size == 1:
        yield Finding(True, f"sampling.num_responses 1: {silent}; it must be at least 2")
    elif isinstance(scoring, SetScoring):
        if scoring.set_size == size:
            yield Finding(
                True,
                f"scoring.set_size {scoring.set_size} is sampling.num_responses: there is one set, the baseline is "
                f"its own score, {silent}; it must be below {size}",
            )
        elif scoring.num_sets == 1:
            yield Finding(True, f"scoring.num_sets 1: the baseline is the set's own score, {silent}; leave it out")
        elif scoring.set_size == 1 and scoring.objective == "polychromic" and scoring.require_two_clusters:
            yield Finding(
                True,
                f"scoring.set_size 1 with require_two_clusters: no set has two clusters, {silent}; it must be >= 2",
            )
        elif scoring.num_sets and math.comb(size, scoring.set_size) > scoring.num_sets:
            yield Finding(
                False,
                f"scoring.num_sets {scoring.num_sets} of {math.comb(size, scoring.set_size):,} sets adds noise to the "
                "advantages and saves nothing: leave it out for all sets in closed form",
            )
    if found.repeats > _MANY_REPEATS and config.policy.model is not None:
        yield Finding(
            False,
            f"steps {config.steps} x sampling.prompts_per_step {config.sampling.prompts_per_step} show each of the "
            f"training problems {found.repeats:.0f} times: have more problems, or fewer steps",
        )


def _judge(config: RunConfig, found: Amounts) -> Iterator[Finding]:
    judge = config.judge
    if not isinstance(judge, LLMJudge):
        return
    try:
        judge.api_key()
    except JudgeError as error:
        yield Finding(False, str(error))
    if not judge.has_prices:
        yield Finding(
            False,
            "judge.price_per_million_input and price_per_million_output are not set: nobody knows what the judge's "
            f"{found.judge_calls:,} calls cost; a server of your own has prices of 0",
        )
    elif judge.max_cost is None:
        yield Finding(False, f"judge.max_cost is not set: the calls may cost {found.judge_cost:,.2f}, or more")
    elif found.judge_cost > judge.max_cost:
        yield Finding(
            False,
            f"judge.max_cost {judge.max_cost:g} stops the run if responses are as long as they may be: its calls would "
            f"cost {found.judge_cost:,.2f}",
        )


def _update(config: RunConfig, problems: Problems) -> Iterator[Finding]:
    update, sampling = config.update, config.sampling
    if update.lr == 0:
        yield Finding(True, "update.lr 0: nothing is learnt; it must be positive")
    row = problems.longest(sampling.max_prompt_tokens) + sampling.max_response_tokens
    if update.micro_batch_tokens < row:
        yield Finding(
            False,
            f"update.micro_batch_tokens {update.micro_batch_tokens} is less than one response with its prompt: a "
            f"micro-batch then takes up to {row} tokens all the same",
        )


def _sampler(config: RunConfig) -> Iterator[Finding]:
    sampler = config.sampler
    if sampler.name == "vllm" and sampler.launch and not sampler.sleep and config.policy.device != "cpu":
        yield Finding(
            False,
            "sampler.sleep false: a launched server keeps its memory, most of its GPU unless sampler.launch.args has a "
            "--gpu-memory-utilization, while the update runs: set it to true if they share a GPU",
        )


def _memory(config: RunConfig, memory: Memory, free: int) -> Iterator[Finding]:
    sampling, held = config.sampling, memory.weights + memory.optimizer + PROCESS_BYTES
    room = free - held
    if memory.update + PROCESS_BYTES > free:
        one = memory.micro_batch / memory.shape.rows
        rows = int((room - memory.weights) // one)
        row = memory.shape.prompt + memory.shape.response
        advice = (
            f"update.micro_batch_tokens {config.update.micro_batch_tokens} should be at most {rows * row}"
            if 1 <= rows < memory.shape.rows
            else f"not even one row of {row} tokens fits; use a smaller model, shorter responses or a larger device"
        )
        needed = gigabytes(memory.update + PROCESS_BYTES)
        yield Finding(True, f"the update needs {needed} of {gigabytes(free)} that are free: {advice}")
    if memory.sampled_rows and memory.sampling + PROCESS_BYTES > free:
        rows = int(room // (memory.cache_row + memory.draw_row))
        rows -= rows % sampling.num_responses
        advice = f"should be at most {rows}" if rows > 0 else "cannot be small enough: use the vllm sampler"
        yield Finding(
            True,
            f"sampling {memory.sampled_rows} responses at a time needs {gigabytes(memory.sampling + PROCESS_BYTES)} of "
            f"{gigabytes(free)} that are free: sampling.batch_size {sampling.batch_size} {advice}",
        )
    if memory.peak <= free < _ALLOCATOR * memory.peak:
        yield Finding(
            False,
            f"the peak of {gigabytes(memory.peak)} is close to the {gigabytes(free)} that are free: what an allocator "
            "keeps of freed pieces may not fit; lower update.micro_batch_tokens or sampling.batch_size",
        )
