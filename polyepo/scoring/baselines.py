"""The scorings of other papers: a configuration each of a function of `polyepo.baselines` or `polyepo.advantages`."""

from __future__ import annotations

from typing import Literal, Self

import numpy as np
from pydantic import Field

from polyepo import baselines
from polyepo.advantages import grpo_advantages, grpo_div_advantages
from polyepo.objectives import Floats, Ints
from polyepo.scoring.base import AnyMethod
from polyepo.section import added


class OfRewards(AnyMethod):
    """A scoring that rewards are all of: it needs no labels."""

    @property
    def uses_clusters(self) -> bool:
        """No: rewards are all it takes."""
        return False


class GRPOScoring(OfRewards):
    """A_i = r_i - mean r."""

    method: Literal["grpo"]

    def advantages(self, rewards_PN: Floats, clusters_PN: Ints, seed: int, logprobs_PN: Floats | None = None) -> Floats:
        """Rewards less their prompt's mean."""
        return grpo_advantages(rewards_PN)

    def title(self, num_responses: int) -> str:
        """What people call it."""
        return "GRPO"


class GRPODivScoring(AnyMethod):
    """A_i = z_i - mean z, with z_i = r_i + weight * d_i: an additive diversity bonus per response."""

    method: Literal["grpo_div"]
    weight: float = Field(0.5, ge=0)

    def advantages(self, rewards_PN: Floats, clusters_PN: Ints, seed: int, logprobs_PN: Floats | None = None) -> Floats:
        """Rewards and diversity bonus, less their prompt's mean."""
        return grpo_div_advantages(rewards_PN, clusters_PN, self.weight)

    def title(self, num_responses: int) -> str:
        """What people call it, with its weight."""
        return f"GRPO + {self.weight:g} × diversity"


class DistinctAllSizesScoring(AnyMethod):
    """Distinct successful strategies, averaged over sets of every size: no n, and no weight."""

    method: Literal["distinct_all_sizes"]

    def advantages(self, rewards_PN: Floats, clusters_PN: Ints, seed: int, logprobs_PN: Floats | None = None) -> Floats:
        """As `polyepo.baselines.distinct_all_sizes_advantages`."""
        return baselines.distinct_all_sizes_advantages(rewards_PN, clusters_PN)

    def title(self, num_responses: int) -> str:
        """What people call it."""
        return f"distinct successful, n = 1 to {num_responses}"


class MaxRLScoring(OfRewards):
    """MaxRL (arXiv 2602.02710): (r_i - mean r) / mean r."""

    method: Literal["maxrl"]
    overlong_penalty: None = added(None)
    """It has none: rewards would fall below 0, where the mean is no rate of success."""

    def advantages(self, rewards_PN: Floats, clusters_PN: Ints, seed: int, logprobs_PN: Floats | None = None) -> Floats:
        """As `polyepo.baselines.maxrl_advantages`. Raises ValueError if a reward is negative."""
        return baselines.maxrl_advantages(rewards_PN)

    def title(self, num_responses: int) -> str:
        """What people call it."""
        return "MaxRL"


class _OfK(OfRewards):
    k: int = Field(4, ge=1)
    """Responses of which the best counts; at most sampling.num_responses."""
    anneal_after: int | None = Field(None, ge=1, exclude_if=lambda step: step is None)
    """Last step with this k; from then on k is 1, which consolidates what was found (arXiv 2505.15201, section 5.2.3;
    2508.10751, section 3.5)."""

    def at(self, step: int) -> Self:
        """With k = 1 after `anneal_after`."""
        annealed = self.anneal_after is not None and step > self.anneal_after
        return self.model_copy(update={"k": 1, "anneal_after": None}) if annealed else self

    def _annealed(self) -> str:
        return "" if self.anneal_after is None else f", 1 after step {self.anneal_after}"

    def check(self, num_responses: int) -> None:
        """Raise ValueError if there are fewer than k responses."""
        if self.k > num_responses:
            raise ValueError(f"scoring.k {self.k} must not exceed sampling.num_responses (N) {num_responses}")


class PassAtKScoring(_OfK):
    """Pass@k training (arXiv 2508.10751): `pass_at_n`, divided by the standard deviation of the sets' scores."""

    method: Literal["pass_at_k"]

    def advantages(self, rewards_PN: Floats, clusters_PN: Ints, seed: int, logprobs_PN: Floats | None = None) -> Floats:
        """As `polyepo.baselines.pass_at_k_advantages`; zeros where there are fewer than k responses."""
        few = rewards_PN.shape[-1] < self.k
        return np.zeros_like(rewards_PN) if few else baselines.pass_at_k_advantages(rewards_PN, self.k)

    def title(self, num_responses: int) -> str:
        """What people call it, with its k."""
        return f"pass@{self.k} training{self._annealed()}"


class PKPOScoring(_OfK):
    """PKPO (arXiv 2505.15201): an unbiased gradient of pass@k, or max@k where rewards are not 0 or 1."""

    method: Literal["pkpo"]

    def advantages(self, rewards_PN: Floats, clusters_PN: Ints, seed: int, logprobs_PN: Floats | None = None) -> Floats:
        """As `polyepo.baselines.pkpo_advantages`; zeros where there are fewer than k responses."""
        few = rewards_PN.shape[-1] < self.k
        return np.zeros_like(rewards_PN) if few else baselines.pkpo_advantages(rewards_PN, self.k)

    def title(self, num_responses: int) -> str:
        """What people call it, with its k."""
        return f"PKPO, k = {self.k}{self._annealed()}"


class MaxAtKScoring(_OfK):
    """max@k (arXiv 2510.23393): PKPO's transformed rewards, standardized."""

    method: Literal["max_at_k"]

    def advantages(self, rewards_PN: Floats, clusters_PN: Ints, seed: int, logprobs_PN: Floats | None = None) -> Floats:
        """As `polyepo.baselines.max_at_k_advantages`; zeros where there are fewer than k responses."""
        few = rewards_PN.shape[-1] < self.k
        return np.zeros_like(rewards_PN) if few else baselines.max_at_k_advantages(rewards_PN, self.k)

    def title(self, num_responses: int) -> str:
        """What people call it, with its k."""
        return f"max@{self.k}{self._annealed()}"


class DarlingScoring(AnyMethod):
    """DARLING (arXiv 2509.02534): rewards times the share of the other responses that differ, less the mean."""

    method: Literal["darling"]
    floor: float = Field(0.1, ge=0, le=1)
    """Least factor of a reward."""

    def advantages(self, rewards_PN: Floats, clusters_PN: Ints, seed: int, logprobs_PN: Floats | None = None) -> Floats:
        """As `polyepo.baselines.darling_advantages`."""
        return baselines.darling_advantages(rewards_PN, clusters_PN, self.floor)

    def title(self, num_responses: int) -> str:
        """What people call it."""
        return "DARLING"


class UniquenessScoring(AnyMethod):
    """Uniqueness-aware RL (arXiv 2601.08763): standardized rewards, divided by the cluster's size to the alpha."""

    method: Literal["uniqueness"]
    alpha: float = Field(1.0, ge=0, le=1)

    def advantages(self, rewards_PN: Floats, clusters_PN: Ints, seed: int, logprobs_PN: Floats | None = None) -> Floats:
        """As `polyepo.baselines.uniqueness_advantages`."""
        return baselines.uniqueness_advantages(rewards_PN, clusters_PN, self.alpha)

    def title(self, num_responses: int) -> str:
        """What people call it, with its exponent."""
        return f"uniqueness-aware, alpha = {self.alpha:g}"


class FGRPOScoring(OfRewards):
    """F-GRPO (arXiv 2602.06717): standardized rewards times (1 - share right)^gamma."""

    method: Literal["f_grpo"]
    gamma: float = Field(1.0, ge=0)

    def advantages(self, rewards_PN: Floats, clusters_PN: Ints, seed: int, logprobs_PN: Floats | None = None) -> Floats:
        """As `polyepo.baselines.f_grpo_advantages`."""
        return baselines.f_grpo_advantages(rewards_PN, self.gamma)

    def title(self, num_responses: int) -> str:
        """What people call it, with its exponent."""
        return f"F-GRPO, gamma = {self.gamma:g}"


class WReinforceScoring(OfRewards):
    """W-REINFORCE (arXiv 2506.01347): +weight for what is right, -1 for what is wrong."""

    method: Literal["w_reinforce"]
    weight: float = Field(0.1, ge=0)

    def advantages(self, rewards_PN: Floats, clusters_PN: Ints, seed: int, logprobs_PN: Floats | None = None) -> Floats:
        """As `polyepo.baselines.w_reinforce_advantages`."""
        return baselines.w_reinforce_advantages(rewards_PN, self.weight)

    def title(self, num_responses: int) -> str:
        """What people call it, with its weight."""
        return f"W-REINFORCE, weight = {self.weight:g}"


class UnlikelinessScoring(OfRewards):
    """Unlikeliness reward (arXiv 2506.02355): of right responses the likeliest are worth less."""

    method: Literal["unlikeliness"]
    beta: float = Field(0.25, ge=0, le=1)
    """How much less the likeliest is worth."""

    @property
    def uses_logprobs(self) -> bool:
        """Yes: responses are ranked by them."""
        return True

    def advantages(self, rewards_PN: Floats, clusters_PN: Ints, seed: int, logprobs_PN: Floats | None = None) -> Floats:
        """As `polyepo.baselines.unlikeliness_advantages`."""
        assert logprobs_PN is not None
        return baselines.unlikeliness_advantages(rewards_PN, logprobs_PN, self.beta)

    def title(self, num_responses: int) -> str:
        """What people call it, with its strength."""
        return f"unlikeliness reward, beta = {self.beta:g}"


class DSDRScoring(AnyMethod):
    """DSDR's global scale (arXiv 2602.19895): right responses earn a bonus for differing from the others."""

    method: Literal["dsdr"]
    weight: float = Field(0.001, ge=0)
    """lambda_d, in units of reward."""

    def advantages(self, rewards_PN: Floats, clusters_PN: Ints, seed: int, logprobs_PN: Floats | None = None) -> Floats:
        """As `polyepo.baselines.dsdr_advantages`."""
        return baselines.dsdr_advantages(rewards_PN, clusters_PN, self.weight)

    def title(self, num_responses: int) -> str:
        """What people call it, with its weight."""
        return f"DSDR (global), weight = {self.weight:g}"
