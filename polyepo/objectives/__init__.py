"""Set objectives: how good is a *set* of n responses to one prompt?

Each is a class that is called with rewards and clusters (..., n), and that knows the mean score of all sets which
contain a response in closed form. docs/objectives.md has them side by side: formulas, optima, what they are for.
"""

from __future__ import annotations

from collections.abc import Callable

from polyepo.objectives.base import (
    DEGENERATE,
    THRESHOLD,
    Bools,
    Floats,
    Ints,
    SetObjective,
    miss_table,
    num_distinct,
)
from polyepo.objectives.distinct import DistinctSuccessful, MeanPlusDistinct
from polyepo.objectives.lexicographic import Lexicographic
from polyepo.objectives.polychromic import Polychromic
from polyepo.objectives.rewards import MeanReward, PassAtN

BY_NAME: dict[str, Callable[[], SetObjective]] = {
    "polychromic": Polychromic,
    "distinct_successful": DistinctSuccessful,
    "mean_plus_distinct": MeanPlusDistinct,
    "lexicographic": Lexicographic,
    "pass_at_n": PassAtN,
    "mean_reward": MeanReward,
}
"""What a configuration calls them."""

__all__ = [
    "BY_NAME",
    "DEGENERATE",
    "THRESHOLD",
    "Bools",
    "DistinctSuccessful",
    "Floats",
    "Ints",
    "Lexicographic",
    "MeanPlusDistinct",
    "MeanReward",
    "PassAtN",
    "Polychromic",
    "SetObjective",
    "miss_table",
    "num_distinct",
]
