"""Which code is at work: the package's version, and the commit of its own checkout."""

from __future__ import annotations

import os
import subprocess
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path


@lru_cache(maxsize=1)
def code_version() -> str:
    """The package's version, with the commit if it runs from a checkout of its own, and ".dirty" if that has changes.

    A package that is installed inside somebody else's repository has no commit.
    """
    commit = own_commit(Path(__file__).resolve())
    return version("poly-epo") + (f"+{commit}" if commit else "")


def own_commit(file: Path) -> str | None:
    """The commit of the repository that tracks a file of ours (`tasks/runs/*.py`) at its place below the top."""
    # A file in somebody's virtual environment may lie in a repository, but that does not track it.
    if _git(file.parent, "rev-parse", "--show-toplevel") != str(file.parents[2]):
        return None
    if _git(file.parent, "ls-files", "--error-unmatch", "--", file.name) is None:
        return None
    found = _git(file.parent, "describe", "--always", "--exclude=*", "--abbrev=12", "--dirty")
    return found.replace("-dirty", ".dirty") if found else None


def _git(folder: Path, *arguments: str) -> str | None:
    """What git says; None if it has nothing to say, or is not there."""
    # A git hook's variables name the repository that it runs for.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", *arguments],  # noqa: S607 - from the user's own PATH
            cwd=folder, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
