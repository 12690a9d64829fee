"""Names of schedulers and sigma schedules, and their labels in A1111.

A1111's sampler is a scheduler here, as in diffusers; its "schedule type", the spacing of the noise
levels, is a sigma schedule.
"""

from typing import Literal

SchedulerName = Literal[
    "ddim",
    "dpm_2",
    "dpm_2_ancestral",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_2m_sde_heun",
    "dpmpp_2s_ancestral",
    "dpmpp_3m_sde",
    "dpmpp_sde",
    "euler",
    "euler_ancestral",
    "heun",
    "lcm",
    "lms",
    "plms",
    "restart",
    "unipc",
]
SigmaSchedule = Literal["automatic", "normal", "karras", "exponential", "beta", "sgm_uniform"]

SCHEDULER_LABELS: dict[SchedulerName, str] = {
    "ddim": "DDIM",
    "dpm_2": "DPM2",
    "dpm_2_ancestral": "DPM2 a",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "dpmpp_2m_sde_heun": "DPM++ 2M SDE Heun",
    "dpmpp_2s_ancestral": "DPM++ 2S a",
    "dpmpp_3m_sde": "DPM++ 3M SDE",
    "dpmpp_sde": "DPM++ SDE",
    "euler": "Euler",
    "euler_ancestral": "Euler a",
    "heun": "Heun",
    "lcm": "LCM",
    "lms": "LMS",
    "plms": "PLMS",
    "restart": "Restart",
    "unipc": "UniPC",
}
SIGMA_SCHEDULE_LABELS: dict[SigmaSchedule, str] = {
    "automatic": "Automatic",
    "normal": "Normal",
    "karras": "Karras",
    "exponential": "Exponential",
    "beta": "Beta",
    "sgm_uniform": "SGM Uniform",
}
OWN_TIMESTEPS: tuple[SchedulerName, ...] = ("ddim", "plms", "unipc")
"""Schedulers that choose their noise levels themselves: sigma schedule `automatic` only."""

_SCHEDULERS: dict[str, SchedulerName] = {
    **{label.lower(): name for name, label in SCHEDULER_LABELS.items()},
    **{name: name for name in SCHEDULER_LABELS},
}
_SCHEDULES: dict[str, SigmaSchedule] = {
    **{label.lower(): name for name, label in SIGMA_SCHEDULE_LABELS.items()},
    **{name: name for name in SIGMA_SCHEDULE_LABELS},
    # A1111 lists k-diffusion's default spacing twice: as Uniform and, from ComfyUI, as Normal.
    "uniform": "normal",
}


def find_scheduler(text: str) -> tuple[SchedulerName, SigmaSchedule | None] | None:
    """The scheduler of a name or label, and the sigma schedule if the label includes one.

    `"dpmpp_2m"`, `"DPM++ 2M"` and the older `"DPM++ 2M Karras"`, in any case; None: unknown.
    """
    words = " ".join(text.lower().split())
    if words in _SCHEDULERS:
        return _SCHEDULERS[words], None
    for label, schedule in _SCHEDULES.items():
        name = _SCHEDULERS.get(words.removesuffix(f" {label}"))
        if name is not None:
            return name, schedule
    return None


def find_sigma_schedule(text: str) -> SigmaSchedule | None:
    """The sigma schedule of a name or label, in any case; None: unknown."""
    return _SCHEDULES.get(" ".join(text.lower().split()))
