"""The UNet as what a solver asks for: noisy latents and their level in, clean latents out."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from imagefleet_worker.checkpoints.warm_pipeline import WarmPipeline
from imagefleet_worker.diffusion.added_cond import added_conditions
from imagefleet_worker.diffusion.preview import sketch
from imagefleet_worker.inpaint.blend import LatentMask
from imagefleet_worker.progress import Stages
from imagefleet_worker.prompts.conditioning import Guide, Steering
from imagefleet_worker.sampling.noise_levels import NoiseLevels
from imagefleet_worker.sampling.pass_schedule import Course
from imagefleet_worker.sampling.sample import evaluations, model_levels, plan_schedule
from imagefleet_worker.sampling.step_plan import Steps


@dataclass(frozen=True)
class Artist:
    """A checkpoint with its adapters on, what it is told to draw, and in which steps."""

    warm: WarmPipeline
    guide: Guide
    steps: Steps

    @cached_property
    def course(self) -> Course:
        """The noise levels of the steps."""
        return plan_schedule(self.steps, self._trained)

    @cached_property
    def levels(self) -> NoiseLevels:
        """At which the UNet is asked."""
        return model_levels(self.steps, self._trained)

    @property
    def evaluations(self) -> int:
        """How often the UNet is asked."""
        return evaluations(self.steps, self.course)

    def passed(self, sigma: Tensor) -> float:
        """Share of the training timesteps that are passed at a level, counted as A1111 does."""
        count = len(self._trained.sigmas)
        return (count - 1 - self.levels.timestep(sigma).item()) / count

    @cached_property
    def _trained(self) -> NoiseLevels:
        return NoiseLevels.of(self.warm.pipeline.scheduler.config)


@dataclass(frozen=True)
class Handover:
    """Another artist that goes on with the picture."""

    at: float
    """Share of the training timesteps passed."""
    to: Callable[[], Artist]
    """Makes it ready, once."""


class Denoiser:
    """Gives clean latents by classifier-free guidance (arXiv:2207.12598), call by call.

    Where a prompt has several parts (`AND`), each pulls away from the negative by its own weight
    (arXiv:2206.01714). Prompts that change with the steps change with the calls.

    Args:
        artist: whose UNet is asked.
        guidance_scale: 1: the negatives are not asked.
        mask: where pictures stay as they were; None: nowhere.
        handover: to whom, and when; None: never.
        stages: told of every call.
    """

    def __init__(
        self,
        artist: Artist,
        guidance_scale: float,
        mask: LatentMask | None,
        handover: Handover | None,
        stages: Stages,
    ) -> None:
        self._artist = artist
        self._scale = guidance_scale
        self._mask = mask
        self._handover = handover
        self._stages = stages
        self._calls = 0
        self._text: Steering | None = None
        self._added: dict[str, Tensor] | None = None

    def __call__(self, latents: Tensor, sigma: Tensor) -> Tensor:
        """Clean latents.

        Args:
            latents: `(B, 4, H/8, W/8)` float32: clean ones plus `sigma` times unit noise.
            sigma: the noise level, no dimensions.
        """
        self._hand_over(sigma)
        clean = self._guided(latents, sigma)
        clean = self.finished(clean)
        self._calls += 1
        family = self._artist.warm.family
        self._stages.offer(lambda pictures: sketch(clean[pictures], family))
        if clean.is_cuda:
            # Else Python would be steps ahead, and progress and cancels with it.
            torch.cuda.current_stream(clean.device).synchronize()
        self._stages.step()
        return clean

    def finished(self, clean: Tensor) -> Tensor:
        """Clean latents, with what was to stay as it was."""
        return self._mask.blend(clean) if self._mask else clean

    def _hand_over(self, sigma: Tensor) -> None:
        if self._handover and self._artist.passed(sigma) > self._handover.at:
            self._artist = self._handover.to()
            self._handover = None
            self._stages.begin("denoise")
            self._stages.reach(self._calls, self._artist.evaluations)

    def _guided(self, latents: Tensor, sigma: Tensor) -> Tensor:
        text = self._artist.guide.at(self._calls)
        if not self._artist.guide.guided:
            return self._evaluated(text, latents, sigma)
        count = len(latents)
        clean = self._evaluated(text, torch.cat([latents, latents[text.owners]]), sigma)
        negatives, prompts = clean[:count], clean[count:]
        factors = (self._scale * text.weights)[:, None, None, None]
        return negatives.index_add(0, text.owners, factors * (prompts - negatives[text.owners]))

    def _evaluated(self, text: Steering, latents: Tensor, sigma: Tensor) -> Tensor:
        """What the UNet makes of each row of the text; `(R, 4, H/8, W/8)` float32."""
        warm, levels = self._artist.warm, self._artist.levels
        if text is not self._text:
            height, width = (8 * side for side in latents.shape[-2:])
            negatives = len(text.hidden) - len(text.owners)
            self._text = text
            self._added = added_conditions(warm, text.pooled, width, height, negatives)
        # Filled in by the device: a copy would wait until it has done all before.
        timestep = torch.full(
            (), levels.timestep(sigma).item(), dtype=torch.float32, device=warm.device
        )
        predicted = warm.pipeline.unet(
            levels.unet_input(latents, sigma).to(warm.dtype),
            timestep,
            encoder_hidden_states=text.hidden,
            added_cond_kwargs=self._added,
            return_dict=False,
        )[0]
        return levels.clean(latents, predicted, sigma)
