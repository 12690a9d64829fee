"""The sigmas of a pass and the latents that it starts from."""

from dataclasses import dataclass

import torch
from torch import Tensor

from imagefleet_shared.samplers import SchedulerName, SigmaSchedule
from imagefleet_worker.sampling.noise_levels import ConsistencyLevels, NoiseLevels
from imagefleet_worker.sampling.registry import SOLVERS
from imagefleet_worker.sampling.schedules import sigmas as spaced_sigmas


@dataclass(frozen=True, kw_only=True, eq=False)
class SampleSchedule:
    """The sigmas of one pass of a solver, from noise or from an image's latents."""

    sigmas: Tensor
    """`(n + 1,)` descending, float32 on the CPU: the argument of the solver."""
    full_sigmas: Tensor
    """The full schedule, for Brownian noise; in image-to-image `sigmas` is its tail."""
    noised_at: Tensor
    """The level to which an image's latents are noised, 0-dim."""
    unit_variance: bool
    """Whether the solver starts from latents of unit variance, not from clean + sigma * noise."""

    def from_noise(self, noise: Tensor) -> Tensor:
        """Initial latents of text-to-image, on the noise's device."""
        start = self.sigmas[0]
        return noise * ((start**2 + 1).sqrt() if self.unit_variance else start)

    def from_image(self, clean: Tensor, noise: Tensor) -> Tensor:
        """Initial latents of image-to-image, from an image's clean latents."""
        noised = clean + noise * self.noised_at
        # A1111 may noise to another level than it starts from; the variance is made to agree.
        return noised * ((self.sigmas[0] ** 2 + 1) / (self.noised_at**2 + 1)).sqrt()


def levels_for(name: SchedulerName, levels: NoiseLevels) -> NoiseLevels:
    """The levels that a solver works with, at which the UNet must be called."""
    return ConsistencyLevels.from_levels(levels) if name == "lcm" else levels


def make_sigmas(
    name: SchedulerName, schedule: SigmaSchedule, levels: NoiseLevels, steps: int
) -> Tensor:
    """The full schedule of a pass, `(n + 1,)` float32 descending on the CPU.

    Args:
        name: the solver; DDIM, PLMS and UniPC have schedules of their own, whose n differs from
            `steps`: 19, 19 and 20 for 20 steps, 30, 30 and 31 for 30 steps.
        schedule: must be "automatic" for those three.
        levels: the checkpoint's.
        steps: at least 1.
    """
    entry = SOLVERS[name]
    if entry.by_timesteps:
        assert schedule == "automatic", (name, schedule)
        timesteps = _timesteps(levels, steps)
        if name == "unipc":
            return _unipc_sigmas(levels, len(timesteps))
        return levels.sigma(timesteps)
    spacing = entry.automatic if schedule == "automatic" else schedule
    if not entry.discards_next_to_last:
        return spaced_sigmas(spacing, levels_for(name, levels), steps)
    one_more = spaced_sigmas(spacing, levels_for(name, levels), steps + 1)
    return torch.cat([one_more[:-2], one_more[-1:]])


def tail(sigmas: Tensor, executed: int) -> Tensor:
    """The last `executed` steps of a schedule, as image-to-image runs them."""
    return sigmas[-executed - 1 :]


def make_schedule(
    name: SchedulerName,
    schedule: SigmaSchedule,
    levels: NoiseLevels,
    steps: int,
    executed: int | None = None,
) -> SampleSchedule:
    """The schedule of a pass, as A1111 makes it.

    Args:
        name: the solver.
        schedule: as for `make_sigmas`.
        levels: the checkpoint's.
        steps: scheduled, from pure noise to none.
        executed: the number of steps to run, from the end of the schedule, A1111's `t_enc + 1`;
            None: all, from noise. As in A1111, DDIM, PLMS and UniPC noise an image to the requested
            level and start one level below it, so they run 2, 2 and 1 steps fewer, but at least 1.
    """
    full = make_sigmas(name, schedule, levels, steps)
    if executed is None:
        return _sample_schedule(full, full, full[0], name)
    if not SOLVERS[name].by_timesteps:
        sigmas = tail(full, executed)
        return _sample_schedule(sigmas, full, sigmas[0], name)
    timesteps = _timesteps(levels, steps)
    noised_at = levels.sigma(timesteps[-executed])
    if name == "unipc":
        start = timesteps[-max(executed - 1, 1)]
        sigmas = _unipc_sigmas(levels, max(executed - 1, 1), int(start))
    else:
        sigmas = tail(full, max(executed - 2, 1))
    return _sample_schedule(sigmas, full, noised_at, name)


def _sample_schedule(
    sigmas: Tensor, full_sigmas: Tensor, noised_at: Tensor, name: SchedulerName
) -> SampleSchedule:
    return SampleSchedule(
        sigmas=sigmas,
        full_sigmas=full_sigmas,
        noised_at=noised_at,
        unit_variance=SOLVERS[name].by_timesteps,
    )


def _timesteps(levels: NoiseLevels, steps: int) -> Tensor:
    """A1111's timesteps for DDIM and PLMS, descending to 1, evenly spaced by a whole number.

    At least two, where A1111 would have no step to run.
    """
    count = len(levels.sigmas)
    timesteps = torch.arange(0, count, max(count // max(steps, 2), 1)) + 1
    return timesteps.clamp(max=count - 1).flip(0)


def _unipc_sigmas(levels: NoiseLevels, steps: int, start: int | None = None) -> Tensor:
    """Levels of timesteps evenly spaced from `start`, by default the last one, to the first.

    Between two timesteps the logarithm of alpha bar is interpolated, not that of sigma.
    """
    first = len(levels.sigmas) - 1 if start is None else start
    timesteps = torch.linspace(first, 0, steps + 1, dtype=torch.float64)
    low, high = timesteps.floor().long(), timesteps.ceil().long()
    logs = -torch.log1p(levels.sigmas.double() ** 2)
    log = logs[low].lerp(logs[high], timesteps.frac())
    return torch.expm1(-log).sqrt().float()
