"""Train the demo autoencoder's decoder further; its latents stay as they are.

    python -m tools.training.train_decoder /tmp/demo-training

The UNet needs the encoder only, so this may run at the same time. Seeded; reads `autoencoder.pt` of
the folder and writes `decoder.pt`, the whole autoencoder with the better decoder.
"""

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor

from tools.training.loop import Plan, train
from tools.training.train_autoencoder import (
    crops,
    decoded,
    load_narrow,
    new_pools,
    posterior,
    reconstruction_loss,
)

PLAN = Plan(steps=420, learning_rate=1e-3, ema=0.995)
# Other crops than the autoencoder's own training had.
_FIRST_STEP = 1_000_000
# The UNet's latents are never quite right: the decoder learns to bear a little noise in them.
_NOISE = 0.05


def loss_of(autoencoder: AutoencoderKL, pools: tuple[Tensor, Tensor], step: int) -> Tensor:
    pictures = crops(pools, _FIRST_STEP + step).to(autoencoder.device)
    with torch.no_grad():
        latents = posterior(autoencoder, pictures).mean
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(step))
    spread = _NOISE / autoencoder.config["scaling_factor"]
    drawn = decoded(autoencoder, latents + spread * noise.to(latents.device))
    return reconstruction_loss(drawn, pictures)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the demo's decoder further.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=PLAN.steps)
    arguments = parser.parse_args()
    autoencoder = load_narrow(arguments.folder)
    assert autoencoder.post_quant_conv is not None
    autoencoder.decoder.requires_grad_(True)
    autoencoder.post_quant_conv.requires_grad_(True)
    averaged = train(
        {"vae": autoencoder},
        partial(loss_of, autoencoder, new_pools()),
        replace(PLAN, steps=arguments.steps),
        arguments.folder / "decoder.state",
    )["vae"]
    torch.save(averaged.state_dict(), arguments.folder / "decoder.pt")


if __name__ == "__main__":
    main()
