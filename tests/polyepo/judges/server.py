"""A chat-completions server on loopback that fails as real ones rarely do."""

import asyncio
import contextlib
import json
import re
import threading
from dataclasses import dataclass, field

_ITEM = re.compile(r'<response-([a-z]+) id="([a-z]{4})">\n(.*?)\n</response-\1>', re.S)


@dataclass
class Answer:
    """What the server does about one request."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    reset_after: int | None = None
    """Bytes of the body after which the connection is reset."""
    drip_s: float = 0.0
    """Seconds between bytes."""


def items(body):
    """(id, text) of each response in a request, as the judge model sees them."""
    return [(found[1], found[2]) for found in _ITEM.findall(body["messages"][1]["content"])]


def clusters_of(body, cluster_of=lambda text: text.split()[0] if text.strip() else None):
    """A correct reply to a request: texts whose `cluster_of` is equal share a cluster; None is degenerate."""
    names = {}
    responses, strategies = [], []
    for response_id, text in items(body):
        name = cluster_of(text)
        if name is not None and name not in names:
            names[name] = len(names)
            strategies.append({"cluster": names[name], "macro_strategy": name, "micro_strategy": "plain"})
        cluster = -1 if name is None else names[name]
        responses.append({"id": response_id, "rationale": "so it seems", "cluster": cluster})
    return {"responses": responses, "strategies": strategies}


def completion(content, finish_reason="stop", usage=(100, 50), **message):
    """A chat completion with this content."""
    text = content if isinstance(content, str) or content is None else json.dumps(content)
    return Answer(
        json.dumps(
            {
                "id": "chatcmpl-1",
                "object": "chat.completion",
                "created": 1,
                "model": "m",
                "choices": [
                    {
                        "index": 0,
                        "finish_reason": finish_reason,
                        "message": {"role": "assistant", "content": text, **message},
                    }
                ],
                "usage": usage
                and {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)},
            }
        ).encode()
    )


def error(status, message="it went wrong", headers=None, **more):
    """An error as OpenAI's API words it."""
    return Answer(json.dumps({"error": {"message": message, **more}}).encode(), status, headers or {})


class JudgeServer:
    """Answers each request with `behave(number, body)`, and remembers bodies, headers and how many ran at a time."""

    def __init__(self, behave=lambda number, body: completion(clusters_of(body))):
        self.behave = behave
        self.bodies = []
        self.headers = []
        self.times = []
        self.most_at_a_time = 0
        self._now = 0
        self._loop = asyncio.new_event_loop()
        self._server = self._loop.run_until_complete(
            asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 24, backlog=1024)
        )
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _stop(self):
        self._server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader, writer):
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
                finally:
                    self._now -= 1
        writer.close()

    async def _answer(self, writer, answer):
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
