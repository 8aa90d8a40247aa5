"""Where artifacts lie under a root. Names are checked here, once, so that no path is ever built from anything else."""

from __future__ import annotations

from dataclasses import dataclass

from polyepo.errors import ConfigError
from polyepo.names import is_name


def check_name(field: str, value: str) -> str:
    """Return a name that is safe as a path component, or raise ConfigError naming the field."""
    if not isinstance(value, str) or not is_name(value):
        raise ConfigError(
            f"{field} {value!r} must be 1 to 100 letters, digits, '.', '_' or '-', begin with a letter or digit "
            "and not contain '..'"
        )
    return value


@dataclass(frozen=True)
class ArtifactKey:
    """What an artifact is: a stage's result for one step of a run (of one shard of it, where it is sharded)."""

    run: str
    stage: str
    step: int
    partition: tuple[tuple[str, str], ...] = ()
    """(name, value) pairs such as ("judge", "program"): results of one stage that stand side by side."""
    shard: int | None = None

    def __post_init__(self) -> None:
        check_name("run", self.run)
        check_name("stage", self.stage)
        for name, value in self.partition:
            check_name("partition", name)
            check_name(name, value)
        if self.step < 0 or (self.shard is not None and self.shard < 0):
            raise ValueError(f"step {self.step} and shard {self.shard} must not be negative")

    @property
    def path(self) -> str:
        """Folder of the artifact, relative to the root."""
        shard = [] if self.shard is None else [f"shard={self.shard:03d}"]
        return "/".join([stage_path(self.run, self.stage, self.partition), f"step={self.step:06d}", *shard])


def parse_path(path: str) -> ArtifactKey | None:
    """The key of an artifact's folder; None if no key has this path."""
    parts = path.split("/")
    pairs = [(name, value) for name, _, value in (part.partition("=") for part in parts[3:])]
    shard = pairs.pop()[1] if pairs and pairs[-1][0] == "shard" else None
    try:
        key = ArtifactKey(parts[1], parts[2], int(pairs.pop()[1]), tuple(pairs), None if shard is None else int(shard))
    except (IndexError, ValueError):
        return None
    return key if key.path == path else None


@dataclass(frozen=True)
class ModelKey:
    """A model that runs share, named by the digest of what it was made from."""

    kind: str
    digest: str

    def __post_init__(self) -> None:
        check_name("kind", self.kind)
        check_name("digest", self.digest)

    @property
    def path(self) -> str:
        """Folder of the artifact, relative to the root."""
        return f"models/{self.kind}/{self.digest}"


AnyKey = ArtifactKey | ModelKey


def stage_path(run: str, stage: str, partition: tuple[tuple[str, str], ...] = ()) -> str:
    """Folder that holds a stage's steps, relative to the root."""
    parts = ["runs", check_name("run", run), check_name("stage", stage)]
    return "/".join([*parts, *(f"{check_name('partition', n)}={check_name(n, v)}" for n, v in partition)])
