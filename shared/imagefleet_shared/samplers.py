"""Names of schedulers and of sigma schedules: ours, and the labels that A1111 gives them.

What A1111 calls a sampler is a scheduler here, as in diffusers; its "schedule type" is the spacing
of the noise levels, a sigma schedule.
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
    """The scheduler that a name or a label means, and the sigma schedule if the label has one.

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
    """The sigma schedule that a name or a label means, in any case; None: unknown."""
    return _SCHEDULES.get(" ".join(text.lower().split()))
