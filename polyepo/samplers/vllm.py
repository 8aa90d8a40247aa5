"""Sampling with vLLM servers over HTTP: token ids in, token ids and log-probabilities out.

vLLM runs in an environment of its own; nothing of it is imported here. Needed are the OpenAI-compatible completions
endpoint and, for new weights, the development endpoints (VLLM_SERVER_DEV_MODE=1).
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import time
import uuid
import weakref
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from polyepo.policy.trainer import Trainer
from polyepo.samplers.base import Sample, SamplerError
from polyepo.samplers.launch import LaunchedServer
from polyepo.samplers.settings import SamplingConfig, VLLMSampling
from polyepo.seeds import derive_seed

_log = logging.getLogger(__name__)

_ATTEMPTS = 5
_STRIKES = 3  # failures in a row after which a server is set aside for the round
_PAUSE_S = 0.2  # doubled with every attempt
_CONTROL_S = 60.0  # for questions that a server answers at once
_PROBE_RESPONSES, _PROBE_TOKENS = 8, 32
_MAX_MISMATCH = {"float32": 1e-4, "bfloat16": 0.05}
_NO_SHAPE = frozenset({"_name_or_path", "transformers_version", "dtype"})  # differ between copies of one model
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})


class WeightsMismatchError(SamplerError):
    """A server's log-probabilities are not the trainer's: its weights, type or settings are others."""


class _DownError(Exception):
    """A server does not answer."""


class _FailedError(Exception):
    """A request failed in a way that may pass."""


class _RefusedError(_FailedError):
    """A server refuses what we ask: it may pass on another server, but not on this one."""


@dataclass(eq=False)
class _Server:
    """One server, and which weights this process has put there."""

    url: str = ""
    process: LaunchedServer | None = None
    tag: str | None = None
    """Of the weights that were loaded and verified last."""


@dataclass
class _Fleet:
    """The servers of one configuration; they stay while this process does, from shard to shard and arm to arm."""

    servers: list[_Server]
    tag: str = ""
    """Of the policy whose weights the servers are to have."""
    _trainer: weakref.ref[Trainer] | None = None
    _version: int = -1

    def tag_of(self, trainer: Trainer) -> str:
        """A name for the policy's present weights that no other weights ever had."""
        if self._trainer is None or self._trainer() is not trainer or self._version != trainer.version:
            self._trainer, self._version = weakref.ref(trainer), trainer.version
            self.tag = f"polyepo-{trainer.version}-{uuid.uuid4().hex}"
        return self.tag


_fleets: dict[str, _Fleet] = {}


def stop_servers() -> None:
    """End the servers that this process has launched. They end with the process in any case."""
    for fleet in _fleets.values():
        for server in fleet.servers:
            if server.process is not None:
                server.process.stop()
    _fleets.clear()


class VLLMSampler:
    """Samples from a policy through vLLM servers that are given its weights first.

    All responses to a prompt are one request, whose seed derives from theirs: a sample depends on its prompt, its place
    and all seeds of the prompt. vLLM's sums depend on what else is in a batch, so runs are not bit-reproducible.

    Raises:
        ConfigError: the model's context is too short for the limits.
    """

    def __init__(self, trainer: Trainer, config: VLLMSampling, sampling: SamplingConfig) -> None:
        self._trainer, self._config, self._sampling = trainer, config, sampling
        self._language = trainer.language
        self._context = sampling.max_prompt_tokens + sampling.max_response_tokens
        self._language.check_context(sampling)
        shape = {k: v for k, v in self._language.model_config.to_dict().items() if k not in _NO_SHAPE}
        key = json.dumps([config.model_dump(mode="json"), shape, self._context, trainer.dtype], default=str)
        if key not in _fleets:
            stop_servers()  # one fleet at a time: another run's server would keep its memory
            _fleets[key] = _Fleet(self._make_servers())
        self._fleet = _fleets[key]
        self._written: set[Path] = set()

    def sample(self, prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]]) -> list[list[Sample]]:
        """For each prompt, one sample per seed.

        Raises:
            WeightsMismatchError: a server that was given the policy's weights computes other log-probabilities.
            SamplerError: no server answers within `wait_s`; a server serves another model or too short a context; its
                replies are no samples of the policy; a launched server does not start.
        """
        try:
            return asyncio.run(self._sample(prompts, seeds))
        finally:
            for folder in self._written:
                shutil.rmtree(folder, ignore_errors=True)

    async def _sample(self, prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]]) -> list[list[Sample]]:
        found: dict[int, list[Sample]] = {}
        attempts = [0] * len(prompts)
        key = os.environ.get("VLLM_API_KEY")  # the name that vLLM itself reads it by
        async with httpx.AsyncClient(
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
            headers={"Authorization": f"Bearer {key}"} if key else {},
            trust_env=False,  # no proxy stands between a run and its servers
        ) as client:
            while len(found) < len(prompts):
                servers = await self._ready(client, prompts)
                missing = [i for i in range(len(prompts)) if i not in found]
                batch = _Round(deque(missing))
                await self._work(client, servers, batch, prompts, seeds)
                for server in dict.fromkeys(by for by, _ in batch.done.values()):
                    if doubt := await self._doubt(client, server, batch, prompts[0]):
                        _log.warning("its samples are dropped: %s", doubt)
                        batch.drop(server, doubt)
                found |= {i: samples for i, (_, samples) in batch.done.items()}
                for i in missing:
                    attempts[i] += i not in found
                if max(attempts) >= _ATTEMPTS and len(found) < len(prompts):
                    raise SamplerError(self._given_up(batch.last_failure))
                if len(found) < len(prompts):
                    _log.warning("%d of %d requests are repeated: %s", len(prompts) - len(found), len(prompts),
                                 batch.last_failure)  # fmt: skip
                    await asyncio.sleep(_PAUSE_S * 2 ** max(attempts))
            if self._config.sleep:
                asked = (self._call(client, s, "POST", "/sleep?level=1") for s in servers)
                for outcome in await asyncio.gather(*asked, return_exceptions=True):
                    if isinstance(outcome, BaseException):
                        _log.warning("a server was not put to sleep: %s", outcome)
        return [found[i] for i in range(len(prompts))]

    async def _work(
        self,
        client: httpx.AsyncClient,
        servers: list[_Server],
        batch: _Round,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[Sequence[int]],
    ) -> None:
        """Servers take requests from one queue as they get done: each gets as many as it can do.

        A server that does nothing but fail is set aside for the round, and others do what it was given: it would be
        through the queue long before them. Each server begins the next round anew.
        """
        batch.servers = list(servers)

        async def take(server: _Server) -> None:
            while (i := await batch.next(server)) is not None:
                try:
                    request = self._request(prompts[i], seeds[i], self._sampling.max_response_tokens)
                    batch.done[i] = (server, await self._complete(client, server, request))
                    batch.strikes[server] = 0
                except (_DownError, _FailedError) as error:
                    batch.failed(server, i, error)
                finally:
                    await batch.ended()

        workers = min(self._config.concurrency, len(batch.queue))
        try:
            async with asyncio.TaskGroup() as tasks:
                for server in servers * workers:
                    tasks.create_task(take(server))
        except ExceptionGroup as group:
            raise group.exceptions[0] from None

    async def _ready(self, client: httpx.AsyncClient, prompts: Sequence[Sequence[int]]) -> list[_Server]:
        """The servers that answer and have the policy's weights; waits for one if none does."""
        started, said = time.monotonic(), False
        while True:
            prepared = await asyncio.gather(
                *(self._prepare(client, server, prompts) for server in self._fleet.servers), return_exceptions=True
            )
            down = []
            for outcome in prepared:
                if isinstance(outcome, _DownError | _FailedError):
                    down.append(str(outcome))
                elif isinstance(outcome, BaseException):
                    raise outcome
            if all(isinstance(outcome, _RefusedError) for outcome in prepared):
                raise SamplerError("; ".join(down))
            if len(down) < len(prepared):
                if down:
                    _log.warning("sampling goes on without: %s", "; ".join(down))
                return [s for s, o in zip(self._fleet.servers, prepared, strict=True) if o is None]
            if time.monotonic() - started > self._config.wait_s:
                raise SamplerError(
                    f"no vLLM server answers after sampler.wait_s {self._config.wait_s:g} s: {'; '.join(down)}. "
                    "Nothing committed is lost: start the server, then resume the run"
                )
            if not said:
                _log.warning("waiting up to %g s for a vLLM server: %s", self._config.wait_s, "; ".join(down))
                said = True
            await asyncio.sleep(min(1.0, self._config.wait_s / 10))

    async def _prepare(self, client: httpx.AsyncClient, server: _Server, prompts: Sequence[Sequence[int]]) -> None:
        """See that a server is up, serves our model, and has the policy's weights."""
        if server.process is not None and not server.process.alive:
            await self._launch(client, server, server.process)
        await self._call(client, server, "GET", "/health")
        listed = await self._call(client, server, "GET", "/v1/models")
        try:
            models = {model["id"]: model.get("max_model_len") for model in listed.json()["data"]}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise SamplerError(f"{server.url} is no vLLM server: it lists no models ({error!r})") from error
        if self._config.served_model not in models:
            raise SamplerError(
                f"{server.url} serves {sorted(models)}, not sampler.served_model {self._config.served_model!r}"
            )
        context = models[self._config.served_model]
        needed = max(map(len, prompts)) + self._sampling.max_response_tokens
        if context is not None and needed > context:  # vLLM would cut responses short without a word
            raise SamplerError(
                f"{server.url}: its context (--max-model-len) of {context} tokens is too short for the longest prompt "
                f"plus sampling.max_response_tokens, {needed} tokens"
            )
        if self._config.sleep:
            await self._call(client, server, "POST", "/wake_up")
        if not await self._holds_weights(client, server, prompts[0]):
            await self._load_weights(client, server)
            await self._verify(client, server, prompts[0])
            server.tag = self._fleet.tag

    async def _launch(self, client: httpx.AsyncClient, server: _Server, process: LaunchedServer) -> None:
        model = process.prepare_model()
        self._write_weights(model)
        process.serve()
        server.url, server.tag = process.url, None
        assert self._config.launch is not None
        limit = self._config.launch.startup_s
        _log.info("starting a vLLM server at %s; its log: %s", process.url, process.log)
        started = time.monotonic()
        while True:
            try:
                await self._call(client, server, "GET", "/health")
                return
            except (_DownError, _FailedError):
                await asyncio.sleep(0.2)
            if not process.alive:
                raise SamplerError(f"the vLLM server ended before it was ready:\n{process.last_words()}")
            if time.monotonic() - started > limit:
                process.stop()
                raise SamplerError(
                    f"the vLLM server is not ready after sampler.launch.startup_s {limit:g} s:\n{process.last_words()}"
                )

    async def _holds_weights(self, client: httpx.AsyncClient, server: _Server, prompt: Sequence[int]) -> bool:
        """Whether a server still has the weights of the policy as it is now."""
        tag = self._fleet.tag_of(self._trainer)
        if server.tag != tag:
            return False
        answer = await self._call(client, server, "GET", "/weight_info", missing_ok=True)
        if answer is not None:
            return answer.json().get("weight_version") == tag
        try:  # a vLLM that cannot name its weights
            await self._verify(client, server, prompt)
        except WeightsMismatchError:
            return False
        return True

    async def _doubt(
        self, client: httpx.AsyncClient, server: _Server, batch: _Round, prompt: Sequence[int]
    ) -> str | None:
        """Why a server's samples of a round may not be the policy's, if so: others may have changed its weights."""
        if server in batch.down:  # a restart breaks connections, and after that nothing was asked of it
            return None
        try:
            held = await self._holds_weights(client, server, prompt)
        except _DownError:
            return None
        except _FailedError as error:  # what stands between may answer for a server that is being restarted
            return str(error)
        return None if held else f"{server.url} has other weights than it was given"

    async def _load_weights(self, client: httpx.AsyncClient, server: _Server) -> None:
        """Give a server the policy's weights, and make it forget what it computed with others."""
        tag = self._fleet.tag_of(self._trainer)
        parent = server.process.scratch if server.process else Path(self._config.weights_dir or "").absolute()
        folder = parent / tag
        if not folder.exists():
            self._written.add(folder)
            self._write_weights(folder)
        reload = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        loaded = await self._call(client, server, "POST", "/collective_rpc", reload, missing_ok=True)
        if loaded is None:
            raise SamplerError(f"{server.url} takes no weights: start it with VLLM_SERVER_DEV_MODE=1")
        for _ in range(_ATTEMPTS):
            cleared = await self._call(client, server, "POST", "/reset_prefix_cache")
            # Older versions answer with nothing. It fails while requests that we gave up are being aborted.
            if not cleared.content or cleared.json().get("success", True):
                break
            await asyncio.sleep(1)
        else:
            raise SamplerError(f"{server.url} does not clear its prefix cache: does it serve someone else as well?")
        await self._call(client, server, "POST", "/update_weight_version", {"new_version": tag}, missing_ok=True)

    def _write_weights(self, folder: Path) -> None:
        # On the CPU vLLM (0.32) packs the output head, and renews it only if it comes by its own name, though it be
        # tied to the embeddings.
        self._trainer.export(folder, self._trainer.dtype, head_apart=self._trainer.device == "cpu")

    async def _verify(self, client: httpx.AsyncClient, server: _Server, prompt: Sequence[int]) -> None:
        """Compare a server's log-probabilities of what it samples with the trainer's."""
        limit = self._config.max_mismatch or _MAX_MISMATCH.get(self._trainer.dtype, 1e-4)
        seeds = [derive_seed("probe", i) for i in range(_PROBE_RESPONSES)]
        num_tokens = min(_PROBE_TOKENS, self._sampling.max_response_tokens)
        probe = await self._complete(client, server, self._request(prompt, seeds, num_tokens))
        responses = [s.token_ids for s in probe]
        ours = np.concatenate(
            self._trainer.logprobs([prompt] * len(probe), responses, self._sampling.temperature), dtype=np.float64
        )
        difference = np.abs(ours - np.concatenate([s.logprobs for s in probe]))
        if not difference.mean() <= limit:
            raise WeightsMismatchError(
                f"{server.url}: after the weights of version {self._trainer.version} were loaded, log-probabilities of "
                f"{len(ours)} probe tokens differ from the trainer's by {difference.mean():.2e} nats on average "
                f"(at most {difference.max():.2e}); the limit is {limit:g} (sampler.max_mismatch). The server's "
                "weights are stale or of another type (--dtype), its model is another one, or at a temperature other "
                "than 1 it lacks --logprobs-mode processed_logprobs"
            )
        _log.debug("%s: probe of version %d differs by %.1e", server.url, self._trainer.version, difference.mean())

    def _request(self, prompt: Sequence[int], seeds: Sequence[int], num_tokens: int) -> dict[str, Any]:
        # The trainer's softmax leaves padding out. A bias of -100 is vLLM's lowest, and as good as out.
        padding = {str(token): -100 for token in self._language.padding_ids}
        return {
            **({"logit_bias": padding} if padding else {}),
            "model": self._config.served_model,
            "prompt": list(prompt),
            "n": len(seeds),
            # vLLM adds a response's index to it, so it stays below 2**63.
            "seed": derive_seed(*seeds) >> 1,
            "max_tokens": num_tokens,
            "temperature": self._sampling.temperature,
            # What a model's generation_config.json proposes would truncate the distribution.
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "stop_token_ids": sorted(self._language.eos_token_ids),
            "logprobs": 0,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
        }

    async def _complete(self, client: httpx.AsyncClient, server: _Server, request: dict[str, Any]) -> list[Sample]:
        """The samples of one request, whole or not at all: what is repeated is never there twice."""
        answer = await self._call(client, server, "POST", "/v1/completions", request)
        try:
            reply = answer.json()
            model, choices = reply["model"], sorted(reply["choices"], key=lambda choice: choice["index"])
            indices = [choice["index"] for choice in choices]
            samples = [self._read(choice, request) for choice in choices]
        except (KeyError, TypeError, ValueError) as error:
            raise _FailedError(f"{server.url} sent a reply that is no completion: {error!r}") from error
        except SamplerError as error:
            raise SamplerError(f"{server.url}: {error}") from None
        if model != request["model"]:
            raise SamplerError(
                f"{server.url} answered as model {model!r}, not sampler.served_model {request['model']!r}"
            )
        if indices != list(range(request["n"])):
            raise _FailedError(f"{server.url} sent responses {indices}, not 0 to {request['n'] - 1}")
        return samples

    def _read(self, choice: dict[str, Any], request: dict[str, Any]) -> Sample:
        """One choice as a sample. Raises KeyError, TypeError or ValueError if it is none, SamplerError if it is bad."""
        tokens, reason = choice["token_ids"], choice["finish_reason"]
        if tokens is None:
            raise SamplerError("it returns no token ids: return_token_ids needs vLLM 0.10.2 or newer")
        logprobs = np.array(choice["logprobs"]["token_logprobs"], dtype=np.float32)
        if choice.get("prompt_token_ids", request["prompt"]) != request["prompt"]:
            raise SamplerError("it changed the prompt's token ids")
        # vLLM writes -9999 for minus infinity, which no token that was sampled can have.
        if not np.isfinite(logprobs).all() or (logprobs <= -9999).any():
            raise SamplerError("it returned a log-probability that is not finite: the policy's weights are damaged")
        ends = [token in self._language.eos_token_ids for token in tokens]
        whole = {"stop": sum(ends) == 1 and ends[-1], "length": not any(ends) and len(tokens) == request["max_tokens"]}
        if len(tokens) != len(logprobs) or not whole.get(reason, False):
            raise ValueError(f"{len(tokens)} tokens, {len(logprobs)} log-probabilities, finish_reason {reason!r}")
        return Sample(tokens, logprobs, reason)

    def _given_up(self, failure: str) -> str:
        logs = [server.process.last_words() for server in self._fleet.servers if server.process]
        return "\n".join([f"sampling failed {_ATTEMPTS} times; the last failure: {failure}", *logs])

    async def _call(
        self,
        client: httpx.AsyncClient,
        server: _Server,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        missing_ok: bool = False,
    ) -> Any:
        """A server's answer; None for a path it does not have if that is expected."""
        try:
            timeout = self._config.request_s if body or path == "/wake_up" else _CONTROL_S
            answer = await client.request(
                method, server.url + path, json=body, timeout=httpx.Timeout(timeout, connect=10)
            )
        except httpx.TimeoutException as error:
            raise _FailedError(f"{server.url}{path} took too long ({type(error).__name__})") from error
        except httpx.TransportError as error:
            raise _DownError(f"{server.url} does not answer ({type(error).__name__}: {error})") from error
        if answer.status_code == 404 and missing_ok:
            return None
        if answer.is_success:
            return answer
        said = f"{server.url}{path} answered {answer.status_code}: {_message(answer)}"
        raise _FailedError(said) if answer.status_code in _TRANSIENT else _RefusedError(said)

    def _make_servers(self) -> list[_Server]:
        if self._config.launch is None:
            return [_Server(url.rstrip("/").removesuffix("/v1")) for url in self._config.base_urls]
        arguments = [
            "--served-model-name", self._config.served_model,
            "--dtype", self._trainer.dtype,
            "--max-model-len", str(self._context),
            "--logprobs-mode", "processed_logprobs",
            "--generation-config", "vllm",
            *(["--enable-sleep-mode"] if self._config.sleep else []),
            # On the CPU vLLM (0.32) dies of a seeded request whose prompt it takes in pieces.
            *(["--no-enable-chunked-prefill"] if self._trainer.device == "cpu" else []),
        ]  # fmt: skip
        return [_Server(process=LaunchedServer(self._config.launch, arguments))]


@dataclass
class _Round:
    """Requests that are still to do, and what came of the others."""

    queue: deque[int]
    servers: list[_Server] = field(default_factory=list)
    """Those that take part: who is set aside is no longer among them."""
    done: dict[int, tuple[_Server, list[Sample]]] = field(default_factory=dict)
    down: list[_Server] = field(default_factory=list)
    strikes: Counter[_Server] = field(default_factory=Counter)
    """Failures of each server since it last succeeded."""
    last_failure: str = ""
    _under_way: int = 0
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def next(self, server: _Server) -> int | None:
        """The next request for a server; None if there is none left, or the server is set aside.

        While requests are under way one may come back, from a server that fails.
        """
        async with self._changed:
            await self._changed.wait_for(lambda: self.queue or not self._under_way or server not in self.servers)
            if not self.queue or server not in self.servers:
                return None
            self._under_way += 1
            return self.queue.popleft()

    async def ended(self) -> None:
        """A request that `next` gave is no longer under way."""
        async with self._changed:
            self._under_way -= 1
            self._changed.notify_all()

    def failed(self, server: _Server, request: int, error: Exception) -> None:
        """Give a request that failed to another server; if there is none, it waits for the next round.

        Raises:
            SamplerError: the last server refuses it, and would again.
        """
        self.last_failure = str(error)
        self.strikes[server] += 1
        hopeless = isinstance(error, _DownError | _RefusedError) or self.strikes[server] >= _STRIKES
        others = [other for other in self.servers if other is not server]
        if isinstance(error, _DownError) and server not in self.down:
            self.down.append(server)
        if isinstance(error, _RefusedError) and not others:
            raise SamplerError(self.last_failure)
        if hopeless and server in self.servers and (others or server in self.down):
            self.servers = others
            if others:
                _log.warning("a vLLM server is set aside for this round: %s", self.last_failure)
        if others:
            self.queue.append(request)

    def drop(self, server: _Server, reason: str) -> None:
        """Forget what a server has sampled."""
        self.done = {i: (by, samples) for i, (by, samples) in self.done.items() if by is not server}
        self.last_failure = self.last_failure or reason


def _message(answer: httpx.Response) -> str:
    """What a server says of a failure, cut to a line."""
    try:
        found = answer.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        found = answer.text
    return " ".join(str(found).split())[:300]
