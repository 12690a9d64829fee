"""The one thread that touches the device: takes jobs in order, renders them, reports steps."""

import gc
import logging
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import SimpleQueue
from threading import Thread
from time import monotonic
from typing import Protocol

import torch
from PIL import Image

from imagefleet_shared.errors import OutOfMemory
from imagefleet_shared.status import Stage

from .resolve import ResolvedJob
from .stages import Stages, Tell

log = logging.getLogger(__name__)


class Renderer(Protocol):
    """Turns a job into pictures on the device."""

    def render(self, job: ResolvedJob, stages: Stages) -> list[Image.Image]:
        """Draw or enlarge; called on the engine's thread only.

        Raises:
            ImagefleetError: what the job asks for cannot be done.
        """
        ...


@dataclass(frozen=True)
class Rendered:
    """What the engine made of a job."""

    images: list[Image.Image]
    waited_s: float
    """In the engine's queue."""
    stages_s: dict[str, float]


@dataclass
class _Order:
    job: ResolvedJob
    tell: Tell
    ordered_s: float = field(default_factory=monotonic)
    done: "Future[Rendered]" = field(default_factory=Future)


class Engine(Thread):
    """Runs a renderer on jobs, one at a time, in the order they came.

    Args:
        renderer: what draws.
        beat: called with True at every step and with False when there is nothing to do, so that a
            parent process can tell a stall from idleness.
    """

    def __init__(self, renderer: Renderer, beat: Callable[[bool], None]) -> None:
        super().__init__(name="engine", daemon=True)
        self._renderer = renderer
        self._beat = beat
        self._orders: SimpleQueue[_Order | None] = SimpleQueue()

    def render(self, job: ResolvedJob, tell: Tell) -> Rendered:
        """Have a job rendered; blocks the calling thread until it is done.

        Raises:
            ImagefleetError: what the job asks for cannot be done.
            JobCanceled, JobTimeout, LeaseLost, HandBack: whatever `tell` raised.
        """
        order = _Order(job, tell)
        self._orders.put(order)
        return order.done.result()

    def close(self) -> None:
        """Finish the jobs taken, then end the thread."""
        self._orders.put(None)

    def run(self) -> None:
        self._beat(False)
        while (order := self._orders.get()) is not None:
            try:
                order.done.set_result(self._run(order))
            # Whatever goes wrong is the job's own trouble: the engine lives on for the others.
            except BaseException as exc:
                order.done.set_exception(_translated(exc))
            finally:
                self._beat(False)
            # The traceback of a failed job holds its tensors until here.
            del order

    def _run(self, order: _Order) -> Rendered:
        def tell(stage: Stage, step: int, steps: int) -> None:
            self._beat(True)
            order.tell(stage, step, steps)

        started_s = monotonic()
        stages = Stages(tell)
        images = self._renderer.render(order.job, stages)
        stages.end()
        return Rendered(images, started_s - order.ordered_s, stages.seconds)


def _translated(exc: BaseException) -> BaseException:
    if not isinstance(exc, torch.OutOfMemoryError):
        return exc
    gc.collect()
    torch.cuda.empty_cache()
    error = OutOfMemory(
        "the device ran out of memory; ask for a smaller size or fewer images, or run the worker "
        "with IMAGEFLEET_VRAM=balanced or low"
    )
    error.__cause__ = exc
    return error
