"""Maps diffusers' weight names to the LDM names of single-file checkpoints.

The mapping is a set of rewrite rules per architecture, so that it works for any width and depth.
Both loading and the tools that write checkpoints use it.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from imagefleet_worker.weights.families import Family

LdmComponent = Literal["unet", "vae", "text_encoder", "text_encoder_2"]

COMPONENTS: dict[Family, tuple[LdmComponent, ...]] = {
    "sd1": ("unet", "vae", "text_encoder"),
    "sdxl": ("unet", "vae", "text_encoder", "text_encoder_2"),
    "sdxl_refiner": ("unet", "vae", "text_encoder_2"),
}

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
CLIP_PREFIXES: dict[Family, str] = {
    "sd1": "cond_stage_model.transformer.text_model.",
    "sdxl": "conditioner.embedders.0.transformer.text_model.",
}
# Numbered in the order of the family's conditioner: the refiner has only this encoder.
OPEN_CLIP_PREFIXES: dict[Family, str] = {
    "sdxl": "conditioner.embedders.1.model.",
    "sdxl_refiner": "conditioner.embedders.0.model.",
}


@dataclass(frozen=True)
class LdmName:
    """A tensor of the checkpoint, and how the module's weight is stored in it.

    Attributes:
        key: the tensor's name in the file.
        qkv_index: third of a fused tensor's rows (0 query, 1 key, 2 value); None for all rows.
        transposed: whether the file stores the transposed matrix.
    """

    key: str
    qkv_index: int | None = None
    transposed: bool = False


_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_UNET_BLOCK = re.compile(
    r"(down|mid|up)_blocks?\.(?:(\d+)\.)?(resnets|attentions|\w+samplers)\.(\d+)\.(.*)"
)
_VAE_RULES = [
    (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
    (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
    (r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attn_1.\1"),
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"\.resnets\.", ".block."),
    (r"\.(down|up)samplers\.0\.", r".\1sample."),
    (r"conv_shortcut", "nin_shortcut"),
    (r"conv_norm_out", "norm_out"),
    (r"encoder\.down_blocks", "encoder.down"),
]
_OPEN_CLIP_RULES = [
    (r"^embeddings\.token_embedding", "token_embedding"),
    (r"^embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"^final_layer_norm", "ln_final"),
    (r"^encoder\.layers\.", "transformer.resblocks."),
    (r"\.layer_norm(\d)", r".ln_\1"),
    (r"\.mlp\.fc1", ".mlp.c_fc"),
    (r"\.mlp\.fc2", ".mlp.c_proj"),
    (r"\.self_attn\.out_proj", ".attn.out_proj"),
]


def ldm_names(family: Family, component: LdmComponent, keys: Collection[str]) -> dict[str, LdmName]:
    """The LDM name of every weight of a module, by the module's state-dict keys."""
    if component == "unet":
        layers = _count(keys, r"down_blocks\.0\.resnets\.(\d+)\.")
        attention = {
            match[1] for key in keys if (match := re.match(r"up_blocks\.(\d+)\.attent", key))
        }
        return {key: LdmName(UNET_PREFIX + _unet_key(key, layers, attention)) for key in keys}
    if component == "vae":
        levels = _count(keys, r"decoder\.up_blocks\.(\d+)\.")
        return {key: LdmName(VAE_PREFIX + _vae_key(key, levels)) for key in keys}
    # transformers 5.6 removed the "text_model." level from CLIPTextModel, but not from
    # CLIPTextModelWithProjection.
    short_keys = {key: key.removeprefix("text_model.") for key in keys}
    if component == "text_encoder":
        return {key: LdmName(CLIP_PREFIXES[family] + short_keys[key]) for key in keys}
    return {key: _open_clip_name(OPEN_CLIP_PREFIXES[family], short_keys[key]) for key in keys}


def _count(keys: Collection[str], pattern: str) -> int:
    return len({match[1] for key in keys if (match := re.match(pattern, key))})


def _rewrite(key: str, rules: list[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def _unet_key(key: str, layers: int, up_attention: Collection[str]) -> str:
    """Rewrite a UNet key; LDM numbers all blocks of a side consecutively, samplers included.

    Args:
        layers: number of resnets in a down block; an up block has one more.
        up_attention: indices of the up blocks with attention, where the upsampler is third.
    """
    for diffusers_name, ldm_name in _UNET_ENDS.items():
        if key.startswith(f"{diffusers_name}."):
            return ldm_name + key.removeprefix(diffusers_name)
    match = _UNET_BLOCK.fullmatch(key)
    assert match is not None, key
    side, block, kind, index, rest = match[1], match[2], match[3], int(match[4]), match[5]
    if kind == "resnets":
        inner, _, parameter = rest.partition(".")
        rest = f"{_RESNET[inner]}.{parameter}"
    if side == "mid":
        return f"middle_block.{2 * index if kind == 'resnets' else 1}.{rest}"
    slot = 0 if kind == "resnets" else 1
    if side == "down":
        if kind == "downsamplers":
            return (
                f"input_blocks.{(int(block) + 1) * (layers + 1)}.0.op.{rest.removeprefix('conv.')}"
            )
        return f"input_blocks.{1 + int(block) * (layers + 1) + index}.{slot}.{rest}"
    first = int(block) * (layers + 1)
    if kind == "upsamplers":
        return f"output_blocks.{first + layers}.{2 if block in up_attention else 1}.{rest}"
    return f"output_blocks.{first + index}.{slot}.{rest}"


def _vae_key(key: str, levels: int) -> str:
    key = _rewrite(key, _VAE_RULES)
    # LDM numbers the decoder's levels from the image, diffusers from the latents.
    return re.sub(
        r"^decoder\.up_blocks\.(\d+)", lambda match: f"decoder.up.{levels - 1 - int(match[1])}", key
    )


def _open_clip_name(prefix: str, key: str) -> LdmName:
    if key == "text_projection.weight":
        return LdmName(f"{prefix}text_projection", transposed=True)
    projection = re.fullmatch(
        r"encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(weight|bias)", key
    )
    if projection is None:
        return LdmName(prefix + _rewrite(key, _OPEN_CLIP_RULES))
    layer, role, parameter = projection.groups()
    fused = f"{prefix}transformer.resblocks.{layer}.attn.in_proj_{parameter}"
    return LdmName(fused, qkv_index="qkv".index(role))


def stored_shape(name: LdmName, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the file's tensor that stores a module weight of this shape."""
    if name.transposed:
        return shape[::-1]
    return shape if name.qkv_index is None else (3 * shape[0], *shape[1:])


def group_by_file_key(names: Mapping[str, LdmName]) -> dict[str, list[str]]:
    """Module keys by file key; query, key and value share one where the file fuses them."""
    grouped: dict[str, list[tuple[int, str]]] = {}
    for key, name in names.items():
        grouped.setdefault(name.key, []).append((name.qkv_index or 0, key))
    return {file_key: [key for _, key in sorted(keys)] for file_key, keys in grouped.items()}
