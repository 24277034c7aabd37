"""Probe, evaluate once, correct: steps scaled by what the last predictions of the picture have in common.

Paper: Li et al., "EVODiff: Entropy-aware Variance Optimized Diffusion Inference", NeurIPS 2025.
       https://arxiv.org/abs/2509.26096

A step adds to Euler's (in x/σ, where the prediction m of the picture is the slope) a multiple of a balanced difference
of predictions. Before the model has seen the end of the step that is the probe's, D = m_s - b m_r; afterwards a
combination of D with D' = m_t - b' m_s replaces it, and the next step starts from there but keeps m_t. The factors are
scalars for each picture and channel: projections of one prediction on another, bounded by clamps and sigmoids.

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
"""Stands for the squared norm of a difference that is zero."""

MANY_STEPS = 20
"""Above this number of steps a correction is the smaller, the more consistent the predictions are."""


@dataclass(frozen=True)
class Numbers:
    """Hold what a step knows before any picture."""

    width: float
    """What Euler's step multiplies the prediction by."""
    height: float
    """The step in α/σ."""
    decay: float
    """What Euler's step leaves of the noise."""
    ratio: float
    """The step before, in units of this one, in log(α/σ)."""
    weight: float
    """The share of the projection in a balance."""
    base: float
    """The balance that needs no picture."""

    def balance(self, projection: torch.Tensor) -> torch.Tensor:
        """Give the factor of the earlier prediction in a balanced difference."""
        return (1 - self.weight) * self.base + self.weight * projection


class Probe:
    """Make a probe of one step, and replace it once the model has seen it."""

    def __init__(
        self, numbers: Numbers, euler: torch.Tensor, clean: torch.Tensor, before: torch.Tensor, *, many_steps: bool
    ) -> None:
        self.numbers, self.euler, self.clean = numbers, euler, clean
        balance = numbers.balance(_projection(clean, before))
        self.difference = clean - balance * before
        self.factor = 0.5 * numbers.width / (numbers.ratio * torch.sigmoid(0.25 * balance.abs()))
        self.consistency: torch.Tensor | None = None
        if many_steps:
            aligned = _projection(clean, (clean - before) / numbers.height)
            self.consistency = torch.sigmoid(aligned * (2 - numbers.decay**2))

    def extrapolated(self) -> torch.Tensor:
        """Give the end of the step before the model has seen it."""
        return self.euler + self.factor * self.difference

    def corrected(self, clean: torch.Tensor) -> torch.Tensor:
        """Give the end of the step from the prediction at the probe."""
        numbers = self.numbers
        late = numbers.ratio * (clean - numbers.balance(_projection(clean, self.clean)) * self.clean)
        early = self.difference / numbers.ratio
        eta = 0.5 * torch.sigmoid((0.5 * _projection(late + early, late - early)).abs())
        slope = (1 - eta) * late - eta * early
        left = self.factor * (1 - _coefficient(slope, self.difference))
        excess = left.clamp(-BOUND, BOUND).abs() / numbers.width - 0.5
        zeta = torch.sigmoid(excess if self.consistency is None else -excess * self.consistency)
        return self.euler + 0.5 * numbers.width / zeta * slope


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
        """Correct the probe that the model has just seen, and make the next."""
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
            self._probe = Probe(self._numbers(), previous, clean, before, many_steps=many_steps)
            previous = self._probe.extrapolated()
        self._step_index += 1
        return SchedulerOutput(prev_sample=previous) if return_dict else (previous,)

    def _level(self, offset: int) -> tuple[float, float]:
        """Give α and σ that many steps from here."""
        alpha, sigma = self._sigma_to_alpha_sigma_t(self.sigmas[self.step_index + offset].double())
        return float(alpha), float(sigma)

    def _numbers(self) -> Numbers:
        (_, sigma_before), (alpha, sigma), (next_alpha, next_sigma) = (self._level(offset) for offset in (-1, 0, 1))
        before, here, after = (math.log(a / s) for a, s in (self._level(offset) for offset in (-1, 0, 1)))
        decay, last_decay = next_sigma / sigma, sigma / sigma_before
        # The authors' time runs from 1 to 1/N over N training steps.
        time = (float(self.timesteps[self.step_index + 1]) + 2) / (self.config.num_train_timesteps + 1)
        return Numbers(
            width=next_alpha - alpha * decay,
            height=next_alpha / next_sigma - alpha / sigma,
            decay=decay,
            ratio=(here - before) / (after - here),
            weight=0.5 * (1 - time**2),
            base=math.sqrt(decay / last_decay),
        )


def _dot(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Give the inner product for each picture and channel, [batch, channels, 1, …]."""
    return (one * other).sum(dim=tuple(range(2, one.dim())), keepdim=True)


def _coefficient(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Give the multiple of ``other`` that is nearest to ``one``."""
    return _dot(one, other) / _dot(other, other).clamp(min=TINY)


def _projection(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Give the same within bounds."""
    return _coefficient(one, other).clamp(-BOUND, BOUND)
