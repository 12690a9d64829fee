"""The UNet as what a solver asks for: noisy latents and their level in, clean latents out."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from imagefleet_worker.checkpoints.warm_pipeline import WarmPipeline
from imagefleet_worker.diffusion.added_cond import added_conditions
from imagefleet_worker.diffusion.preview import preview
from imagefleet_worker.inpaint.blend import LatentMask
from imagefleet_worker.progress import BatchProgress
from imagefleet_worker.prompts.conditioning import CondBatch, Conditioning
from imagefleet_worker.sampling.noise_levels import NoiseLevels
from imagefleet_worker.sampling.pass_schedule import SampleSchedule
from imagefleet_worker.sampling.sample import evaluations, model_levels, plan_schedule
from imagefleet_worker.sampling.step_plan import StepPlan


@dataclass(frozen=True)
class PreparedPass:
    """A checkpoint with its adapters on, what it is told to draw, and in which steps."""

    warm: WarmPipeline
    conditioning: Conditioning
    step_plan: StepPlan

    @cached_property
    def schedule(self) -> SampleSchedule:
        """The noise levels of the steps."""
        return plan_schedule(self.step_plan, self._trained)

    @cached_property
    def levels(self) -> NoiseLevels:
        """At which the UNet is asked."""
        return model_levels(self.step_plan, self._trained)

    @property
    def evaluations(self) -> int:
        """How often the UNet is asked."""
        return evaluations(self.step_plan, self.schedule)

    def elapsed_fraction(self, sigma: Tensor) -> float:
        """Share of the training timesteps that are passed at a level, counted as A1111 does."""
        count = len(self._trained.sigmas)
        return (count - 1 - self.levels.timestep(sigma).item()) / count

    @cached_property
    def _trained(self) -> NoiseLevels:
        return NoiseLevels.of(self.warm.pipeline.scheduler.config)


@dataclass(frozen=True)
class RefinerSwitch:
    """Another artist that goes on with the picture."""

    at: float
    """Share of the training timesteps passed."""
    prepare: Callable[[], PreparedPass]
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
        prepared: PreparedPass,
        guidance_scale: float,
        mask: LatentMask | None,
        refiner_switch: RefinerSwitch | None,
        progress: BatchProgress,
    ) -> None:
        self._pass = prepared
        self._scale = guidance_scale
        self._mask = mask
        self._refiner_switch = refiner_switch
        self._progress = progress
        self._calls = 0
        self._cond: CondBatch | None = None
        self._added: dict[str, Tensor] | None = None

    def __call__(self, latents: Tensor, sigma: Tensor) -> Tensor:
        """Clean latents.

        Args:
            latents: `(B, 4, H/8, W/8)` float32: clean ones plus `sigma` times unit noise.
            sigma: the noise level, no dimensions.
        """
        self._switch_to_refiner_when_due(sigma)
        clean = self._classifier_free_guidance(latents, sigma)
        clean = self.keep_unmasked(clean)
        self._calls += 1
        family = self._pass.warm.family
        self._progress.maybe_preview(lambda pictures: preview(clean[pictures], family))
        if clean.is_cuda:
            # Else Python would be steps ahead, and progress and cancels with it.
            torch.cuda.current_stream(clean.device).synchronize()
        self._progress.step()
        return clean

    def keep_unmasked(self, clean: Tensor) -> Tensor:
        """Clean latents, with what was to stay as it was."""
        return self._mask.blend(clean) if self._mask else clean

    def _switch_to_refiner_when_due(self, sigma: Tensor) -> None:
        if self._refiner_switch and self._pass.elapsed_fraction(sigma) > self._refiner_switch.at:
            self._pass = self._refiner_switch.prepare()
            self._refiner_switch = None
            self._progress.begin_stage("denoise")
            self._progress.set_step(self._calls, self._pass.evaluations)

    def _classifier_free_guidance(self, latents: Tensor, sigma: Tensor) -> Tensor:
        cond = self._pass.conditioning.at(self._calls)
        if not self._pass.conditioning.guided:
            return self._evaluate_unet(cond, latents, sigma)
        count = len(latents)
        clean = self._evaluate_unet(cond, torch.cat([latents, latents[cond.owners]]), sigma)
        negatives, prompts = clean[:count], clean[count:]
        factors = (self._scale * cond.weights)[:, None, None, None]
        return negatives.index_add(0, cond.owners, factors * (prompts - negatives[cond.owners]))

    def _evaluate_unet(self, cond: CondBatch, latents: Tensor, sigma: Tensor) -> Tensor:
        """What the UNet makes of each row of the text; `(R, 4, H/8, W/8)` float32."""
        warm, levels = self._pass.warm, self._pass.levels
        if cond is not self._cond:
            height, width = (8 * side for side in latents.shape[-2:])
            negatives = len(cond.hidden) - len(cond.owners)
            self._cond = cond
            self._added = added_conditions(warm, cond.pooled, width, height, negatives)
        # Filled in by the device: a copy would wait until it has done all before.
        timestep = torch.full(
            (), levels.timestep(sigma).item(), dtype=torch.float32, device=warm.device
        )
        predicted = warm.pipeline.unet(
            levels.unet_input(latents, sigma).to(warm.dtype),
            timestep,
            encoder_hidden_states=cond.hidden,
            added_cond_kwargs=self._added,
            return_dict=False,
        )[0]
        return levels.clean(latents, predicted, sigma)
