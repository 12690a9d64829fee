"""The table of models, as output in a terminal or a pipe."""

from io import StringIO

import pytest
from rich.console import Console

from imagefleet_producer import ModelInfo, WorkerInfo
from imagefleet_producer.cli.models import model_table


def lora(name: str, sha256: str | None = None, *trigger_words: str) -> ModelInfo:
    return ModelInfo(
        name=name,
        kind="lora",
        family="sd1",
        forms=("lora",),
        trigger_words=trigger_words,
        size_bytes=1_500_000,
        sha256=sha256,
    )


def worker(*models: ModelInfo) -> WorkerInfo:
    return WorkerInfo(
        name="fox",
        host="den",
        device="cpu",
        slots=1,
        kinds=("generate",),
        default_checkpoint=None,
        models=models,
    )


def rows(*workers: WorkerInfo, width: int = 80) -> list[list[str]]:
    """The cells of each line below the headings, as a terminal of that width shows them."""
    output = StringIO()
    Console(file=output, width=width).print(model_table(workers, width))
    lines = [line for line in output.getvalue().splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


def test_names_are_not_truncated_and_long_ones_are_folded() -> None:
    """`demo-blueprint` was printed as `demo-bl…`, which no request can name."""
    long = "".join(chr(ord("a") + index % 26) for index in range(70))
    names = [row[1] for row in rows(worker(lora("demo-blueprint"), lora(long)))]
    assert "".join(names) == long + "demo-blueprint"
    assert "demo-blueprint" in names


@pytest.mark.parametrize("width", [80, 200])
def test_brackets_are_printed(width: int) -> None:
    """They were markup: `dream[pruned]` was printed as `dream`, and `[trigger]` not at all."""
    [first, *more] = rows(worker(lora("dream[pruned]", None, "[trigger]")), width=width)
    assert first[1] == "dream[pruned]"
    assert "".join(row[4] for row in [first, *more]) == "[trigger]"


def test_a_model_that_one_worker_has_not_hashed_yet_is_one_row() -> None:
    workers = (worker(lora("ink")), worker(lora("ink", "0123456789abcdef")), worker(lora("ink")))
    [row] = rows(*workers, width=200)
    assert row[-2:] == ["0123456789", "3"]


def test_different_files_of_one_name_are_listed_with_their_hashes() -> None:
    [row] = rows(worker(lora("ink", "b" * 64)), worker(lora("ink", "a" * 64)), width=200)
    assert row[-2:] == ["aaaaaaaaaa, bbbbbbbbbb", "2"]
