"""SD 1.x checkpoints with as few different layers as possible, for tests that compile them."""

from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from imagefleet_worker.checkpoints.architecture import Config, packaged_config
from imagefleet_worker.weights.ldm_keys import LdmComponent
from tests.random_adapters import linear_targets
from tools.make_demo_checkpoint import write_checkpoint

_WIDTH = 32
_UNET: Config = {
    "sample_size": 16,
    "block_out_channels": [_WIDTH, 2 * _WIDTH],
    "layers_per_block": 1,
    "cross_attention_dim": _WIDTH,
    "attention_head_dim": 8,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}
_VAE: Config = {
    "sample_size": 128,
    "block_out_channels": [_WIDTH] * 4,
    "layers_per_block": 1,
    "latent_channels": 4,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
_CLIP: Config = {
    "hidden_size": _WIDTH,
    "intermediate_size": 4 * _WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "projection_dim": _WIDTH,
}


def write_tiny_models(root: Path) -> None:
    """Write checkpoints `demo` and `other`, LoRAs `demo-one` and `demo-two`, and the embedding
    `demo-token`."""
    for folder in ("checkpoints", "loras", "embeddings"):
        (root / folder).mkdir(parents=True)
    for seed, name in enumerate(("demo", "other")):
        modules = _modules(seed)
        write_checkpoint(root / f"checkpoints/{name}.safetensors", "sd1", modules, f"tiny {name}")
    for seed, name in enumerate(("demo-one", "demo-two")):
        save_file(_lora(_modules(0)["unet"], seed), root / f"loras/{name}.safetensors")
    vectors = torch.randn(3, _WIDTH, generator=torch.Generator().manual_seed(9))
    save_file({"emb_params": vectors}, root / "embeddings/demo-token.safetensors")


def _modules(seed: int) -> dict[LdmComponent, torch.nn.Module]:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        return {
            "unet": UNet2DConditionModel(**packaged_config("sd1", "unet"), **_UNET).eval(),
            "vae": AutoencoderKL(**packaged_config("sd1", "vae"), **_VAE).eval(),
            "text_encoder": CLIPTextModel(
                CLIPTextConfig(**packaged_config("sd1", "text_encoder"), **_CLIP)
            ).eval(),
        }


def _lora(unet: torch.nn.Module, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    factors: dict[str, Tensor] = {}
    for target in linear_targets("unet", unet):
        rows, columns = unet.get_parameter(target.parameter).shape
        name = f"unet.{target.parameter.removesuffix('.weight')}"
        factors[f"{name}.lora_A.weight"] = torch.randn(4, columns, generator=generator) * 0.2
        factors[f"{name}.lora_B.weight"] = torch.randn(rows, 4, generator=generator) * 0.2
    return factors
