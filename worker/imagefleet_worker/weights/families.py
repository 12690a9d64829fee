"""Detects the model family of a single-file checkpoint from its tensor names."""

import re
from typing import Literal

from imagefleet_shared.errors import CorruptFile
from imagefleet_worker.weights.safetensors_header import Header

Family = Literal["sd1", "sdxl", "sdxl_refiner"]
"""`sdxl_refiner` only finishes what an SDXL base model began."""

SUPPORTED = "supported are Stable Diffusion 1.x, SDXL base and SDXL refiner checkpoints"
NATIVE_SIZE_PX: dict[Family, int] = {"sd1": 512, "sdxl": 1024, "sdxl_refiner": 1024}

_UNET = "model.diffusion_model."
_FIRST_CONVOLUTION = f"{_UNET}input_blocks.0.0.weight"
_ADDED_CONDITIONS = f"{_UNET}label_emb.0.0.weight"
_LATENT_CHANNELS = 4
_UNET_INPUTS: dict[tuple[int, ...], str] = {
    (9,): "an inpainting model",
    (8,): "an InstructPix2Pix model",
}

# The first row that matches any tensor name wins, so specific patterns come first.
_LOOKS_LIKE = [
    (
        r"lora_|hada_w|lokr_|dora_scale|oft_blocks",
        "a LoRA or another adapter, which belongs in loras/",
    ),
    (r"^control_model\.|controlnet_", "a ControlNet"),
    (r"(^|\.)double_blocks\.", "a Flux model"),
    (r"(^|\.)joint_blocks\.", "a Stable Diffusion 3 model"),
    (
        r"^conditioner\.embedders\.0\.model\.",
        "a Stable Diffusion 2 model, or an SDXL refiner without its UNet",
    ),
    (r"^cond_stage_model\.model\.", "a Stable Diffusion 2 model"),
    (r"^model\.diffusion_model\.input_blocks\.", "a UNet without its text encoders"),
    (
        r"^(emb_params|string_to_param|clip_[lg]$)",
        "a textual inversion, which belongs in embeddings/",
    ),
    (r"^(down_blocks|mid_block|up_blocks)\.", "the UNet of a diffusers folder"),
    (r"^(encoder|decoder|first_stage_model)\.", "a VAE, which belongs in vae/"),
    (r"^text_model\.", "a text encoder"),
    (r"conv_first\.|^body\.|^model\.\d+\.", "an upscaler, which belongs in upscalers/"),
]


def family_of(header: Header) -> Family:
    """The family of a checkpoint with LDM key names.

    Raises:
        CorruptFile: the file is something else; the message says what it looks like.
    """
    keys = header.tensors
    if _FIRST_CONVOLUTION in keys:
        channels = header.shape(_FIRST_CONVOLUTION)[1:2]
        if channels != (_LATENT_CHANNELS,):
            what = _UNET_INPUTS.get(channels, "a UNet with an unknown kind of input")
            raise CorruptFile(f"{header.file_name} looks like {what}; {SUPPORTED}")
        if "conditioner.embedders.1.model.ln_final.weight" in keys:
            return "sdxl"
        # Some Stable Diffusion 2 files have their text encoder under the same key.
        if "conditioner.embedders.0.model.ln_final.weight" in keys and _ADDED_CONDITIONS in keys:
            return "sdxl_refiner"
        if any(key.startswith("cond_stage_model.transformer.") for key in keys):
            return "sd1"
    for pattern, what in _LOOKS_LIKE:
        if any(re.search(pattern, key) for key in keys):
            raise CorruptFile(f"{header.file_name} looks like {what}; {SUPPORTED}")
    raise CorruptFile(f"{header.file_name} holds no model that is known here; {SUPPORTED}")


def native_size_px(header: Header, family: Family) -> int:
    """The image side that the model was trained at, in pixels.

    Taken from the metadata field ``modelspec.resolution`` ("768x768"; the shorter side counts),
    else the family's default.
    """
    stated = re.fullmatch(r"(\d{1,5})x(\d{1,5})", header.metadata.get("modelspec.resolution", ""))
    if stated is None:
        return NATIVE_SIZE_PX[family]
    return min(int(stated[1]), int(stated[2]))
