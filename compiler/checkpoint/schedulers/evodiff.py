"""Probe, evaluate once, correct: steps scaled by the projections of successive predictions of the clean image.

Paper: Li et al., "EVODiff: Entropy-aware Variance Optimized Diffusion Inference", NeurIPS 2025.
       https://arxiv.org/abs/2509.26096

A step adds to Euler's (in x/σ, where the prediction m of the clean image is the slope) a multiple of a balanced
difference of predictions. Before the model has evaluated the end of the step that is the probe's, D = m_s - b m_r; then
a combination of D with D' = m_t - b' m_s replaces it, and the next step starts from there but keeps m_t. The factors
are scalars per image and channel: projections of one prediction on another, bounded by clamps and sigmoids.

The formulas are those of the authors' code, with its other rule for more than 20 steps. The first and the last step are
Euler's; at σ = 0, where diffusers' schedules end, that is the prediction itself. The authors' code ends above 0 and
extrapolates there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerOutput

BOUND = 2.0
"""Projections are clamped to ± this."""

TINY = 1e-20
"""Lower bound of a squared norm, against division by zero."""

MANY_STEPS = 20
"""Above this number of steps a correction is the smaller, the more consistent the predictions are."""


@dataclass(frozen=True)
class Constants:
    """Hold the constants of a step, which do not depend on the image."""

    width: float
    """The factor of the prediction in Euler's step."""
    height: float
    """The step in α/σ."""
    decay: float
    """The factor of the noisy latents in Euler's step."""
    ratio: float
    """The step before, in units of this one, in log(α/σ)."""
    weight: float
    """The share of the projection in a balance."""
    base: float
    """The balance without a projection."""

    def balance(self, projection: torch.Tensor) -> torch.Tensor:
        """Return the factor of the earlier prediction in a balanced difference."""
        return (1 - self.weight) * self.base + self.weight * projection


class Probe:
    """Extrapolate the end of one step, and correct it with the model's prediction there."""

    def __init__(
        self, constants: Constants, euler: torch.Tensor, clean: torch.Tensor, before: torch.Tensor, *, many_steps: bool
    ) -> None:
        self.constants, self.euler, self.clean = constants, euler, clean
        balance = constants.balance(_projection(clean, before))
        self.difference = clean - balance * before
        self.factor = 0.5 * constants.width / (constants.ratio * torch.sigmoid(0.25 * balance.abs()))
        self.consistency: torch.Tensor | None = None
        if many_steps:
            aligned = _projection(clean, (clean - before) / constants.height)
            self.consistency = torch.sigmoid(aligned * (2 - constants.decay**2))

    def extrapolated(self) -> torch.Tensor:
        """Return the end of the step before the model has evaluated it."""
        return self.euler + self.factor * self.difference

    def corrected(self, clean: torch.Tensor) -> torch.Tensor:
        """Return the end of the step, corrected with the prediction at the probe."""
        constants = self.constants
        late = constants.ratio * (clean - constants.balance(_projection(clean, self.clean)) * self.clean)
        early = self.difference / constants.ratio
        eta = 0.5 * torch.sigmoid((0.5 * _projection(late + early, late - early)).abs())
        slope = (1 - eta) * late - eta * early
        left = self.factor * (1 - _coefficient(slope, self.difference))
        excess = left.clamp(-BOUND, BOUND).abs() / constants.width - 0.5
        zeta = torch.sigmoid(excess if self.consistency is None else -excess * self.consistency)
        return self.euler + 0.5 * constants.width / zeta * slope


class EVODiffScheduler(DPMSolverMultistepScheduler):  # type: ignore[misc]
    """Step with EVODiff, one evaluation of the model a step.

    Noise levels, their spacing and what the model predicts are configured, and computed, as in
    `diffusers.DPMSolverMultistepScheduler`.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        prediction_type: str = "epsilon",
        use_karras_sigmas: bool = False,
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
    ) -> None:
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
        self._forget()

    def _forget(self) -> None:
        self._before: torch.Tensor | None = None
        self._probe: Probe | None = None

    def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        """Set the noise levels as diffusers' scheduler does, and forget earlier predictions."""
        super().set_timesteps(*args, **kwargs)
        self._forget()

    def step(
        self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, return_dict: bool = True
    ) -> SchedulerOutput | tuple[torch.Tensor]:
        """Correct the probe that the model has just evaluated, and compute the next."""
        if self.step_index is None:
            self._init_step_index(timestep)
        clean, before = self.convert_model_output(model_output, sample=sample), self._before
        if self._probe is not None:
            sample = self._probe.corrected(clean)
        (alpha, sigma), (next_alpha, next_sigma) = self._level(0), self._level(1)
        decay = next_sigma / sigma
        previous = decay * sample + (next_alpha - alpha * decay) * clean
        self._before, self._probe = clean, None
        if before is not None and self.step_index + 1 < len(self.timesteps):
            many_steps = self.num_inference_steps > MANY_STEPS
            self._probe = Probe(self._constants(), previous, clean, before, many_steps=many_steps)
            previous = self._probe.extrapolated()
        self._step_index += 1
        return SchedulerOutput(prev_sample=previous) if return_dict else (previous,)

    def _level(self, offset: int) -> tuple[float, float]:
        """Return α and σ ``offset`` steps from here."""
        alpha, sigma = self._sigma_to_alpha_sigma_t(self.sigmas[self.step_index + offset].double())
        return float(alpha), float(sigma)

    def _constants(self) -> Constants:
        (_, sigma_before), (alpha, sigma), (next_alpha, next_sigma) = (self._level(offset) for offset in (-1, 0, 1))
        before, here, after = (math.log(a / s) for a, s in (self._level(offset) for offset in (-1, 0, 1)))
        decay, last_decay = next_sigma / sigma, sigma / sigma_before
        # The authors' time runs from 1 to 1/N over N training steps.
        time = (float(self.timesteps[self.step_index + 1]) + 2) / (self.config.num_train_timesteps + 1)
        return Constants(
            width=next_alpha - alpha * decay,
            height=next_alpha / next_sigma - alpha / sigma,
            decay=decay,
            ratio=(here - before) / (after - here),
            weight=0.5 * (1 - time**2),
            base=math.sqrt(decay / last_decay),
        )


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Compute the inner product per image and channel, [batch, channels, 1, …]."""
    return (a * b).sum(dim=tuple(range(2, a.dim())), keepdim=True)


def _coefficient(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Compute the factor c for which c·b is nearest to a."""
    return _dot(a, b) / _dot(b, b).clamp(min=TINY)


def _projection(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Compute `_coefficient` within bounds."""
    return _coefficient(a, b).clamp(-BOUND, BOUND)
