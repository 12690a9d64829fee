"""Pictures that nobody asked for, so that the first who asks need not wait for a compiler."""

import logging
from collections.abc import Iterator
from time import monotonic

from imagefleet_shared.requests import GenerateRequest
from imagefleet_shared.status import Stage
from imagefleet_worker.diffusion.renderer import DiffusionRenderer
from imagefleet_worker.progress import BatchProgress
from imagefleet_worker.requests.resolve import Resolver
from imagefleet_worker.settings import WorkerSettings

logger = logging.getLogger(__name__)

# Of a shape, the first call compiles, the second records a graph, the third is like all others.
_STEPS = 3
# Torch compiles apart for one row. On the CPU it does so from 16 rows on too, and for one row of
# few pixels, because its convolutions then choose another library. Other sizes make no difference.
_SMALL_PX = 128
_MANY = 8


def warm_up(renderer: DiffusionRenderer, resolver: Resolver, settings: WorkerSettings) -> None:
    """Draw pictures for each checkpoint and size that the settings name, and drop them.

    Whatever is drawn later, at other sizes too, runs what was compiled now; see
    `models/compiled.py`.

    Raises:
        ImagefleetError: one of them cannot be drawn.
    """
    for request in _requests(resolver, settings):
        started_s = monotonic()
        job = resolver.generate(request, "warm-up")
        with resolver.pinned(job):
            renderer.render([job], BatchProgress([_ignore_progress]))
        logger.info(
            "warmed up %s at %dx%d, batch %d, in %.1f s",
            request.checkpoint,
            job.width,
            job.height,
            request.num_images,
            monotonic() - started_s,
            extra={"action": "warm_up", "checkpoint": request.checkpoint},
        )


def _requests(resolver: Resolver, settings: WorkerSettings) -> Iterator[GenerateRequest]:
    default = resolver.default_checkpoint()
    checkpoints = settings.warm_up_checkpoints or ((default,) if default else ())
    for checkpoint in checkpoints:
        base = GenerateRequest(prompt="", checkpoint=checkpoint, num_inference_steps=_STEPS, seed=0)
        small = base.model_copy(update={"width": _SMALL_PX, "height": _SMALL_PX})
        sizes = [
            base.model_copy(update={"width": width, "height": height, "num_images": batch})
            for width, height, batch in settings.warm_up_sizes
        ]
        for request in (*(sizes or (base,)), small):
            yield request
            yield request.model_copy(update={"guidance_scale": 1.0, "num_images": 1})
        yield small.model_copy(update={"num_images": _MANY})


def _ignore_progress(stage: Stage, step: int, steps: int) -> None:
    """Tell nobody."""
