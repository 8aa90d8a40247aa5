"""Domains: where problems come from, how responses are verified, and what their strategies are."""

from typing import Annotated

from pydantic import Field

from polyepo.domains.base import Demonstrated, Domain, Problem, Split, Strategy, Verdict
from polyepo.domains.countdown import Countdown
from polyepo.domains.maths import Maths
from polyepo.domains.multiplication import Multiplication
from polyepo.domains.multiplication_words import MultiplicationWords
from polyepo.domains.polynomial import Polynomial
from polyepo.domains.polynomial_words import PolynomialWords
from polyepo.domains.ungraded import Ungraded

AnyDomain = Annotated[
    Polynomial | PolynomialWords | Multiplication | MultiplicationWords | Countdown | Maths | Ungraded,
    Field(discriminator="name"),
]

__all__ = [
    "AnyDomain",
    "Countdown",
    "Demonstrated",
    "Domain",
    "Maths",
    "Multiplication",
    "MultiplicationWords",
    "Polynomial",
    "PolynomialWords",
    "Problem",
    "Split",
    "Strategy",
    "Ungraded",
    "Verdict",
]
