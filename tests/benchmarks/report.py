"""Reporting benchmark results as a table and as JSON for later comparison."""

import json
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from os import cpu_count
from pathlib import Path

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"


def report(name: str, rows: Sequence[Mapping[str, str | float]], notes: str = "") -> None:
    """Print the rows and write them to `results/<name>.json` with date, machine and versions."""
    columns = list(rows[0])
    table = Table(*columns, title=name)
    for row in rows:
        table.add_row(*(_cell(row[column]) for column in columns))
    Console().print(table, notes)
    RESULTS.mkdir(exist_ok=True)
    packages = ("torch", "diffusers", "transformers", "celery", "redis", "spandrel")
    record = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {cpu_count()} cores",
        "versions": {package: version(package) for package in packages},
        "rows": rows,
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")


def _cell(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"
