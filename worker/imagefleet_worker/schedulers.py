"""Our scheduler names as diffusers classes, behind the few calls that the passes need."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import diffusers
import torch
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_lms_discrete import LMSDiscreteScheduler
from torch import Tensor

from imagefleet_shared.samplers import SchedulerName, SigmaSchedule

# k-diffusion's samplers, hence A1111's, space the timesteps evenly from the last to the first.
_K_DIFFUSION = {"timestep_spacing": "linspace"}
_LEADING = {"timestep_spacing": "leading", "steps_offset": 1}

_TABLE: dict[SchedulerName, tuple[str, Mapping[str, object]]] = {
    "ddim": ("DDIMScheduler", _LEADING),
    "dpm_2": ("KDPM2DiscreteScheduler", _K_DIFFUSION),
    "dpm_2_ancestral": ("KDPM2AncestralDiscreteScheduler", _K_DIFFUSION),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", _K_DIFFUSION),
    "dpmpp_2m_sde": (
        "DPMSolverMultistepScheduler",
        _K_DIFFUSION | {"algorithm_type": "sde-dpmsolver++"},
    ),
    "euler": ("EulerDiscreteScheduler", _K_DIFFUSION),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", _K_DIFFUSION),
    "heun": ("HeunDiscreteScheduler", _K_DIFFUSION),
    "lcm": ("LCMScheduler", {}),
    "lms": ("LMSDiscreteScheduler", _K_DIFFUSION),
    "unipc": ("UniPCMultistepScheduler", _K_DIFFUSION),
}
_SIGMAS: dict[SigmaSchedule, Mapping[str, object]] = {
    "automatic": {},
    "normal": {},
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
}
_LMS_ORDER = 4
_LCM_STEPS = 50
_CHECKPOINT_KEYS = (
    *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas"),
    *("prediction_type", "rescale_betas_zero_snr", "clip_sample", "set_alpha_to_one"),
)


@dataclass(frozen=True)
class Solver:
    """A diffusers scheduler set up for one pass of one batch."""

    scheduler: EulerDiscreteScheduler | LMSDiscreteScheduler
    """Of any class in the table; they share the interface, not a base class that declares it."""
    timesteps: Tensor
    """`(n,)`; n is more than the steps asked for where a step takes two evaluations."""
    generators: list[torch.Generator] | None
    """One per picture where the solver adds noise of its own; None where it adds none."""

    def scaled(self, latents: Tensor, timestep: Tensor) -> Tensor:
        """Latents as the UNet wants them."""
        return self.scheduler.scale_model_input(latents, timestep)

    def noised(self, latents: Tensor, noise: Tensor) -> Tensor:
        """Clean latents with the noise of the first timestep put on."""
        return self.scheduler.add_noise(latents, noise, self.timesteps[:1])

    def initial(self, noise: Tensor) -> Tensor:
        """Unit noise scaled to the first timestep."""
        return noise * self.scheduler.init_noise_sigma

    def step(self, predicted: Tensor, timestep: Tensor, latents: Tensor) -> Tensor:
        """Latents of the next timestep, `(B, 4, H/8, W/8)`."""
        if isinstance(self.scheduler, LMSDiscreteScheduler):
            # In img2img it would else take coefficients for steps that were never made.
            order = min(_LMS_ORDER, len(self.scheduler.derivatives) + 1)
            return self.scheduler.step(
                predicted, timestep, latents, order=order, return_dict=False
            )[0]
        if self.generators is None:
            return self.scheduler.step(predicted, timestep, latents, return_dict=False)[0]
        # Declared for one generator, implemented for a list too.
        step = cast(Callable[..., tuple[Tensor, ...]], self.scheduler.step)
        return step(predicted, timestep, latents, generator=self.generators, return_dict=False)[0]


def make_solver(
    name: SchedulerName,
    sigma_schedule: SigmaSchedule,
    checkpoint_config: Mapping[str, object],
    *,
    scheduled: int,
    executed: int,
    device: torch.device,
    generators: Sequence[torch.Generator],
) -> Solver:
    """A solver that runs the last `executed` of `scheduled` steps.

    Args:
        name: the solver's name; `GenerateRequest` refuses pairs with a schedule it cannot do.
        sigma_schedule: how the noise levels are spaced.
        checkpoint_config: the checkpoint's scheduler config; its betas and prediction type count.
        scheduled: steps from pure noise to none.
        executed: how many of them, from the end; fewer than `scheduled` in img2img.
        device: of the latents.
        generators: one per picture, for solvers that add noise.
    """
    cls_name, arguments = _TABLE[name]
    trained = {key: checkpoint_config[key] for key in _CHECKPOINT_KEYS if key in checkpoint_config}
    cls = getattr(diffusers, cls_name)
    known = inspect.signature(cls.__init__).parameters
    config = {key: value for key, value in trained.items() if key in known}
    if "original_inference_steps" in known:
        # LCM picks its steps out of these, 50 by default; a stretched schedule may have more.
        config["original_inference_steps"] = max(_LCM_STEPS, scheduled)
    scheduler = cls(**config, **arguments, **_SIGMAS[sigma_schedule])
    scheduler.set_timesteps(scheduled, device=device)
    first = (scheduled - executed) * scheduler.order
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    adds_noise = "generator" in inspect.signature(cls.step).parameters
    return Solver(scheduler, scheduler.timesteps[first:], list(generators) if adds_noise else None)
