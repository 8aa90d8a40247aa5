"""From groups to labels: one request per prompt and vote, validated, repaired, split and merged where need be."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine, Generator, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from polyepo.judges.base import CallLog, Estimate, Group, Label
from polyepo.judges.llm.client import Client
from polyepo.judges.llm.consensus import as_matrix, consensus, pair_agreement
from polyepo.judges.llm.limits import Breaker
from polyepo.judges.llm.prompt import Request, neutralise, render, repair_messages, shorten
from polyepo.judges.llm.questions import Answer, CallFailed, Question, recall
from polyepo.judges.llm.reply import Assignment, Reply
from polyepo.judges.llm.settings import LLMSettings
from polyepo.labels import LabelStatus
from polyepo.seeds import derive_seed

_TAG_TOKENS = 40  # of a response's delimiters and id, in the request
_REPLY_TOKENS = (40, 70)  # of a reply in all, and per response: for estimates alone
_RETRY_SEED = 1000  # added to the vote's number when a prompt is asked about again
_SHRINK = 1.25  # a request that was refused as too long is taken to be so much longer than there is room for, at least


class _Vote(NamedTuple):
    """One clustering of a group's distinct texts."""

    assignments: dict[str, Assignment]
    repaired: bool
    prompt_tokens: int | None = None
    """Of the request, as the server counted them."""


async def label_groups(
    judge: LLMSettings, client: Client, domain: str, groups: Sequence[Group], log: CallLog
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


def estimate_groups(judge: LLMSettings, domain: str, groups: Sequence[Group], log: CallLog) -> Estimate:
    """What labelling would take if no call fails; what the log answers is free."""
    calls = tokens_in = tokens_out = 0
    for group in groups:
        texts = list(dict.fromkeys(group.responses))
        for vote in range(judge.votes):
            request = _render(judge, domain, group, texts, derive_seed(judge.seed, vote))
            if isinstance(_recalled(judge, request, log), tuple):
                continue
            tokens, room = judge.count_tokens(request.messages), judge.context_tokens - judge.max_tokens
            if tokens > room and judge.overflow == "refuse":
                continue
            parts = math.ceil(tokens / room)
            calls += parts
            tokens_in += tokens + (parts - 1) * judge.count_tokens(request.messages[:1])
            tokens_out += parts * _REPLY_TOKENS[0] + len(texts) * _REPLY_TOKENS[1]
    return Estimate(calls, tokens_in, tokens_out, judge.price(tokens_in, tokens_out))


def shown_texts(judge: LLMSettings, domain: str, group: Group) -> list[str]:
    """The distinct texts of a group, in the order of the first vote's request."""
    texts = list(dict.fromkeys(group.responses))
    return list(_render(judge, domain, group, texts, derive_seed(judge.seed, 0)).id_of)


class _Asker:
    """Asks a judge model about one group."""

    def __init__(self, judge: LLMSettings, client: Client, domain: str, group: Group, log: CallLog) -> None:
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
        status = LabelStatus.REPAIRED if any(vote.repaired for vote in counted) else LabelStatus.OK
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
        room = self._judge.context_tokens - self._judge.max_tokens
        tokens = self._judge.count_tokens(self._request(texts, seed).messages)
        splits = self._judge.overflow == "split" and len(texts) > 1
        try:
            if tokens > room and not splits:
                raise CallFailed(LabelStatus.OVERFLOW, "the group is longer than judge.context_tokens")
            if tokens <= room:
                try:
                    return await self._ask(texts, seed, splits)
                except CallFailed as failed:
                    if failed.status != LabelStatus.OVERFLOW or not splits:
                        raise
                    return await self._ask_in_parts(texts, seed, _SHRINK * room / tokens)
            return await self._ask_in_parts(texts, seed, 1.0)
        except CallFailed as failed:
            return failed

    async def _ask(self, texts: Sequence[str], seed: int, splits: bool) -> _Vote:
        """One clustering of distinct texts by one request, from the log if it gave labels before. Raises CallFailed.

        What gave none is asked again, unless it was too long and `splits`: then it is not sent only to be refused.
        """
        request = self._request(texts, seed)
        found = _recalled(self._judge, request, self._log)
        if found is None or (isinstance(found, CallFailed) and not splits):
            found = await self._asked(request)
        if isinstance(found, CallFailed):
            raise found
        (reply, repaired), tokens = found
        return _Vote({text: reply[request.id_of[text]] for text in texts}, repaired, tokens)

    async def _ask_in_parts(self, texts: Sequence[str], seed: int, scale: float) -> _Vote:
        """One clustering of more texts than a request holds: each part is compared with anchors of the clusters so far,
        with some at a time if need be, and what belongs to none of them makes new clusters.

        What decides the parts: the texts, the settings, and what the server said to this vote's own requests, in their
        order: how many tokens it counted, and which request it refused. All of that is kept with the calls, so that
        the same parts come out when they are replayed; what other prompts met with, in whatever order, is left aside.

        Args:
            texts: distinct texts.
            seed: the vote's.
            scale: the server's tokens per token of our own count, as far as it is known; at least 1.
        """
        order = np.random.default_rng(derive_seed(seed, "parts", *sorted(texts))).permutation(len(texts))
        waiting = [sorted(texts)[i] for i in order]
        space = self._judge.context_tokens - self._judge.max_tokens
        fixed = self._judge.count_tokens(self._request([], seed).messages)
        merged: dict[str, Assignment] = {}
        part: list[str] = []
        unseen: list[str] = []  # anchors that this part has not been compared with
        repaired = False
        while waiting or part:
            room = int(space / scale) - fixed
            unseen = unseen if part else _anchors(merged)
            anchors = _fill(unseen, room // 2, self._size)
            if scale > 1 or part:  # our count is off: the least that makes sense is for the server to refuse
                anchors = anchors or unseen[:1]
            if not part:
                part = _fill(waiting, room - sum(map(self._size, anchors)), self._size)
                if scale > 1:
                    part = part or waiting[:1]
                waiting = waiting[len(part) :]
            if not part or (unseen and not anchors):
                raise CallFailed(LabelStatus.OVERFLOW, "a response is longer than judge.context_tokens leaves room for")
            splits = len(part) > 1 or len(anchors) > 1
            counted = self._judge.count_tokens(self._request([*anchors, *part], seed).messages)
            try:
                found = await self._ask([*anchors, *part], seed, splits)
            except CallFailed as failed:
                if failed.status != LabelStatus.OVERFLOW or not splits:
                    raise
                scale = _SHRINK * max(scale, space / counted)
                waiting, part = [*part, *waiting], []
                continue
            scale = max(scale, (found.prompt_tokens or 0) / counted)
            repaired |= found.repaired
            unseen = unseen[len(anchors) :]
            settled = _joined(anchors, part, found.assignments) if unseen else part
            _merge(merged, anchors, settled, found.assignments)
            part = [text for text in part if text not in merged]
        return _Vote(merged, repaired)

    async def _asked(self, request: Request) -> tuple[Reply, int | None]:
        """Labels from the server, and the tokens of the first request. Raises CallFailed."""
        talk = _conversation(self._judge, request)
        question = next(talk)
        tokens = None
        while True:
            came: Answer | CallFailed
            try:
                came = await self._client.ask(self._group.problem.problem_id, question, self._log)
                tokens = tokens or came.prompt_tokens
            except CallFailed as failed:
                came = failed
            try:
                question = _go_on(talk, came)
            except StopIteration as end:
                return end.value, tokens

    def _request(self, texts: Sequence[str], seed: int) -> Request:
        return _render(self._judge, self._domain, self._group, texts, seed)

    def _size(self, text: str) -> int:
        shown, _ = shorten(neutralise(text), self._judge.max_response_tokens)
        # The id stands in the instructions as well.
        return self._judge.count_tokens([{"role": "user", "content": shown}]) + _TAG_TOKENS


def _render(judge: LLMSettings, domain: str, group: Group, texts: Sequence[str], seed: int) -> Request:
    return render(judge.instructions, domain, group.problem, texts, seed, judge.max_response_tokens)


def _conversation(judge: LLMSettings, request: Request) -> Generator[Question, Answer, Reply]:
    """What is asked until a reply gives labels: the request, again with more room if that was missing, and then with
    the error shown.

    Takes what came of each question, thrown if it is a CallFailed. Raises CallFailed if all was in vain.
    """
    ids = list(request.id_of.values())
    answer = yield Question(request.messages, ids, judge.max_tokens)
    if isinstance(answer.reply, Reply):
        return answer.reply
    more = min(2 * judge.max_tokens, judge.context_tokens - judge.count_tokens(request.messages))
    if answer.cut_short and more > judge.max_tokens:
        try:
            answer = yield Question(request.messages, ids, more)
        except CallFailed as failed:  # there is less room than we counted
            if failed.status != LabelStatus.OVERFLOW:
                raise
        if isinstance(answer.reply, Reply):
            return answer.reply._replace(repaired=True)
    wrong = answer.reply
    try:
        answer = yield Question(repair_messages(request, answer.text, str(wrong)), ids, judge.max_tokens)
    except CallFailed as failed:
        if failed.status != LabelStatus.OVERFLOW:
            raise
    if isinstance(answer.reply, Reply):
        return answer.reply._replace(repaired=True)
    raise CallFailed(LabelStatus.PARSE_FAILED, str(answer.reply))


def _recalled(judge: LLMSettings, request: Request, log: CallLog) -> tuple[Reply, int | None] | CallFailed | None:
    """The labels that a conversation came to before, or that its request was too long; None if it has to be asked."""
    talk = _conversation(judge, request)
    question = next(talk)
    tokens = None
    while True:
        came = recall(judge, question, log)
        if came is None:
            return None
        if isinstance(came, Answer):
            tokens = tokens or came.prompt_tokens
        try:
            question = _go_on(talk, came)
        except StopIteration as end:
            return end.value, tokens
        except CallFailed as failed:
            return failed if failed.status == LabelStatus.OVERFLOW else None


def _go_on(talk: Generator[Question, Answer, Reply], came: Answer | CallFailed) -> Question:
    """The next question. Raises what the conversation ends with."""
    return talk.throw(came) if isinstance(came, CallFailed) else talk.send(came)


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


def _joined(anchors: Sequence[str], part: Sequence[str], found: dict[str, Assignment]) -> list[str]:
    """The texts of a part that need no further comparison: they are in a cluster with an anchor, or degenerate."""
    settled = {None, *(found[anchor].cluster for anchor in anchors)}
    return [text for text in part if found[text].cluster in settled]


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


def _label(
    judge: LLMSettings, text: str, found: Assignment | None, status: LabelStatus, agreement: float | None = None
) -> Label:
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
