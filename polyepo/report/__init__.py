"""The report: runs' figures and responses as one HTML page that needs nothing else (no server, no network)."""

from polyepo.report.data import Figure, Policy, ProblemKey, Prompt, Report, Response, RunFacts, Series
from polyepo.report.page import render

__all__ = ["Figure", "Policy", "ProblemKey", "Prompt", "Report", "Response", "RunFacts", "Series", "render"]
