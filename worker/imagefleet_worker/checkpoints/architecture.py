"""Model configs of a checkpoint, derived from the shapes of its tensors.

Small models of the same architecture load as well as the full ones. Where shapes are ambiguous,
these conventions apply:

- SD 1.x UNet: 8 attention heads at every width (widths are multiples of 32, so 8 always divides
  them).
- SDXL UNets: heads of 64 channels; a width under 64 is one head.
- CLIP text encoders: heads of 64 channels, at least one head.

Everything else that shapes do not determine (activations, noise schedule, latent scale) is in
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

# Parsed JSON; the diffusers and transformers classes validate the fields.
Config = dict[str, Any]

CONFIGS = Path(__file__).parent / "configs"

_SD1_HEADS = 8
_HEAD_CHANNELS = 64
# The packaged configs hold only what the two SDXL models have in common.
_CONFIG_FOLDERS: dict[Family, str] = {"sd1": "sd1", "sdxl": "sdxl", "sdxl_refiner": "sdxl"}
# Number of SDXL's added time ids: height, width, crop top and crop left, then the base model's
# target height and width or the refiner's aesthetic score.
_TIME_IDS: dict[Family, int] = {"sdxl": 6, "sdxl_refiner": 5}
_VAE_LEVELS = 4


def packaged_config(family: Family, component: str) -> Config:
    """The config values of a component that every checkpoint of the family shares."""
    path = CONFIGS / _CONFIG_FOLDERS[family] / f"{component}.json"
    return json.loads(path.read_text(encoding="utf-8"))


def unet_config(header: Header, family: Family, native_size_px: int) -> Config:
    """The UNet's diffusers config.

    Raises:
        KeyError, IndexError, ValueError: tensors are missing or their shapes do not form a UNet of
            the family.
    """
    blocks = _block_numbers(header, rf"{re.escape(UNET_PREFIX)}input_blocks\.(\d+)\.")
    downsamplers = _block_numbers(header, rf"{re.escape(UNET_PREFIX)}input_blocks\.(\d+)\.0\.op\.")
    levels = len(downsamplers) + 1
    layers = len(blocks) // levels - 1
    first_blocks = [
        UNET_PREFIX + f"input_blocks.{1 + level * (layers + 1)}" for level in range(levels)
    ]
    widths = [header.shape(f"{first}.0.in_layers.2.weight")[0] for first in first_blocks]
    depths = [_depth(header, f"{first}.1.") for first in first_blocks]
    middle = f"{UNET_PREFIX}middle_block.1."
    block_types = ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths]
    config: Config = {
        **packaged_config(family, "unet"),
        "sample_size": native_size_px // 8,
        "in_channels": header.shape(f"{UNET_PREFIX}input_blocks.0.0.weight")[1],
        "out_channels": header.shape(f"{UNET_PREFIX}out.2.weight")[0],
        "block_out_channels": widths,
        "layers_per_block": layers,
        "down_block_types": block_types,
        "up_block_types": [kind.replace("Down", "Up") for kind in reversed(block_types)],
        # diffusers takes the middle block's depth from the last level, with or without attention.
        "transformer_layers_per_block": [*(max(1, d) for d in depths[:-1]), _depth(header, middle)],
        "cross_attention_dim": header.shape(f"{middle}transformer_blocks.0.attn2.to_k.weight")[1],
        "use_linear_projection": len(header.shape(f"{middle}proj_in.weight")) == 2,
        # The number of heads; diffusers' name for it is a known misnomer (diffusers issue 2011).
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
        KeyError, IndexError, ValueError: tensors are missing or their shapes do not form a VAE with
            a scale factor of 8.
    """
    levels = _block_numbers(header, rf"{re.escape(VAE_PREFIX)}encoder\.down\.(\d+)\.")
    if len(levels) != _VAE_LEVELS:
        raise ValueError(
            f"the VAE has {len(levels)} levels; {_VAE_LEVELS} (factor 8) are supported"
        )
    down = f"{VAE_PREFIX}encoder.down"
    return {
        **packaged_config(family, "vae"),
        # With tiling enabled this is also the tile size.
        "sample_size": native_size_px,
        "block_out_channels": [header.shape(f"{down}.{i}.block.0.conv1.weight")[0] for i in levels],
        "layers_per_block": len(_block_numbers(header, rf"{re.escape(down)}\.0\.block\.(\d+)\.")),
        "latent_channels": header.shape(f"{VAE_PREFIX}decoder.conv_in.weight")[1],
        "down_block_types": ["DownEncoderBlock2D"] * len(levels),
        "up_block_types": ["UpDecoderBlock2D"] * len(levels),
    }


def clip_config(header: Header, family: Family) -> Config:
    """The config of the text encoder with transformers' key names (CLIP-L in the full models).

    Raises:
        KeyError, IndexError: text encoder tensors are missing or malformed.
    """
    prefix = clip_prefix(family, header.tensors)
    width = header.shape(f"{prefix}embeddings.token_embedding.weight")[1]
    return {
        **packaged_config(family, "text_encoder"),
        "hidden_size": width,
        "projection_dim": width,
        "intermediate_size": header.shape(f"{prefix}encoder.layers.0.mlp.fc1.weight")[0],
        "num_hidden_layers": len(
            _block_numbers(header, rf"{re.escape(prefix)}encoder\.layers\.(\d+)\.")
        ),
        "num_attention_heads": _heads(width),
    }


def open_clip_config(header: Header, family: Family) -> Config:
    """The config of SDXL's second text encoder with OpenCLIP's key names (full size: bigG).

    Raises:
        KeyError, IndexError: text encoder tensors are missing or malformed.
    """
    prefix = OPEN_CLIP_PREFIXES[family]
    width = header.shape(f"{prefix}token_embedding.weight")[1]
    layers = _block_numbers(header, rf"{re.escape(prefix)}transformer\.resblocks\.(\d+)\.")
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


def _block_numbers(header: Header, pattern: str) -> list[int]:
    found = {int(match[1]) for key in header.tensors if (match := re.match(pattern, key))}
    return sorted(found)


def _depth(header: Header, attention: str) -> int:
    return len(_block_numbers(header, rf"{re.escape(attention)}transformer_blocks\.(\d+)\."))
