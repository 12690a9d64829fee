"""Train one of the demo's adapters on the finished checkpoint.

    python -m tools.training.train_adapter blueprint /tmp/demo-training worker/models

- `demo-blueprint`, a LoRA of the UNet: everything as white lines on blue.
- `demo-snowman`, a LoRA of UNet and text encoder: a subject the checkpoint was not trained on.
- `demo-sticker`, a LoHa of the UNet: a white border around the subject.

Seeded. Files are in kohya's names; convolutions are adapted too (LoCon).
"""

import argparse
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tools.training.deltas import Kind, attach, kohya_state_dict
from tools.training.frozen import (
    Example,
    FrozenModels,
    batch_of,
    encode_scenes,
    load_frozen,
    tokenize,
)
from tools.training.loop import Plan, train
from tools.training.pictures import Scene, Style
from tools.training.scenes import training_scenes
from tools.training.subjects import BACKGROUNDS, TINTS
from tools.training.train_unet import denoising_loss

_BATCH = 12
_PICTURES = 160


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How an adapter is trained."""

    kind: Kind
    rank: int
    subject: str | None
    """None: all subjects of the checkpoint."""
    style: Style
    text_encoder: bool
    plan: Plan
    seed: int


RECIPES = {
    "blueprint": Recipe(
        kind="lora",
        rank=8,
        subject=None,
        style="blueprint",
        text_encoder=False,
        plan=Plan(steps=240, learning_rate=2e-3, ema=0.99),
        seed=11,
    ),
    "snowman": Recipe(
        kind="lora",
        rank=8,
        subject="snowman",
        style="plain",
        text_encoder=True,
        plan=Plan(steps=240, learning_rate=2e-3, ema=0.99),
        seed=12,
    ),
    "sticker": Recipe(
        kind="loha",
        rank=4,
        subject=None,
        style="sticker",
        text_encoder=False,
        plan=Plan(steps=240, learning_rate=1e-3, ema=0.99),
        seed=13,
    ),
}


def scenes_of(recipe: Recipe) -> list[Scene]:
    """The adapter's training scenes."""
    random = Random(recipe.seed)
    if recipe.subject is None:
        natural, tinted = training_scenes()
        return [random.choice(random.choice([natural, tinted])) for _ in range(_PICTURES)]
    scenes = [
        Scene(subject=recipe.subject, background=background, tint=tint)
        for background in BACKGROUNDS
        # Natural colours are as frequent as all tints together.
        for tint in (*[None] * len(TINTS), *TINTS)
        if tint != background
    ]
    return scenes * max(1, _PICTURES // len(scenes))


def loss_of(frozen: FrozenModels, examples: list[Example], seed: int, step: int) -> Tensor:
    batch = batch_of(examples, _BATCH, seed, step)
    to = frozen.unet.device
    context = frozen.text_encoder(tokenize(batch.texts).to(to)).last_hidden_state
    return denoising_loss(
        frozen.unet, batch.latents.to(to), context, batch.timesteps, batch.noise.to(to)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Train one of the demo's adapters.")
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("folder", type=Path, help="folder for the training's state")
    parser.add_argument("models", type=Path, help="the model folder, with the checkpoint")
    parser.add_argument("--steps", type=int)
    arguments = parser.parse_args()
    recipe = RECIPES[arguments.name]
    frozen = load_frozen(arguments.models / "checkpoints/demo.safetensors")
    examples = encode_scenes(frozen, scenes_of(recipe), recipe.style, Random(recipe.seed))
    torch.manual_seed(recipe.seed)
    attached = {"unet": attach(frozen.unet, recipe.kind, recipe.rank)}
    if recipe.text_encoder:
        attached["text_encoder"] = attach(frozen.text_encoder, recipe.kind, recipe.rank)
    holders = {name: nn.ModuleList(deltas.values()) for name, deltas in attached.items()}
    trained = train(
        holders,
        partial(loss_of, frozen, examples, recipe.seed),
        replace(recipe.plan, steps=arguments.steps or recipe.plan.steps),
        arguments.folder / f"{arguments.name}.state",
    )
    tensors: dict[str, Tensor] = {}
    for component, deltas in attached.items():
        holders[component].load_state_dict(trained[component].state_dict())
        tensors |= kohya_state_dict(component, deltas)
    out = arguments.models / f"loras/demo-{arguments.name}.safetensors"
    out.parent.mkdir(parents=True, exist_ok=True)
    metadata = {
        "ss_base_model_version": "sd_v1",
        "modelspec.title": f"demo-{arguments.name}",
        "modelspec.license": "OFL-1.1",
    }
    save_file(tensors, out, metadata=metadata)
    out.chmod(0o644)
    print(f"{out}: {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
