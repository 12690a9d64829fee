"""Train the demo model's UNet and text encoder, on latents of the finished autoencoder.

    python -m tools.training.train_unet /tmp/demo-training

Seeded; reads `autoencoder.pt` of the folder and writes `unet.pt` and `text_encoder.pt` (float32),
and `unet.state` on the way, from which it goes on after a break.
"""

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from imagefleet_worker.checkpoints.architecture import Config, packaged_config
from tools.training.captions import Vocabulary, any_caption
from tools.training.loop import Plan, placed, processes, train
from tools.training.pictures import SIDE_PX, Scene, any_pose, draw
from tools.training.scenes import learned_scenes
from tools.training.train_autoencoder import load_narrow, posterior

PLAN = Plan(steps=1720, learning_rate=1e-3, ema=0.998)
CLIP_WIDTH = 128
_SEED = 2
# Of all processes together.
_BATCH = 50
_POSES_NATURAL = 6
_POSES_TINTED = 1
_LATENT = SIDE_PX // 8
_TINTED_SHARE = 0.2
# Crops of pictures twice as large, at low noise only: the second pass of hires draws them.
_LARGE = 240
_LARGE_SHARE = 0.06
_LARGE_TIMESTEPS = 650
_SNR_MOST = 5
_WEIGHT_MOST = 20
_OFFSET = 0.25


class Examples(NamedTuple):
    """Pictures in latent space, `(N, 4, H/8, W/8)`, with what they show."""

    latents: Tensor
    scenes: list[Scene]

    def choose(self, random: Random) -> tuple[Tensor, Scene]:
        """One of them."""
        number = random.randrange(len(self.scenes))
        return self.latents[number], self.scenes[number]


class Lessons(NamedTuple):
    """All that is learned from."""

    natural: Examples
    tinted: Examples
    large: Examples


def new_unet() -> UNet2DConditionModel:
    """The architecture: SD's blocks, attention where the latents are 8 x 8 and smaller."""
    kinds = ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"]
    config: Config = {
        **packaged_config("sd1", "unet"),
        "sample_size": _LATENT,
        "block_out_channels": [96, 128, 160],
        "layers_per_block": 1,
        "attention_head_dim": 8,
        "cross_attention_dim": CLIP_WIDTH,
        "down_block_types": kinds,
        "up_block_types": [kind.replace("Down", "Up") for kind in reversed(kinds)],
    }
    return UNet2DConditionModel(**config)


def new_text_encoder(words: int) -> CLIPTextModel:
    """CLIP's text encoder with two layers."""
    sizes: Config = {
        "vocab_size": words,
        "hidden_size": CLIP_WIDTH,
        "intermediate_size": 4 * CLIP_WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": CLIP_WIDTH // 64,
        "projection_dim": CLIP_WIDTH,
    }
    return CLIPTextModel(CLIPTextConfig(**{**packaged_config("sd1", "text_encoder"), **sizes}))


def noise_kept() -> Tensor:
    """The share of the picture's variance at each of the 1000 timesteps, as SD 1.x has them."""
    return (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2).cumprod(0)


@torch.no_grad()
def encoded(autoencoder: AutoencoderKL, pictures: list[np.ndarray]) -> list[Tensor]:
    """Unit latents `(4, H/8, W/8)` of equally large RGB pictures."""
    scaling = autoencoder.config["scaling_factor"]
    found: list[Tensor] = []
    for start in range(0, len(pictures), 16):
        batch = torch.from_numpy(np.stack(pictures[start : start + 16])).permute(0, 3, 1, 2)
        batch = (batch.float() / 127.5 - 1).to(autoencoder.device)
        found.extend(posterior(autoencoder, batch).mean.cpu() * scaling)
    return found


def prepare(folder: Path) -> Lessons:
    """Draw and encode everything once; a training that goes on finds it done."""
    random = Random(_SEED)
    natural, tinted = learned_scenes()
    wanted = (
        ([scene for scene in natural for _ in range(_POSES_NATURAL)], SIDE_PX),
        ([scene for scene in tinted for _ in range(_POSES_TINTED)], SIDE_PX),
        ([random.choice(natural + tinted) for _ in range(_LARGE)], 2 * SIDE_PX),
    )
    scenes = [part for part, _ in wanted]
    cache, source = folder / "latents.pt", folder / "autoencoder.pt"
    if not cache.exists() or cache.stat().st_mtime < source.stat().st_mtime:
        autoencoder = load_narrow(folder)
        drawn = (
            [np.asarray(draw(scene, any_pose(random), "plain", side)) for scene in part]
            for part, side in wanted
        )
        torch.save([torch.stack(encoded(autoencoder, part)) for part in drawn], cache)
    latents: list[Tensor] = torch.load(cache, weights_only=True)
    return Lessons(*(Examples(*pair) for pair in zip(latents, scenes, strict=True)))


def choose(lessons: Lessons, random: Random) -> tuple[Tensor, str, int]:
    """Latents `(4, 16, 16)`, a caption and a timestep."""
    if random.random() < _LARGE_SHARE:
        latents, scene = lessons.large.choose(random)
        top, left = (random.randrange(_LATENT + 1) for _ in range(2))
        crop = latents[:, top : top + _LATENT, left : left + _LATENT]
        return crop, any_caption(random, scene), random.randrange(_LARGE_TIMESTEPS)
    examples = lessons.tinted if random.random() < _TINTED_SHARE else lessons.natural
    latents, scene = examples.choose(random)
    return latents, any_caption(random, scene), random.randrange(1000)


def offset_noise(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Unit noise plus an offset for each channel.

    SD's last timestep leaves a trace of the picture in the noise: its mean, which tells the
    background. Without offsets the model learned to read that instead of the caption, and drew the
    background that the mean of the first noise happened to suggest.
    """
    offsets = torch.randn(*shape[:2], 1, 1, generator=generator)
    return torch.randn(shape, generator=generator) + _OFFSET * offsets


def denoising_loss(
    unet: UNet2DConditionModel, latents: Tensor, context: Tensor, timesteps: Tensor, noise: Tensor
) -> Tensor:
    """How far the predicted noise is off, weighted by timestep.

    Low noise levels are held down (arXiv 2303.09556, eq. 5). At high ones the picture is a small
    part of what the noise hides, yet there it is decided what a caption says: without a weight of
    their own the model learned to draw long before it heeded captions.
    """
    kept = noise_kept()[timesteps].to(latents.device)[:, None, None, None]
    noisy = kept.sqrt() * latents + (1 - kept).sqrt() * noise
    predicted = unet(noisy, timesteps.to(latents.device), context).sample
    weight = (_SNR_MOST * (1 - kept) / kept).clamp(max=1) * (1 / kept).clamp(max=_WEIGHT_MOST)
    return (weight * (predicted - noise).square()).mean()


def loss_of(
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    vocabulary: Vocabulary,
    lessons: Lessons,
    step: int,
) -> Tensor:
    random = Random(f"{_SEED} {step}")
    chosen = [choose(lessons, random) for _ in range(_BATCH // processes())]
    latents = torch.stack([each[0] for each in chosen])
    places = vocabulary.encode([each[1] for each in chosen], random)
    timesteps = torch.tensor([each[2] for each in chosen])
    noise = offset_noise(latents.shape, torch.Generator().manual_seed(step))
    to = unet.device
    context = text_encoder(places.to(to)).last_hidden_state
    return denoising_loss(unet, latents.to(to), context, timesteps, noise.to(to))


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the demo model's UNet and text encoder.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=PLAN.steps)
    arguments = parser.parse_args()
    lessons = prepare(arguments.folder)
    torch.manual_seed(_SEED)
    vocabulary = Vocabulary()
    unet = placed(new_unet())
    text_encoder = placed(new_text_encoder(vocabulary.unknown + 1))
    averaged = train(
        {"unet": unet, "text_encoder": text_encoder},
        partial(loss_of, unet, text_encoder, vocabulary, lessons),
        replace(PLAN, steps=arguments.steps),
        arguments.folder / "unet.state",
    )
    for name, module in averaged.items():
        torch.save(module.state_dict(), arguments.folder / f"{name}.pt")


if __name__ == "__main__":
    main()
