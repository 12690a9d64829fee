"""Draw the README's plots from the benchmarks' results; plots without results are skipped.

python -m tools.plot_benchmarks
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from tools.benchmark_results import Result, load_result

DOCS = Path(__file__).parents[1] / "docs"
_OURS, _OTHERS, _LIMIT = "#1f6f8b", "#b0b0b0", "#d9b44a"
_INCHES_WIDE, _INCHES_A_BAR, _INCHES_ROUND = 7.5, 0.32, 1.2
_DPI = 110
_RANK = 32

Bar = tuple[str, float, str]
"""Label, length, colour."""


def main() -> None:
    mpl.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    for name, plot in PLOTS.items():
        result = load_result(name)
        if result:
            path = DOCS / f"speed-{name.replace('_', '-')}.png"
            plot(result).savefig(path, dpi=_DPI, metadata={"Software": None})
            print(path)


def fleet(result: Result) -> Figure:
    """Images per second by way."""
    bars = [
        (str(row["way"]), float(row["images/s"]), _OURS if row["way"] == "fleet" else _OTHERS)
        for row in result.rows
    ]
    return _bars("32 mixed jobs, small demo model", "images per second", bars, result)


def trace(result: Result) -> Figure:
    """Total time by way."""
    bars = [
        (str(row["way"]), float(row["total s"]), _OURS if row["way"] == "engine" else _OTHERS)
        for row in result.rows
    ]
    return _bars("200 jobs, 20 sets of LoRAs, small demo model", "seconds", bars, result)


def switch(result: Result) -> Figure:
    """A switch of one LoRA on full-size weights, for each family."""
    timings = {
        "diffusers: load, fuse, unfuse, unload": ("diffusers_s", _OTHERS),
        "ours: another LoRA": ("change_s", _OURS),
        "ours: a set that was on before": ("back_s", _OURS),
        "ours: all off": ("restore_s", _OURS),
        "copying the changed weights": ("floor_s", _LIMIT),
    }
    families = {"sd1": "SD 1.5", "sdxl": "SDXL"}
    bars = [
        (f"{families[str(row['family'])]}, {label}", float(row[key]), colour)
        for row in result.rows
        if row["rank"] == _RANK and row["loras"] == 1
        for label, (key, colour) in timings.items()
    ]
    title = f"Change of one LoRA, rank {_RANK}, full-size UNet, fp16"
    return _bars(title, "CPU seconds, one thread", bars, result)


def upscale(result: Result) -> Figure:
    """SwinIR-M by tile size and precision."""
    bars = [
        (str(row["way"]), float(row["CPU s"]), _OURS if "ours" in str(row["way"]) else _OTHERS)
        for row in result.rows
        if row["picture"] == "512x512"
    ]
    return _bars("SwinIR-M x4, 512 x 512 to 2048 x 2048", "CPU seconds", bars, result)


def round_trip(result: Result) -> Figure:
    """Overhead of queue, ledger and store per job."""
    bars = [
        (f"{row['part']}, {statistic}", float(row[f"{statistic} ms"]), colour)
        for row in result.rows
        for statistic, colour in (("median", _OURS), ("p95", _OTHERS))
    ]
    return _bars("Round trip of a job whose engine does nothing", "milliseconds", bars, result)


PLOTS: dict[str, Callable[[Result], Figure]] = {
    "fleet": fleet,
    "trace": trace,
    "switch": switch,
    "upscale": upscale,
    "round_trip": round_trip,
}


def _bars(title: str, unit: str, bars: Sequence[Bar], result: Result) -> Figure:
    """Horizontal bars from zero, the first on top, each with its value."""
    figure = Figure((_INCHES_WIDE, _INCHES_ROUND + _INCHES_A_BAR * len(bars)), layout="constrained")
    axes = figure.add_subplot()
    labels, lengths, colours = zip(*bars, strict=True)
    rectangles = axes.barh(labels, lengths, color=colours)
    axes.bar_label(rectangles, [f"{length:.3g}" for length in lengths], padding=3)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12 * max(lengths))
    axes.set_xlabel(f"{unit}   ({result.machine}, {result.date})")
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    return figure


if __name__ == "__main__":
    main()
