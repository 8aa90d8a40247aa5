"""A judge of one's own: any function that says which of a prompt's responses go about it in the same way."""

from __future__ import annotations

from polyepo.domains import Problem


def by_first_step(problem: Problem, responses: list[str]) -> list[str | None]:
    """A label for each response: equal labels, equal strategy; None for a response that has none.

    Here the first word of a polynomial's worked answer: the x that it starts from.
    """
    return [response.split()[0] if response.split() else None for response in responses]
