"""The place of a judge whose code a run's maker brought, and nobody here provides."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import ConfigDict

from polyepo.domains import Domain
from polyepo.judges.base import CallLog, Group, Judge, Label
from polyepo.plugins import required


class MissingJudge(Judge):
    """Keeps what the run's record says, so that its labels are found. To label raises MissingCodeError."""

    model_config = ConfigDict(frozen=True, extra="allow")

    def label(self, domain: Domain, groups: Sequence[Group], calls: CallLog | None = None) -> list[list[Label]]:
        """Needs the code."""
        required(self.name, self.code)
        raise AssertionError("code that is provided has its own class")
