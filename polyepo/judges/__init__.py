"""Judges: they cluster a prompt's responses by reasoning strategy."""

from typing import Annotated

from pydantic import Field

from polyepo.judges.base import Group, Judge, Label
from polyepo.judges.program import AnswerJudge, ProgramJudge

AnyJudge = Annotated[ProgramJudge | AnswerJudge, Field(discriminator="name")]

__all__ = ["AnswerJudge", "AnyJudge", "Group", "Judge", "Label", "ProgramJudge"]
