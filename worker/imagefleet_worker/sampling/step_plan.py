"""Which steps a pass takes. Free of torch."""

from dataclasses import dataclass

from imagefleet_shared.samplers import SchedulerName, SigmaSchedule


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """Which steps a pass takes."""

    scheduler: SchedulerName
    sigma_schedule: SigmaSchedule
    requested: int
    """By the request."""
    scheduled: int
    """From pure noise to none."""
    executed: int | None
    """How many of them, from the end, where a picture is drawn over; None: all, from noise."""
    eta: float | None
    """None: the solver's own."""
