"""Default values for what a request leaves out."""

from PIL import Image

from imagefleet_shared.request_parts import HiresPass
from imagefleet_shared.requests import GenerateRequest
from imagefleet_worker.catalog.model_file import ModelFile
from imagefleet_worker.sampling.seeds import derive_seed
from imagefleet_worker.sampling.step_plan import StepPlan

_DEFAULT_STRENGTH = 0.75
# A1111 also keeps a thousandth of the image at strength 1.
_MAX_STRENGTH = 0.999


def apply_defaults(
    request: GenerateRequest, checkpoint: ModelFile, source: Image.Image | None, job_id: str
) -> GenerateRequest:
    """A copy of the request with every unset field filled in.

    Raises:
        InvalidRequest: a default is not a valid value, such as the side of a huge initial image.
    """
    width, height = request.width, request.height
    if width is None or height is None:
        native = checkpoint.native_size_px
        size = source.size if source else (native, native)
        width, height = (max(64, side // 8 * 8) for side in size)
    defaults: dict[str, object] = {
        **{"checkpoint": checkpoint.name, "width": width, "height": height},
        "seed": derive_seed(job_id) if request.seed is None else request.seed,
    }
    if request.variation_strength and request.variation_seed is None:
        defaults["variation_seed"] = derive_seed(f"{job_id} variation")
    if source and request.strength is None:
        defaults["strength"] = _DEFAULT_STRENGTH
    if request.hires and request.hires.num_inference_steps is None:
        steps = {"num_inference_steps": request.num_inference_steps}
        defaults["hires"] = request.hires.model_copy(update=steps)
    # Defaults are validated too: an initial image may be wider than any width allowed.
    return GenerateRequest.model_validate(dict(request) | defaults)


def first_step_plan(request: GenerateRequest) -> StepPlan:
    """The steps of the first pass."""
    steps, strength = request.num_inference_steps, request.strength
    return StepPlan(
        scheduler=request.scheduler,
        sigma_schedule=request.sigma_schedule,
        requested=steps,
        scheduled=steps,
        executed=None if strength is None else int(min(strength, _MAX_STRENGTH) * steps) + 1,
        eta=request.eta,
    )


def hires_step_plan(request: GenerateRequest, hires: HiresPass) -> StepPlan:
    """The steps of the hires pass.

    As in A1111, the schedule is stretched so that exactly the requested steps are executed.
    """
    executed = hires.num_inference_steps or request.num_inference_steps
    return StepPlan(
        scheduler=hires.scheduler or request.scheduler,
        sigma_schedule=hires.sigma_schedule or request.sigma_schedule,
        requested=executed,
        scheduled=max(executed, int(executed / min(hires.strength, _MAX_STRENGTH))),
        executed=executed,
        eta=request.eta,
    )
