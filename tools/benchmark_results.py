"""Results of the benchmarks, and the README lines that summarise them."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

RESULTS = Path(__file__).parents[1] / "tests/benchmarks/results"
_RANK = 32

Row = Mapping[str, str | float]


@dataclass(frozen=True)
class Result:
    """The figures of one benchmark."""

    date: str
    machine: str
    rows: tuple[Row, ...]

    def row(self, **values: str | float) -> Row:
        """The one row with these values."""
        [row] = [row for row in self.rows if all(row[key] == values[key] for key in values)]
        return row


def load_result(name: str) -> Result | None:
    """Load a benchmark's result; None if it has not been run yet."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return None
    record = json.loads(path.read_text())
    return Result(record["date"], record["machine"], tuple(record["rows"]))


def speed_lines() -> str:
    """The README's list of figures, for every benchmark that has been run."""
    lines = [
        f"- {line} ({result.machine}, {result.date}).\n"
        for name, lines_of in _LINES.items()
        if (result := load_result(name))
        for line in lines_of(result)
    ]
    return "".join(lines)


def _fleet(result: Result) -> Iterator[str]:
    ours = result.row(way="fleet")
    yield (
        f"32 mixed jobs on the demo's model: {_figure(ours, 'images/s')} images/s, "
        f"{_figure(ours, 'times plain diffusers')} times plain diffusers, "
        f"{_figure(ours, 'times usual Celery worker')} times a Celery worker that draws, "
        "encodes and uploads job by job"
    )


def _trace(result: Result) -> Iterator[str]:
    ours = result.row(way="engine")
    yield (
        f"200 jobs with 20 sets of LoRAs: {_figure(ours, 'total s')} s, "
        f"{_figure(ours, 'times as fast as arrival order')} times as fast as one by one, "
        f"{_figure(ours, 'times as fast as diffusers')} times as fast as diffusers, which loads, "
        "fuses, unfuses and unloads for each"
    )


def _switch(result: Result) -> Iterator[str]:
    for family, name in (("sd1", "SD 1.5"), ("sdxl", "SDXL")):
        row = result.row(family=family, rank=_RANK, loras=1)
        yield (
            f"Another LoRA of rank {_RANK} on {name}, full size: {_figure(row, 'change_s')} CPU "
            f"seconds, back to one that was on before {_figure(row, 'back_s')}; "
            f"diffusers {_figure(row, 'diffusers_s')}"
        )


def _upscale(result: Result) -> Iterator[str]:
    plain, ours, bfloat16 = (
        result.row(way=way) for way in ("spandrel, whole", "ours, default", "ours, bfloat16")
    )
    [large] = [row for row in result.rows if row["picture"] == "2048x2048"]
    yield (
        f"SwinIR-M x4 on 512 x 512: {_figure(ours, 'CPU s')} CPU seconds and "
        f"{_gigabytes(ours)} GB, {_figure(bfloat16, 'CPU s')} in bfloat16; spandrel's "
        f"{_figure(plain, 'CPU s')} and {_gigabytes(plain)} GB. A small network from 2048 x 2048 "
        f"to 8192 x 8192: {_gigabytes(large)} GB at most"
    )


def _idle(result: Result) -> Iterator[str]:
    [row] = result.rows
    yield (
        f"Pictures of 8 megapixels and a store 200 ms away leave the GPU idle for "
        f"{_figure(row, 'idle %')} % of the time; an engine that sleeps stands for the GPU"
    )


def _round_trip(result: Result) -> Iterator[str]:
    row = result.row(part="submit to result, all of it")
    yield (
        f"Queue, ledger and a local store add {_figure(row, 'median ms')} ms to a job, "
        f"{_figure(row, 'p95 ms')} ms at the 95th percentile"
    )


_LINES: dict[str, Callable[[Result], Iterator[str]]] = {
    "fleet": _fleet,
    "trace": _trace,
    "switch": _switch,
    "upscale": _upscale,
    "idle": _idle,
    "round_trip": _round_trip,
}


def _figure(row: Row, key: str) -> str:
    return f"{float(row[key]):.2g}" if float(row[key]) < 10 else f"{float(row[key]):.0f}"


def _gigabytes(row: Row) -> str:
    return f"{float(row['peak MB']) / 1000:.1f}"
