"""`models`: lists models and schedulers by name."""

from collections.abc import Sequence
from typing import Annotated

import typer
from rich.cells import cell_len
from rich.table import Column, Table
from rich.text import Text

from imagefleet_producer.cli.shell import AsJson, open_client, out, print_json
from imagefleet_shared.presence import ModelInfo, WorkerInfo
from imagefleet_shared.samplers import (
    OWN_TIMESTEPS,
    SCHEDULER_LABELS,
    SIGMA_SCHEDULE_LABELS,
    SchedulerName,
    SigmaSchedule,
)


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
    with open_client() as client:
        workers = client.workers()
    if as_json:
        print_json({"workers": [worker.model_dump(mode="json") for worker in workers]})
        return
    out.print(model_table(workers, out.width) if workers else "no worker is live")


def model_table(workers: Sequence[WorkerInfo], width: int) -> Table:
    """A row for each model. Long cells are folded: a truncated name could not be used in a request.

    Args:
        workers: whose models to list; not all of them have hashed a file yet.
        width: columns of the terminal, of which names take at most a third.
    """
    found: dict[tuple[str, str, int], list[ModelInfo]] = {}
    for worker in workers:
        for model in worker.models:
            found.setdefault((model.kind, model.name, model.size_bytes), []).append(model)
    longest = max((cell_len(name) for _, name, _ in found), default=0)
    columns = [
        Column(heading, overflow="fold")
        for heading in ("kind", "name", "family", "form", "triggers", "size", "hash", "on")
    ]
    columns[1].width = max(len("name"), min(longest, width // 3))
    table = Table(*columns)
    for (kind, name, size_bytes), copies in sorted(found.items()):
        hashes = sorted({model.sha256[:10] for model in copies if model.sha256})
        cells = (
            *(kind, name, copies[0].family or "", ", ".join(copies[0].forms)),
            *(", ".join(copies[0].trigger_words), f"{size_bytes / 1e6:.1f} MB"),
            *(", ".join(hashes), str(len(copies))),
        )
        table.add_row(*(Text(cell) for cell in cells))  # Plain strings would be read as markup.
    return table


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
