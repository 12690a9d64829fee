"""Full-size checkpoints with random weights: SD 1.5 (2.1 GB), SDXL base (6.9 GB), its refiner.

    python -m tests.full_size FOLDER

Names and shapes come from the real modules, built on the meta device. Weights are float16 with the
variance of a fresh initialisation, so that activations stay finite; rendered pictures are noise.
"""

import argparse
import json
from pathlib import Path

import torch
from accelerate import init_empty_weights
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from imagefleet_worker.checkpoints.architecture import Config, packaged_config
from imagefleet_worker.weights.families import NATIVE_SIZE_PX, Family
from imagefleet_worker.weights.ldm_keys import LdmComponent
from tools.ldm_checkpoint import ldm_state_dict

_HEADER_ALIGNMENT = 8

_UNETS: dict[Family, Config] = {
    "sd1": {
        "block_out_channels": [320, 640, 1280, 1280],
        "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
        "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
    },
    "sdxl": {
        "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D", *["CrossAttnDownBlock2D"] * 2],
        "up_block_types": [*["CrossAttnUpBlock2D"] * 2, "UpBlock2D"],
        "cross_attention_dim": 2048,
        "attention_head_dim": [5, 10, 20],
        "transformer_layers_per_block": [1, 2, 10],
        "use_linear_projection": True,
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    "sdxl_refiner": {
        "block_out_channels": [384, 768, 1536, 1536],
        "down_block_types": ["DownBlock2D", *["CrossAttnDownBlock2D"] * 2, "DownBlock2D"],
        "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 2, "UpBlock2D"],
        "cross_attention_dim": 1280,
        "attention_head_dim": [6, 12, 24, 24],
        "transformer_layers_per_block": 4,
        "use_linear_projection": True,
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2560,
    },
}
_VAE: Config = {
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 4,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
_CLIP_L: Config = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
}
_OPEN_CLIP_BIGG: Config = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
}


def full_size_modules(family: Family) -> dict[LdmComponent, torch.nn.Module]:
    """The family's components at their released sizes, with parameters on the meta device."""
    sample = NATIVE_SIZE_PX[family] // 8
    with init_empty_weights():
        modules: dict[LdmComponent, torch.nn.Module] = {
            "unet": UNet2DConditionModel(
                **packaged_config(family, "unet"), **_UNETS[family], sample_size=sample
            ),
            "vae": AutoencoderKL(**packaged_config(family, "vae"), **_VAE),
        }
        if family != "sdxl_refiner":
            clip = CLIPTextConfig(**packaged_config(family, "text_encoder"), **_CLIP_L)
            modules["text_encoder"] = CLIPTextModel(clip)
        if family != "sd1":
            bigg = CLIPTextConfig(**packaged_config(family, "text_encoder_2"), **_OPEN_CLIP_BIGG)
            modules["text_encoder_2"] = CLIPTextModelWithProjection(bigg)
    return modules


def write_full_size(out: Path, family: Family, seed: int = 0) -> None:
    """Write the checkpoint tensor by tensor, which needs the memory of one tensor only."""
    shapes = ldm_state_dict(family, full_size_modules(family), torch.float16)
    entries: dict[str, object] = {"__metadata__": {"modelspec.title": f"random {family}"}}
    end = 0
    for key, tensor in shapes.items():
        start, end = end, end + tensor.nbytes
        entries[key] = {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": [start, end]}
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % _HEADER_ALIGNMENT)
    generator = torch.Generator().manual_seed(seed)
    with out.open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little"))
        stream.write(header)
        for key, tensor in shapes.items():
            stream.write(_random_weight(key, tensor.shape, generator).numpy().tobytes())


def _random_weight(key: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """float16: norm scales are 1, biases 0; other weights preserve their input's variance."""
    if len(shape) == 1:
        return torch.full(shape, float(key.endswith(".weight")), dtype=torch.float16)
    fan_in = shape[1:].numel()
    return torch.empty(shape).normal_(0.0, fan_in**-0.5, generator=generator).half()


def main() -> None:
    parser = argparse.ArgumentParser(description="Write full-size random checkpoints.")
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    families: tuple[Family, ...] = ("sd1", "sdxl", "sdxl_refiner")
    for family in families:
        write_full_size(folder / f"{family}-full-size.safetensors", family)


if __name__ == "__main__":
    main()
