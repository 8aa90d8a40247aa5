"""Judges by HTTP try again at once, and have a key that nothing may show."""

import pytest

from polyepo.judges.llm import client
from tests.support.judging import CANARY


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(client, "_FIRST_BACKOFF_S", 0.001)
    monkeypatch.setenv("CANARY_KEY", CANARY)
