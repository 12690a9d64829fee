"""Train the demo model's UNet and text encoder, on latents of the finished autoencoder.

    python -m tools.training.train_unet /tmp/demo-training

Seeded; reads `autoencoder.pt` from the folder, writes `unet.pt` and `text_encoder.pt` (float32),
and saves its state in `unet.state`, from which it resumes.
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
from tools.training.loop import Plan, processes, to_device, train
from tools.training.pictures import SIDE_PX, Scene, any_pose, draw
from tools.training.scenes import training_scenes
from tools.training.train_autoencoder import load_narrow, posterior

PLAN = Plan(steps=1720, learning_rate=1e-3, ema=0.998)
CLIP_WIDTH = 128
_SEED = 2
# Over all processes.
_BATCH = 50
_POSES_NATURAL = 6
_POSES_TINTED = 1
_LATENT = SIDE_PX // 8
_TINTED_SHARE = 0.2
# Crops of pictures twice as large, at low noise only, as in the hires pass.
_LARGE = 240
_LARGE_SHARE = 0.06
_LARGE_TIMESTEPS = 650
_SNR_MAX = 5
_WEIGHT_MAX = 20
_OFFSET = 0.25


class ExampleSet(NamedTuple):
    """Pictures in latent space, `(N, 4, H/8, W/8)`, with their scenes."""

    latents: Tensor
    scenes: list[Scene]

    def choose(self, random: Random) -> tuple[Tensor, Scene]:
        """A random example."""
        index = random.randrange(len(self.scenes))
        return self.latents[index], self.scenes[index]


class TrainingSet(NamedTuple):
    """The training examples."""

    natural: ExampleSet
    tinted: ExampleSet
    large: ExampleSet


def new_unet() -> UNet2DConditionModel:
    """A small UNet of SD's blocks, with attention at 8 x 8 and below."""
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


def alphas_cumprod() -> Tensor:
    """The signal's share of the variance at each of SD 1.x's 1000 timesteps."""
    return (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2).cumprod(0)


@torch.no_grad()
def encode_pictures(autoencoder: AutoencoderKL, pictures: list[np.ndarray]) -> list[Tensor]:
    """Unit latents `(4, H/8, W/8)` of equally large RGB pictures."""
    scaling = autoencoder.config["scaling_factor"]
    latents: list[Tensor] = []
    for start in range(0, len(pictures), 16):
        batch = torch.from_numpy(np.stack(pictures[start : start + 16])).permute(0, 3, 1, 2)
        batch = (batch.float() / 127.5 - 1).to(autoencoder.device)
        latents.extend(posterior(autoencoder, batch).mean.cpu() * scaling)
    return latents


def prepare(folder: Path) -> TrainingSet:
    """Draw and encode all examples; cached on disk for resumed trainings."""
    random = Random(_SEED)
    natural, tinted = training_scenes()
    sets = (
        ([scene for scene in natural for _ in range(_POSES_NATURAL)], SIDE_PX),
        ([scene for scene in tinted for _ in range(_POSES_TINTED)], SIDE_PX),
        ([random.choice(natural + tinted) for _ in range(_LARGE)], 2 * SIDE_PX),
    )
    scenes = [part for part, _ in sets]
    cache, source = folder / "latents.pt", folder / "autoencoder.pt"
    if not cache.exists() or cache.stat().st_mtime < source.stat().st_mtime:
        autoencoder = load_narrow(folder)
        pictures = (
            [np.asarray(draw(scene, any_pose(random), "plain", side)) for scene in part]
            for part, side in sets
        )
        torch.save([torch.stack(encode_pictures(autoencoder, part)) for part in pictures], cache)
    latents: list[Tensor] = torch.load(cache, weights_only=True)
    return TrainingSet(*(ExampleSet(*pair) for pair in zip(latents, scenes, strict=True)))


def choose_example(training_set: TrainingSet, random: Random) -> tuple[Tensor, str, int]:
    """A random example: latents `(4, 16, 16)`, a caption and a timestep."""
    if random.random() < _LARGE_SHARE:
        latents, scene = training_set.large.choose(random)
        top, left = (random.randrange(_LATENT + 1) for _ in range(2))
        crop = latents[:, top : top + _LATENT, left : left + _LATENT]
        return crop, any_caption(random, scene), random.randrange(_LARGE_TIMESTEPS)
    examples = training_set.tinted if random.random() < _TINTED_SHARE else training_set.natural
    latents, scene = examples.choose(random)
    return latents, any_caption(random, scene), random.randrange(1000)


def offset_noise(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Unit noise plus an offset for each channel.

    SD's last timestep leaves the picture's mean in the noise, which reveals the background. Without
    offsets the model learned to read it instead of the caption, and rendered the background that
    the mean of the initial noise suggested.
    """
    offsets = torch.randn(*shape[:2], 1, 1, generator=generator)
    return torch.randn(shape, generator=generator) + _OFFSET * offsets


def denoising_loss(
    unet: UNet2DConditionModel, latents: Tensor, context: Tensor, timesteps: Tensor, noise: Tensor
) -> Tensor:
    """The error of the predicted noise, weighted by timestep.

    Low noise levels are down-weighted (arXiv 2303.09556, eq. 5). High ones are up-weighted: they
    contribute little to the error but determine whether the caption is followed, which the model
    otherwise learned much later than drawing.
    """
    alphas = alphas_cumprod()[timesteps].to(latents.device)[:, None, None, None]
    noisy = alphas.sqrt() * latents + (1 - alphas).sqrt() * noise
    predicted = unet(noisy, timesteps.to(latents.device), context).sample
    weight = (_SNR_MAX * (1 - alphas) / alphas).clamp(max=1)
    weight = weight * (1 / alphas).clamp(max=_WEIGHT_MAX)
    return (weight * (predicted - noise).square()).mean()


def loss_of(
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    vocabulary: Vocabulary,
    training_set: TrainingSet,
    step: int,
) -> Tensor:
    random = Random(f"{_SEED} {step}")
    examples = [choose_example(training_set, random) for _ in range(_BATCH // processes())]
    latents = torch.stack([each[0] for each in examples])
    token_ids = vocabulary.encode([each[1] for each in examples], random)
    timesteps = torch.tensor([each[2] for each in examples])
    noise = offset_noise(latents.shape, torch.Generator().manual_seed(step))
    to = unet.device
    context = text_encoder(token_ids.to(to)).last_hidden_state
    return denoising_loss(unet, latents.to(to), context, timesteps, noise.to(to))


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the demo model's UNet and text encoder.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=PLAN.steps)
    arguments = parser.parse_args()
    training_set = prepare(arguments.folder)
    torch.manual_seed(_SEED)
    vocabulary = Vocabulary()
    unet = to_device(new_unet())
    text_encoder = to_device(new_text_encoder(vocabulary.unknown + 1))
    averaged = train(
        {"unet": unet, "text_encoder": text_encoder},
        partial(loss_of, unet, text_encoder, vocabulary, training_set),
        replace(PLAN, steps=arguments.steps),
        arguments.folder / "unet.state",
    )
    for name, module in averaged.items():
        torch.save(module.state_dict(), arguments.folder / f"{name}.pt")


if __name__ == "__main__":
    main()
