"""Where a run's model files are: the base model it starts from, and its tokenizer, without loading weights."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from polyepo.config import RunConfig
from polyepo.domains import Demonstrated
from polyepo.policy.language import Language, load_language
from polyepo.section import digest
from storage import ModelKey, Provenance, Store, StoreError
from storage.layout import AnyKey
from tasks.runs.run import Run
from tasks.runs.version import code_version

# Part of a warm start's name: raise it when the recipe changes what comes out for the same settings.
_WARM_START_RECIPE = 1
_TOKENIZER = "tokenizer.json"


def warm_start_digest(config: RunConfig) -> str:
    """The name of the base model a configuration asks for."""
    content = {
        "recipe": _WARM_START_RECIPE,
        "warm_start": config.policy.warm_start and config.policy.warm_start.model_dump(mode="json"),
        "domain": config.domain.model_dump(mode="json"),
    }
    return digest(content)[:16]


def commit_warm_start(store: Store, config: RunConfig, digest: str) -> ModelKey:
    """Train and commit the base model that a configuration asks for, unless it is there; returns its key."""
    key = ModelKey("warm-start", digest)
    if not store.exists(key) and config.policy.warm_start and isinstance(config.domain, Demonstrated):
        from polyepo.policy.model import set_up_torch  # loads torch, which whoever only decodes tokens does without
        from polyepo.policy.warm_start import warm_start

        set_up_torch(config.policy)
        with tempfile.TemporaryDirectory() as scratch:
            warm_start(config.domain, config.policy.warm_start, Path(scratch))
            store.commit_files(key, Path(scratch), provenance=Provenance(digest, code_version(), 0))
    return key


def initial_model(store: Store, config: RunConfig) -> str | Path:
    """Where the model is that a run starts from: a directory, or a hub id."""
    if config.policy.warm_start:
        return store.local_files(ModelKey("warm-start", warm_start_digest(config)))
    return str(config.policy.model)


def load_run_language(run: Run) -> Language:
    """The language of a run's policy; no weights are read or fetched. Raises ConfigError as `load_language`."""
    folder = _stored_files(run, lambda name: not name.endswith(".safetensors"))
    return load_language(folder or initial_model(run.store, run.config), run.config.policy)


def load_decoder(run: Run) -> Callable[[list[int]], str] | None:
    """What turns token ids into text as the run's tokenizer does; None if that is not at hand, which is not asked for.

    It is read from its file alone: neither transformers nor code that comes with a model is loaded.
    """
    from tokenizers import Tokenizer

    path = _tokenizer_file(run)
    if path is None or not path.is_file():
        return None
    tokenizer = Tokenizer.from_file(str(path))
    return lambda token_ids: str(tokenizer.decode(token_ids, skip_special_tokens=True))


def _tokenizer_file(run: Run) -> Path | None:
    try:
        if folder := _stored_files(run, lambda name: name == _TOKENIZER):
            return folder / _TOKENIZER
    except StoreError:  # gone or damaged: `polyepo verify` says so
        return None
    model = run.config.policy.model
    if model is None or Path(model).is_dir():
        return Path(model) / _TOKENIZER if model else None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model, _TOKENIZER, revision=run.config.policy.revision or "main")
    return Path(found) if isinstance(found, str) else None


def _stored_files(run: Run, wanted: Callable[[str], bool]) -> Path | None:
    """A folder with the wanted files of a model of the run's that the store has: its newest checkpoint, or its base."""
    if run.parent is not None:
        return _stored_files(run.parent, wanted)
    steps = run.store.steps(run.name, "checkpoints")
    key: AnyKey | None = run.key("checkpoints", steps[-1]) if steps else None
    if key is None and run.config.policy.warm_start:
        key = ModelKey("warm-start", warm_start_digest(run.config))
    if key is None or (manifest := run.store.manifest(key)) is None:
        return None
    names = [file.path for file in manifest.files if wanted(file.path)]
    return run.store.local_files(key, names)
