"""The levels that a pass goes through, and the latents that it starts from."""

from dataclasses import dataclass

import torch
from torch import Tensor

from imagefleet_shared.samplers import SchedulerName, SigmaSchedule
from imagefleet_worker.sampling.noise_levels import ConsistencyLevels, NoiseLevels
from imagefleet_worker.sampling.registry import SOLVERS
from imagefleet_worker.sampling.schedules import sigmas as spaced


@dataclass(frozen=True, kw_only=True, eq=False)
class SampleSchedule:
    """One pass of a solver, from noise to picture or from a picture's latents."""

    sigmas: Tensor
    """`(n + 1,)` descending, float32 on the CPU: what the solver is called with."""
    whole: Tensor
    """The whole schedule, for Brownian noise; `sigmas` are its last ones in image-to-image."""
    noised_at: Tensor
    """The level that the noise on a picture has, 0-dim."""
    unit_variance: bool
    """Latents count as of unit variance at the start, not as clean + sigma * noise."""

    def from_noise(self, noise: Tensor) -> Tensor:
        """Latents to start from where there is no picture, on the noise's device."""
        start = self.sigmas[0]
        return noise * ((start**2 + 1).sqrt() if self.unit_variance else start)

    def from_picture(self, clean: Tensor, noise: Tensor) -> Tensor:
        """Latents to start from, of a picture's clean latents."""
        noised = clean + noise * self.noised_at
        # Where A1111 noises to another level than it starts from, the two agree in variance.
        return noised * ((self.sigmas[0] ** 2 + 1) / (self.noised_at**2 + 1)).sqrt()


def levels_for(name: SchedulerName, levels: NoiseLevels) -> NoiseLevels:
    """The levels as the solver sees them, and as the UNet must be called with under it."""
    return ConsistencyLevels.among(levels) if name == "lcm" else levels


def make_sigmas(
    name: SchedulerName, schedule: SigmaSchedule, levels: NoiseLevels, steps: int
) -> Tensor:
    """The whole schedule of a pass, `(n + 1,)` float32 descending on the CPU.

    Args:
        name: the solver; DDIM, PLMS and UniPC have a schedule of their own, whose n is not quite
            the steps asked for: 19, 19 and 20 of 20, 30, 30 and 31 of 30.
        schedule: automatic for those three.
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
        return spaced(spacing, levels_for(name, levels), steps)
    longer = spaced(spacing, levels_for(name, levels), steps + 1)
    return torch.cat([longer[:-2], longer[-1:]])


def tail(sigmas: Tensor, executed: int) -> Tensor:
    """The last `executed` steps of a schedule, which is what image-to-image runs."""
    return sigmas[-executed - 1 :]


def make_schedule(
    name: SchedulerName,
    schedule: SigmaSchedule,
    levels: NoiseLevels,
    steps: int,
    executed: int | None = None,
) -> SampleSchedule:
    """What a solver runs, as A1111 does.

    Args:
        name: the solver.
        schedule: as for `make_sigmas`.
        levels: the checkpoint's.
        steps: from pure noise to none.
        executed: how many of them, from the end, A1111's `t_enc + 1`; None: all, from noise. DDIM,
            PLMS and UniPC noise a picture to the level they are asked for and then start one below
            it, as A1111 does, so they run 2, 2 and 1 steps fewer, but always one at least.
    """
    whole = make_sigmas(name, schedule, levels, steps)
    if executed is None:
        return _sample_schedule(whole, whole, whole[0], name)
    if not SOLVERS[name].by_timesteps:
        rest = tail(whole, executed)
        return _sample_schedule(rest, whole, rest[0], name)
    timesteps = _timesteps(levels, steps)
    noised_at = levels.sigma(timesteps[-executed])
    if name == "unipc":
        start = timesteps[-max(executed - 1, 1)]
        rest = _unipc_sigmas(levels, max(executed - 1, 1), int(start))
    else:
        rest = tail(whole, max(executed - 2, 1))
    return _sample_schedule(rest, whole, noised_at, name)


def _sample_schedule(
    sigmas: Tensor, schedule: Tensor, noised_at: Tensor, name: SchedulerName
) -> SampleSchedule:
    return SampleSchedule(
        sigmas=sigmas,
        whole=schedule,
        noised_at=noised_at,
        unit_variance=SOLVERS[name].by_timesteps,
    )


def _timesteps(levels: NoiseLevels, steps: int) -> Tensor:
    """A1111's for DDIM and PLMS, descending to 1: evenly spaced by a whole number.

    Never fewer than two, where A1111 would find nothing to do.
    """
    count = len(levels.sigmas)
    timesteps = torch.arange(0, count, max(count // max(steps, 2), 1)) + 1
    return timesteps.clamp(max=count - 1).flip(0)


def _unipc_sigmas(levels: NoiseLevels, steps: int, start: int | None = None) -> Tensor:
    """Levels of timesteps evenly spaced from `start`, or the last one, to the first.

    Between two timesteps the logarithm of the signal's share is interpolated, not that of sigma.
    """
    first = len(levels.sigmas) - 1 if start is None else start
    timesteps = torch.linspace(first, 0, steps + 1, dtype=torch.float64)
    low, high = timesteps.floor().long(), timesteps.ceil().long()
    logs = -torch.log1p(levels.sigmas.double() ** 2)
    log = logs[low].lerp(logs[high], timesteps.frac())
    return torch.expm1(-log).sqrt().float()
