"""Renders images at start, so that the first jobs need not wait for compilation."""

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

# For each shape the first call compiles, the second captures a CUDA graph, the third replays it.
_STEPS = 3
# Torch specializes for a batch of one. On the CPU it also does so from 16 rows on, and for one row
# of few pixels, because convolutions then use another library. Other sizes share compiled code.
_SMALL_PX = 128
_LARGE_BATCH = 8


def warm_up(renderer: DiffusionRenderer, resolver: Resolver, settings: WorkerSettings) -> None:
    """Render an image for each checkpoint and size in the settings, and discard it.

    Later jobs, at other sizes too, reuse the code compiled now; see `device/compile.py`.

    Raises:
        ImagefleetError: one of the images cannot be rendered.
    """
    for request in _requests(resolver, settings):
        started_s = monotonic()
        job = resolver.resolve_generate(request, "warm-up")
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
        yield small.model_copy(update={"num_images": _LARGE_BATCH})


def _ignore_progress(stage: Stage, step: int, steps: int) -> None:
    """Report to nobody."""
