"""What the Prefect UI and the terminal see of a flow that is going on: one progress artifact per flow run."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Sequence
from uuid import UUID

from prefect.artifacts import create_link_artifact, create_progress_artifact, update_progress_artifact

from flows.views.report import NothingToReportError, publish_report


class Progress:
    """A progress artifact: how much of `total` is `done`, and a line that says what goes on."""

    # The server should hear of progress often enough to watch, and seldom enough not to be slowed down.
    _SECONDS_BETWEEN = 2.0

    def __init__(self, name: str, total: int) -> None:
        self.done = 0
        self._total = max(total, 1)
        self._last = 0.0
        artifact = create_progress_artifact(0.0, key=slug(f"{name}-progress"), description=f"{name} · starting")
        assert isinstance(artifact, UUID)
        self._artifact = artifact

    def say(self, description: str) -> None:
        """Describe what is going on now."""
        update_progress_artifact(self._artifact, 100 * self.done / self._total, description=description)
        self._last = time.monotonic()

    def count(self, description: str) -> None:
        """One more is done; shown if it is time."""
        self.done += 1
        if self.is_time():
            self.say(description)

    def is_time(self) -> bool:
        """Whether the last description has stood long enough."""
        return time.monotonic() - self._last >= self._SECONDS_BETWEEN

    def finish(self) -> None:
        """Say that all is done."""
        self.done = self._total
        self.say("done")


def link_report(root: str, title: str, runs: Sequence[str]) -> None:
    """Publish the report of runs and link it; a run without a step or an evaluation has none."""
    with contextlib.suppress(NothingToReportError):
        url = publish_report(root, title, runs)
        create_link_artifact(url, key=slug(f"{title}-report"), link_text=f"{title}: report")


def slug(text: str) -> str:
    """A Prefect artifact key: lowercase letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
