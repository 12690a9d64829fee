"""Train the demo model's autoencoder.

    python -m tools.training.train_autoencoder /tmp/demo-training

Seeded; writes `autoencoder.pt` (diffusers' names, float32) into the folder, and saves its state in
`autoencoder.state`, from which it resumes.
"""

import argparse
from functools import partial
from pathlib import Path
from random import Random
from typing import cast

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor

from imagefleet_worker.checkpoints.architecture import Config, packaged_config
from tools.training.companions import NARROW, WIDE, add_companions, widen
from tools.training.loop import Plan, to_device, train
from tools.training.pictures import SIDE_PX, Scene, Style, any_pose, draw
from tools.training.subjects import BACKGROUNDS, SUBJECTS, TINTS

PLAN = Plan(steps=1100, learning_rate=1.5e-3, ema=0.998)
_SEED = 1
_POOL = 2400
_LARGE_POOL = 300
_STYLED_SHARE = 0.15
_CROP_PX = 64
_BATCH = 16
# Every Nth step uses whole pictures, a quarter as many for the same work.
_WHOLE_EVERY = 6
_LARGE_SHARE = 0.2
_SQUARES = 2.0
_EDGES = 0.5
_KL = 3e-4


def new_autoencoder(channels: int) -> AutoencoderKL:
    """SD's architecture, factor 8, with `channels` channels at full resolution."""
    config: Config = {
        **packaged_config("sd1", "vae"),
        "sample_size": SIDE_PX,
        "block_out_channels": [channels, 64, 64, 128],
        "layers_per_block": 1,
        "latent_channels": 4,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    }
    return AutoencoderKL(**config)


def narrow_autoencoder() -> AutoencoderKL:
    """The narrow autoencoder, which is trained."""
    autoencoder = new_autoencoder(NARROW)
    add_companions(autoencoder)
    return autoencoder


def load_narrow(folder: Path, name: str = "autoencoder.pt") -> AutoencoderKL:
    """Load the trained autoencoder, frozen; its latents equal those of the checkpoint."""
    autoencoder = narrow_autoencoder()
    autoencoder.load_state_dict(torch.load(folder / name, weights_only=True))
    return to_device(autoencoder).eval().requires_grad_(False)


def load_wide(folder: Path) -> AutoencoderKL:
    """Load the autoencoder with its final decoder, widened for the checkpoint, on the CPU."""
    autoencoder = new_autoencoder(WIDE)
    narrow = load_narrow(folder, "decoder.pt").cpu().state_dict()
    autoencoder.load_state_dict(widen(narrow, autoencoder.state_dict()))
    return autoencoder.eval().requires_grad_(False)


def picture_pool(count: int, side_px: int, seed: int) -> Tensor:
    """Random pictures of all subjects, `(count, 3, side, side) uint8`."""
    random = Random(seed)
    styles: tuple[Style, ...] = ("sticker", "blueprint")
    pool = np.empty((count, side_px, side_px, 3), dtype=np.uint8)
    for picture in pool:
        scene = Scene(
            subject=random.choice(list(SUBJECTS)),
            background=random.choice(list(BACKGROUNDS)),
            tint=random.choice(list(TINTS)) if random.random() < 0.4 else None,
        )
        style = random.choice(styles) if random.random() < _STYLED_SHARE else "plain"
        picture[:] = np.asarray(draw(scene, any_pose(random), style, side_px))
    return torch.from_numpy(pool).permute(0, 3, 1, 2)


def new_pools() -> tuple[Tensor, Tensor]:
    """Pictures of 128 pixels and of 256."""
    return picture_pool(_POOL, SIDE_PX, _SEED), picture_pool(_LARGE_POOL, 2 * SIDE_PX, _SEED + 1)


def crops(pools: tuple[Tensor, Tensor], step: int) -> Tensor:
    """The step's batch, `(B, 3, side, side)` in [-1, 1]."""
    random = Random(f"{_SEED} {step}")
    whole = step % _WHOLE_EVERY == 0
    side = SIDE_PX if whole else _CROP_PX
    batch: list[Tensor] = []
    for _ in range(_BATCH // 4 if whole else _BATCH):
        pool = pools[random.random() < _LARGE_SHARE]
        picture = pool[random.randrange(len(pool))]
        top, left = (random.randrange(picture.shape[-1] - side + 1) for _ in range(2))
        batch.append(picture[:, top : top + side, left : left + side])
    return torch.stack(batch).float() / 127.5 - 1


def posterior(autoencoder: AutoencoderKL, pictures: Tensor) -> DiagonalGaussianDistribution:
    """Encode pictures to the latent distribution, before scaling."""
    return autoencoder.encode(pictures, return_dict=False)[0]


def decode(autoencoder: AutoencoderKL, latents: Tensor) -> Tensor:
    """Decode latents to `(B, 3, H, W)` in about [-1, 1]."""
    return autoencoder.decode(cast(torch.FloatTensor, latents), return_dict=False)[0]


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """Loss on pixels and on their gradients, which keeps edges sharp."""
    error = output - target
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.abs().mean() + _SQUARES * error.square().mean() + _EDGES * edges


def loss_of(autoencoder: AutoencoderKL, pools: tuple[Tensor, Tensor], step: int) -> Tensor:
    pictures = crops(pools, step).to(autoencoder.device)
    generator = torch.Generator().manual_seed(_SEED * 1_000_003 + step)
    latents = posterior(autoencoder, pictures)
    noise = torch.randn(latents.mean.shape, generator=generator).to(autoencoder.device)
    output = decode(autoencoder, latents.mean + latents.std * noise)
    kl = 0.5 * (latents.mean.square() + latents.var - 1 - latents.logvar).mean()
    return reconstruction_loss(output, pictures) + _KL * kl


@torch.no_grad()
def normalise_latents(autoencoder: AutoencoderKL, pictures: Tensor) -> None:
    """Normalise the latents, in place, so that the packaged scaling factor makes them N(0, 1).

    The quantisation convolution is changed and its counterpart inverts it: pictures stay the same.
    """
    quant, post = autoencoder.quant_conv, autoencoder.post_quant_conv
    assert quant is not None
    assert post is not None
    means = torch.cat([posterior(autoencoder, part).mean for part in pictures.split(32)])
    centre = means.mean(dim=(0, 2, 3))
    gain = 1 / (autoencoder.config["scaling_factor"] * means.std(dim=(0, 2, 3)))
    assert quant.bias is not None
    assert post.bias is not None
    quant.weight[:4] *= gain[:, None, None, None]
    quant.bias[:4] = (quant.bias[:4] - centre) * gain
    post.bias += (post.weight * centre[None, :, None, None]).sum(dim=(1, 2, 3))
    post.weight /= gain[None, :, None, None]
    # Almost no variance: encoding a picture is nearly deterministic.
    quant.weight[4:] = 0
    quant.bias[4:] = -10


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the demo model's autoencoder.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=PLAN.steps)
    arguments = parser.parse_args()
    torch.manual_seed(_SEED)
    autoencoder = to_device(narrow_autoencoder())
    pools = new_pools()
    plan = Plan(steps=arguments.steps, learning_rate=PLAN.learning_rate, ema=PLAN.ema)
    averaged = train(
        {"vae": autoencoder},
        partial(loss_of, autoencoder, pools),
        plan,
        arguments.folder / "autoencoder.state",
    )["vae"]
    assert isinstance(averaged, AutoencoderKL)
    normalise_latents(averaged, pools[0][:512].float().to(averaged.device) / 127.5 - 1)
    torch.save(averaged.state_dict(), arguments.folder / "autoencoder.pt")


if __name__ == "__main__":
    main()
