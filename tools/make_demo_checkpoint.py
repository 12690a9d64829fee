"""Write a small random-weight checkpoint, so that demo and tests need no download.

    python -m tools.make_demo_checkpoint models/checkpoints/demo.safetensors [--sdxl | --refiner]

The file is a complete checkpoint in LDM names and float16, native size 128x128: about 26 MB, mostly
the embeddings of the real CLIP vocabulary.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from imagefleet_worker.weights.families import Family
from imagefleet_worker.weights.ldm_keys import LdmComponent
from tools.demo_models import SIZE_PX, demo_models
from tools.ldm_checkpoint import ldm_state_dict

_ARCHITECTURE: dict[Family, str] = {
    "sd1": "stable-diffusion-v1",
    "sdxl": "stable-diffusion-xl-v1-base",
    "sdxl_refiner": "stable-diffusion-xl-v1-refiner",
}
_RANDOM = "Random weights; its pictures mean nothing."


def write_demo_checkpoint(out: Path, family: Family, seed: int) -> None:
    """Write the file; on one machine, family and seed determine the weights."""
    title = f"Imagefleet demo ({family}, seed {seed})"
    write_checkpoint(out, family, demo_models(family, seed), title)


def write_checkpoint(
    out: Path,
    family: Family,
    modules: Mapping[LdmComponent, torch.nn.Module],
    title: str,
    description: str = _RANDOM,
) -> None:
    """Write the family's modules to a file, in LDM names and float16."""
    metadata = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": title,
        "modelspec.architecture": _ARCHITECTURE[family],
        "modelspec.resolution": f"{SIZE_PX}x{SIZE_PX}",
        "modelspec.description": description,
    }
    save_file(ldm_state_dict(family, modules, torch.float16), out, metadata=metadata)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a small random-weight checkpoint.")
    parser.add_argument("out", type=Path, help="file to write, .safetensors")
    parser.add_argument("--seed", type=int, default=0)
    family = parser.add_mutually_exclusive_group()
    for option, value, name in (
        ("--sdxl", "sdxl", "SDXL"),
        ("--refiner", "sdxl_refiner", "SDXL refiner"),
    ):
        family.add_argument(
            option,
            action="store_const",
            const=value,
            dest="family",
            default="sd1",
            help=f"the {name} architecture instead of SD 1.x",
        )
    arguments = parser.parse_args()
    write_demo_checkpoint(arguments.out, arguments.family, arguments.seed)
    print(f"{arguments.out}: {arguments.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
