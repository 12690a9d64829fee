"""A worker without torch, for tests and benchmarks of everything around the engine."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from imagefleet_shared.records import JobRecord
from imagefleet_shared.requests import GenerateRequest
from imagefleet_shared.status import Stage
from imagefleet_worker.catalog.model_file import ModelFile
from imagefleet_worker.catalog.store import ModelStore
from imagefleet_worker.engine.engine import Renderer
from imagefleet_worker.prompts.plan import Part
from imagefleet_worker.requests.resolved import PassInputs, ResolvedGenerate
from imagefleet_worker.sampling.seeds import seeds_of
from imagefleet_worker.sampling.step_plan import StepPlan
from imagefleet_worker.worker import WorkerParts


def light_parts(renderer: Renderer, folder: Path) -> WorkerParts:
    """Parts of a worker that has no models and looks for none.

    Args:
        renderer: what stands in for the device.
        folder: for an empty model folder.
    """
    models_dir = folder / "no-models"
    models_dir.mkdir(exist_ok=True)
    return WorkerParts(
        device="none",
        models=ModelStore(models_dir),
        resolver=LightResolver(models_dir),
        default_checkpoint=lambda: None,
        make_renderer=lambda: renderer,
    )


class LightResolver:
    """Takes every text for its prompt's only part and every checkpoint for one that is there."""

    def __init__(self, checkpoint: Path) -> None:
        """`checkpoint` is a folder without files, of which there is no hash."""
        self._checkpoint = checkpoint

    @contextmanager
    def on_disk(
        self, job: JobRecord, report: Callable[[Stage, int, int], None]
    ) -> Generator[ResolvedGenerate]:
        request = job.request()
        assert isinstance(request, GenerateRequest)
        request = request.model_copy(update={"seed": request.seed or 0})
        checkpoint = ModelFile(
            name=request.checkpoint or "demo",
            kind="checkpoint",
            path=self._checkpoint,
            size_bytes=0,
            modified_ns=0,
            metadata=None,
        )
        steps = request.num_inference_steps
        yield ResolvedGenerate(
            request=request,
            pass_inputs=PassInputs(
                checkpoint=checkpoint,
                loras=(),
                prompt=(Part(1.0, ((steps, request.prompt),)),),
                negative=Part(1.0, ((steps, request.negative_prompt),)),
                inversions=(),
                windows=1,
            ),
            width=request.width or 64,
            height=request.height or 64,
            seeds=seeds_of(request),
            step_plan=StepPlan(
                scheduler=request.scheduler,
                sigma_schedule=request.sigma_schedule,
                requested=steps,
                scheduled=steps,
                executed=None,
                eta=None,
            ),
            initial_image=None,
            refiner=None,
            hires=None,
            upscale=None,
            faces=None,
        )
