"""Where a run's model files are: the base model it starts from, and its tokenizer, without loading weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from polyepo.config import RunConfig
from polyepo.section import digest
from storage import ModelKey, Store
from storage.layout import AnyKey
from tasks.runs.run import Run

# Part of a warm start's name: raise it when the recipe changes what comes out for the same settings.
_WARM_START_RECIPE = 1


def warm_start_digest(config: RunConfig) -> str:
    """The name of the base model a configuration asks for."""
    content = {
        "recipe": _WARM_START_RECIPE,
        "warm_start": config.policy.warm_start and config.policy.warm_start.model_dump(mode="json"),
        "domain": config.domain.model_dump(mode="json"),
    }
    return digest(content)[:16]


def initial_model(store: Store, config: RunConfig) -> str | Path:
    """Where the model is that a run starts from: a directory, or a hub id."""
    if config.policy.warm_start:
        return store.local_files(ModelKey("warm-start", warm_start_digest(config)))
    return str(config.policy.model)


def load_tokenizer(run: Run) -> Any:
    """The run's tokenizer, without the weights. Raises OSError or ValueError if its model is not at hand."""
    from transformers import AutoTokenizer  # takes seconds to import

    if run.parent is not None:
        return load_tokenizer(run.parent)
    key: AnyKey | None = None
    if steps := run.store.steps(run.name, "checkpoints"):
        key = run.key("checkpoints", steps[-1])
    elif run.config.policy.warm_start:
        key = ModelKey("warm-start", warm_start_digest(run.config))
    source = str(run.config.policy.model)
    if key is not None and (manifest := run.store.manifest(key)):
        names = [file.path for file in manifest.files if not file.path.endswith(".safetensors")]
        source = str(run.store.files.local_copy(f"{manifest.path}/{manifest.attempt}", names))
    policy = run.config.policy
    return AutoTokenizer.from_pretrained(
        source, trust_remote_code=policy.trust_remote_code, revision=policy.revision or "main"
    )
