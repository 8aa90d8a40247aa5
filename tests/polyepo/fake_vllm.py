"""A server with vLLM's interface and a real model behind it, which fails when told to.

Also a program that takes the arguments of vLLM's API server, for tests of launched servers.
"""

import argparse
import contextlib
import copy
import json
import os
import signal
import threading
from collections import Counter, deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch
from safetensors.torch import load_model
from transformers import AutoModelForCausalLM

from polyepo.config import SamplingConfig
from polyepo.policy.language import Language
from polyepo.policy.model import Policy
from polyepo.samplers.transformers import TransformersSampler
from polyepo.seeds import derive_seed

PROBE = 8  # responses of a probe; faults are for other requests


@contextlib.contextmanager
def biased(model, biases):
    """A model whose logits are raised by so much while this lasts."""

    def add(module, args, output):
        for token, bias in biases.items():
            output.logits[..., int(token)] += bias

    hook = model.register_forward_hook(add)
    yield
    hook.remove()


def with_weights(model, folder):
    """A copy of a model with the weights of a folder.

    Not by `from_pretrained`: that replaces methods of transformers' classes for a while, and threads that do it at once
    leave `tie_weights` replaced for good.
    """
    loaded = copy.deepcopy(model)
    load_model(loaded, folder / "model.safetensors", strict=False)  # a tied head may be there by its own name
    return loaded


class FakeVLLM(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 100

    def __init__(self, model, port=0, served_model="policy", max_model_len=64):
        super().__init__(("127.0.0.1", port), Handler)
        self.initial = model
        self.served_model, self.max_model_len = served_model, max_model_len
        self.faults = deque()  # one per completion, None for none
        self.always = None  # the fault of every completion
        self.answered = Counter()  # whole answers by (prompt, seed)
        self.missing = set()  # paths that this server does not have
        self.deaf = False  # takes no weights, but says that it did
        self.lock = threading.Lock()
        self.on_completion = lambda: None
        self.restart()

    def restart(self):
        """As a server that came back with the weights it started with."""
        self.model, self.version, self.asleep = self.initial, "default", False

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def complete(self, request):
        language = Language(None, self.model.config, frozenset(request["stop_token_ids"]))
        policy = Policy(self.model, language, None)
        config = SamplingConfig(max_response_tokens=request["max_tokens"], temperature=request["temperature"])
        seeds = [derive_seed(request["seed"] + i) for i in range(request["n"])]
        with biased(self.model, request.get("logit_bias", {})):
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


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def reply(self, body, status=200):
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self):
        self.route({})

    def do_POST(self):
        self.route(json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "{}"))

    def route(self, body):
        server, path = self.server, self.path.split("?")[0]
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
                server.model = with_weights(server.initial, Path(body["kwargs"]["weights_path"]))
            return self.reply({"results": [None]})
        if path == "/reset_prefix_cache":
            return self.reply({"success": True})
        if path in ("/sleep", "/wake_up"):
            server.asleep = path == "/sleep"
            return self.reply({})
        assert path == "/v1/completions", path
        return self.completion(body)

    def completion(self, body):
        server = self.server
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
            choice = answer["choices"][-1]
            if fault == "duplicate":
                choice["index"] = 0
            elif fault == "missing":
                answer["choices"].pop()
            elif fault == "short":
                choice["token_ids"], choice["finish_reason"] = choice["token_ids"][:-1] or [1], "length"
            elif fault == "abort":
                choice["finish_reason"] = "abort"
            elif fault == "nan":
                choice["logprobs"]["token_logprobs"][0] = float("nan")
            elif fault == "null":
                choice["logprobs"]["token_logprobs"][0] = None
            elif fault == "floor":
                choice["logprobs"]["token_logprobs"][0] = -9999.0
            elif fault == "model":
                answer["model"] = "another"
            elif fault == "no ids":
                choice["token_ids"] = None
            elif fault == "prompt":
                choice["prompt_token_ids"] = [0, *body["prompt"]]
            elif fault == "no json":
                answer = "hello"
            elif not probe:
                server.answered[(tuple(body["prompt"]), body["seed"])] += 1
            self.reply(answer)
            if not probe:
                server.on_completion()
        return None


def main():
    """Serve a model directory; with FAKE_DIE, the first to count so many completions dies of SIGKILL."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model")
    parser.add_argument("--port", type=int)
    parser.add_argument("--served-model-name")
    parser.add_argument("--max-model-len", type=int)
    arguments, _ = parser.parse_known_args()
    if "FAKE_REFUSE" in os.environ:
        raise ValueError("head size 16 is not supported")
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(arguments.model).eval()
    server = FakeVLLM(model, arguments.port, arguments.served_model_name, arguments.max_model_len)
    notes = Path(os.environ["FAKE_NOTES"])
    with (notes / "servers").open("a") as file:
        file.write(f"{os.getpid()} {arguments.model}\n")

    def completed():
        (prompt, seed), count = list(server.answered.items())[-1]
        with (notes / "answered").open("a") as file:
            file.write(f"{prompt} {seed} {count}\n")
        if sum(server.answered.values()) == int(os.environ.get("FAKE_DIE", 0)) and not (notes / "died").exists():
            (notes / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    server.on_completion = completed
    server.serve_forever()


if __name__ == "__main__":
    main()
