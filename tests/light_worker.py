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
from imagefleet_worker.prompts.plan import PromptPart
from imagefleet_worker.requests.resolved import PassInputs, ResolvedGenerate
from imagefleet_worker.sampling.seeds import image_seeds
from imagefleet_worker.sampling.step_plan import StepPlan
from imagefleet_worker.worker import WorkerParts


def light_parts(renderer: Renderer, folder: Path) -> WorkerParts:
    """Parts of a worker that has no models.

    Args:
        renderer: replaces the diffusion renderer.
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
    """Resolves requests without parsing prompts, and treats every checkpoint as available."""

    def __init__(self, checkpoint: Path) -> None:
        """`checkpoint` is an empty folder, which has no hash."""
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
                prompt=(PromptPart(1.0, ((steps, request.prompt),)),),
                negative=PromptPart(1.0, ((steps, request.negative_prompt),)),
                inversions=(),
                windows=1,
            ),
            width=request.width or 64,
            height=request.height or 64,
            seeds=image_seeds(request),
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
