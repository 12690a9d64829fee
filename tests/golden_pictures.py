"""Golden pictures in the repository, and the requests that they are rendered from.

    python -m tests.golden_pictures

renders them again, for a change that is meant to change pictures. Look at them before you commit
them.
"""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

from tests.local_renderer import LocalRenderer, mask, open_local_renderer, photo
from tools.make_demo_adapters import write_demo_adapters
from tools.make_demo_checkpoint import write_demo_checkpoint
from tools.make_demo_upscaler import write_demo_upscalers

FOLDER = Path(__file__).parent / "golden"

_HIRES = {"scale": 1.5, "num_inference_steps": 3, "strength": 0.6}
_MASKED = {"strength": 0.8, "image": photo(), "mask": mask()}

REQUESTS: Mapping[str, Mapping[str, Any]] = {
    "txt2img": {},
    "txt2img-karras": {"scheduler": "DPM++ 2M Karras"},
    "txt2img-ancestral-gpu": {"scheduler": "Euler a", "rng": "gpu"},
    "txt2img-sde": {"scheduler": "DPM++ 2M SDE"},
    # Not with "original": the mean of what a demo text encoder gives is 0 but for rounding, and no
    # two processors agree on the factor that would restore it.
    "schedule-and": {
        "prompt": "a [fox:house:0.5] AND (snow:1.3) :0.6",
        "clip_skip": 1,
        "emphasis": "no_norm",
    },
    "lora-embedding": {"prompt": "a fox, demo-token <lora:demo-one:0.8>"},
    "variation": {"variation_seed": 5, "variation_strength": 0.3},
    "hires-latent": {"hires": {**_HIRES, "upscaler": "latent"}},
    "hires-latent-nearest": {"hires": {**_HIRES, "upscaler": "latent_nearest_exact"}},
    "hires-lanczos": {"hires": {**_HIRES, "upscaler": "lanczos"}},
    "hires-swinir": {"hires": {**_HIRES, "upscaler": "demo-x2"}},
    "img2img": {"strength": 0.6, "image": photo()},
    "inpaint-original": {**_MASKED, "fill": "original"},
    "inpaint-fill": {**_MASKED, "fill": "fill"},
    "inpaint-latent-noise": {**_MASKED, "fill": "latent_noise"},
    "inpaint-latent-nothing": {**_MASKED, "fill": "latent_nothing"},
    "refiner": {"refiner_checkpoint": "other", "refiner_switch_at": 0.6},
    "sdxl": {"checkpoint": "demo-xl"},
    "sdxl-refiner": {
        "checkpoint": "demo-xl",
        "refiner_checkpoint": "xl-refiner",
        "refiner_switch_at": 0.5,
    },
}
"""Request fields, except that `image` and `mask` are PIL images, and `fill` is `inpaint.fill`."""


def render(renderer: LocalRenderer, name: str) -> Image.Image:
    """Render the picture of that name with the current code."""
    fields: dict[str, Any] = {"prompt": "a red fox in the snow", **REQUESTS[name]}
    if "mask" in fields:
        inpaint = {"mask_image": renderer.upload(fields.pop("mask")), "fill": fields.pop("fill")}
        fields["inpaint"] = inpaint
    if "image" in fields:
        fields["image"] = renderer.upload(fields["image"])
    return renderer.render(**fields)


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    with TemporaryDirectory() as folder:
        models = Path(folder) / "models"
        (models / "checkpoints").mkdir(parents=True)
        write_demo_checkpoint(models / "checkpoints/demo.safetensors", "sd1", seed=0)
        write_demo_checkpoint(models / "checkpoints/demo-xl.safetensors", "sdxl", seed=0)
        write_demo_adapters(models)
        write_demo_upscalers(models / "upscalers")
        (Path(folder) / "renderer").mkdir()
        renderer = open_local_renderer(models, Path(folder) / "renderer")
        for name in REQUESTS:
            render(renderer, name).save(FOLDER / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
