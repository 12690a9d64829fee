"""The sizes of a checkpoint's models, read off the shapes of its tensors.

Small models of the same architecture load as well as the full ones. What shapes cannot tell is
convention:

- SD 1.x UNet: 8 attention heads at every width (widths are multiples of 32, so 8 always divides
  them).
- SDXL UNets: heads of 64 channels; a width under 64 is one head.
- CLIP text encoders: heads of 64 channels, at least one head.

Everything else that shapes cannot tell (activations, noise schedule, latent scale) is in
``configs/``.
"""

import json
import re
from pathlib import Path
from typing import Any

from imagefleet_worker.weights.families import Family
from imagefleet_worker.weights.ldm_keys import (
    OPEN_CLIP_PREFIXES,
    UNET_PREFIX,
    VAE_PREFIX,
)
from imagefleet_worker.weights.ldm_variants import clip_prefix, text_projection
from imagefleet_worker.weights.safetensors_header import Header

# What a JSON file holds: only the classes that take it know more.
Config = dict[str, Any]

CONFIGS = Path(__file__).parent / "configs"

_SD1_HEADS = 8
_HEAD_CHANNELS = 64
# What the two SDXL models have in common is all that their packaged settings say.
_CONFIG_FOLDERS: dict[Family, str] = {"sd1": "sd1", "sdxl": "sdxl", "sdxl_refiner": "sdxl"}
# Numbers in SDXL's added conditions: height, width, crop top, crop left; then the base has target
# height and width, the refiner an aesthetic score.
_TIME_IDS: dict[Family, int] = {"sdxl": 6, "sdxl_refiner": 5}
_VAE_LEVELS = 4


def packaged_config(family: Family, component: str) -> Config:
    """A component's settings that are the same for every checkpoint of the family."""
    path = CONFIGS / _CONFIG_FOLDERS[family] / f"{component}.json"
    return json.loads(path.read_text(encoding="utf-8"))


def unet_config(header: Header, family: Family, native_size_px: int) -> Config:
    """The UNet's diffusers config.

    Raises:
        KeyError, IndexError, ValueError: tensors are missing or their shapes make no UNet of the
            family.
    """
    blocks = _numbers(header, rf"{re.escape(UNET_PREFIX)}input_blocks\.(\d+)\.")
    downsamplers = _numbers(header, rf"{re.escape(UNET_PREFIX)}input_blocks\.(\d+)\.0\.op\.")
    levels = len(downsamplers) + 1
    layers = len(blocks) // levels - 1
    firsts = [UNET_PREFIX + f"input_blocks.{1 + level * (layers + 1)}" for level in range(levels)]
    widths = [header.shape(f"{first}.0.in_layers.2.weight")[0] for first in firsts]
    depths = [_depth(header, f"{first}.1.") for first in firsts]
    middle = f"{UNET_PREFIX}middle_block.1."
    kinds = ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths]
    config: Config = {
        **packaged_config(family, "unet"),
        "sample_size": native_size_px // 8,
        "in_channels": header.shape(f"{UNET_PREFIX}input_blocks.0.0.weight")[1],
        "out_channels": header.shape(f"{UNET_PREFIX}out.2.weight")[0],
        "block_out_channels": widths,
        "layers_per_block": layers,
        "down_block_types": kinds,
        "up_block_types": [kind.replace("Down", "Up") for kind in reversed(kinds)],
        # diffusers takes the middle block's depth from the last level, attention there or not.
        "transformer_layers_per_block": [*(max(1, d) for d in depths[:-1]), _depth(header, middle)],
        "cross_attention_dim": header.shape(f"{middle}transformer_blocks.0.attn2.to_k.weight")[1],
        "use_linear_projection": len(header.shape(f"{middle}proj_in.weight")) == 2,
        # Heads, not channels a head: the name in diffusers is an old slip (diffusers issue 2011).
        "attention_head_dim": _SD1_HEADS
        if family == "sd1"
        else [_heads(width) for width in widths],
    }
    if family in _TIME_IDS:
        added = header.shape(f"{UNET_PREFIX}label_emb.0.0.weight")[1]
        pooled = _projection_dim(header, family)
        config["projection_class_embeddings_input_dim"] = added
        config["addition_time_embed_dim"] = (added - pooled) // _TIME_IDS[family]
    return config


def vae_config(header: Header, family: Family, native_size_px: int) -> Config:
    """The VAE's diffusers config.

    Raises:
        KeyError, IndexError, ValueError: tensors are missing or their shapes make no VAE of factor
            8.
    """
    levels = _numbers(header, rf"{re.escape(VAE_PREFIX)}encoder\.down\.(\d+)\.")
    if len(levels) != _VAE_LEVELS:
        raise ValueError(
            f"the VAE has {len(levels)} levels; {_VAE_LEVELS} (factor 8) are supported"
        )
    down = f"{VAE_PREFIX}encoder.down"
    return {
        **packaged_config(family, "vae"),
        # Also the tile's side, once tiling is on.
        "sample_size": native_size_px,
        "block_out_channels": [header.shape(f"{down}.{i}.block.0.conv1.weight")[0] for i in levels],
        "layers_per_block": len(_numbers(header, rf"{re.escape(down)}\.0\.block\.(\d+)\.")),
        "latent_channels": header.shape(f"{VAE_PREFIX}decoder.conv_in.weight")[1],
        "down_block_types": ["DownEncoderBlock2D"] * len(levels),
        "up_block_types": ["UpDecoderBlock2D"] * len(levels),
    }


def clip_config(header: Header, family: Family) -> Config:
    """The config of the text encoder in transformers' own names (CLIP-L in the full models).

    Raises:
        KeyError, IndexError: tensors are missing or are no text encoder's.
    """
    prefix = clip_prefix(family, header.tensors)
    width = header.shape(f"{prefix}embeddings.token_embedding.weight")[1]
    return {
        **packaged_config(family, "text_encoder"),
        "hidden_size": width,
        "projection_dim": width,
        "intermediate_size": header.shape(f"{prefix}encoder.layers.0.mlp.fc1.weight")[0],
        "num_hidden_layers": len(_numbers(header, rf"{re.escape(prefix)}encoder\.layers\.(\d+)\.")),
        "num_attention_heads": _heads(width),
    }


def open_clip_config(header: Header, family: Family) -> Config:
    """The config of SDXL's second text encoder, in OpenCLIP's names (bigG in the full models).

    Raises:
        KeyError, IndexError: tensors are missing or are no text encoder's.
    """
    prefix = OPEN_CLIP_PREFIXES[family]
    width = header.shape(f"{prefix}token_embedding.weight")[1]
    layers = _numbers(header, rf"{re.escape(prefix)}transformer\.resblocks\.(\d+)\.")
    return {
        **packaged_config(family, "text_encoder_2"),
        "hidden_size": width,
        "projection_dim": _projection_dim(header, family),
        "intermediate_size": header.shape(f"{prefix}transformer.resblocks.0.mlp.c_fc.weight")[0],
        "num_hidden_layers": len(layers),
        "num_attention_heads": _heads(width),
    }


def _projection_dim(header: Header, family: Family) -> int:
    name = text_projection(family, header.tensors)
    return header.shape(name.key)[1 if name.transposed else 0]


def _heads(width: int) -> int:
    return max(1, width // _HEAD_CHANNELS)


def _numbers(header: Header, pattern: str) -> list[int]:
    found = {int(match[1]) for key in header.tensors if (match := re.match(pattern, key))}
    return sorted(found)


def _depth(header: Header, attention: str) -> int:
    return len(_numbers(header, rf"{re.escape(attention)}transformer_blocks\.(\d+)\."))
