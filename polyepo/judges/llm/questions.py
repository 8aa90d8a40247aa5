"""What is asked of a judge model, what it answered, and what came of the same question before."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from typing import NamedTuple

from polyepo.judges.base import Call, CallLog
from polyepo.judges.llm.reply import Reply, ReplyError, parse_reply, reply_schema
from polyepo.judges.llm.settings import LLMSettings
from polyepo.labels import LabelStatus

# How servers say that a request is longer than the model takes: OpenAI, vLLM, SGLang, llama.cpp, TGI, TensorRT-LLM, and
# the gateways of other providers. What names the context is plain; else it is tokens, a prompt or an input that are too
# many. Limits of the reply alone ("supports at most 16384 completion tokens") and of rates are not meant.
_CONTEXT = (
    r"context.?(?:length|size|window|limit)|max(?:imum)? (?:context|model length|sequence length)|max_model_len|"
    r"max_seq_len|max_input_length|max_num_tokens"
)
_AMOUNT = r"\b(?:tokens?|prompt|inputs?|messages)\b"
_EXCESS = r"too (?:long|large|many|big)|exceed|longer than|(?:must have |be )(?:less than|<=)|reduce the length"
_OVERFLOW = re.compile(rf"{_CONTEXT}|{_AMOUNT}[^.]{{0,100}}?(?:{_EXCESS})|(?:{_EXCESS})[^.]{{0,60}}?{_AMOUNT}", re.I)
_RATE = re.compile(r"rate.?limit|per.?minute|per.?day|\b[tr]p[md]\b", re.I)
# llama.cpp says it with 500, and then another try is in vain; proxies say it with 413 whatever their words.
_TOO_LONG = re.compile(
    rf"HTTP 413\b|HTTP (?:400|422)\b(?!.*(?:{_RATE.pattern})).*(?:{_OVERFLOW.pattern})|HTTP 500\b.*context.?size",
    re.I | re.S,
)
REFUSALS = ("refusal", "content_filter")


class CallFailed(Exception):
    """A request got no usable answer; `status` is the labels' status: http_failed, overflow or refused."""

    def __init__(self, status: LabelStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Question(NamedTuple):
    """One request to the model about responses with these ids."""

    messages: list[dict[str, str]]
    ids: list[str]
    max_tokens: int

    def sha256(self, judge: LLMSettings) -> str:
        """What identifies it: all that the model's answer depends on, however the server is told of it."""
        content = [judge.model, self.messages, reply_schema(self.ids), self.max_tokens, judge.temperature,
                   judge.extra_body]  # fmt: skip
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class Answer(NamedTuple):
    """What the model said: labels, or what is wrong with it."""

    text: str
    cut_short: bool
    """It ran into its token limit."""
    reply: Reply | ReplyError
    prompt_tokens: int | None


def recall(judge: LLMSettings, question: Question, log: CallLog) -> Answer | CallFailed | None:
    """What came of a question before, if it was asked: labels, else an overflow, else what gave no labels.

    Whether a reply gives labels is seen by reading it: earlier versions kept any reply as an answer.
    """
    unreadable = overflow = None
    for call in log.earlier(question.sha256(judge)):
        if call.raw_reply is not None and call.finish_reason not in REFUSALS:
            answer = answer_of(call, question.ids)
            if isinstance(answer.reply, Reply):
                return answer
            unreadable = answer
        elif call.error and is_too_long(call.error):
            overflow = CallFailed(LabelStatus.OVERFLOW, call.error)
    return overflow or unreadable


def answer_of(call: Call, ids: Sequence[str]) -> Answer:
    """A call's reply, read. It is read anew whenever it is used: earlier versions kept any reply as an answer."""
    text = call.raw_reply or ""
    reply: Reply | ReplyError
    try:
        reply = parse_reply(text, ids)
    except ReplyError as error:
        reply = error
    return Answer(text, call.finish_reason == "length", reply, call.prompt_tokens)


def unreadable(text: str, ids: Sequence[str]) -> str | None:
    """Why a reply gives no labels; None if it does."""
    try:
        parse_reply(text, ids)
    except ReplyError as error:
        return f"unreadable reply: {error}"
    return None


def is_too_long(error: str) -> bool:
    """Whether a call's error is the server's refusal of a request that is longer than its model takes."""
    return _TOO_LONG.match(error) is not None
