"""Judges: they cluster a prompt's responses by reasoning strategy."""

from typing import Annotated

from pydantic import Field

from polyepo.judges.base import Call, CallLog, Estimate, Group, Judge, Label, MissingLabels
from polyepo.judges.llm.judge import LLMJudge
from polyepo.judges.program import AnswerJudge, ProgramJudge
from polyepo.judges.sheet import SheetJudge
from polyepo.judges.similarity import EmbeddingJudge, TextJudge

AnyJudge = Annotated[
    ProgramJudge | AnswerJudge | TextJudge | EmbeddingJudge | SheetJudge | LLMJudge, Field(discriminator="name")
]

__all__ = [
    "AnswerJudge",
    "AnyJudge",
    "Call",
    "CallLog",
    "EmbeddingJudge",
    "Estimate",
    "Group",
    "Judge",
    "LLMJudge",
    "Label",
    "MissingLabels",
    "ProgramJudge",
    "SheetJudge",
    "TextJudge",
]
