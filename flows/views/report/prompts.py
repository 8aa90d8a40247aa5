"""The responses that the strategy browser shows, and how strategies came and went."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from flows.views.report.source import Source, evenly, quote
from polyepo.objectives import DEGENERATE
from polyepo.report import ProblemKey, Prompt, Response
from polyepo.report.choose import Candidate, fit
from polyepo.report.data import TRAIN
from tasks.runs.models import load_decoder, warm_start_digest
from tasks.runs.run import Run

PAGE_BYTES = 8_000_000
"""What prompts and responses may take of the page; the library, curves and histories come on top of it."""
_HISTORY_ROWS = 120_000


def read_prompts(source: Source) -> tuple[list[Prompt], str, dict[str, str]]:
    """The prompts that the browser holds, a note of how many there are, and the SQL behind them."""
    differing = "\n    UNION\n    ".join(
        f"FROM agreement_by_prompt({quote(own)}, {quote(other)}) SELECT run, step, problem_id WHERE pair_agreement < 1"
        for own, other in source.judge_pairs()
    )
    differing = differing or "SELECT run, step, problem_id FROM scores WHERE false"
    sql = f"""WITH own AS (
    SELECT s.run, 'train' AS benchmark, s.step, s.problem_id, s.reward, s.cluster, s.degenerate, s.advantage,
           u.num_tokens / u.num_responses * 4 AS characters
    FROM scores s JOIN runs r USING (run, judge, scoring) JOIN updates u USING (run, step)
    UNION ALL
    SELECT run, benchmark, step, problem_id, reward, cluster, degenerate, NULL, length(response) FROM evals
), differing AS (
    {differing}
)
SELECT run, benchmark, step, problem_id, count(*) AS responses, sum(characters)::BIGINT AS characters,
       count(DISTINCT cluster) FILTER (is_correct(reward) AND NOT degenerate) AS successful,
       coalesce(bool_or(is_correct(reward)), false) AS solved, count(*) FILTER (degenerate) AS degenerate,
       coalesce(min(advantage) FILTER (is_correct(reward)) < 0
                AND max(advantage) FILTER (NOT is_correct(reward)) > 0, false) AS sign_flipped,
       benchmark = 'train' AND (run, step, problem_id) IN (FROM differing) AS disagree
FROM own
GROUP BY run, benchmark, step, problem_id
ORDER BY run, benchmark, step, problem_id"""  # noqa: S608 - names are quoted
    candidates = [Candidate(*row) for row in source.rows(sql)]
    chosen, prompts = fit(candidates, PAGE_BYTES, lambda some: _read_chosen(source, some))
    if len(chosen) == len(candidates):
        note = f"All {len(candidates):,} prompts of all steps and evaluations are here."
    else:
        steps = [len({(c.benchmark, c.step) for c in some}) for some in (chosen, candidates)]
        note = (
            f"{len(chosen):,} of {len(candidates):,} prompts are here, from {steps[0]:,} of {steps[1]:,} steps and "
            "evaluations: the first, the last and evenly between, and of each the rare kinds first (sign flips, "
            "disagreeing judges, all wrong, degenerate, most diverse). The store has all."
        )
    return prompts, note, {"browser": sql}


def _read_chosen(source: Source, chosen: Sequence[Candidate]) -> list[Prompt]:
    keys = [(c.run, c.benchmark, c.step, c.problem_id) for c in chosen]
    names = ("run", "benchmark", "step", "problem_id")
    table = pa.table({name: [key[i] for key in keys] for i, name in enumerate(names)})
    source.connection.register("wanted", table)
    steps = ", ".join(map(str, sorted({c.step for c in chosen if c.benchmark == TRAIN}))) or "NULL"
    responses: dict[tuple[Any, ...], list[Response]] = defaultdict(list)
    # Steps are spelt out, so that only their files are opened.
    for (
        *key,
        _,
        text,
        token_ids,
        truncated,
        reward,
        answer,
        cluster,
        degenerate,
        advantage,
        macro,
        micro,
        status,
        ungraded,
    ) in source.rows(
        f"""SELECT w.run, w.benchmark, w.step, w.problem_id, sample, response, response_token_ids,
                   finish_reason = 'length', reward, parsed_answer, s.cluster, s.degenerate, advantage,
                   macro_strategy, micro_strategy, status, ungraded
            FROM wanted w
            JOIN (FROM scores SEMI JOIN runs USING (run, judge, scoring)) s USING (run, step, problem_id)
            JOIN (FROM labels SEMI JOIN runs USING (run, judge)) l USING (run, step, problem_id, sample)
            JOIN (FROM rollouts WHERE {source.where} AND step IN ({steps})) o USING (run, step, problem_id, sample)
            WHERE w.benchmark = 'train'
            UNION ALL
            SELECT w.run, w.benchmark, w.step, w.problem_id, sample, response, response_token_ids,
                   finish_reason = 'length', reward, parsed_answer, cluster, degenerate, NULL,
                   macro_strategy, micro_strategy, status, ungraded
            FROM wanted w JOIN evals USING (run, benchmark, step, problem_id)
            ORDER BY ALL"""  # noqa: S608 - names are quoted
    ):
        responses[tuple(key)].append(
            Response(
                text,
                token_ids,
                truncated,
                reward,
                answer,
                cluster,
                degenerate,
                advantage,
                macro,
                micro,
                status,
                ungraded,
            )
        )
    others: dict[tuple[Any, ...], dict[str, list[int | None]]] = defaultdict(lambda: defaultdict(list))
    for run, step, problem_id, judge, _, cluster, degenerate in source.rows(
        """SELECT run, step, problem_id, l.judge, sample, cluster, degenerate
           FROM wanted w JOIN labels l USING (run, step, problem_id) ANTI JOIN runs r USING (run, judge)
           WHERE w.benchmark = 'train' ORDER BY ALL"""
    ):
        others[run, TRAIN, step, problem_id][judge].append(DEGENERATE if degenerate else cluster)
    replies = {
        (run, TRAIN, step, problem_id): reply
        for run, step, problem_id, reply in source.rows(
            """SELECT run, step, problem_id, coalesce(
                   arg_max(raw_reply, attempt) FILTER (error IS NULL), arg_max(raw_reply, attempt)
               ) FROM judge_calls
               SEMI JOIN runs USING (run, judge) SEMI JOIN wanted USING (run, step, problem_id)
               WHERE raw_reply IS NOT NULL GROUP BY ALL"""
        )
    }
    places = {name: place for place, name in enumerate(source.names)}
    return [
        Prompt(places[key[0]], key[1], key[2], key[3], responses[key], dict(others.get(key, {})), replies.get(key))
        for key in keys
        if key in responses
    ]


def read_histories(source: Source, shown: set[str]) -> tuple[dict[str, list[Any]], str, str]:
    """How the strategies of each problem came and went."""
    sql = f"""SELECT problem_id, run, benchmark, step,
       concat_ws(': ', macro_strategy, micro_strategy) AS strategy,
       count(*) AS responses, count(*) FILTER (is_correct(reward)) AS correct
FROM strategies SEMI JOIN runs USING (run, judge)
WHERE {source.where}
GROUP BY ALL ORDER BY ALL"""  # noqa: S608 - names are quoted
    places = {name: place for place, name in enumerate(source.names)}
    histories: dict[str, list[Any]] = defaultdict(list)
    for problem_id, run, benchmark, step, strategy, count, correct in source.rows(sql):
        if problem_id in shown:
            histories[problem_id].append((places[run], benchmark, step, strategy, count, correct))
    total = sum(map(len, histories.values()))
    if total <= _HISTORY_ROWS:
        return dict(histories), sql, ""
    share = _HISTORY_ROWS / total
    for problem_id, entries in histories.items():
        steps = sorted({entry[2] for entry in entries})
        kept = set(evenly(steps, max(2, int(share * len(steps)))))
        histories[problem_id] = [entry for entry in entries if entry[2] in kept]
    return dict(histories), sql, " The strategies' histories are drawn from evenly spaced steps."


def read_problems(source: Source, shown: set[str]) -> dict[ProblemKey, str]:
    """Texts of the problems with these ids: a run's, a benchmark's and another run's may have one id."""
    rows = source.rows(
        f"SELECT run, split, problem_id, prompt, prompt_is_chat FROM problems WHERE {source.where} ORDER BY ALL"  # noqa: S608
    )
    places = {name: place for place, name in enumerate(source.names)}
    return {
        ProblemKey(places[run], split, problem_id): _prompt_text(prompt, is_chat)
        for run, split, problem_id, prompt, is_chat in rows
        if problem_id in shown
    }


def _prompt_text(prompt: str, is_chat: bool) -> str:
    if not is_chat:
        return prompt
    return "\n\n".join(f"{message.get('role')}: {message.get('content')}" for message in json.loads(prompt))


def decoders(runs: Sequence[Run]) -> list[Callable[[list[int]], str] | None]:
    """Each run's own: arms may differ in their model. Those of one base model are loaded once."""
    of_model: dict[str, Callable[[list[int]], str] | None] = {}
    for run in runs:
        if (model := _model(run)) not in of_model:
            of_model[model] = load_decoder(run)
    return [of_model[_model(run)] for run in runs]


def _model(run: Run) -> str:
    return run.config.policy.model or warm_start_digest(run.config)
