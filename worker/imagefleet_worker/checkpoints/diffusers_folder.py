"""Loads diffusers folders (model_index.json) as pipelines, without network or pickles."""

from pathlib import Path

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import (
    StableDiffusionXLPipeline,
)
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_img2img import (
    StableDiffusionXLImg2ImgPipeline,
)

from imagefleet_shared.errors import CorruptFile
from imagefleet_worker.checkpoints.empty_pipeline import Pipeline
from imagefleet_worker.checkpoints.prediction import complete_prediction
from imagefleet_worker.checkpoints.single_file import LoadedCheckpoint
from imagefleet_worker.weights.diffusers_index import folder_family
from imagefleet_worker.weights.families import SUPPORTED, Family

_SD2_CROSS_ATTENTION_DIM = 1024


def load_diffusers_folder(
    folder: Path, device: torch.device, dtype: torch.dtype
) -> LoadedCheckpoint:
    """Load the folder onto the device; every weight is cast to ``dtype``.

    Raises:
        CorruptFile: the folder is damaged, lacks .safetensors weights, or is of an unsupported
            family.
        FileUnavailable: its index cannot be read.
    """
    family = folder_family(folder)
    try:
        pipeline = _load(folder, family, dtype)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as exc:
        raise CorruptFile(f"{folder.name} cannot be loaded: {exc}") from exc
    if pipeline.unet.config["cross_attention_dim"] == _SD2_CROSS_ATTENTION_DIM:
        raise CorruptFile(f"{folder.name} looks like a Stable Diffusion 2 model; {SUPPORTED}")
    complete_prediction(pipeline.scheduler, folder.name)
    for component in pipeline.components.values():
        if isinstance(component, torch.nn.Module):
            component.to(device, dtype).eval().requires_grad_(False)
    size_px = pipeline.unet.config["sample_size"] * pipeline.vae_scale_factor
    return LoadedCheckpoint(pipeline=pipeline, family=family, native_size_px=size_px)


def _load(folder: Path, family: Family, dtype: torch.dtype) -> Pipeline:
    half = next((folder / "unet").glob("*.fp16.safetensors"), None)
    full = folder / "unet" / "diffusion_pytorch_model.safetensors"
    variant = "fp16" if half is not None and not full.exists() else None
    if family == "sd1":
        return StableDiffusionPipeline.from_pretrained(
            folder,
            dtype=dtype,
            variant=variant,
            local_files_only=True,
            use_safetensors=True,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    xl = StableDiffusionXLPipeline if family == "sdxl" else StableDiffusionXLImg2ImgPipeline
    return xl.from_pretrained(
        folder,
        dtype=dtype,
        variant=variant,
        local_files_only=True,
        use_safetensors=True,
        add_watermarker=False,
    )
