"""The steps of a pass; imports no torch."""

from dataclasses import dataclass

from imagefleet_shared.samplers import SchedulerName, SigmaSchedule


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """The solver, schedule and step counts of a pass."""

    scheduler: SchedulerName
    sigma_schedule: SigmaSchedule
    requested: int
    """Steps that the request asks for."""
    scheduled: int
    """Steps of the schedule from pure noise to none."""
    executed: int | None
    """Steps to run, from the end of the schedule, in image-to-image; None: all, from noise."""
    eta: float | None
    """None: the solver's default."""
