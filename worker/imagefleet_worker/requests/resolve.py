"""Resolve requests against the worker's defaults and model files into fully specified jobs."""

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import replace

from PIL import Image

from imagefleet_shared.errors import InvalidRequest, UnknownCheckpoint
from imagefleet_shared.field_types import LATENT_MODES, PIXEL_MODES
from imagefleet_shared.records import JobRecord
from imagefleet_shared.request_parts import ImageRef
from imagefleet_shared.requests import GenerateRequest, UpscaleRequest
from imagefleet_shared.storage import ObjectStore
from imagefleet_worker.catalog.model_file import ModelFile
from imagefleet_worker.catalog.remote import FetchProgress, null_progress
from imagefleet_worker.catalog.store import ModelStore
from imagefleet_worker.faces.resolved import resolve_faces
from imagefleet_worker.imaging.decode import decode_image, decode_mask
from imagefleet_worker.imaging.hires_size import hires_size
from imagefleet_worker.inpaint.prepare import PreparedImage, prepare_image, prepare_inpaint
from imagefleet_worker.requests.check_inputs import InputChecker, check_pixels
from imagefleet_worker.requests.defaults import apply_defaults, first_step_plan, hires_step_plan
from imagefleet_worker.requests.infotext import check_infotext
from imagefleet_worker.requests.pass_inputs import PassInputResolver
from imagefleet_worker.requests.resolved import (
    PassInputs,
    RefinerPass,
    ResolvedGenerate,
    ResolvedHires,
    UpscaleJob,
)
from imagefleet_worker.sampling.sample import schedule_steps
from imagefleet_worker.sampling.seeds import image_seeds
from imagefleet_worker.settings import WorkerSettings


class Resolver:
    """Fills in defaults and rejects invalid requests, before the device is used."""

    def __init__(self, settings: WorkerSettings, models: ModelStore, store: ObjectStore) -> None:
        self._settings = settings
        self._models = models
        self._store = store
        self._inputs = InputChecker(models, self._fetch, settings.max_output_pixels)
        self._pass_inputs = PassInputResolver(models, settings.max_prompt_tokens)

    def resolve(self, job: JobRecord) -> ResolvedGenerate | UpscaleJob:
        """Resolve a job's request.

        Raises:
            InvalidRequest: a model or input does not exist, is incompatible, or cannot be read.
            StorageUnavailable: an input image or a model cannot be fetched.
            CorruptFile: a model does not match its published checksum.
        """
        request = job.request()
        if isinstance(request, UpscaleRequest):
            return self._inputs.check(request)
        return self.resolve_generate(request, job.id)

    @contextmanager
    def on_disk(
        self, job: JobRecord, report: FetchProgress = null_progress
    ) -> Generator[ResolvedGenerate | UpscaleJob]:
        """Resolve a job and pin all its models on local disk until the context ends.

        Args:
            job: the job to resolve.
            report: called with the progress of downloads; an exception that it raises stops them.

        Raises as `resolve`.
        """
        resolved = self.resolve(job)
        # After resolving, so that gigabytes are downloaded only for valid requests.
        with self.pinned(resolved, report):
            yield resolved

    @contextmanager
    def pinned(
        self, resolved: ResolvedGenerate | UpscaleJob, report: FetchProgress = null_progress
    ) -> Generator[None]:
        """Pin all models of a job on local disk until the context ends; raises as `resolve`."""
        upscalers = [file for file in map(self._upscaler, resolved.upscalers) if file]
        with self._models.pinned((*resolved.files, *upscalers), report):
            yield

    def default_checkpoint(self) -> str | None:
        """The checkpoint of requests that name none: the configured or the only one, or None."""
        checkpoints = [
            file
            for file in self._models.list_candidates("checkpoint")
            if file.family != "sdxl_refiner"
        ]
        return self._settings.default_checkpoint or (
            checkpoints[0].name if len(checkpoints) == 1 else None
        )

    def resolve_generate(self, requested: GenerateRequest, job_id: str) -> ResolvedGenerate:
        """Resolve a generate request; raises as `resolve`."""
        checkpoint = self._checkpoint(requested.checkpoint)
        source = self._decode_input(requested.image) if requested.image else None
        request = apply_defaults(requested, checkpoint, source, job_id)
        width, height = request.width or 0, request.height or 0
        check_pixels("picture", width, height, self._settings.max_pixels)
        hires = self._hires(request, checkpoint, width, height) if request.hires else None
        initial_image = self._prepare_image(request, source, hires) if source else None
        size = (hires.size.width, hires.size.height) if hires else (width, height)
        if initial_image and initial_image.region and initial_image.overlay:
            size = initial_image.overlay.size
        self._inputs.check_generated(request, *size)
        inputs = self._first_pass_inputs(request, checkpoint)
        job = ResolvedGenerate(
            request=request,
            pass_inputs=inputs,
            width=width,
            height=height,
            seeds=image_seeds(request),
            step_plan=first_step_plan(request),
            initial_image=initial_image,
            refiner=self._refiner(request, inputs),
            hires=hires,
            upscale=request.upscale,
            faces=resolve_faces(request.face_restore, self._models)
            if request.face_restore
            else None,
        )
        _require_embeddings_used(request, job.all_pass_inputs)
        check_infotext(job)
        return job

    def _checkpoint(self, name: str | None) -> ModelFile:
        name = name or self.default_checkpoint()
        if name is None:
            known = self._models.list_candidates("checkpoint")
            errors = [file.error for file in known if file.error]
            if errors and len(known) - len(errors) < 2:
                # Whether there is a single checkpoint, and which, depends on the unreadable file.
                raise errors[0]
            names = [file.name for file in known]
            raise UnknownCheckpoint("(none given, and this worker has no default)", names)
        checkpoint = self._models.find("checkpoint", name)
        if checkpoint.family == "sdxl_refiner":
            raise InvalidRequest(
                f"checkpoint {name!r} is an SDXL refiner, which can only continue a picture that "
                "another checkpoint began: give it as refiner_checkpoint"
            )
        return checkpoint

    def _upscaler(self, name: str) -> ModelFile | None:
        """The file of an upscaler; None for resampling modes, which need none."""
        if name in (*LATENT_MODES, *PIXEL_MODES):
            return None
        return self._models.find("upscaler", name)

    def _decode_input(self, image: ImageRef) -> Image.Image:
        return decode_image(self._fetch(image), self._settings.max_output_pixels)

    def _fetch(self, image: ImageRef) -> bytes:
        content = self._store.find(image.key)
        if content is None:
            raise InvalidRequest(f"input image {image.key!r} is not in the store")
        return content

    def _first_pass_inputs(self, request: GenerateRequest, checkpoint: ModelFile) -> PassInputs:
        return self._pass_inputs.resolve(
            checkpoint,
            request.prompt,
            request.negative_prompt,
            loras=request.loras,
            inversions=request.textual_inversions,
            emphasis=request.emphasis,
            steps=schedule_steps(first_step_plan(request)),
        )

    def _refiner(self, request: GenerateRequest, inputs: PassInputs) -> RefinerPass | None:
        if request.refiner_checkpoint is None:
            return None
        checkpoint = self._models.find("checkpoint", request.refiner_checkpoint)
        _require_same_latents("refiner_checkpoint", checkpoint, inputs.checkpoint)
        if checkpoint.family == inputs.checkpoint.family:
            refiner_inputs = replace(inputs, checkpoint=checkpoint)
        else:
            # The SDXL refiner is another network: no LoRA fits it, and A1111 applies no embeddings.
            refiner_inputs = self._pass_inputs.without_adapters(
                inputs, checkpoint, request.emphasis
            )
        return RefinerPass(refiner_inputs, request.refiner_switch_at)

    def _hires(
        self, request: GenerateRequest, checkpoint: ModelFile, width: int, height: int
    ) -> ResolvedHires:
        hires = request.hires
        assert hires is not None, "called only for requests with a hires pass"
        size = hires_size(width, height, hires)
        check_pixels("hires picture", size.width, size.height, self._settings.max_pixels)
        self._upscaler(hires.upscaler)
        if hires.checkpoint:
            first, checkpoint = checkpoint, self._checkpoint(hires.checkpoint)
            if hires.upscaler in LATENT_MODES:
                _require_same_latents("hires.checkpoint", checkpoint, first)
        inputs = self._pass_inputs.resolve(
            checkpoint,
            request.prompt if hires.prompt is None else hires.prompt,
            request.negative_prompt if hires.negative_prompt is None else hires.negative_prompt,
            loras=request.loras if hires.loras is None else hires.loras,
            inversions=request.textual_inversions,
            emphasis=request.emphasis,
            steps=schedule_steps(hires_step_plan(request, hires)),
            first_pass_steps=schedule_steps(first_step_plan(request)),
        )
        return ResolvedHires(inputs, size, hires.upscaler, hires_step_plan(request, hires))

    def _prepare_image(
        self, request: GenerateRequest, source: Image.Image, hires: ResolvedHires | None
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
        # With resize_mode "latent" the image is encoded at its own size.
        check_pixels("image to encode", *prepared.image.size, self._settings.max_pixels)
        return prepared


def _require_embeddings_used(request: GenerateRequest, all_inputs: Iterable[PassInputs]) -> None:
    """Raise `InvalidRequest` for a requested embedding whose token no prompt contains."""
    used = {
        (inversion.embedding.name, inversion.token)
        for inputs in all_inputs
        for inversion in inputs.inversions
    }
    for requested in request.textual_inversions:
        token = requested.token or requested.name
        if (requested.name, token) not in used:
            raise InvalidRequest(
                f"embedding {requested.name!r} is asked for, but its token {token!r} stands in "
                "neither prompt nor negative_prompt"
            )


def _require_same_latents(field: str, checkpoint: ModelFile, first: ModelFile) -> None:
    if (checkpoint.family == "sd1") != (first.family == "sd1"):
        raise InvalidRequest(
            f"{field} {checkpoint.name!r} is {checkpoint.family}; it cannot continue the latents "
            f"of {first.name!r}, which is {first.family}"
        )
