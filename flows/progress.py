"""What the Prefect UI and the terminal see of a flow that is going on: one progress artifact per flow run."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote, urlsplit
from uuid import UUID

from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
)
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate

from flows.views.report import NothingToReportError, publish_report
from polyepo.names import slug


class Progress:
    """A progress artifact: how much of `total` is `done`, and a line that says what goes on."""

    # The server should hear of progress often enough to watch, and seldom enough not to be slowed down.
    _SECONDS_BETWEEN = 2.0

    def __init__(self, name: str, total: int) -> None:
        self.done = 0
        self._total = max(total, 1)
        self._last = 0.0
        self._client = get_client(sync_client=True)
        artifact = create_progress_artifact(0.0, key=slug(f"{name}-progress"), description=f"{name} · starting")
        assert isinstance(artifact, UUID)
        self._artifact = artifact

    def say(self, description: str) -> None:
        """Describe what is going on now."""
        change = ArtifactUpdate(data=100 * self.done / self._total, description=description)
        self._client.update_artifact(self._artifact, change)
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


class LatestRows:
    """A table artifact of the latest rows, of which there is one version: the server is not filled with old ones."""

    _ROWS = 20
    _SECONDS_BETWEEN = 10.0

    def __init__(self, name: str, title: str) -> None:
        self._rows: list[dict[str, Any]] = []
        self._last = 0.0
        self._client = get_client(sync_client=True)
        artifact = create_table_artifact([], key=slug(name), description=title)
        assert isinstance(artifact, UUID)
        self._artifact = artifact

    def add(self, row: dict[str, Any], show: bool = False) -> None:
        """Add a row, and show the table if it is time, or asked for."""
        self._rows = [*self._rows, row][-self._ROWS :]
        if show or time.monotonic() - self._last >= self._SECONDS_BETWEEN:
            self._client.update_artifact(self._artifact, ArtifactUpdate(data=json.dumps(self._rows)))
            self._last = time.monotonic()


def link_report(root: str, title: str, runs: Sequence[str]) -> None:
    """Publish the report of runs and link it; a run without a step or an evaluation has none."""
    with contextlib.suppress(NothingToReportError):
        url = publish_report(root, title, runs)
        key, name = slug(f"{title}-report"), f"{title}: report"
        if url.startswith("file://"):
            # A browser opens no file that a page of the server links; a path can be copied.
            text = f"The report is a page of its own on this machine:\n\n`{unquote(urlsplit(url).path)}`"
            create_markdown_artifact(text, key=key, description=name)
        else:
            create_link_artifact(url, key=key, link_text=name)
