"""Train the demo's textual inversion on the finished checkpoint.

    python -m tools.training.train_embedding /tmp/demo-training worker/models

`demo-owl` is two vectors that render a blue owl. The checkpoint was trained on owls and on blue
things, but never on a blue owl, and it is not changed. Seeded.
"""

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random

from safetensors.torch import save_file
from torch import Tensor, nn

from imagefleet_worker.prompts.inject_embeddings import inject_embeddings
from tools.training.captions import tokenizer
from tools.training.frozen import (
    Example,
    FrozenModels,
    batch_of,
    encode_scenes,
    load_frozen,
    tokenize,
)
from tools.training.loop import Plan, train
from tools.training.pictures import Scene
from tools.training.subjects import BACKGROUNDS
from tools.training.train_unet import denoising_loss

PLAN = Plan(steps=300, learning_rate=5e-3, ema=0.98)
SUBJECT, TINT = "owl", "blue"
_SEED = 14
_BATCH = 12
_POSES = 10
_VECTORS = 2
# The vectors' placeholder in texts: a word of one token, repeated for each vector.
_WORD = "thing"
_PLACEHOLDER = " ".join([_WORD] * _VECTORS)
_TEXTS = (
    f"a {_PLACEHOLDER} on a {{background}} background",
    f"{_PLACEHOLDER}, {{background}} background",
    f"a {_PLACEHOLDER}",
)


class Vectors(nn.Module):
    """The trained vectors, `(n, hidden)`."""

    def __init__(self, initial: Tensor) -> None:
        super().__init__()
        self.vectors = nn.Parameter(initial.clone())


def loss_of(frozen: FrozenModels, inversion: Vectors, examples: list[Example], step: int) -> Tensor:
    batch = batch_of(examples, _BATCH, _SEED, step)
    texts = [
        random_text(Random(f"{_SEED} {step} {row}"), scene)
        for row, scene in enumerate(batch.scenes)
    ]
    token_ids = tokenize(texts)
    (placeholder,) = tokenizer().encode(_WORD, add_special_tokens=False)
    rows, columns = (token_ids == placeholder).nonzero(as_tuple=True)
    vectors = inversion.vectors.repeat(len(texts), 1)
    to = frozen.unet.device
    with inject_embeddings(frozen.text_encoder, rows, columns, vectors):
        context = frozen.text_encoder(token_ids.to(to)).last_hidden_state
    return denoising_loss(
        frozen.unet, batch.latents.to(to), context, batch.timesteps, batch.noise.to(to)
    )


def random_text(random: Random, scene: Scene) -> str:
    """A caption with the placeholder for the subject."""
    return random.choice(_TEXTS).format(background=scene.background)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the demo's textual inversion.")
    parser.add_argument("folder", type=Path, help="folder for the training's state")
    parser.add_argument("models", type=Path, help="the model folder, with the checkpoint")
    parser.add_argument("--steps", type=int, default=PLAN.steps)
    arguments = parser.parse_args()
    frozen = load_frozen(arguments.models / "checkpoints/demo.safetensors")
    scenes = [
        Scene(subject=SUBJECT, background=background, tint=TINT)
        for background in BACKGROUNDS
        if background != TINT
    ]
    examples = encode_scenes(frozen, scenes * _POSES, "plain", Random(_SEED))
    table = frozen.text_encoder.get_input_embeddings().get_parameter("weight")
    initial = table[tokenizer().encode(_WORD, add_special_tokens=False)].repeat(_VECTORS, 1)
    inversion = Vectors(initial)
    trained = train(
        {"inversion": inversion},
        partial(loss_of, frozen, inversion, examples),
        replace(PLAN, steps=arguments.steps),
        arguments.folder / "embedding.state",
    )["inversion"]
    out = arguments.models / "embeddings/demo-owl.safetensors"
    out.parent.mkdir(parents=True, exist_ok=True)
    assert isinstance(trained, Vectors)
    save_file({"emb_params": trained.vectors.detach().cpu()}, out)
    out.chmod(0o644)
    print(f"{out}: {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
