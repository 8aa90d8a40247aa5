"""A chat-completions server on loopback that fails as real ones rarely do.

A judge of one's own that asks a language model is tested against it without one:

    from polyepo.testing.judge_server import JudgeServer, completion, error

    def test_my_judge_tries_again():
        replies = [error(429, headers={"retry-after": "0"}), completion("A A B")]
        with JudgeServer(lambda number, body: replies[number]) as server:
            (labels,) = MyJudge(base_url=server.url).label(domain, [Group(problem, ["1 + 1", "1 + 1", "2 * 1"])])
        assert [label.cluster for label in labels] == [0, 0, 1]
        assert "1 + 1" in server.bodies[1]["messages"][0]["content"]
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

_RESPONSE = re.compile(r'<response-([a-z]+) id="([a-z]{4})">\n(.*?)\n</response-\1>', re.S)


@dataclass
class Answer:
    """What the server does about one request; `completion` and `error` make the usual ones."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    """In place of, or beside, a JSON content type and the body's length."""
    delay_s: float = 0.0
    """Seconds before anything is sent."""
    reset_after: int | None = None
    """Bytes of the body after which the connection is reset."""
    drip_s: float = 0.0
    """Seconds between bytes."""


def completion(
    content: object, finish_reason: str = "stop", usage: tuple[int, int] | None = (100, 50), **message: Any
) -> Answer:
    """A chat completion.

    Args:
        content: the message's text; anything but text and None is sent as its JSON.
        finish_reason: "stop", "length" where the reply was cut, "content_filter".
        usage: prompt and completion tokens, None for a server that counts none.
        message: further keys of the message, such as `refusal` or `reasoning_content`.
    """
    text = content if isinstance(content, str) or content is None else json.dumps(content)
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [
            {"index": 0, "finish_reason": finish_reason, "message": {"role": "assistant", "content": text, **message}}
        ],
        "usage": usage and {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)},
    }
    return Answer(json.dumps(body).encode())


def error(status: int, message: str = "it went wrong", headers: dict[str, str] | None = None, **more: Any) -> Answer:
    """An error as OpenAI's API words it; `more` are further keys, such as `code`."""
    return Answer(json.dumps({"error": {"message": message, **more}}).encode(), status, headers or {})


def responses_in(body: dict[str, Any]) -> list[tuple[str, str]]:
    """(id, text) of each response in a request of the judge `llm`, as the judge model sees them."""
    return [(found[1], found[2]) for found in _RESPONSE.findall(body["messages"][1]["content"])]


def _first_word(text: str) -> str | None:
    return text.split()[0] if text.strip() else None


def clusters_of(body: dict[str, Any], cluster_of: Callable[[str], str | None] = _first_word) -> dict[str, Any]:
    """A correct reply to a request of the judge `llm`.

    Args:
        body: the request.
        cluster_of: texts for which it is equal share a cluster; None is degenerate.
    """
    names: dict[str, int] = {}
    responses, strategies = [], []
    for response_id, text in responses_in(body):
        name = cluster_of(text)
        if name is not None and name not in names:
            names[name] = len(names)
            strategies.append({"cluster": names[name], "macro_strategy": name, "micro_strategy": "plain"})
        cluster = -1 if name is None else names[name]
        responses.append({"id": response_id, "rationale": "so it seems", "cluster": cluster})
    return {"responses": responses, "strategies": strategies}


class JudgeServer:
    """Answers each request with `behave(number, body)`, requests being numbered from 0 as they arrive.

    Without `behave` it is a flawless model behind the judge `llm`: responses of one first word are one strategy. What
    `behave` raises cuts the connection, and is raised again where the `with` block ends.
    """

    url: str
    """Base URL, with /v1."""
    bodies: list[dict[str, Any]]
    """The requests so far, in the order of their arrival."""
    headers: list[dict[str, str]]
    """Of each request, in lower case."""
    times: list[float]
    """When each request was there, in seconds of a monotonic clock."""
    most_at_a_time: int
    """The largest number of requests that were under way at once."""

    def __init__(
        self, behave: Callable[[int, dict[str, Any]], Answer] = lambda number, body: completion(clusters_of(body))
    ) -> None:
        self.behave = behave
        self.bodies = []
        self.headers = []
        self.times = []
        self.most_at_a_time = 0
        self._now = 0
        self._failure: Exception | None = None
        self._loop = asyncio.new_event_loop()
        self._server = self._loop.run_until_complete(
            asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 24, backlog=1024)
        )
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        if self._failure is not None:
            raise self._failure

    async def _stop(self) -> None:
        self._server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                headers = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
                body = json.loads(await reader.readexactly(int(headers["content-length"])))
                number = len(self.bodies)
                self.bodies.append(body)
                self.headers.append(headers)
                self.times.append(self._loop.time())
                self._now += 1
                self.most_at_a_time = max(self.most_at_a_time, self._now)
                try:
                    if not await self._answer(writer, self.behave(number, body)):
                        break
                except ConnectionError:
                    raise
                except Exception as failure:
                    self._failure = self._failure or failure
                    break
                finally:
                    self._now -= 1
        writer.close()

    async def _answer(self, writer: asyncio.StreamWriter, answer: Answer) -> bool:
        """Send an answer; whether the connection is still of use."""
        await asyncio.sleep(answer.delay_s)
        headers = {"content-type": "application/json", "content-length": str(len(answer.body)), **answer.headers}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        writer.write(f"HTTP/1.1 {answer.status} Some reason\r\n{lines}\r\n".encode())
        if answer.reset_after is not None:
            writer.write(answer.body[: answer.reset_after])
            await writer.drain()
            writer.transport.abort()
            return False
        if answer.drip_s:
            for byte in answer.body:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(answer.drip_s)
        else:
            writer.write(answer.body)
            await writer.drain()
        return True
