"""Assemble the trained components into one single-file checkpoint.

python -m tools.training.assemble /tmp/demo-training worker/models
"""

import argparse
from pathlib import Path

import torch
from transformers import CLIPTextModel

from imagefleet_worker.weights.ldm_keys import LdmComponent
from tools.make_demo_checkpoint import write_checkpoint
from tools.training.captions import Vocabulary
from tools.training.train_autoencoder import load_wide
from tools.training.train_unet import new_text_encoder, new_unet

_TABLE = "embeddings.token_embedding.weight"
_ALL_TOKENS = 49_408
# Standard deviation of unknown words' embeddings, relative to the known ones'.
_SPREAD = 0.02
_DESCRIPTION = "Trained on pictograms of Noto Color Emoji (OFL 1.1); see PROVENANCE.md."


def load_text_encoder(folder: Path) -> CLIPTextModel:
    """The trained text encoder with CLIP's full vocabulary."""
    vocabulary = Vocabulary()
    weights = torch.load(folder / "text_encoder.pt", weights_only=True)
    (name,) = (key for key in weights if key.endswith(_TABLE))
    learned = weights[name]
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(_ALL_TOKENS, learned.shape[1], generator=generator)
    table = learned[vocabulary.unknown] + noise * learned.std() * _SPREAD
    table[vocabulary.tokens] = learned[: vocabulary.unknown]
    encoder = new_text_encoder(_ALL_TOKENS)
    encoder.load_state_dict({**weights, name: table})
    return encoder.eval().requires_grad_(False)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the trained checkpoint.")
    parser.add_argument("folder", type=Path, help="folder with the trained components")
    parser.add_argument("models", type=Path, help="the model folder")
    arguments = parser.parse_args()
    unet = new_unet()
    unet.load_state_dict(torch.load(arguments.folder / "unet.pt", weights_only=True))
    modules: dict[LdmComponent, torch.nn.Module] = {
        "unet": unet,
        "vae": load_wide(arguments.folder),
        "text_encoder": load_text_encoder(arguments.folder),
    }
    out = arguments.models / "checkpoints/demo.safetensors"
    out.parent.mkdir(parents=True, exist_ok=True)
    write_checkpoint(out, "sd1", modules, "Imagefleet demo", _DESCRIPTION)
    # Readable by the container's user too.
    out.chmod(0o644)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
