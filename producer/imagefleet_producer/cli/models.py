"""`models`: what may be asked for by name."""

from typing import Annotated

import typer
from rich.table import Table

from imagefleet_shared.presence import ModelInfo
from imagefleet_shared.samplers import (
    OWN_TIMESTEPS,
    SCHEDULER_LABELS,
    SIGMA_SCHEDULE_LABELS,
    SchedulerName,
    SigmaSchedule,
)

from ..client import Client
from .shell import AsJson, out, print_json


def models(
    schedulers: Annotated[
        bool, typer.Option("--schedulers", help="List schedulers instead, with A1111's names.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the models that the live workers have."""
    if schedulers:
        _list_schedulers(as_json)
        return
    with Client() as client:
        workers = client.workers()
    if as_json:
        print_json({"workers": [worker.model_dump(mode="json") for worker in workers]})
        return
    table = Table("kind", "name", "family", "form", "triggers", "size", "hash", "on")
    holders: dict[ModelInfo, list[str]] = {}
    for worker in workers:
        for model in worker.models:
            holders.setdefault(model, []).append(worker.name)
    for model in sorted(holders, key=lambda model: (model.kind, model.name)):
        size = f"{model.size_bytes / 1e6:.1f} MB"
        table.add_row(
            *(model.kind, model.name, model.family or "", ", ".join(model.forms)),
            *(", ".join(model.trigger_words), size, (model.sha256 or "")[:10]),
            str(len(holders[model])),
        )
    out.print(table if workers else "no worker is live")


def _list_schedulers(as_json: bool) -> None:
    if as_json:
        rows = [
            {"name": name, "label": label, "sigma_schedules": _sigmas(name)}
            for name, label in SCHEDULER_LABELS.items()
        ]
        print_json({"schedulers": rows, "sigma_schedules": SIGMA_SCHEDULE_LABELS})
        return
    table = Table("scheduler", "in A1111", "sigma schedules")
    for name, label in SCHEDULER_LABELS.items():
        table.add_row(name, label, ", ".join(_sigmas(name)))
    out.print(table)
    table = Table("sigma schedule", "in A1111")
    for name, label in SIGMA_SCHEDULE_LABELS.items():
        table.add_row(name, label)
    out.print(table)


def _sigmas(name: SchedulerName) -> list[SigmaSchedule]:
    return ["automatic"] if name in OWN_TIMESTEPS else list(SIGMA_SCHEDULE_LABELS)
