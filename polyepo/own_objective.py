"""A set objective of the user's own: any symmetric function of a set's rewards and clusters, by reference."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import ConfigDict, ValidationError, model_validator

from polyepo import plugins
from polyepo.objectives import BY_NAME, SetObjective
from polyepo.plugins import Code, Coded, PluginError


class OwnObjective(Coded):
    """`objective.py:score`, or `objective.py:Score` with the settings of the class next to the name.

    A function takes rewards (..., n) and clusters (..., n), -1 for none, and returns set scores (...,). An object of a
    class does so when it is called; with `expected_scores` as the objectives in `polyepo.objectives` it is averaged
    over all sets in closed form, else sets are listed or drawn.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str

    @model_validator(mode="before")
    @classmethod
    def _with_code(cls, value: Any) -> Any:
        if not isinstance(value, dict) or not isinstance(value.get("name"), str):
            raise PluginError(
                "an objective must be a name, or a mapping with one, such as {name: 'objective.py:score'}"
            )
        code = plugins.find(value["name"], "objective")
        if code is None and value.get("code") is None:
            raise PluginError(
                f"objective {value['name']!r} is none of {', '.join(BY_NAME)} "
                "(a function or class of your own is named FILE.py:NAME)"
            )
        if code is not None and value.get("code") in (None, code.digest):
            _check(code, _made(code, {k: v for k, v in value.items() if k not in ("name", "code")}))
            return {**value, "code": code.digest}
        return value

    def load(self) -> SetObjective:
        """The objective itself. Raises MissingCodeError if nobody here provides its code."""
        return _made(plugins.required(self.name, self.code), dict(self.model_extra or {}))

    @property
    def has_closed_form(self) -> bool:
        """Whether it is averaged over all sets without listing them; taken to be so where its code is not here."""
        code = plugins.provided(self.name)
        return code is None or hasattr(code.value, "expected_scores")


def _made(code: Code, settings: dict[str, Any]) -> SetObjective:
    if not callable(code.value):
        raise PluginError(f"{code.reference!r} is a {type(code.value).__name__}, and must be a function or a class")
    if not isinstance(code.value, type):
        if settings:
            raise PluginError(f"{code.reference!r} is a function, and has no setting {min(settings)!r}")
        function: SetObjective = code.value
        return function
    try:
        made: Any = code.value(**settings)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise PluginError(f"{code.reference!r}, {where}: {first['msg']}") from None
    except Exception as error:
        raise PluginError(f"{code.reference!r} cannot be made: {type(error).__name__}: {error}") from error
    if not callable(made):
        raise PluginError(f"{code.reference!r} ({plugins.where(code.value)}) has no __call__(rewards, clusters)")
    objective: SetObjective = made
    return objective


def _check(code: Code, objective: SetObjective) -> None:
    """Raise PluginError unless an objective gives one finite score for each of a few sets."""
    rewards = np.array([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    clusters = np.array([[0, 1, -1], [2, 2, 2]])
    where = f"{code.reference!r} ({plugins.where(code.value)})"
    try:
        scores = np.asarray(objective(rewards, clusters), dtype=float)
    except Exception as error:
        raise PluginError(f"{where} fails on rewards of shape (2, 3): {type(error).__name__}: {error}") from error
    if scores.shape != (2,) or not np.isfinite(scores).all():
        raise PluginError(
            f"{where} must give finite scores of shape (2,) for rewards and clusters of shape (2, 3), but gives "
            f"{scores.tolist()!r}"
        )
