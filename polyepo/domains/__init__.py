"""Domains: where problems come from, how responses are verified, and what their strategies are."""

from polyepo.domains.base import Demonstrated, Domain, Problem, Split, Strategy, Verdict
from polyepo.domains.polynomial import Polynomial

AnyDomain = Polynomial

__all__ = ["AnyDomain", "Demonstrated", "Domain", "Polynomial", "Problem", "Split", "Strategy", "Verdict"]
