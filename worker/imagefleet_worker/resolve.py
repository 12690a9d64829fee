"""A request, the worker's defaults and the files on disk made into a job with nothing optional."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from hashlib import sha256

from PIL import Image

from imagefleet_shared.errors import InvalidRequest, UnknownCheckpoint, UnsupportedSize
from imagefleet_shared.fields import LANCZOS, LATENT_MODES
from imagefleet_shared.image_files import read_parameters
from imagefleet_shared.parts import HiresPass, ImageRef, UpscalePass
from imagefleet_shared.records import JobRecord
from imagefleet_shared.requests import GenerateRequest, UpscaleRequest
from imagefleet_shared.storage import ObjectStore

from .hires_size import HiresSize, hires_size
from .images import decode_image, decode_mask
from .inpaint.prepare import PreparedImage, prepare_image, prepare_inpaint
from .looks import Look, LookFinder
from .models.store import ModelFile, ModelStore
from .passes import Steps
from .sampling.noise import Seeds
from .settings import WorkerSettings

DEFAULT_STRENGTH = 0.75
# With strength 1, A1111 too leaves a thousandth of the picture.
_MOST_STRENGTH = 0.999


@dataclass(frozen=True)
class Refiner:
    """The checkpoint that takes over in the first pass."""

    look: Look
    switch_at: float
    """Share of the training timesteps passed."""


@dataclass(frozen=True)
class Hires:
    """The second pass, everything decided."""

    look: Look
    size: HiresSize
    upscaler: str
    steps: Steps


@dataclass(frozen=True)
class ResolvedGenerate:
    """A generate job, ready to be drawn."""

    request: GenerateRequest
    """The request with what was decided filled in; guidance, clip_skip, emphasis are read here."""
    look: Look
    width: int
    height: int
    seeds: Seeds
    steps: Steps
    start: PreparedImage | None
    """None: txt2img."""
    refiner: Refiner | None
    hires: Hires | None
    upscale: UpscalePass | None

    @property
    def looks(self) -> list[Look]:
        """Of every pass."""
        return [self.look, *(part.look for part in (self.refiner, self.hires) if part)]


@dataclass(frozen=True)
class ResolvedUpscale:
    """An upscale job, ready to be enlarged."""

    request: UpscaleRequest
    image: Image.Image
    """RGB."""
    parameters: str | None
    """The text that the picture carries of its making."""


ResolvedJob = ResolvedGenerate | ResolvedUpscale


class Resolver:
    """Decides what a request leaves open, and refuses what cannot be done, before the device."""

    def __init__(self, settings: WorkerSettings, models: ModelStore, store: ObjectStore) -> None:
        self._settings = settings
        self._models = models
        self._store = store
        self._looks = LookFinder(models, settings.max_prompt_tokens)

    def resolve(self, job: JobRecord) -> ResolvedJob:
        """Make a job ready.

        Raises:
            InvalidRequest: something asked for does not exist, does not fit, or cannot be read.
            StorageUnavailable: an input picture cannot be fetched.
        """
        request = job.request()
        if isinstance(request, UpscaleRequest):
            return self._upscale(request)
        return self._generate(request, job.id)

    def default_checkpoint(self) -> str | None:
        """What a request that names no checkpoint gets; None where there is no such choice."""
        checkpoints = [
            file for file in self._models.listed("checkpoint") if file.family != "sdxl_refiner"
        ]
        return self._settings.default_checkpoint or (
            checkpoints[0].name if len(checkpoints) == 1 else None
        )

    def _generate(self, asked: GenerateRequest, job_id: str) -> ResolvedGenerate:
        checkpoint = self._checkpoint(asked.checkpoint)
        source = self._picture(asked.image) if asked.image else None
        request = _filled(asked, checkpoint, source, job_id)
        width, height = request.width or 0, request.height or 0
        _limit("picture", width, height, self._settings.max_pixels)
        hires = self._hires(request, checkpoint, width, height) if request.hires else None
        if request.upscale:
            size = hires.size if hires else HiresSize(width, height)
            self._check_upscale(request.upscale, size.width, size.height)
        look = self._look(request, checkpoint)
        job = ResolvedGenerate(
            request=request,
            look=look,
            width=width,
            height=height,
            seeds=_seeds(request),
            steps=_first_steps(request),
            start=self._start(request, source, hires) if source else None,
            refiner=self._refiner(request, look),
            hires=hires,
            upscale=request.upscale,
        )
        _require_used(request, job.looks)
        return job

    def _upscale(self, request: UpscaleRequest) -> ResolvedUpscale:
        content = self._fetch(request.image)
        image = decode_image(content, self._settings.max_output_pixels)
        self._check_upscale(request, image.width, image.height)
        return ResolvedUpscale(request, image, read_parameters(content))

    def _checkpoint(self, name: str | None) -> ModelFile:
        name = name or self.default_checkpoint()
        if name is None:
            known = [file.name for file in self._models.listed("checkpoint")]
            raise UnknownCheckpoint("(none given, and this worker has no default)", known)
        checkpoint = self._models.find("checkpoint", name)
        if checkpoint.family == "sdxl_refiner":
            raise InvalidRequest(
                f"checkpoint {name!r} is an SDXL refiner, which only goes on with a picture that "
                "another checkpoint began: give it as refiner_checkpoint"
            )
        return checkpoint

    def _picture(self, image: ImageRef) -> Image.Image:
        return decode_image(self._fetch(image), self._settings.max_output_pixels)

    def _fetch(self, image: ImageRef) -> bytes:
        content = self._store.find(image.key)
        if content is None:
            raise InvalidRequest(f"input image {image.key!r} is not in the store")
        return content

    def _look(self, request: GenerateRequest, checkpoint: ModelFile) -> Look:
        return self._looks.find(
            checkpoint,
            request.prompt,
            request.negative_prompt,
            loras=request.loras,
            inversions=request.textual_inversions,
            emphasis=request.emphasis,
            steps=_first_steps(request).counted(),
        )

    def _refiner(self, request: GenerateRequest, look: Look) -> Refiner | None:
        if request.refiner_checkpoint is None:
            return None
        checkpoint = self._models.find("checkpoint", request.refiner_checkpoint)
        _require_same_latents("refiner_checkpoint", checkpoint, look.checkpoint)
        if checkpoint.family == look.checkpoint.family:
            own = replace(look, checkpoint=checkpoint)
        else:
            # SDXL's refiner is another network: no LoRA is for it, A1111 gives it no embeddings.
            own = replace(look, checkpoint=checkpoint, loras=(), inversions=())
        return Refiner(own, request.refiner_switch_at)

    def _hires(
        self, request: GenerateRequest, checkpoint: ModelFile, width: int, height: int
    ) -> Hires:
        hires = request.hires
        assert hires is not None, "called where there is a hires pass"
        size = hires_size(width, height, hires)
        _limit("hires picture", size.width, size.height, self._settings.max_pixels)
        if hires.upscaler not in (*LATENT_MODES, LANCZOS):
            self._models.find("upscaler", hires.upscaler)
        if hires.checkpoint:
            first, checkpoint = checkpoint, self._checkpoint(hires.checkpoint)
            if hires.upscaler in LATENT_MODES:
                _require_same_latents("hires.checkpoint", checkpoint, first)
        look = self._looks.find(
            checkpoint,
            request.prompt if hires.prompt is None else hires.prompt,
            request.negative_prompt if hires.negative_prompt is None else hires.negative_prompt,
            loras=request.loras if hires.loras is None else hires.loras,
            inversions=request.textual_inversions,
            emphasis=request.emphasis,
            steps=_hires_steps(request, hires).counted(),
            first_pass_steps=_first_steps(request).counted(),
        )
        return Hires(look, size, hires.upscaler, _hires_steps(request, hires))

    def _start(
        self, request: GenerateRequest, source: Image.Image, hires: Hires | None
    ) -> PreparedImage:
        width, height = request.width or 0, request.height or 0
        if request.inpaint is None:
            prepared = prepare_image(source, width, height, request.resize_mode)
        else:
            content = self._fetch(request.inpaint.mask_image)
            mask = decode_mask(content, self._settings.max_output_pixels)
            prepared = prepare_inpaint(
                *(source, mask, request.inpaint, width, height, request.resize_mode),
                hires.size if hires else None,
            )
        # To be stretched as latents, a picture is encoded at its own size.
        _limit("image to encode", *prepared.image.size, self._settings.max_pixels)
        return prepared

    def _check_upscale(self, upscale: UpscalePass, width: int, height: int) -> None:
        if upscale.upscaler != LANCZOS:
            self._models.find("upscaler", upscale.upscaler)
        width, height = scaled(width, upscale.scale), scaled(height, upscale.scale)
        _limit("upscaled picture", width, height, self._settings.max_output_pixels)


def scaled(length: int, scale: float) -> int:
    """A side enlarged, in whole pixels."""
    return max(1, round(length * scale))


def _filled(
    request: GenerateRequest, checkpoint: ModelFile, source: Image.Image | None, job_id: str
) -> GenerateRequest:
    """The request with what it leaves open decided."""
    width, height = request.width, request.height
    if width is None or height is None:
        native = checkpoint.native_size_px
        size = source.size if source else (native, native)
        width, height = (max(64, side // 8 * 8) for side in size)
    filled: dict[str, object] = {
        **{"checkpoint": checkpoint.name, "width": width, "height": height},
        "seed": _seed_of(job_id) if request.seed is None else request.seed,
    }
    if request.variation_strength and request.variation_seed is None:
        filled["variation_seed"] = _seed_of(f"{job_id} variation")
    if source and request.strength is None:
        filled["strength"] = DEFAULT_STRENGTH
    if request.hires and request.hires.num_inference_steps is None:
        steps = {"num_inference_steps": request.num_inference_steps}
        filled["hires"] = request.hires.model_copy(update=steps)
    return request.model_copy(update=filled)


def _seeds(request: GenerateRequest) -> Seeds:
    """One per picture; with a variation it is the variation's seed that counts on, as in A1111."""
    places = range(request.num_images)
    first, variation = request.seed or 0, request.variation_seed or 0
    varied = request.variation_strength > 0
    return Seeds(
        seeds=tuple(first if varied else first + place for place in places),
        variation_seeds=tuple(variation + place for place in places),
        variation_strength=request.variation_strength,
        resize_from=request.seed_resize_from,
        rng=request.rng,
    )


def _first_steps(request: GenerateRequest) -> Steps:
    steps, strength = request.num_inference_steps, request.strength
    return Steps(
        scheduler=request.scheduler,
        sigma_schedule=request.sigma_schedule,
        scheduled=steps,
        executed=None if strength is None else int(min(strength, _MOST_STRENGTH) * steps) + 1,
        eta=request.eta,
    )


def _hires_steps(request: GenerateRequest, hires: HiresPass) -> Steps:
    """A1111 stretches the schedule so that exactly the steps asked for are executed."""
    executed = hires.num_inference_steps or request.num_inference_steps
    return Steps(
        scheduler=hires.scheduler or request.scheduler,
        sigma_schedule=hires.sigma_schedule or request.sigma_schedule,
        scheduled=max(executed, int(executed / min(hires.strength, _MOST_STRENGTH))),
        executed=executed,
        eta=request.eta,
    )


def _require_used(request: GenerateRequest, looks: Iterable[Look]) -> None:
    """Every embedding that the request has as a field stands in some text."""
    used = {(one.embedding.name, one.token) for look in looks for one in look.inversions}
    for asked in request.textual_inversions:
        token = asked.token or asked.name
        if (asked.name, token) not in used:
            raise InvalidRequest(
                f"embedding {asked.name!r} is asked for, but its token {token!r} stands in neither "
                "prompt nor negative_prompt"
            )


def _require_same_latents(field: str, checkpoint: ModelFile, first: ModelFile) -> None:
    if (checkpoint.family == "sd1") != (first.family == "sd1"):
        raise InvalidRequest(
            f"{field} {checkpoint.name!r} is {checkpoint.family}; it cannot go on with the latents "
            f"of {first.name!r}, which is {first.family}"
        )


def _limit(what: str, width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise UnsupportedSize(what, width, height, max_pixels)


def _seed_of(text: str) -> int:
    """The same on every attempt, so that a second worker draws the same picture."""
    return int.from_bytes(sha256(text.encode()).digest()[:4])
