"""Problems put in words: as plain text to a base model, or as chat messages."""

from __future__ import annotations

from pydantic import model_validator

from polyepo.domains.base import Domain, Prompt
from polyepo.section import added


class Prompted(Domain):
    """A domain whose problems are put to a language model in words."""

    template: str
    """Text around each problem: {problem} is replaced, other braces stay."""
    chat: bool = added(False)
    """Ask by chat messages, through the tokenizer's chat template; else by plain text."""
    system_prompt: str | None = added(None)
    """Chat only: the message of the system before the problem."""

    @model_validator(mode="after")
    def _template_holds_problem(self) -> Prompted:
        if self.template.count("{problem}") != 1:
            raise ValueError(f"template must contain {{problem}} exactly once, but is {self.template!r}")
        if self.system_prompt is not None and not self.chat:
            raise ValueError("system_prompt goes with chat: true; in plain text it is part of template")
        return self

    def put(self, problem: str) -> Prompt:
        """What is asked: the template with the problem in it."""
        text = self.template.replace("{problem}", problem)
        if not self.chat:
            return text
        system = [] if self.system_prompt is None else [{"role": "system", "content": self.system_prompt}]
        return [*system, {"role": "user", "content": text}]
