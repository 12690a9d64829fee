"""What a request leaves open, decided."""

from PIL import Image

from imagefleet_shared.request_parts import HiresPass
from imagefleet_shared.requests import GenerateRequest
from imagefleet_worker.catalog.model_file import ModelFile
from imagefleet_worker.sampling.seeds import seed_of
from imagefleet_worker.sampling.step_plan import StepPlan

_DEFAULT_STRENGTH = 0.75
# With strength 1, A1111 too leaves a thousandth of the picture.
_MOST_STRENGTH = 0.999


def apply_defaults(
    request: GenerateRequest, checkpoint: ModelFile, source: Image.Image | None, job_id: str
) -> GenerateRequest:
    """The request with what it leaves open decided."""
    width, height = request.width, request.height
    if width is None or height is None:
        native = checkpoint.native_size_px
        size = source.size if source else (native, native)
        width, height = (max(64, side // 8 * 8) for side in size)
    decided: dict[str, object] = {
        **{"checkpoint": checkpoint.name, "width": width, "height": height},
        "seed": seed_of(job_id) if request.seed is None else request.seed,
    }
    if request.variation_strength and request.variation_seed is None:
        decided["variation_seed"] = seed_of(f"{job_id} variation")
    if source and request.strength is None:
        decided["strength"] = _DEFAULT_STRENGTH
    if request.hires and request.hires.num_inference_steps is None:
        steps = {"num_inference_steps": request.num_inference_steps}
        decided["hires"] = request.hires.model_copy(update=steps)
    # What is decided must be allowed too: a picture's side may be longer than any width.
    return GenerateRequest.model_validate(dict(request) | decided)


def first_step_plan(request: GenerateRequest) -> StepPlan:
    steps, strength = request.num_inference_steps, request.strength
    return StepPlan(
        scheduler=request.scheduler,
        sigma_schedule=request.sigma_schedule,
        requested=steps,
        scheduled=steps,
        executed=None if strength is None else int(min(strength, _MOST_STRENGTH) * steps) + 1,
        eta=request.eta,
    )


def hires_step_plan(request: GenerateRequest, hires: HiresPass) -> StepPlan:
    """A1111 stretches the schedule so that exactly the steps asked for are executed."""
    executed = hires.num_inference_steps or request.num_inference_steps
    return StepPlan(
        scheduler=hires.scheduler or request.scheduler,
        sigma_schedule=hires.sigma_schedule or request.sigma_schedule,
        requested=executed,
        scheduled=max(executed, int(executed / min(hires.strength, _MOST_STRENGTH))),
        executed=executed,
        eta=request.eta,
    )
