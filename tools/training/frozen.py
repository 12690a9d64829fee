"""The frozen checkpoint for training adapters, with encoded pictures and texts."""

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
from tools.training.loop import device, to_device
from tools.training.pictures import Scene, Style, any_pose, draw
from tools.training.train_unet import encode_pictures, offset_noise


class FrozenModels(NamedTuple):
    """The components of the checkpoint that adapter training uses."""

    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    autoencoder: AutoencoderKL


class Example(NamedTuple):
    """A picture in latent space `(4, 16, 16)` and its scene."""

    latents: Tensor
    scene: Scene


def load_frozen(checkpoint: Path) -> FrozenModels:
    """Load the checkpoint's components: float32, without gradients."""
    pipeline = load_single_file(checkpoint, device(), torch.float32).pipeline
    unet = to_device(cast(UNet2DConditionModel, pipeline.unet))
    return FrozenModels(unet, cast(CLIPTextModel, pipeline.text_encoder), pipeline.vae)


def encode_scenes(
    frozen: FrozenModels, scenes: Sequence[Scene], style: Style, random: Random
) -> list[Example]:
    """Draw and encode the scenes."""
    pictures = [np.asarray(draw(scene, any_pose(random), style)) for scene in scenes]
    latents = encode_pictures(frozen.autoencoder, pictures)
    return [Example(*pair) for pair in zip(latents, scenes, strict=True)]


def tokenize(texts: Sequence[str]) -> Tensor:
    """Tokenize texts to `(B, 77)`."""
    return cast(
        Tensor,
        tokenizer()(
            list(texts), padding="max_length", max_length=LENGTH, return_tensors="pt"
        ).input_ids,
    )


class Batch(NamedTuple):
    """The inputs of one training step."""

    latents: Tensor
    scenes: list[Scene]
    texts: list[str]
    timesteps: Tensor
    noise: Tensor


def batch_of(examples: Sequence[Example], size: int, seed: int, step: int) -> Batch:
    """A step's batch, determined by step and seed."""
    random = Random(f"{seed} {step}")
    batch = [random.choice(examples) for _ in range(size)]
    latents = torch.stack([example.latents for example in batch])
    return Batch(
        latents,
        [example.scene for example in batch],
        [any_caption(random, example.scene) for example in batch],
        torch.tensor([random.randrange(1000) for _ in batch]),
        offset_noise(latents.shape, torch.Generator().manual_seed(step)),
    )
