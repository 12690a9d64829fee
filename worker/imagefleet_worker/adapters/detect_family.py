"""Detects the family of checkpoints that an adapter was trained for."""

import re
from collections.abc import Mapping

from imagefleet_worker.adapters.tensor_roles import split_key

# The input width of cross attention's keys and values: that of the text encoders together.
_CONTEXT_WIDTHS = {768: "sd1", 1024: "sd2", 1280: "sdxl_refiner", 2048: "sdxl"}
_CONTEXT = re.compile(r"attn2[._](processor[._])?to_[kv]\Z")
_INPUT_LAST = {"lora_down", "hada_w1_b", "diff"}

# The first row that matches any key wins. Transformers without a UNet (SD 3, PixArt) have many
# blocks too, but not nested in another numbered layer.
_KEYS = [
    (r"double_blocks|single_blocks|single_transformer_blocks", "flux"),
    (r"joint_blocks|add_q_proj|lora_te3_|text_encoder_3\.|t5xxl\.", "sd3"),
    # Not "lora_te1_", which some SD 1.x files use too.
    (r"^lora_te2_|^text_encoder_2\.|clip_g\.|\d[._]transformer_blocks[._][1-9]", "sdxl"),
    # SD 1.x's text encoder has 12 layers, SD 2.x's has 23.
    (r"^lora_te_text_model_encoder_layers_(1[2-9]|2\d)_", "sd2"),
    (r"down_blocks[._]0[._]attentions|input_blocks[._][12][._]1[._]|^lora_te_", "sd1"),
]
# kohya's and Stability's metadata fields, with a prefix of the value.
_METADATA = [
    ("ss_base_model_version", "sdxl", "sdxl"),
    ("ss_base_model_version", "sd_v1", "sd1"),
    ("ss_base_model_version", "sd_v2", "sd2"),
    ("modelspec.architecture", "stable-diffusion-xl-v1", "sdxl"),
    ("modelspec.architecture", "stable-diffusion-v1", "sd1"),
    ("modelspec.architecture", "stable-diffusion-v2", "sd2"),
]

FAMILY_NAMES = {
    "sd1": "SD 1.x",
    "sd2": "SD 2.x",
    "sd3": "SD 3",
    "sdxl": "SDXL",
    "sdxl_refiner": "SDXL refiner",
    "flux": "Flux",
}
"""Display names of families, for messages."""


def detect_family(shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str]) -> str | None:
    """The family, one of the keys of `FAMILY_NAMES`; None if it cannot be determined.

    Shapes take precedence over key names, and both over metadata, which trainers often get wrong.

    Args:
        shapes: of every tensor of the file, by key.
    """
    for key, shape in shapes.items():
        split = split_key(key)
        if split and split[1] in _INPUT_LAST and len(shape) > 1 and _CONTEXT.search(split[0]):
            return _CONTEXT_WIDTHS.get(shape[1])
    for pattern, family in _KEYS:
        if any(re.search(pattern, key) for key in shapes):
            return family
    for field, prefix, family in _METADATA:
        if metadata.get(field, "").startswith(prefix):
            return family
    return None
