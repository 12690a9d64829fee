"""Names of schedulers and their labels in A1111."""

from typing import Any, get_args

import pytest

from imagefleet_shared.errors import InvalidRequest
from imagefleet_shared.request_parts import HiresPass
from imagefleet_shared.requests import GenerateRequest
from imagefleet_shared.samplers import (
    SCHEDULER_LABELS,
    SIGMA_SCHEDULE_LABELS,
    SchedulerName,
    SigmaSchedule,
    find_scheduler,
    find_sigma_schedule,
)


def generate(**fields: object) -> GenerateRequest:
    values: dict[str, Any] = {"prompt": "a fox", **fields}
    return GenerateRequest(**values)


def test_every_scheduler_and_schedule_has_its_own_label() -> None:
    assert set(SCHEDULER_LABELS) == set(get_args(SchedulerName))
    assert set(SIGMA_SCHEDULE_LABELS) == set(get_args(SigmaSchedule))
    assert len(set(SCHEDULER_LABELS.values())) == len(SCHEDULER_LABELS)


@pytest.mark.parametrize("name", get_args(SchedulerName))
def test_a_scheduler_is_found_by_name_and_by_label(name: SchedulerName) -> None:
    assert find_scheduler(name) == (name, None)
    assert find_scheduler(SCHEDULER_LABELS[name].upper()) == (name, None)


@pytest.mark.parametrize(
    ("label", "found"),
    [
        ("DPM++ 2M Karras", ("dpmpp_2m", "karras")),
        ("dpm++ 2m sde  exponential", ("dpmpp_2m_sde", "exponential")),
        ("DPM++ 2M SDE Heun Karras", ("dpmpp_2m_sde_heun", "karras")),
        ("Euler a SGM Uniform", ("euler_ancestral", "sgm_uniform")),
        ("DPM++ 4M", None),
        ("Karras", None),
        ("", None),
    ],
)
def test_an_older_label_includes_the_schedule(label: str, found: object) -> None:
    assert find_scheduler(label) == found


def test_a_request_accepts_labels() -> None:
    request = generate(scheduler="DPM++ 2M Karras")
    assert (request.scheduler, request.sigma_schedule) == ("dpmpp_2m", "karras")
    assert generate(sigma_schedule="SGM Uniform").sigma_schedule == "sgm_uniform"
    assert generate(sigma_schedule="Uniform").sigma_schedule == "normal"
    hires = HiresPass(scale=2, **{"scheduler": "Euler a Beta"})  # pyright: ignore[reportArgumentType]
    assert (hires.scheduler, hires.sigma_schedule) == ("euler_ancestral", "beta")
    assert GenerateRequest.model_validate_json(request.model_dump_json()) == request


def test_a_label_and_a_schedule_that_disagree_are_refused() -> None:
    with pytest.raises(
        InvalidRequest, match="'DPM\\+\\+ 2M Karras' and sigma_schedule 'beta' disagree"
    ):
        generate(scheduler="DPM++ 2M Karras", sigma_schedule="beta")


def test_an_unknown_schedule_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidRequest, match="'polynomial'; allowed: automatic, normal, karras"):
        generate(sigma_schedule="polynomial")
    assert find_sigma_schedule("polynomial") is None


def test_a_hires_pass_cannot_override_the_noise_levels_of_its_scheduler() -> None:
    with pytest.raises(InvalidRequest, match=r"'ddim'.*'automatic' only, given 'karras'"):
        generate(sigma_schedule="karras", hires=HiresPass(scale=2, scheduler="ddim"))
