"""Widen the stability region of Adams–Bashforth methods with heavy-ball momentum (HB).

Paper: Wizadwongsa et al., "Diffusion Sampling with Momentum for Mitigating Divergence Artifacts", ICLR 2024.
       https://arxiv.org/abs/2307.11118

In y = x / α the sampler's equation is dy = ε d(σ/α). A method of order k steps along a combination of the last k
predictions ε; HB steps along the moving average of those combinations, of which the newest has the share β.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerOutput

ADAMS_BASHFORTH = (1.0, 1 / 2, 5 / 12, 3 / 8, 251 / 720)
"""Weights of the backward differences of order 0, 1, …; k of them make the method of order k."""


class HBScheduler(DPMSolverMultistepScheduler):  # type: ignore[misc]
    """Step with an Adams–Bashforth method and heavy-ball momentum.

    ``fractional_order`` names method and momentum as the paper does: 1.8 is order 2 with β = 0.8, and a whole number
    has no momentum (β = 1). The first steps use as many predictions as there are. Noise levels, their spacing and what
    the model predicts are configured, and computed, as in `diffusers.DPMSolverMultistepScheduler`.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        fractional_order: float = 1.8,
        prediction_type: str = "epsilon",
        use_karras_sigmas: bool = False,
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
    ) -> None:
        if not 0 < fractional_order <= len(ADAMS_BASHFORTH):
            raise ValueError(f"fractional_order is {fractional_order}, not above 0 and at most {len(ADAMS_BASHFORTH)}")
        super().__init__(
            num_train_timesteps,
            beta_start,
            beta_end,
            beta_schedule,
            trained_betas,
            prediction_type=prediction_type,
            use_karras_sigmas=use_karras_sigmas,
            timestep_spacing=timestep_spacing,
            steps_offset=steps_offset,
            rescale_betas_zero_snr=rescale_betas_zero_snr,
        )
        self.method_order = math.ceil(fractional_order)
        self.beta = fractional_order % 1 or 1.0
        self._recent: list[torch.Tensor] = []
        self._velocity: torch.Tensor | None = None

    def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        """Set the noise levels as diffusers' scheduler does, and forget earlier predictions."""
        super().set_timesteps(*args, **kwargs)
        self._recent, self._velocity = [], None

    def step(
        self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, return_dict: bool = True
    ) -> SchedulerOutput | tuple[torch.Tensor]:
        """Take one step: DDIM's, with the direction in place of the newest prediction."""
        if self.step_index is None:
            self._init_step_index(timestep)
        alpha, sigma = self._sigma_to_alpha_sigma_t(self.sigmas[self.step_index])
        next_alpha, next_sigma = self._sigma_to_alpha_sigma_t(self.sigmas[self.step_index + 1])
        clean = self.convert_model_output(model_output, sample=sample)
        noise = (sample - alpha * clean) / sigma
        added = self._direction(noise) - noise
        previous = next_alpha * clean + next_sigma * noise + (next_sigma - next_alpha * sigma / alpha) * added
        self._step_index += 1
        return SchedulerOutput(prev_sample=previous) if return_dict else (previous,)

    def _direction(self, noise: torch.Tensor) -> torch.Tensor:
        return self._averaged(self._extrapolated(noise, ADAMS_BASHFORTH))

    def _averaged(self, latest: torch.Tensor) -> torch.Tensor:
        """Return the moving average, which starts at the first value."""
        before = latest if self._velocity is None else self._velocity
        self._velocity = (1 - self.beta) * before + self.beta * latest
        return self._velocity

    def _extrapolated(self, latest: torch.Tensor, differences: Sequence[float]) -> torch.Tensor:
        """Combine the last values, newest first, by the weights of their backward differences."""
        self._recent = [latest, *self._recent][: self.method_order]
        count = len(self._recent)
        weights = [(-1) ** j * sum(math.comb(i, j) * differences[i] for i in range(j, count)) for j in range(count)]
        total: torch.Tensor = sum(weight * value for weight, value in zip(weights, self._recent, strict=True))
        return total
