"""The UNet as the solvers call it: noisy latents and their sigma in, clean latents out."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from imagefleet_worker.checkpoints.warm_pipeline import WarmPipeline
from imagefleet_worker.diffusion.added_cond import added_cond_kwargs
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
    """A pass ready to sample: pipeline with adapters merged, conditioning and step plan."""

    warm: WarmPipeline
    conditioning: Conditioning
    step_plan: StepPlan

    @cached_property
    def schedule(self) -> SampleSchedule:
        """The noise levels of the steps."""
        return plan_schedule(self.step_plan, self._trained)

    @cached_property
    def levels(self) -> NoiseLevels:
        """The noise levels at which the UNet is evaluated."""
        return model_levels(self.step_plan, self._trained)

    @property
    def evaluations(self) -> int:
        """Number of UNet evaluations."""
        return evaluations(self.step_plan, self.schedule)

    def elapsed_fraction(self, sigma: Tensor) -> float:
        """Fraction of the training timesteps elapsed at a noise level, as A1111 counts it."""
        count = len(self._trained.sigmas)
        return (count - 1 - self.levels.timestep(sigma).item()) / count

    @cached_property
    def _trained(self) -> NoiseLevels:
        return NoiseLevels.from_config(self.warm.pipeline.scheduler.config)


@dataclass(frozen=True)
class RefinerSwitch:
    """A switch to the refiner in the middle of a pass."""

    at: float
    """Fraction of the training timesteps elapsed at the switch."""
    prepare: Callable[[], PreparedPass]
    """Loads the refiner and prepares its pass; called once."""


class Denoiser:
    """Predicts clean latents with classifier-free guidance (arXiv:2207.12598).

    If a prompt has several parts (`AND`), each is weighted against the negative prompt by itself
    (arXiv:2206.01714). Prompt schedules advance by one evaluation with every call.

    Args:
        prepared: the pass whose UNet is evaluated.
        guidance_scale: 1 disables guidance, and the negative prompts with it.
        mask: which latents are generated; None: all of them.
        refiner_switch: when to switch to which refiner; None: never.
        progress: counts every call as a step.
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
        """Predict clean latents.

        Args:
            latents: `(B, 4, H/8, W/8)` float32: clean latents plus `sigma` times unit noise.
            sigma: the noise level, 0-dim.
        """
        self._switch_to_refiner_if_due(sigma)
        clean = self._classifier_free_guidance(latents, sigma)
        clean = self.restore_unmasked(clean)
        self._calls += 1
        family = self._pass.warm.family
        self._progress.maybe_preview(lambda pictures: preview(clean[pictures], family))
        if clean.is_cuda:
            # Without this Python runs steps ahead of the GPU: progress would be wrong, and cancels
            # would be noticed late.
            torch.cuda.current_stream(clean.device).synchronize()
        self._progress.step()
        return clean

    def restore_unmasked(self, clean: Tensor) -> Tensor:
        """Clean latents, with the original latents restored where nothing is masked."""
        return self._mask.blend(clean) if self._mask else clean

    def _switch_to_refiner_if_due(self, sigma: Tensor) -> None:
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
        clean = self._evaluate_unet(cond, torch.cat([latents, latents[cond.image_indices]]), sigma)
        negatives, prompts = clean[:count], clean[count:]
        factors = (self._scale * cond.weights)[:, None, None, None]
        return negatives.index_add(
            0, cond.image_indices, factors * (prompts - negatives[cond.image_indices])
        )

    def _evaluate_unet(self, cond: CondBatch, latents: Tensor, sigma: Tensor) -> Tensor:
        """Clean latents predicted for each row of the conditioning, `(R, 4, H/8, W/8)` float32."""
        warm, levels = self._pass.warm, self._pass.levels
        if cond is not self._cond:
            height, width = (8 * side for side in latents.shape[-2:])
            negatives = len(cond.hidden) - len(cond.image_indices)
            self._cond = cond
            self._added = added_cond_kwargs(warm, cond.pooled, width, height, negatives)
        # Filled on the device: a host-to-device copy would synchronize with it.
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
