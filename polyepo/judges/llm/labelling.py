"""From groups to labels: one request per prompt and vote, validated, repaired, split and merged where need be."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from polyepo.judges.base import CallLog, Estimate, Group, Label
from polyepo.judges.llm.client import Answer, CallFailed, Client, request_sha256
from polyepo.judges.llm.consensus import as_matrix, consensus, pair_agreement
from polyepo.judges.llm.judge import LLMJudge
from polyepo.judges.llm.limits import Breaker
from polyepo.judges.llm.prompt import Request, estimated_tokens, neutralise, render, repair_messages, shorten
from polyepo.judges.llm.reply import Assignment, ReplyError, parse_reply, reply_schema
from polyepo.seeds import derive_seed

_TAG_TOKENS = 40  # of a response's delimiters and id, in the request
_REPLY_TOKENS = (40, 70)  # of a reply in all, and per response: for estimates alone
_RETRY_SEED = 1000  # added to the vote's number when a prompt is asked about again


class _Vote(NamedTuple):
    """One clustering of a group's distinct texts."""

    assignments: dict[str, Assignment]
    repaired: bool


async def label_groups(
    judge: LLMJudge, client: Client, domain: str, groups: Sequence[Group], log: CallLog
) -> list[list[Label]]:
    """One label per response of each group. Raises JudgeError if the judge cannot go on."""
    labels: list[list[Label]] = [[] for _ in groups]
    breaker = Breaker(judge.max_consecutive_failures)

    async def work(waiting: Iterator[int], first_vote: int) -> None:
        # Each worker takes the next prompt when it has done one: requests are made when they can be sent.
        for index in waiting:
            asker = _Asker(judge, client, domain, groups[index], log)
            try:
                labels[index] = await asker.labels(first_vote)
                breaker.success()
            except CallFailed as failed:
                labels[index] = [_label(judge, text, None, failed.status) for text in groups[index].responses]
                breaker.failure(f"{failed.status}: {failed}")

    async def work_on(indices: Sequence[int], first_vote: int) -> None:
        waiting = iter(indices)
        await _together(work(waiting, first_vote) for _ in range(min(judge.concurrency, len(indices))))

    await work_on(range(len(groups)), 0)
    if judge.missing == "retry_later":
        await work_on([i for i, found in enumerate(labels) if any(_is_missing(label) for label in found)], _RETRY_SEED)
    return labels


def estimate_groups(judge: LLMJudge, domain: str, groups: Sequence[Group], log: CallLog) -> Estimate:
    """What labelling would take if no call fails; what the log answers is free."""
    calls = tokens_in = tokens_out = 0
    for group in groups:
        texts = list(dict.fromkeys(group.responses))
        for vote in range(judge.votes):
            request = _render(judge, domain, group, texts, derive_seed(judge.seed, vote))
            schema = reply_schema(list(request.id_of.values()))
            if log.answered(request_sha256(judge, request.messages, schema, judge.max_tokens)) is not None:
                continue
            tokens, room = estimated_tokens(request.messages), judge.context_tokens - judge.max_tokens
            if tokens > room and judge.overflow == "refuse":
                continue
            parts = math.ceil(tokens / room)
            calls += parts
            tokens_in += tokens + (parts - 1) * estimated_tokens(request.messages[:1])
            tokens_out += parts * _REPLY_TOKENS[0] + len(texts) * _REPLY_TOKENS[1]
    return Estimate(calls, tokens_in, tokens_out, judge.price(tokens_in, tokens_out))


def shown_texts(judge: LLMJudge, domain: str, group: Group) -> list[str]:
    """The distinct texts of a group, in the order of the first vote's request."""
    texts = list(dict.fromkeys(group.responses))
    return list(_render(judge, domain, group, texts, derive_seed(judge.seed, 0)).id_of)


class _Asker:
    """Asks a judge model about one group."""

    def __init__(self, judge: LLMJudge, client: Client, domain: str, group: Group, log: CallLog) -> None:
        self._judge = judge
        self._client = client
        self._domain = domain
        self._group = group
        self._log = log

    async def labels(self, first_vote: int) -> list[Label]:
        """One label per response. Raises CallFailed if there are none."""
        judge = self._judge
        votes: list[_Vote | CallFailed] = await _together(
            self._vote(derive_seed(judge.seed, first_vote + vote)) for vote in range(judge.votes)
        )
        counted = [vote for vote in votes if isinstance(vote, _Vote)]
        if 2 * len(counted) <= judge.votes:
            raise next(vote for vote in votes if isinstance(vote, CallFailed))
        status = "repaired" if any(vote.repaired for vote in counted) else "ok"
        assignments, agreement = _agree([vote.assignments for vote in counted])
        numbers: dict[int, int] = {}
        labels = []
        for text in self._group.responses:
            found = assignments[text]
            if found.cluster is not None:
                found = found._replace(cluster=numbers.setdefault(found.cluster, len(numbers)))
            labels.append(_label(judge, text, found, status, agreement.get(text)))
        return labels

    async def _vote(self, seed: int) -> _Vote | CallFailed:
        # Equal texts are shown once: they share a cluster, and the request is the same whenever their set is.
        texts = list(dict.fromkeys(self._group.responses))
        try:
            if estimated_tokens(self._request(texts, seed).messages) + self._judge.max_tokens <= (
                self._judge.context_tokens
            ):
                return await self._ask(texts, seed)
            if self._judge.overflow == "refuse":
                raise CallFailed("overflow", "the group is longer than judge.context_tokens")
            return await self._ask_in_parts(texts, seed)
        except CallFailed as failed:
            return failed

    async def _ask(self, texts: Sequence[str], seed: int) -> _Vote:
        """One clustering of distinct texts that fit into a request. Raises CallFailed."""
        request = self._request(texts, seed)
        ids = list(request.id_of.values())
        answer = await self._send(request.messages, ids, self._judge.max_tokens)
        try:
            reply, repaired = parse_reply(answer.text, ids)
        except ReplyError as error:
            reply, repaired = await self._ask_again(request, ids, answer, error), True
        return _Vote({text: reply[request.id_of[text]] for text in texts}, repaired)

    async def _ask_again(
        self, request: Request, ids: list[str], answer: Answer, error: ReplyError
    ) -> dict[str, Assignment]:
        """The assignments of a second reply: with more room if that was missing, then with the error shown."""
        room = self._judge.context_tokens - estimated_tokens(request.messages)
        max_tokens = min(2 * self._judge.max_tokens, room)
        if answer.cut_short and max_tokens > self._judge.max_tokens:
            answer = await self._send(request.messages, ids, max_tokens)
            try:
                return parse_reply(answer.text, ids).assignments
            except ReplyError as second:
                error = second
        try:
            answer = await self._send(repair_messages(request, answer.text, str(error)), ids, self._judge.max_tokens)
            return parse_reply(answer.text, ids).assignments
        except ReplyError as last:
            raise CallFailed("parse_failed", str(last)) from None
        except CallFailed as failed:
            if failed.status != "overflow":
                raise
            raise CallFailed("parse_failed", str(error)) from None

    async def _ask_in_parts(self, texts: Sequence[str], seed: int) -> _Vote:
        """One clustering of more texts than a request holds: each part is shown with anchors from those before."""
        order = np.random.default_rng(derive_seed(seed, "parts", *sorted(texts))).permutation(len(texts))
        waiting = [sorted(texts)[i] for i in order]
        fixed = estimated_tokens(self._request([], seed).messages) + self._judge.max_tokens
        room = self._judge.context_tokens - fixed
        merged: dict[str, Assignment] = {}
        repaired = False
        while waiting:
            anchors = _fill(_anchors(merged), room // 2, self._size)
            part = _fill(waiting, room - sum(map(self._size, anchors)), self._size)
            if not part:
                raise CallFailed("overflow", "a response is longer than judge.context_tokens leaves room for")
            found = await self._ask([*anchors, *part], seed)
            repaired |= found.repaired
            _merge(merged, anchors, part, found.assignments)
            waiting = waiting[len(part) :]
        return _Vote(merged, repaired)

    async def _send(self, messages: list[dict[str, str]], ids: list[str], max_tokens: int) -> Answer:
        return await self._client.ask(
            self._group.problem.problem_id, messages, reply_schema(ids), max_tokens, self._log
        )

    def _request(self, texts: Sequence[str], seed: int) -> Request:
        return _render(self._judge, self._domain, self._group, texts, seed)

    def _size(self, text: str) -> int:
        shown, _ = shorten(neutralise(text), self._judge.max_response_tokens)
        # The id stands in the instructions as well.
        return estimated_tokens([{"role": "user", "content": shown}]) + _TAG_TOKENS


def _render(judge: LLMJudge, domain: str, group: Group, texts: Sequence[str], seed: int) -> Request:
    return render(judge.instructions, domain, group.problem, texts, seed, judge.max_response_tokens)


def _anchors(merged: dict[str, Assignment]) -> list[str]:
    """The shortest text of each cluster, largest clusters first."""
    members: dict[int, list[str]] = {}
    for text, found in merged.items():
        if found.cluster is not None:
            members.setdefault(found.cluster, []).append(text)
    return [min(texts, key=len) for texts in sorted(members.values(), key=len, reverse=True)]


def _fill(texts: Sequence[str], room: int, size: Any) -> list[str]:
    """As many of the first texts as there is room for."""
    taken = []
    for text in texts:
        room -= size(text)
        if room < 0:
            break
        taken.append(text)
    return taken


def _merge(
    merged: dict[str, Assignment], anchors: Sequence[str], part: Sequence[str], found: dict[str, Assignment]
) -> None:
    """Add a part's assignments: a cluster that holds an anchor is the anchor's, the others are new.

    Two anchors in one cluster stay apart, as they were when they were first compared; the others join the first.
    """
    known: dict[int, Assignment] = {}
    for anchor in anchors:
        cluster = found[anchor].cluster
        if cluster is not None:
            known.setdefault(cluster, merged[anchor])
    next_number = 1 + max((a.cluster for a in merged.values() if a.cluster is not None), default=-1)
    for text in part:
        new = found[text]
        if new.cluster is not None:
            if new.cluster not in known:
                known[new.cluster] = new._replace(cluster=next_number)
                next_number += 1
            new = known[new.cluster]._replace(rationale=new.rationale)
        merged[text] = new


def _agree(votes: list[dict[str, Assignment]]) -> tuple[dict[str, Assignment], dict[str, float]]:
    """The votes' consensus, and each text's pair agreement if there is more than one vote."""
    if len(votes) == 1:
        return votes[0], {}
    texts = list(votes[0])
    votes_VN = as_matrix([[vote[text].cluster for text in texts] for vote in votes])
    clusters_N, agreement_N = consensus(votes_VN), pair_agreement(votes_VN)
    assignments: dict[str, Assignment] = {}
    for text, number in zip(texts, clusters_N.tolist(), strict=True):
        if number == -1:
            said = next(vote[text] for vote in votes if vote[text].cluster is None)
            assignments[text] = said
        else:
            # A cluster is called what the first vote calls its first member.
            first = next(vote[texts[number]] for vote in votes if vote[texts[number]].cluster is not None)
            assignments[text] = first._replace(cluster=number, rationale=votes[0][text].rationale)
    return assignments, dict(zip(texts, agreement_N.tolist(), strict=True))


def _label(judge: LLMJudge, text: str, found: Assignment | None, status: str, agreement: float | None = None) -> Label:
    _, truncated = shorten(neutralise(text), judge.max_response_tokens)
    if found is None:
        return Label(None, False, None, None, status, None, truncated, agreement)
    cluster, macro, micro, rationale = found
    return Label(cluster, cluster is None, macro, micro, status, rationale, truncated, agreement)


def _is_missing(label: Label) -> bool:
    return label.cluster is None and not label.degenerate


async def _together(work: Any) -> list[Any]:
    """Results of coroutines that run at a time; the first error cancels the others and is raised as itself."""
    coroutines: list[Coroutine[Any, Any, Any]] = list(work)
    try:
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(coroutine) for coroutine in coroutines]
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None
    return [task.result() for task in running]
