"""Trade accuracy for stability in steps smaller than an order: generalized heavy ball (GHVB).

Paper: Wizadwongsa et al., "Diffusion Sampling with Momentum for Mitigating Divergence Artifacts", ICLR 2024.
       https://arxiv.org/abs/2307.11118

HB averages what Adams–Bashforth extrapolates, and so falls to first order. GHVB averages the predictions and
extrapolates their averages, with weights that undo the lag of the average: e = v + (1 - β)/β ∇v turns the weights γ_i
of the backward differences of e into γ_i + (1 - β)/β γ_(i-1) for those of v. At β = 1 it is Adams–Bashforth of order k;
as β falls to 0 it becomes that of order k - 1.
"""

from __future__ import annotations

import torch

from diffc.compiler.checkpoint.schedulers.hb import ADAMS_BASHFORTH, HBScheduler


class GHVBScheduler(HBScheduler):
    """Step with generalized heavy ball; ``fractional_order`` 1.8 is order 2 with β = 0.8."""

    def _direction(self, noise: torch.Tensor) -> torch.Tensor:
        lag = (1 - self.beta) / self.beta
        shifted = (0.0, *ADAMS_BASHFORTH)
        differences = [weight + lag * before for weight, before in zip(ADAMS_BASHFORTH, shifted, strict=False)]
        return self._extrapolated(self._averaged(noise), differences)
