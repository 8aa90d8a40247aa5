"""The LLM judge: any model behind an OpenAI-compatible server."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from polyepo.domains import Domain
from polyepo.extras import require
from polyepo.judges.base import CallLog, Estimate, Group, Label
from polyepo.judges.llm.settings import LLMSettings

if TYPE_CHECKING:
    from polyepo.judges.llm.client import Client


class LLMJudge(LLMSettings):
    """Clusters by reasoning strategy with a language model, one request per prompt (METHOD: one training step)."""

    def label(self, domain: Domain, groups: Sequence[Group], calls: CallLog | None = None) -> list[list[Label]]:
        """Exactly one label per response, in the responses' order, for each group.

        Raises:
            JudgeError: the server or the key cannot be used, too many prompts in a row failed, or max_cost is reached.
        """
        from polyepo.judges.llm.labelling import label_groups

        self.api_key()
        with _LOCK:
            loop, client = _loop(), _client(self.model_dump_json())
        work = label_groups(self, client, domain.name, groups, calls or CallLog())
        future = asyncio.run_coroutine_threadsafe(work, loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def estimate(self, domain: Domain, groups: Sequence[Group], calls: CallLog | None = None) -> Estimate:
        """What labelling these groups would take, if no call fails; what is answered in `calls` is free."""
        from polyepo.judges.llm.labelling import estimate_groups

        return estimate_groups(self, domain.name, groups, calls or CallLog())

    def shown_order(self, domain: Domain, group: Group) -> list[int]:
        """Indices of the distinct responses in the order of the first vote's request."""
        from polyepo.judges.llm.labelling import shown_texts

        return [group.responses.index(text) for text in shown_texts(self, domain.name, group)]


# A cache alone would let shards that start together each make their own.
_LOCK = threading.Lock()


@lru_cache(maxsize=1)
def _loop() -> asyncio.AbstractEventLoop:
    """One event loop for all judging in this process: shards that overlap share connections and limits."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="llm-judge", daemon=True).start()
    return loop


@lru_cache(maxsize=8)
def _client(judge_json: str) -> Client:
    require("judge", "openai", "httpx2")
    from polyepo.judges.llm.client import Client

    return Client(LLMJudge.model_validate_json(judge_json))
