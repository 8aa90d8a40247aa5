"""Calls to an OpenAI-compatible server: limits, retries, deadlines, and what every call came to."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import random
import time
from collections.abc import AsyncIterator, Sequence
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

import httpx2 as httpx
import openai

from polyepo.judges.base import Call, CallLog
from polyepo.judges.llm.limits import Budget, JudgeError, RateLimit
from polyepo.judges.llm.prompt import visible
from polyepo.judges.llm.questions import REFUSALS, Answer, CallFailed, Question, answer_of, is_too_long, unreadable
from polyepo.judges.llm.reply import reply_schema
from polyepo.judges.llm.settings import LLMSettings
from polyepo.labels import LabelStatus

_RETRYABLE = frozenset({408, 409, 429, 500, 502, 503, 504, 529})
_FATAL = {
    401: "the server refuses the API key",
    403: "the API key may not do this",
    404: "the server has no such model or address",
}
_MAX_RESPONSE_BYTES = 8 << 20
_FIRST_BACKOFF_S = 0.5
_MAX_BACKOFF_S = 60.0
# Ways to ask for JSON, the strictest first; the instructions describe the format in words in any case.
_FORMATS = ("json_schema", "json_object", "text")
_NO_SCHEMA = ("response_format", "json_schema", "json_object", "schema", "guided", "grammar", "structured output")
# With these answers no model has run: 503 and 529 mean that the server was too busy to begin.
_UNPAID = frozenset({*range(300, 500), 503, 529} - {408})

_log = logging.getLogger(__name__)


class Client:
    """One server as one judge uses it: its connections, its limits and what it turned out not to support."""

    def __init__(self, judge: LLMSettings) -> None:
        self._judge = judge
        self._slots = asyncio.Semaphore(judge.concurrency)
        self._requests = RateLimit(judge.requests_per_minute)
        self._tokens = RateLimit(judge.tokens_per_minute)
        self._format = 0  # index into _FORMATS
        self._budget = Budget(judge.max_cost)
        self._length_field = "max_tokens"
        self._openai = openai.AsyncOpenAI(
            api_key=self._key,
            base_url=judge.base_url,
            max_retries=0,  # the retries below know the deadline, the limits and the log
            http_client=httpx.AsyncClient(
                transport=_BoundedTransport(judge.concurrency),
                timeout=httpx.Timeout(judge.timeout_s),
                follow_redirects=False,
            ),
        )

    async def ask(self, problem_id: str, question: Question, log: CallLog) -> Answer:
        """The model's answer to a question, asked now. Every attempt is recorded.

        Raises:
            CallFailed: the server gave none in time, or refused this request.
            JudgeError: the server will give none to any request, or the budget is used up.
        """
        call = await self._ask_server(problem_id, question, log)
        if call.finish_reason in REFUSALS:
            raise CallFailed(LabelStatus.REFUSED, str(call.error))
        return answer_of(call, question.ids)

    async def _ask_server(self, problem_id: str, question: Question, log: CallLog) -> Call:
        judge, messages, digest = self._judge, question.messages, question.sha256(self._judge)
        deadline = time.monotonic() + judge.deadline_s
        # Bytes bound the tokens of any byte-level tokenizer: the highest price is really the highest.
        size = sum(len(m["content"].encode()) + 16 for m in messages) + len(json.dumps(reply_schema(question.ids)))
        highest = judge.price(size, question.max_tokens)
        attempt = retries = 0
        async with self._slots:
            while True:
                await self._admit(judge.count_tokens(messages), deadline)
                sent, answer = self._format, None
                error: BaseException | None = None
                async with self._budget.reserve(highest, log.spent):
                    started = time.perf_counter()
                    try:
                        body = self._body(question)
                        # timeout_s is for the whole exchange: a server that drips a byte now and then is too slow.
                        async with asyncio.timeout(min(judge.timeout_s, max(0.001, deadline - time.monotonic()))):
                            answer = await self._openai.chat.completions.create(**body)
                    except (openai.OpenAIError, httpx.HTTPError, TimeoutError, ValueError) as raised:
                        error = raised
                    except asyncio.CancelledError as raised:  # it was sent, and may have to be paid for
                        error = raised
                    attempted = _Attempt(problem_id, attempt, digest, time.perf_counter() - started, highest)
                    call = self._call(attempted, question.ids, answer, error)
                    log.record(call)
                if isinstance(error, asyncio.CancelledError):
                    raise error
                attempt += 1
                if call.raw_reply is not None:
                    self._tokens.reserve(call.completion_tokens or 0)
                    return call
                assert call.error is not None
                if is_too_long(call.error):
                    raise CallFailed(LabelStatus.OVERFLOW, call.error)
                if self._learn(error, call.error, sent):
                    continue
                wait = self._wait_before_retry(error, call.error, retries)
                if retries >= judge.max_retries:
                    raise CallFailed(LabelStatus.HTTP_FAILED, f"{call.error} (after {attempt} attempts)")
                if time.monotonic() + wait >= deadline:
                    raise CallFailed(
                        LabelStatus.HTTP_FAILED, f"{call.error} (judge.deadline_s {judge.deadline_s:g} is over)"
                    )
                retries += 1
                await asyncio.sleep(wait)

    async def _admit(self, tokens: int, deadline: float) -> None:
        wait = max(self._requests.reserve(1), self._tokens.reserve(tokens))
        # Waiting for our own rate limit is no fault of the server, but one that outlasts the deadline is a misfit.
        if time.monotonic() + wait > deadline:
            raise CallFailed(LabelStatus.HTTP_FAILED, "the rate limits leave no room before judge.deadline_s is over")
        await asyncio.sleep(wait)

    def _body(self, question: Question) -> dict[str, Any]:
        json_schema = {"name": "clusters", "strict": True, "schema": reply_schema(question.ids)}
        body: dict[str, Any] = {
            "model": self._judge.model,
            "messages": question.messages,
            self._length_field: question.max_tokens,
        }
        if _FORMATS[self._format] == "json_schema":
            body["response_format"] = {"type": "json_schema", "json_schema": json_schema}
        elif _FORMATS[self._format] == "json_object":
            body["response_format"] = {"type": "json_object"}
        if self._judge.temperature is not None:
            body["temperature"] = self._judge.temperature
        if self._judge.extra_body:
            body["extra_body"] = self._judge.extra_body
        return body

    def _call(self, attempt: _Attempt, ids: Sequence[str], answer: Any, error: BaseException | None) -> Call:
        """The row of an attempt. Its `error` says why it gave no labels."""
        reply = finish = usage = None
        if error is None:
            try:
                reply, finish = _said(answer.choices[0])
                usage = _usage(answer)
            except (AttributeError, IndexError, TypeError):
                reply, finish, error = None, None, ValueError("the server's answer is no chat completion")
        reply = None if reply is None else self._redact(reply)
        reason = None if error is None else _describe(error)
        if reply is not None and finish in REFUSALS:
            reason = f"the model refused ({finish})"
        elif reply is not None:
            reason = unreadable(reply, ids)
        prices = self._judge.has_prices
        tokens_in, tokens_out = usage or (None, None)
        return Call(
            problem_id=attempt.problem_id,
            attempt=attempt.number,
            request_sha256=attempt.request_sha256,
            raw_reply=reply,
            finish_reason=finish,
            prompt_tokens=tokens_in,
            completion_tokens=tokens_out,
            latency_s=attempt.latency_s,
            cost=self._judge.price(*usage) if usage and prices else None,
            error=None if reason is None else self._redact(reason),
            cost_bound=attempt.highest_cost if prices and usage is None and _may_be_paid(error) else None,
        )

    def _learn(self, error: BaseException | None, reason: str, sent: int) -> bool:
        """Whether the server refused a part of the request that it can do without; says so, once."""
        if not isinstance(error, openai.BadRequestError | openai.UnprocessableEntityError):
            return False
        text = reason.lower()
        if self._length_field == "max_tokens" and "max_completion_tokens" in text:
            self._length_field = "max_completion_tokens"
            return True
        if not any(sign in text for sign in _NO_SCHEMA):
            return False
        if sent == self._format and sent + 1 < len(_FORMATS):
            self._format += 1
            _log.warning(
                "judge %s: the server does not take response_format %s; replies are asked for without it and repaired "
                "where need be (%s)",
                self._judge.model,
                _FORMATS[sent],
                reason[:200],
            )
        return sent < self._format  # others may have been on their way when the first one learnt it

    def _wait_before_retry(self, error: BaseException | None, reason: str, retries: int) -> float:
        """Seconds to wait. Raises CallFailed if another attempt is pointless, JudgeError if any other request is."""
        if isinstance(error, openai.APIStatusError):
            status, text = error.status_code, reason.lower()
            if "content_filter" in text or "content_policy" in text:
                raise CallFailed(LabelStatus.REFUSED, reason)
            if status in _FATAL:
                raise JudgeError(f"judge {self._judge.model}: {_FATAL[status]}: {reason}")
            if status == 429 and "insufficient_quota" in text:
                raise JudgeError(f"judge {self._judge.model}: the account's quota is used up: {reason}")
            if status not in _RETRYABLE:
                raise CallFailed(LabelStatus.HTTP_FAILED, reason)
            if (asked := _retry_after(error.response.headers)) is not None:
                return asked + random.uniform(0, 0.1)  # noqa: S311 - spreads retries
        return min(_MAX_BACKOFF_S, _FIRST_BACKOFF_S * 2.0**retries) * random.uniform(0.5, 1.0)  # noqa: S311

    async def _key(self) -> str:
        """The API key, read when a request is made and kept nowhere else."""
        return self._judge.api_key()

    def _redact(self, text: str) -> str:
        """Text of the server without the key, which some servers repeat, and fit to be stored."""
        key = self._judge.api_key()
        return visible(text.replace(key, "[API key]") if len(key) >= 8 else text)


class _Attempt(NamedTuple):
    """What is known of an attempt whatever came of it."""

    problem_id: str
    number: int
    request_sha256: str
    latency_s: float
    highest_cost: float


class _BoundedTransport(httpx.AsyncBaseTransport):
    """HTTP whose responses end with an error when they grow beyond any reply's size."""

    def __init__(self, connections: int) -> None:
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
        self._inner = httpx.AsyncHTTPTransport(limits=limits)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        request.headers["accept-encoding"] = "identity"  # a compressed answer has no bound
        response = await self._inner.handle_async_request(request)
        if response.headers.get("content-encoding", "identity") != "identity":
            await response.aclose()
            raise httpx.DecodingError("the server sent a compressed answer, which was not asked for")
        assert isinstance(response.stream, httpx.AsyncByteStream)
        response.stream = _BoundedStream(response.stream)
        return response

    async def aclose(self) -> None:
        await self._inner.aclose()


class _BoundedStream(httpx.AsyncByteStream):
    def __init__(self, inner: httpx.AsyncByteStream) -> None:
        self._inner = inner

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for chunk in self._inner:
            size += len(chunk)
            if size > _MAX_RESPONSE_BYTES:
                raise httpx.ReadError(f"the server's answer is larger than {_MAX_RESPONSE_BYTES} bytes")
            yield chunk

    async def aclose(self) -> None:
        await self._inner.aclose()


def _said(choice: Any) -> tuple[str, str | None]:
    """The text of a choice and why it ended. Raises AttributeError or TypeError if it is none."""
    message, finish = choice.message, choice.finish_reason
    if refusal := getattr(message, "refusal", None):
        return _text(refusal), "refusal"
    text = _text(message.content)
    if not text.strip() and finish == "stop":
        # A server that tells thoughts from answers may take all for thoughts. If the model came to its end, the answer
        # is there; if it ran out of tokens it was still thinking.
        thoughts = (getattr(message, name, None) for name in ("reasoning_content", "reasoning"))
        text = next((thought for thought in thoughts if isinstance(thought, str) and thought.strip()), text)
    if not isinstance(finish, str | None):
        raise TypeError
    return text, finish


def _text(content: Any) -> str:
    """Content as text: a string, or a list of parts, of which thoughts, images and the like are none."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise TypeError
    parts = [{"text": part} if isinstance(part, str) else part for part in content]
    shown = [part["text"] for part in parts if part.get("type", "text") in ("text", "output_text") and "text" in part]
    return "".join(shown)


def _usage(answer: Any) -> tuple[int, int] | None:
    usage = answer.usage
    numbers = (usage.prompt_tokens, usage.completion_tokens) if usage is not None else ()
    return numbers if numbers and all(type(n) is int and 0 <= n < 2**40 for n in numbers) else None


def _may_be_paid(error: BaseException | None) -> bool:
    """Whether a call without a count of its tokens may have to be paid for: unless it is sure that no model ran."""
    if isinstance(error, openai.APIStatusError):
        return error.status_code not in _UNPAID
    cause = error.__cause__ if isinstance(error, openai.APIConnectionError) else error
    return not isinstance(cause, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)


def _describe(error: BaseException) -> str:
    if isinstance(error, asyncio.CancelledError):
        return "not waited for: the judge was stopped"
    if isinstance(error, TimeoutError | openai.APITimeoutError):
        return "no answer in time (judge.timeout_s)"
    if isinstance(error, openai.APIStatusError):
        code = f" ({str(error.code)[:50]})" if error.code else ""
        return f"HTTP {error.status_code}{code}: {str(error)[:500]}"
    if isinstance(error, openai.APIConnectionError):
        cause = error.__cause__
        return f"connection failed: {type(cause).__name__}: {str(cause)[:200]}" if cause else "connection failed"
    return f"{type(error).__name__}: {str(error)[:200]}"


def _retry_after(headers: httpx.Headers) -> float | None:
    """Seconds the server asks to wait: a number, or a date."""
    value = headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
