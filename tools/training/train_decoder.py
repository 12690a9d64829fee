"""Fine-tune the demo autoencoder's decoder; its latents do not change.

    python -m tools.training.train_decoder /tmp/demo-training

The UNet needs the encoder only, so its training may run at the same time. Seeded; reads
`autoencoder.pt` from the folder and writes `decoder.pt`, the whole autoencoder with the fine-tuned
decoder.
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
    decode,
    load_narrow,
    new_pools,
    posterior,
    reconstruction_loss,
)

PLAN = Plan(steps=420, learning_rate=1e-3, ema=0.995)
# Other crops than in the autoencoder's training.
_FIRST_STEP = 1_000_000
# The UNet's latents are never exact: the decoder is trained to tolerate a little noise.
_NOISE = 0.05


def loss_of(autoencoder: AutoencoderKL, pools: tuple[Tensor, Tensor], step: int) -> Tensor:
    pictures = crops(pools, _FIRST_STEP + step).to(autoencoder.device)
    with torch.no_grad():
        latents = posterior(autoencoder, pictures).mean
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(step))
    spread = _NOISE / autoencoder.config["scaling_factor"]
    output = decode(autoencoder, latents + spread * noise.to(latents.device))
    return reconstruction_loss(output, pictures)


def main() -> None:
    parser = argparse.ArgumentParser(description="Fine-tune the demo's decoder.")
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
