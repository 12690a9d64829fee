"""Items are measured until the time is up; what fails says so, and only a lost device ends all."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from imagefleet_worker.device.memory import CPU_MEMORY
from tests.benchmarks.timed_items import Item, Row, RowFile, TimeBudget, measure_items


def item(name: str, measure: Callable[[], Iterator[Row]], needs_s: float = 1) -> Item:
    return Item(name=name, needs_s=needs_s, measure=measure)


def works() -> Iterator[Row]:
    yield {"row": 1}
    yield {"row": 2}


def fails() -> Iterator[Row]:
    yield {"row": 1}
    raise ValueError("no such kernel")


def loses_the_device() -> Iterator[Row]:
    yield from ()
    raise torch.AcceleratorError("an illegal memory access was encountered")


def is_interrupted() -> Iterator[Row]:
    yield from ()
    raise KeyboardInterrupt


def measured(*items: Item, seconds: float = 60) -> tuple[bool, list[Row]]:
    rows: list[Row] = []
    all_measured = measure_items(
        items,
        TimeBudget(seconds),
        rows.append,
        is_device_lost=CPU_MEMORY.is_lost,
        release_memory=lambda: None,
    )
    return all_measured, rows


def test_rows_have_the_name_of_their_item() -> None:
    assert measured(item("a", works), item("b", works)) == (
        True,
        [{"item": name, "row": row} for name in ("a", "b") for row in (1, 2)],
    )


def test_an_item_that_needs_more_time_than_is_left_is_skipped_and_a_shorter_one_is_not() -> None:
    all_measured, rows = measured(item("long", works, needs_s=90), item("short", works))

    assert all_measured
    assert rows[0]["item"] == "long"
    assert str(rows[0]["skipped"]).startswith("needs 90 s, ")
    assert [row["item"] for row in rows[1:]] == ["short", "short"]


def test_nothing_is_measured_once_the_time_is_up() -> None:
    _, rows = measured(item("a", works), item("b", works), seconds=0)

    assert ["skipped" in row for row in rows] == [True, True]


def test_a_failure_keeps_earlier_rows_and_writes_its_error_and_the_next_item_follows() -> None:
    all_measured, rows = measured(item("bad", fails), item("good", works))

    assert not all_measured
    assert [row["item"] for row in rows] == ["bad", "bad", "good", "good"]
    assert rows[1]["error"] == "ValueError('no such kernel')"
    assert "in fails" in str(rows[1]["traceback"])


def test_a_lost_device_ends_the_run() -> None:
    all_measured, rows = measured(item("lost", loses_the_device), item("next", works))

    assert not all_measured
    assert [row["item"] for row in rows] == ["lost", "lost"]
    assert "illegal memory access" in str(rows[0]["error"])
    assert rows[1]["ended"] == "the device is lost"


def test_an_interrupt_is_written_and_goes_on() -> None:
    rows: list[Row] = []
    with pytest.raises(KeyboardInterrupt):
        measure_items(
            [item("cut off", is_interrupted)],
            TimeBudget(60),
            rows.append,
            is_device_lost=CPU_MEMORY.is_lost,
            release_memory=lambda: None,
        )

    assert [(row["item"], row["error"]) for row in rows] == [("cut off", "KeyboardInterrupt()")]


def test_a_row_is_in_the_file_as_soon_as_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    file = RowFile(path)

    for count in (1, 2):
        file.write({"item": "a", "row": count})
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert [row["row"] for row in rows] == list(range(1, count + 1))
        assert all(row["at_s"] >= 0 for row in rows)
