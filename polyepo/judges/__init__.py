"""Judges: they cluster a prompt's responses by reasoning strategy."""

from typing import Annotated

from pydantic import PlainValidator, SerializeAsAny

from polyepo.judges.base import Call, CallLog, Estimate, Group, Judge, Label, MissingLabels
from polyepo.judges.function import FunctionJudge
from polyepo.judges.llm.judge import LLMJudge
from polyepo.judges.missing import MissingJudge
from polyepo.judges.program import AnswerJudge, ProgramJudge
from polyepo.judges.sheet import SheetJudge
from polyepo.judges.similarity import EmbeddingJudge, TextJudge
from polyepo.plugins import Choice

_OURS = (ProgramJudge, AnswerJudge, TextJudge, EmbeddingJudge, SheetJudge, FunctionJudge, LLMJudge)
AnyJudge = Annotated[
    SerializeAsAny[
        ProgramJudge | AnswerJudge | TextJudge | EmbeddingJudge | SheetJudge | FunctionJudge | LLMJudge | Judge
    ],
    PlainValidator(Choice("judge", Judge, _OURS, MissingJudge)),
]
"""One of ours by name, one that an installed package declares, or a user's own class by reference."""

__all__ = [
    "AnswerJudge",
    "AnyJudge",
    "Call",
    "CallLog",
    "EmbeddingJudge",
    "Estimate",
    "FunctionJudge",
    "Group",
    "Judge",
    "LLMJudge",
    "Label",
    "MissingLabels",
    "ProgramJudge",
    "SheetJudge",
    "TextJudge",
]
