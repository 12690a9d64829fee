"""The solvers by name, with their properties in A1111 v1.10."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from imagefleet_shared.samplers import SchedulerName
from imagefleet_worker.sampling import dpmpp, restart, solvers, timestep_solvers
from imagefleet_worker.sampling.schedules import Spacing
from imagefleet_worker.sampling.steps import Solver


@dataclass(frozen=True, kw_only=True)
class SolverEntry:
    """A solver and its properties."""

    solve: Solver
    evaluations: Callable[[Tensor], int]
    """The exact number of UNet evaluations for given sigmas."""
    automatic: Spacing = "normal"
    """The schedule that "automatic" means."""
    eta: float = 0.0
    """The default eta."""
    uses_eta: bool = False
    brownian: bool = False
    """Whether the noise of its steps comes from Brownian motion."""
    discards_next_to_last: bool = False
    """Whether its schedule is made with one more level, and the lowest above 0 discarded."""
    second_order: bool = False
    """Whether A1111 counts two evaluations per step for it in prompt schedules."""
    by_timesteps: bool = False
    """Whether it steps through timesteps that it chooses itself; see `timestep_solvers`."""


def _one_each(sigmas: Tensor) -> int:
    return len(sigmas) - 1


def _two_each(sigmas: Tensor) -> int:
    """Two per step, but one for the step to level 0."""
    return 2 * (len(sigmas) - 1) - int(sigmas[-1] == 0)


def _one_more(sigmas: Tensor) -> int:
    """One per step, but two for the first."""
    return len(sigmas)


def _restart(sigmas: Tensor) -> int:
    """As for Heun, but in a schedule without low levels a restart also ends at level 0."""
    return sum(1 if after == 0 else 2 for _, after in restart.restart_steps(sigmas))


SOLVERS: Mapping[SchedulerName, SolverEntry] = {
    "ddim": SolverEntry(
        solve=timestep_solvers.ddim,
        evaluations=_one_each,
        uses_eta=True,
        by_timesteps=True,
    ),
    "dpm_2": SolverEntry(
        solve=solvers.dpm_2,
        evaluations=_two_each,
        automatic="karras",
        discards_next_to_last=True,
        second_order=True,
    ),
    "dpm_2_ancestral": SolverEntry(
        solve=solvers.dpm_2_ancestral,
        evaluations=_two_each,
        automatic="karras",
        eta=1.0,
        uses_eta=True,
        discards_next_to_last=True,
        second_order=True,
    ),
    "dpmpp_2m": SolverEntry(solve=dpmpp.dpmpp_2m, evaluations=_one_each, automatic="karras"),
    "dpmpp_2m_sde": SolverEntry(
        solve=dpmpp.dpmpp_2m_sde,
        evaluations=_one_each,
        automatic="exponential",
        eta=1.0,
        uses_eta=True,
        brownian=True,
    ),
    "dpmpp_2m_sde_heun": SolverEntry(
        solve=dpmpp.dpmpp_2m_sde_heun,
        evaluations=_one_each,
        automatic="exponential",
        eta=1.0,
        uses_eta=True,
        brownian=True,
    ),
    "dpmpp_2s_ancestral": SolverEntry(
        solve=dpmpp.dpmpp_2s_ancestral,
        evaluations=_two_each,
        automatic="karras",
        eta=1.0,
        uses_eta=True,
        second_order=True,
    ),
    "dpmpp_3m_sde": SolverEntry(
        solve=dpmpp.dpmpp_3m_sde,
        evaluations=_one_each,
        automatic="exponential",
        eta=1.0,
        uses_eta=True,
        brownian=True,
        discards_next_to_last=True,
    ),
    "dpmpp_sde": SolverEntry(
        solve=dpmpp.dpmpp_sde,
        evaluations=_two_each,
        automatic="karras",
        eta=1.0,
        uses_eta=True,
        brownian=True,
        second_order=True,
    ),
    "euler": SolverEntry(solve=solvers.euler, evaluations=_one_each),
    "euler_ancestral": SolverEntry(
        solve=solvers.euler_ancestral,
        evaluations=_one_each,
        eta=1.0,
        uses_eta=True,
    ),
    "heun": SolverEntry(solve=solvers.heun, evaluations=_two_each, second_order=True),
    "lcm": SolverEntry(solve=solvers.lcm, evaluations=_one_each),
    "lms": SolverEntry(solve=solvers.lms, evaluations=_one_each),
    "plms": SolverEntry(
        solve=timestep_solvers.plms,
        evaluations=_one_more,
        by_timesteps=True,
    ),
    "restart": SolverEntry(
        solve=restart.restart,
        evaluations=_restart,
        automatic="karras",
        second_order=True,
    ),
    "unipc": SolverEntry(
        solve=timestep_solvers.unipc,
        evaluations=_one_each,
        by_timesteps=True,
    ),
}
