"""A plan on one screen."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from flows.plan import Plan, RunPlan
from flows.plan.amounts import PROCESS_BYTES, Stage
from flows.plan.findings import gigabytes
from flows.views.findings import finding_line
from flows.views.terminal import safe_text
from polyepo.judges import LLMJudge


def render(plan: Plan) -> Group:
    """Tables of what the runs take, then what was found."""
    parts: list[RenderableType] = []
    for run in plan.runs:
        parts += [_amounts(run), _memory(run)]
    free = "" if plan.free_storage is None else f"; {gigabytes(plan.free_storage)} are free"
    parts.append(Text(f"Storage in all: up to {gigabytes(plan.storage)}{free}.\n"))
    for run in plan.runs:
        where = "" if len(plan.runs) == 1 else ", ".join(run.runs)
        parts += [finding_line(finding, where) for finding in run.findings]
    parts += [finding_line(finding) for finding in plan.findings]
    if not any(run.findings for run in plan.runs) and not plan.findings:
        parts.append(Text.assemble(("✓ ", "green"), "it fits"))
    return Group(*parts)


def _amounts(run: RunPlan) -> Table:
    training, evaluation = run.amounts.training, run.amounts.evaluation
    count = len(run.runs)
    table = _table(", ".join(run.runs), "")
    heads = [f"1 of {training.times:,} steps", f"1 of {evaluation.times} evaluations", "the run"]
    for head in [*heads, *([f"all {count} runs"] if count > 1 else [])]:
        table.add_column(head, justify="right")

    def row(name: str, step: float, evaluated: float, show: str = ",.0f", extra: float = 0) -> None:
        whole = training.times * step + evaluation.times * evaluated + extra
        values = [step, evaluated, whole, *([count * whole] if count > 1 else [])]
        shown = (gigabytes(value) if show == "bytes" else format(value, show) for value in values)
        table.add_row(name, *(text if value else "" for text, value in zip(shown, values, strict=True)))

    def stages(name: str, field: str) -> None:
        row(name, getattr(training, field), getattr(evaluation, field))

    stages("prompts", "prompts")
    stages("responses", "responses")
    stages("response tokens ≤", "response_tokens")
    row("tokens through the update ≤", run.amounts.trained_tokens, 0)
    if isinstance(run.config.judge, LLMJudge):
        row("judge calls", training.judge.calls, evaluation.judge.calls)
        row("judge tokens in ≈", training.judge.prompt_tokens, evaluation.judge.prompt_tokens)
        row("judge tokens out ≈", training.judge.completion_tokens, evaluation.judge.completion_tokens)
        if run.config.judge.has_prices:
            row("judge cost ≈", training.judge.cost, evaluation.judge.cost, ",.2f")
    row("tables", training.records, evaluation.records, "bytes")
    if run.amounts.checkpoint is not None:
        written = run.amounts.checkpoints * run.amounts.checkpoint
        row(f"{run.amounts.checkpoints} checkpoints of {gigabytes(run.amounts.checkpoint)}", 0, 0, "bytes", written)
    table.caption = _caption(run, training)
    return table


def _caption(run: RunPlan, training: Stage) -> str:
    text = f"Each training problem is seen {run.amounts.repeats:.1f} times."
    judge = run.config.judge
    if not judge.makes_calls:
        return f"{text} Judge {judge.name!r} makes no calls."
    if isinstance(judge, LLMJudge):
        tokens = training.judge.prompt_tokens + training.judge.completion_tokens
        limits = ((training.judge.calls, judge.requests_per_minute), (tokens, judge.tokens_per_minute))
        minutes = max((amount / limit for amount, limit in limits if limit), default=0)
        if minutes:
            text += f" The judge's rate limits let a step take no less than {minutes:.1f} minutes."
    return text


def _memory(run: RunPlan) -> RenderableType:
    memory, model = run.memory, run.model
    if memory is None or model is None:
        return Text()
    table = _table(f"memory of {run.device.name}", f"{model.num_parameters:,} parameters, {run.config.policy.dtype}")
    rows, shape = memory.sampled_rows, memory.shape
    for head in ("update", "sampling" if rows else "sampling (vLLM's)"):
        table.add_column(head, justify="right")

    def row(name: str, update: int, sampling: int) -> None:
        table.add_row(name, *(gigabytes(value) if value else "" for value in (update, sampling if rows else 0)))

    row("weights", memory.weights, memory.weights)
    row("gradients", memory.weights, 0)
    row("AdamW's moments", memory.optimizer, memory.optimizer)
    row(f"micro-batch: {shape.rows} x ({shape.prompt} + {shape.response}) tokens", memory.micro_batch, 0)
    table.caption = Text(safe_text(f"log-probabilities by {memory.engine}"))
    if memory.logits:
        row(f"  of it one copy of its logits, {shape.rows} x {shape.response} x {model.vocabulary}", memory.logits, 0)
    if rows:
        row(f"KV cache of {rows} responses", 0, rows * memory.cache_row)
        row("logits of their next tokens", 0, rows * memory.draw_row)
    row("the process itself", PROCESS_BYTES, PROCESS_BYTES)
    table.add_section()
    row("at its peak ≤", memory.update + PROCESS_BYTES, memory.sampling + PROCESS_BYTES)
    free = "not known" if run.device.free is None else gigabytes(run.device.free)
    table.add_row("free now", free, free if rows else "")
    return table


def _table(title: str, first: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=Text(safe_text(title), style="bold"), title_justify="left",
                  caption_justify="left", pad_edge=False)  # fmt: skip
    table.add_column(first)
    return table
