"""The method of Poly-EPO (arXiv 2604.17654) as a library. `pip install poly-epo` is enough for all of this.

From rewards and strategies to advantages, (..., N) each, one prompt's N responses along the last axis:

    >>> from polyepo.advantages import marginal_set_advantages
    >>> marginal_set_advantages([1, 1, 0, 0], clusters=[0, 1, 1, 2], set_size=2).round(3).tolist()
    [0.25, 0.083, -0.25, -0.083]

What there is, by module:

    advantages   marginal_set_advantages, grpo_advantages, grpo_div_advantages
    objectives   what a set is worth: Polychromic, DistinctSuccessful, MeanPlusDistinct, Lexicographic, PassAtN, ...
    baselines    other papers' advantages: MaxRL, pass@k training, PKPO, DARLING, uniqueness-aware, F-GRPO, W-REINFORCE
    metrics      pass_at_k, maj_at_k, div_at_k, coverage, agreement of judges, intervals
    scoring      the same as sections of a configuration, with their settings
    domains      Domain (problems, verify, strategy), Problem, Verdict, Strategy; ours: Polynomial, Maths, ...
    judges       Judge (responses to clusters), Group, Label; ours: by program, answer, text, function, LLM
    config       load_config: a run, or the arms of one, from YAML
    integrations the method inside TRL's and verl's trainers (extras trl and verl)
    testing      servers that misbehave as real ones do, for tests of judges and samplers (extras judge and train)

What a class of one's own subclasses: `domains.Domain`, `judges.Judge`; an objective or a verifier may be a function.
Extras bring the rest: `train` (torch, transformers: polyepo.policy, polyepo.samplers), `judge` (openai, scikit-learn,
math-verify: language models and texts as judges, mathematics as a domain), `pipeline` (all of it, and the commands).
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

__all__ = [
    "advantages",
    "baselines",
    "config",
    "domains",
    "integrations",
    "judges",
    "metrics",
    "objectives",
    "scoring",
    "testing",
]


def __getattr__(name: str) -> ModuleType:
    """Import a module of the API when it is first asked for, so that none takes long that is not."""
    if name in __all__:
        return import_module(f"polyepo.{name}")
    raise AttributeError(f"module 'polyepo' has no attribute {name!r}")
