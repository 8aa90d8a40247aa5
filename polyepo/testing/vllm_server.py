"""A server with vLLM's interface and a real model behind it, which fails when told to.

It samples from whatever weights it was sent last, so a sampler can be held to the policy's own log-probabilities:

    from polyepo.testing.vllm_server import FakeVLLM

    def test_my_sampler_asks_again():
        with FakeVLLM(copy.deepcopy(policy.model)) as server:
            server.faults += [503, "reset", "nan"]
            groups = MySampler(policy, base_urls=[server.url]).sample(prompts, seeds)
        assert max(server.answered.values()) == 1
"""

from __future__ import annotations

import contextlib
import copy
import json
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self, cast

import torch
from safetensors.torch import load_model

from polyepo.config import SamplingConfig
from polyepo.policy.language import Language
from polyepo.policy.model import Policy
from polyepo.samplers.transformers import TransformersSampler
from polyepo.seeds import derive_seed

PROBE = 8
"""Responses to the request by which a sampler compares log-probabilities after a refresh; faults are for others."""


class FakeVLLM(ThreadingHTTPServer):
    """vLLM's OpenAI-compatible server and its endpoints for weights, as far as samplers use them.

    A fault befalls one completion: an HTTP status, or

        reset       the connection is closed without an answer
        cut         the answer ends in the middle
        duplicate, missing   one choice is there twice, or not at all
        short       a response lacks its last token; abort: it was ended by the server
        nan, null, floor   a log-probability is no number, not there, or -9999
        model       it says that another model answered; prompt: that another prompt was asked
        no ids      token ids are left out; no json: the answer is a text
    """

    daemon_threads = True
    request_queue_size = 100

    faults: deque[int | str | None]
    """Of the completions to come, one each, None for none."""
    always: int | str | None
    """The fault of every completion for which `faults` has none."""
    answered: Counter[tuple[tuple[int, ...], int]]
    """Whole answers without a fault by (prompt, seed)."""
    missing: set[str]
    """Paths that this server does not have, as older releases."""
    deaf: bool
    """Whether it takes no weights, but says that it did."""
    version: str
    """What the weights are called; "default" until it is told."""
    asleep: bool
    """Whether it was put to sleep: then it must not be asked for completions."""
    on_completion: Callable[[], None]
    """Called after each answer that is no probe's."""

    def __init__(
        self, model: torch.nn.Module, port: int = 0, served_model: str = "policy", max_model_len: int = 64
    ) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.initial = model
        self.served_model, self.max_model_len = served_model, max_model_len
        self.faults = deque()
        self.always = None
        self.answered = Counter()
        self.missing = set()
        self.deaf = False
        self.lock = threading.Lock()
        self.on_completion = lambda: None
        self.restart()

    def restart(self) -> None:
        """As a server that came back with the weights it started with."""
        self.model, self.version, self.asleep = self.initial, "default", False

    @property
    def url(self) -> str:
        """Its address, without /v1."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def complete(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request of /v1/completions."""
        unused = torch.optim.SGD(self.model.parameters())
        language = Language(None, self.model.config, frozenset(request["stop_token_ids"]))
        policy = Policy(self.model, language, unused)
        config = SamplingConfig(max_response_tokens=request["max_tokens"], temperature=request["temperature"])
        seeds = [derive_seed(request["seed"] + i) for i in range(request["n"])]
        with _biased(self.model, request.get("logit_bias", {})):
            (samples,) = TransformersSampler(policy, config).sample([request["prompt"]], [seeds])
        choices = [
            {
                "index": i,
                "text": "",
                "token_ids": s.token_ids,
                "prompt_token_ids": request["prompt"],
                "finish_reason": s.finish_reason,
                "logprobs": {"token_logprobs": [float(lp) for lp in s.logprobs]},
            }
            for i, s in enumerate(samples)
        ]
        return {"model": self.served_model, "choices": choices}


@contextlib.contextmanager
def _biased(model: torch.nn.Module, biases: dict[str, float]) -> Iterator[None]:
    """A model whose logits are raised by so much while this lasts."""

    def add(module: torch.nn.Module, args: Any, output: Any) -> None:
        for token, bias in biases.items():
            output.logits[..., int(token)] += bias

    hook = model.register_forward_hook(add)
    yield
    hook.remove()


def _with_weights(model: torch.nn.Module, folder: Path) -> torch.nn.Module:
    """A copy of a model with the weights of a folder.

    Not by `from_pretrained`: that replaces methods of transformers' classes for a while, and threads that do it at once
    leave `tie_weights` replaced for good.
    """
    loaded = copy.deepcopy(model)
    load_model(loaded, folder / "model.safetensors", strict=False)  # a tied head may be there by its own name
    return loaded


def _spoiled(answer: dict[str, Any], fault: str, prompt: list[int]) -> Any:
    """An answer with a fault in it. Raises ValueError if there is no such fault."""
    choice = answer["choices"][-1]
    tokens, logprobs = choice["token_ids"], choice["logprobs"]["token_logprobs"]
    match fault:
        case "duplicate":
            choice["index"] = 0
        case "missing":
            answer["choices"].pop()
        case "short":
            choice["token_ids"], choice["finish_reason"] = tokens[:-1] or [1], "length"
        case "abort":
            choice["finish_reason"] = "abort"
        case "nan" | "null" | "floor":
            logprobs[0] = {"nan": float("nan"), "null": None, "floor": -9999.0}[fault]
        case "model":
            answer["model"] = "another"
        case "no ids":
            choice["token_ids"] = None
        case "prompt":
            choice["prompt_token_ids"] = [0, *prompt]
        case "no json":
            return "hello"
        case _:
            raise ValueError(f"no fault {fault!r}: FakeVLLM lists them")
    return answer


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Nothing is logged."""

    def reply(self, body: Any, status: int = 200) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        self.route({})

    def do_POST(self) -> None:
        self.route(json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "{}"))

    def route(self, body: dict[str, Any]) -> None:
        server, path = cast(FakeVLLM, self.server), self.path.split("?")[0]
        if path in server.missing:
            return self.reply({"detail": "Not Found"}, 404)
        if path == "/health":
            return self.reply({})
        if path == "/v1/models":
            return self.reply({"data": [{"id": server.served_model, "max_model_len": server.max_model_len}]})
        if path == "/weight_info":
            return self.reply({"weight_version": server.version})
        if path == "/update_weight_version":
            server.version = body["new_version"]
            return self.reply({"success": True})
        if path == "/collective_rpc":
            assert body["method"] == "reload_weights"
            if not server.deaf:
                server.model = _with_weights(server.initial, Path(body["kwargs"]["weights_path"]))
            return self.reply({"results": [None]})
        if path == "/reset_prefix_cache":
            return self.reply({"success": True})
        if path in ("/sleep", "/wake_up"):
            server.asleep = path == "/sleep"
            return self.reply({})
        assert path == "/v1/completions", path
        return self.completion(server, body)

    def completion(self, server: FakeVLLM, body: dict[str, Any]) -> None:
        assert not server.asleep
        with server.lock:  # one at a time: a model's forward pass is not what these tests are about
            probe = body["n"] == PROBE
            fault = server.faults.popleft() if server.faults and not probe else server.always
            if isinstance(fault, int):
                return self.reply({"error": {"message": f"no luck: {fault}"}}, fault)
            answer = server.complete(body)
            if fault == "reset":
                self.close_connection = True
                return self.connection.close()
            if fault == "cut":
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n{")
                self.close_connection = True
                return None
            if fault is None and not probe:
                server.answered[(tuple(body["prompt"]), body["seed"])] += 1
            self.reply(_spoiled(answer, fault, body["prompt"]) if fault else answer)
            if not probe:
                server.on_completion()
        return None
