"""Builds the parts of a worker that load torch: model store, resolver and renderer."""

import torch

from imagefleet_shared.settings import StorageSettings
from imagefleet_shared.storage import ObjectStore
from imagefleet_worker.catalog.remote import open_remote
from imagefleet_worker.catalog.store import ModelStore
from imagefleet_worker.checkpoints.pipeline_cache import PipelineCache
from imagefleet_worker.device.memory import CPU_MEMORY, CudaMemory
from imagefleet_worker.device.options import options_for, total_device_bytes
from imagefleet_worker.device.presets import pipeline_cache_bytes
from imagefleet_worker.diffusion.postprocess import Postprocessor
from imagefleet_worker.diffusion.renderer import DiffusionRenderer
from imagefleet_worker.faces.networks import FaceNetworks
from imagefleet_worker.faces.restore import FaceRestorer
from imagefleet_worker.requests.resolve import Resolver
from imagefleet_worker.settings import WorkerSettings
from imagefleet_worker.upscale.cache import UpscalerCache
from imagefleet_worker.upscale.enlarge import Enlarger
from imagefleet_worker.warm_up import warm_up
from imagefleet_worker.worker import WorkerParts

_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def build_parts(settings: WorkerSettings, device: torch.device, store: ObjectStore) -> WorkerParts:
    """The parts of a worker that renders on a device.

    Args:
        settings: of the worker.
        device: of its engine.
        store: holds the input images.
    """
    models = ModelStore(settings.models_dir, open_remote(settings, StorageSettings()))
    resolver = Resolver(settings, models, store)
    return WorkerParts(
        device=_describe(device),
        models=models,
        resolver=resolver,
        default_checkpoint=resolver.default_checkpoint,
        make_renderer=lambda: build_renderer(settings, models, device, resolver),
        memory=CudaMemory(device) if device.type == "cuda" else CPU_MEMORY,
    )


def build_renderer(
    settings: WorkerSettings,
    models: ModelStore,
    device: torch.device,
    resolver: Resolver | None = None,
) -> DiffusionRenderer:
    """The diffusion renderer on a device; warmed up if given a resolver and options need it."""
    auto = torch.float32 if device.type == "cpu" else torch.float16
    dtype = _DTYPES.get(settings.dtype, auto)
    options = options_for(device, dtype, settings)
    pipelines = PipelineCache(
        models,
        device=device,
        dtype=dtype,
        options=options,
        budget_bytes=pipeline_cache_bytes(
            settings, total_device_bytes(device) if options.offload == "none" else None
        ),
        originals_bytes=int(settings.originals_gb * 1e9),
        merged_cache_bytes=int(settings.merged_cache_gb * 1e9),
        verify_every=settings.verify_every,
        host_bytes=int(settings.host_cache_gb * 1e9),
    )
    upscalers = UpscalerCache(
        lambda name: models.local_path("upscaler", name),
        device,
        dtype,
        budget_bytes=int(settings.upscaler_cache_gb * 1e9),
        compiled=settings.upscaler_compile,
    )
    faces = FaceRestorer(FaceNetworks(device, int(settings.face_cache_gb * 1e9)))
    enlarger = Enlarger(upscalers, settings.max_output_pixels)
    renderer = DiffusionRenderer(settings, pipelines, Postprocessor(enlarger, faces))
    if resolver and (options.compile or options.cuda_graphs):
        warm_up(renderer, resolver, settings)
    return renderer


def _describe(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return str(device)
