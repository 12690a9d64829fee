"""The finished checkpoint as adapters train on it: frozen, with pictures and texts encoded."""

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple, cast

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel

from imagefleet_worker.checkpoints.single_file import load_single_file
from tools.training.captions import LENGTH, any_caption, tokenizer
from tools.training.loop import device, placed
from tools.training.pictures import Scene, Style, any_pose, draw
from tools.training.train_unet import encoded, offset_noise


class Frozen(NamedTuple):
    """The parts of the checkpoint that adapters change or need."""

    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    autoencoder: AutoencoderKL


class Shown(NamedTuple):
    """A picture in latent space `(4, 16, 16)` and its scene."""

    latents: Tensor
    scene: Scene


def load(checkpoint: Path) -> Frozen:
    """The checkpoint's parts, float32, without gradients."""
    pipeline = load_single_file(checkpoint, device(), torch.float32).pipeline
    unet = placed(cast(UNet2DConditionModel, pipeline.unet))
    return Frozen(unet, cast(CLIPTextModel, pipeline.text_encoder), pipeline.vae)


def shown(frozen: Frozen, scenes: Sequence[Scene], style: Style, random: Random) -> list[Shown]:
    """Draw and encode the scenes."""
    pictures = [np.asarray(draw(scene, any_pose(random), style)) for scene in scenes]
    latents = encoded(frozen.autoencoder, pictures)
    return [Shown(*pair) for pair in zip(latents, scenes, strict=True)]


def tokens(texts: Sequence[str]) -> Tensor:
    """`(B, 77)` of CLIP's tokens."""
    return cast(
        Tensor,
        tokenizer()(
            list(texts), padding="max_length", max_length=LENGTH, return_tensors="pt"
        ).input_ids,
    )


class Batch(NamedTuple):
    """What one step learns from."""

    latents: Tensor
    scenes: list[Scene]
    texts: list[str]
    timesteps: Tensor
    noise: Tensor


def batch_of(examples: Sequence[Shown], size: int, seed: int, step: int) -> Batch:
    """A step's batch; the step and the seed decide everything."""
    random = Random(f"{seed} {step}")
    chosen = [random.choice(examples) for _ in range(size)]
    latents = torch.stack([each.latents for each in chosen])
    return Batch(
        latents,
        [each.scene for each in chosen],
        [any_caption(random, each.scene) for each in chosen],
        torch.tensor([random.randrange(1000) for _ in chosen]),
        offset_noise(latents.shape, torch.Generator().manual_seed(step)),
    )
