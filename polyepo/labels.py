"""What can become of a response's label: the one list of its statuses."""

from __future__ import annotations

from enum import StrEnum


class LabelStatus(StrEnum):
    """The column `status` of labels and evals. The first two come with a label, the others without."""

    OK = "ok"
    REPAIRED = "repaired"
    """The judge's reply had to be mended, or completed by asking again."""
    OVERFLOW = "overflow"
    """The responses are longer than the judge takes."""
    PARSE_FAILED = "parse_failed"
    """The judge's reply cannot be read."""
    HTTP_FAILED = "http_failed"
    """The judge's server gave no reply."""
    REFUSED = "refused"
    """The judge did not want to."""
    UNLABELLED = "unlabelled"
    """A person's sheet leaves it open."""
