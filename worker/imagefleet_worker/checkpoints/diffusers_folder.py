"""A diffusers folder (model_index.json) to a pipeline, with no network and no pickles."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import (
    StableDiffusionXLPipeline,
)
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_img2img import (
    StableDiffusionXLImg2ImgPipeline,
)

from imagefleet_shared.errors import CorruptFile, FileUnavailable
from imagefleet_worker.checkpoints.empty_pipeline import Pipeline
from imagefleet_worker.checkpoints.prediction import complete_prediction
from imagefleet_worker.checkpoints.single_file import LoadedCheckpoint
from imagefleet_worker.weights.families import NATIVE_SIZE_PX, SUPPORTED, Family

INDEX = "model_index.json"

_FAMILIES: dict[str, Family] = {
    "StableDiffusionPipeline": "sd1",
    "StableDiffusionXLPipeline": "sdxl",
    # Only with the refiner's added conditions; see `_family`.
    "StableDiffusionXLImg2ImgPipeline": "sdxl_refiner",
}
# The index names the Python package of each component, and diffusers imports what it names.
_PACKAGES = {"diffusers", "transformers", "stable_diffusion", None}
_SECOND_ENCODER_OF_SD2 = 1024


def folder_family(folder: Path) -> Family:
    """The family that the folder's index names.

    Raises:
        CorruptFile: the index is damaged, names a pipeline that is not supported, or a foreign
            package.
        FileUnavailable: the index cannot be read.
    """
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        family = _family(index)
        packages = {entry[0] for entry in index.values() if isinstance(entry, list)}
    except OSError as exc:
        raise FileUnavailable(f"{folder.name}/{INDEX} cannot be read: {exc.strerror}") from exc
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as exc:
        raise CorruptFile(f"{folder.name}/{INDEX} is damaged: {exc}") from exc
    if family is None:
        raise CorruptFile(f"{folder.name} is for {index['_class_name']}; {SUPPORTED}")
    if foreign := packages - _PACKAGES:
        raise CorruptFile(
            f"{folder.name} asks for code from {foreign}; only diffusers' own is loaded"
        )
    return family


def folder_native_size_px(folder: Path, family: Family) -> int:
    """The picture side that the model was trained at, in pixels; the family's own if unsaid.

    Raises:
        FileUnavailable: the UNet's config cannot be read.
    """
    try:
        config = json.loads((folder / "unet/config.json").read_text(encoding="utf-8"))
        return int(config["sample_size"]) * 8
    except (FileNotFoundError, ValueError, RecursionError, LookupError, TypeError):
        return NATIVE_SIZE_PX[family]
    except OSError as exc:
        text = f"{folder.name}/unet/config.json cannot be read: {exc.strerror}"
        raise FileUnavailable(text) from exc


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
    if pipeline.unet.config["cross_attention_dim"] == _SECOND_ENCODER_OF_SD2:
        raise CorruptFile(f"{folder.name} looks like a Stable Diffusion 2 model; {SUPPORTED}")
    complete_prediction(pipeline.scheduler, folder.name)
    for component in pipeline.components.values():
        if isinstance(component, torch.nn.Module):
            component.to(device, dtype).eval().requires_grad_(False)
    size_px = pipeline.unet.config["sample_size"] * pipeline.vae_scale_factor
    return LoadedCheckpoint(pipeline=pipeline, family=family, native_size_px=size_px)


def _family(index: dict[str, Any]) -> Family | None:
    family = _FAMILIES.get(index["_class_name"])
    # An SDXL base that was saved as an img2img pipeline has the same class, and two encoders.
    if family == "sdxl_refiner" and not index.get("requires_aesthetics_score"):
        return None
    return family


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
