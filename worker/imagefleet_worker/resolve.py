"""A request, the worker's defaults and the files on disk made into a job with nothing optional."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from math import floor
from threading import Lock

from PIL import Image

from imagefleet_shared.errors import (
    InvalidRequest,
    PromptTooLong,
    UnknownCheckpoint,
    UnsupportedSize,
)
from imagefleet_shared.fields import LANCZOS, LATENT
from imagefleet_shared.image_files import read_parameters
from imagefleet_shared.parts import HiresPass, ImageRef, UpscalePass
from imagefleet_shared.records import JobRecord
from imagefleet_shared.requests import GenerateRequest, UpscaleRequest
from imagefleet_shared.storage import ObjectStore

from .adapters.lookup import WantedLora, find_inversions, find_loras
from .images import decode_image
from .models.skeleton import clip_tokenizer
from .models.store import ModelFile, ModelStore
from .prompts.chunks import token_count
from .prompts.layout import lay_out
from .prompts.triggers import TextualInversion
from .settings import WorkerSettings

DEFAULT_STRENGTH = 0.75


@dataclass(frozen=True)
class Start:
    """Where img2img starts from."""

    image: Image.Image
    """RGB, of the job's size."""
    strength: float


@dataclass(frozen=True)
class Hires:
    """The second pass, its size decided."""

    width: int
    height: int
    upscaler: str
    num_inference_steps: int
    """Executed."""
    strength: float


@dataclass(frozen=True)
class ResolvedGenerate:
    """A generate job, ready to be drawn."""

    request: GenerateRequest
    """The request with what was decided filled in; prompts, steps, guidance are read here."""
    checkpoint: ModelFile
    width: int
    height: int
    seeds: tuple[int, ...]
    prompt: str
    """Without the tags of LoRAs."""
    loras: tuple[WantedLora, ...]
    """By name."""
    inversions: tuple[TextualInversion, ...]
    """That stand in a prompt."""
    windows: int
    """Windows of 75 tokens that the longer of prompt and negative prompt takes."""
    start: Start | None
    """None: txt2img."""
    hires: Hires | None
    upscale: UpscalePass | None


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
        self._tokenizer = clip_tokenizer("<|endoftext|>")
        # A tokenizer serves one thread at a time.
        self._tokenizing = Lock()

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
        checkpoints = self._models.listed("checkpoint")
        return self._settings.default_checkpoint or (
            checkpoints[0].name if len(checkpoints) == 1 else None
        )

    def _generate(self, request: GenerateRequest, job_id: str) -> ResolvedGenerate:
        checkpoint = self._checkpoint(request.checkpoint)
        image = None
        if request.image:
            image = decode_image(self._fetch(request.image), self._settings.max_output_pixels)
        width, height = self._size(request, checkpoint, image)
        _limit("picture", width, height, self._settings.max_pixels)
        hires = _hires(request.hires, width, height, request.num_inference_steps)
        final = (width, height)
        if hires:
            _limit("hires picture", hires.width, hires.height, self._settings.max_pixels)
            final = (hires.width, hires.height)
        if request.upscale:
            self._check_upscale(request.upscale, *final)
        if hires and hires.upscaler not in (LATENT, LANCZOS):
            self._models.find("upscaler", hires.upscaler)
        prompt, loras = find_loras(request, checkpoint, self._models)
        texts = (prompt, request.negative_prompt)
        inversions = find_inversions(request, texts, loras, self._models)
        windows, triggered = self._lay_out(texts, inversions)
        for inversion in inversions[: len(request.textual_inversions)]:
            if inversion not in triggered:
                raise InvalidRequest(
                    f"embedding {inversion.embedding.name!r} is asked for, but its token "
                    f"{inversion.token!r} stands in neither prompt nor negative_prompt"
                )
        seed = request.seed if request.seed is not None else _seed_of(job_id)
        strength = request.strength if request.strength is not None else DEFAULT_STRENGTH
        filled: dict[str, object] = {
            **{"checkpoint": checkpoint.name, "width": width, "height": height, "seed": seed}
        }
        if request.hires and hires:
            steps = {"num_inference_steps": hires.num_inference_steps}
            filled["hires"] = request.hires.model_copy(update=steps)
        if image:
            filled["strength"] = strength
            image = image.resize((width, height), Image.Resampling.LANCZOS)
        return ResolvedGenerate(
            request=request.model_copy(update=filled),
            checkpoint=checkpoint,
            width=width,
            height=height,
            seeds=tuple(range(seed, seed + request.num_images)),
            prompt=prompt,
            loras=loras,
            inversions=triggered,
            windows=windows,
            start=Start(image, strength) if image else None,
            hires=hires,
            upscale=request.upscale,
        )

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
        return self._models.find("checkpoint", name)

    def _lay_out(
        self, texts: Sequence[str], inversions: Sequence[TextualInversion]
    ) -> tuple[int, tuple[TextualInversion, ...]]:
        """Windows that the longest text takes, and the inversions that stand in any."""
        with self._tokenizing:
            layouts = [lay_out(self._tokenizer, text, inversions, "original") for text in texts]
        most = self._settings.max_prompt_tokens
        for windows in layouts:
            if token_count(windows) > most:
                raise PromptTooLong(token_count(windows), most)
        places = (place for windows in layouts for window in windows for place in window)
        triggered = dict.fromkeys(place.inversion for place in places if place.inversion)
        return max(len(windows) for windows in layouts), tuple(triggered)

    def _size(
        self, request: GenerateRequest, checkpoint: ModelFile, image: Image.Image | None
    ) -> tuple[int, int]:
        if request.width is not None and request.height is not None:
            return request.width, request.height
        if image:
            return max(64, image.width // 8 * 8), max(64, image.height // 8 * 8)
        return checkpoint.native_size_px, checkpoint.native_size_px

    def _check_upscale(self, upscale: UpscalePass, width: int, height: int) -> None:
        if upscale.upscaler != LANCZOS:
            self._models.find("upscaler", upscale.upscaler)
        width, height = scaled(width, upscale.scale), scaled(height, upscale.scale)
        _limit("upscaled picture", width, height, self._settings.max_output_pixels)

    def _fetch(self, image: ImageRef) -> bytes:
        content = self._store.find(image.key)
        if content is None:
            raise InvalidRequest(f"input image {image.key!r} is not in the store")
        return content


def scaled(length: int, scale: float) -> int:
    """A side enlarged, in whole pixels."""
    return max(1, round(length * scale))


def _hires(hires: HiresPass | None, width: int, height: int, steps: int) -> Hires | None:
    if hires is None:
        return None
    if hires.scale is not None:
        width, height = (floor(side * hires.scale / 8) * 8 for side in (width, height))
    else:
        width, height = hires.width or width, hires.height or height
    return Hires(width, height, hires.upscaler, hires.num_inference_steps or steps, hires.strength)


def _limit(what: str, width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise UnsupportedSize(what, width, height, max_pixels)


def _seed_of(job_id: str) -> int:
    """The same on every attempt, so that a second worker draws the same picture."""
    return int.from_bytes(sha256(job_id.encode()).digest()[:4])
