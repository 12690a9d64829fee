"""Measuring items in order until the time is up, with each row written as soon as it is known."""

import json
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

Row = Mapping[str, object]

_PRINTED_CHARACTERS = 300


@dataclass(frozen=True, kw_only=True)
class Item:
    """Something to measure."""

    name: str
    needs_s: float
    """Seconds that it takes on a GPU; with less left it is skipped."""
    measure: Callable[[], Iterable[Row]]


class TimeBudget:
    """Counts down from the given seconds, starting now."""

    def __init__(self, seconds: float) -> None:
        self._ends_s = monotonic() + seconds

    @property
    def left_s(self) -> float:
        """Seconds that are left; negative once the time is up."""
        return self._ends_s - monotonic()


class RowFile:
    """Appends rows to a JSON Lines file and prints them; a row is on disk when `write` returns."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._started_s = monotonic()

    def write(self, row: Row) -> None:
        """Append a row, with the seconds since the file was opened."""
        line = json.dumps({**row, "at_s": round(monotonic() - self._started_s, 1)})
        with self._path.open("a") as stream:
            stream.write(line + "\n")
        if len(line) > _PRINTED_CHARACTERS:
            line = line[:_PRINTED_CHARACTERS] + " ..."
        print(line, flush=True)


def measure_items(
    items: Sequence[Item],
    budget: TimeBudget,
    write: Callable[[Row], object],
    *,
    is_device_lost: Callable[[BaseException], bool],
    release_memory: Callable[[], object],
) -> bool:
    """Measure the items in order; an item that fails writes its error, and the next one follows.

    Args:
        items: the most valuable first.
        budget: an item that needs more than is left writes that it was skipped.
        write: called with every row, which has the item's name under `item`.
        is_device_lost: whether nothing runs on the device after an error; ends the run.
        release_memory: called after each item.

    Returns:
        Whether no item failed.
    """
    all_measured = True
    for item in items:
        left_s = budget.left_s
        if left_s < item.needs_s:
            reason = f"needs {item.needs_s:.0f} s, {left_s:.0f} s left"
            write({"item": item.name, "skipped": reason})
            continue
        try:
            for row in item.measure():
                write({"item": item.name, **row})
        except BaseException as error:
            failure = {"error": repr(error), "traceback": traceback.format_exc()}
            write({"item": item.name, **failure})
            # Such as the interrupt when the whole check runs out of time.
            if not isinstance(error, Exception):
                raise
            all_measured = False
            if is_device_lost(error):
                write({"item": item.name, "ended": "the device is lost"})
                break
        release_memory()
    return all_measured
