"""Time, size and GIL stalls of several PNG encoders, in one run.

    python -m tests.benchmarks.bench_png [--quick]

Pictures of 1 and 8 megapixels: synthetic photographs, and the demo's gallery enlarged with grain.
CPU seconds of one thread, the minimum of several runs. "stall": the longest pause of another thread
while a picture is encoded, the minimum of several; an encoder that holds the GIL stalls it
throughout.
"""

import argparse
import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Thread

from PIL import Image

from imagefleet_shared.image_files import encode_image
from tests.benchmarks.photographs import enlarged, photograph
from tests.benchmarks.report import report
from tests.benchmarks.timing import least_cpu_s

_GALLERY = Path(__file__).parents[2] / "docs/gallery.png"
_HUFFMAN_ONLY, _RUN_LENGTHS = 2, 3
_TIMES = 5

Row = dict[str, str | float]


def pillow(level: int, strategy: int | None = None) -> Callable[[Image.Image], bytes]:
    """Pillow at a zlib level, with filters chosen per row."""

    def encode(image: Image.Image) -> bytes:
        file = io.BytesIO()
        chosen = {} if strategy is None else {"compress_type": strategy}
        image.save(file, "PNG", compress_level=level, **chosen)
        return file.getvalue()

    return encode


WAYS: dict[str, Callable[[Image.Image], bytes]] = {
    "Pillow 1": pillow(1),
    "Pillow 6, its default": pillow(6),
    "Pillow 1, run lengths": pillow(1, _RUN_LENGTHS),
    "Pillow 1, Huffman only": pillow(1, _HUFFMAN_ONLY),
    "ours": lambda image: encode_image(image, "png", None),
}


def stall_s(run: Callable[[], object]) -> float:
    """The longest pause of another thread while something runs."""
    done = Event()
    pauses: list[float] = []

    def watch() -> None:
        before = time.perf_counter()
        while not done.is_set():
            time.sleep(0)
            now = time.perf_counter()
            pauses.append(now - before)
            before = now

    watcher = Thread(target=watch)
    watcher.start()
    run()
    done.set()
    watcher.join()
    return max(pauses)


def measure(side: int) -> Iterator[Row]:
    """Yield one row for each picture and encoder."""
    with Image.open(_GALLERY) as gallery:
        pictures = {"photograph": photograph(side, 0), "gallery": enlarged(gallery, side, 0)}
    for name, image in pictures.items():
        base_s, base_bytes = 0.0, 0
        for way, encode in WAYS.items():
            seconds = least_cpu_s(lambda encode=encode, image=image: encode(image), _TIMES)
            size_bytes = len(encode(image))
            base_s, base_bytes = base_s or seconds, base_bytes or size_bytes
            yield {
                "picture": name,
                "megapixels": side * side / 1e6,
                "way": way,
                "CPU ms": 1000 * seconds,
                "times as fast as Pillow 1": base_s / seconds,
                "MB": size_bytes / 1e6,
                "bytes over Pillow 1": size_bytes / base_bytes,
                "stall ms": 1000
                * min(
                    stall_s(lambda encode=encode, image=image: encode(image)) for _ in range(_TIMES)
                ),
            }


def main() -> None:
    parser = argparse.ArgumentParser(description="Time PNG encoders.")
    parser.add_argument("--quick", action="store_true", help="small pictures, no file")
    if parser.parse_args().quick:
        for row in measure(128):
            print(", ".join(f"{name} {value}" for name, value in row.items()))
        return
    report("png", [*measure(1024), *measure(2896)])


if __name__ == "__main__":
    main()
