"""Reads the index (model_index.json) of a diffusers folder."""

import json
from pathlib import Path
from typing import Any

from imagefleet_shared.errors import CorruptFile, FileUnavailable
from imagefleet_worker.weights.families import NATIVE_SIZE_PX, SUPPORTED, Family

INDEX = "model_index.json"

_FAMILIES: dict[str, Family] = {
    "StableDiffusionPipeline": "sd1",
    "StableDiffusionXLPipeline": "sdxl",
    # Only with an aesthetic score; see `_family`.
    "StableDiffusionXLImg2ImgPipeline": "sdxl_refiner",
}
# The index names a Python package for each component, which diffusers would import.
_PACKAGES = {"diffusers", "transformers", "stable_diffusion", None}


def folder_family(folder: Path) -> Family:
    """The family that the folder's index names.

    Raises:
        CorruptFile: the index is damaged, or names an unsupported pipeline or package.
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
    """The image side that the model was trained at, in pixels; by default the family's.

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


def _family(index: dict[str, Any]) -> Family | None:
    family = _FAMILIES.get(index["_class_name"])
    # An SDXL base model saved as an img2img pipeline has the same class, but two text encoders.
    if family == "sdxl_refiner" and not index.get("requires_aesthetics_score"):
        return None
    return family
