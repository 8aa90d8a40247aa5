"""Domains: where problems come from, how responses are verified, and what their strategies are."""

from typing import Annotated

from pydantic import PlainValidator, SerializeAsAny

from polyepo.domains.base import Demonstrated, Domain, Problem, Split, Strategy, Verdict
from polyepo.domains.countdown import Countdown
from polyepo.domains.maths import Maths
from polyepo.domains.missing import MissingDomain
from polyepo.domains.multiplication import Multiplication
from polyepo.domains.multiplication_words import MultiplicationWords
from polyepo.domains.polynomial import Polynomial
from polyepo.domains.polynomial_words import PolynomialWords
from polyepo.domains.rows import Dataset
from polyepo.domains.ungraded import Ungraded
from polyepo.plugins import Choice

_OURS = (Polynomial, PolynomialWords, Multiplication, MultiplicationWords, Countdown, Maths, Dataset, Ungraded)
AnyDomain = Annotated[
    SerializeAsAny[
        Polynomial
        | PolynomialWords
        | Multiplication
        | MultiplicationWords
        | Countdown
        | Maths
        | Dataset
        | Ungraded
        | Domain
    ],
    PlainValidator(Choice("domain", Domain, _OURS, MissingDomain)),
]
"""One of ours by name, one that an installed package declares, or a user's own class by reference."""

__all__ = [
    "AnyDomain",
    "Countdown",
    "Dataset",
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
