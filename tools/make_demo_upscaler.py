"""Write small SwinIR files for demo and tests, which then need no trained weights.

    python -m tools.make_demo_upscaler OUT_DIR

The networks have all components of a real SwinIR. Their weights are random, but scaled so that the
result is bilinear interpolation plus a faint texture. At the picture's border, half an input pixel
is pulled towards the mean colour by the convolution's zero padding.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from spandrel.architectures.SwinIR import SwinIR
from torch import Tensor

_EMBED_DIM = 24
_TEXTURE = 0.01


def make_demo_upscaler(scale: int, seed: int) -> dict[str, Tensor]:
    """The weights of a SwinIR of that scale: float32, determined by the seed.

    The native size is 16 x 16: the file stores an attention mask for it, which at the usual 64 x 64
    would be most of the file.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        weights = new_network(scale).state_dict()
    _pass_colours(weights["conv_first.weight"], weights["conv_first.bias"])
    weights["conv_after_body.weight"].mul_(_TEXTURE)
    weights["conv_after_body.bias"].zero_()
    weights["upsample.0.weight"].mul_(_TEXTURE)
    weights["upsample.0.bias"].zero_()
    _interpolate(weights["upsample.0.weight"], scale)
    return weights


def new_network(scale: int) -> SwinIR:
    """The architecture, with spandrel's random weights."""
    return SwinIR(
        img_size=16,
        embed_dim=_EMBED_DIM,
        depths=[2, 2],
        num_heads=[2, 2],
        window_size=8,
        mlp_ratio=2,
        upscale=scale,
        upsampler="pixelshuffledirect",
    )


def _pass_colours(kernel: Tensor, bias: Tensor) -> None:
    """Make the first three features the picture's colours; modifies both in place."""
    kernel[:3] = 0
    for colour in range(3):
        kernel[colour, colour, 1, 1] = 1
    bias[:3] = 0


def _interpolate(kernel: Tensor, scale: int) -> None:
    """Make every sub-pixel the bilinear mean of its neighbours; modifies `kernel` in place.

    Args:
        kernel: `(3 * scale², features, 3, 3)`, sub-pixels in the order of `PixelShuffle`.
    """
    taps: list[Tensor] = []
    for position in range(scale):
        offset = (position + 0.5) / scale - 0.5
        taps.append(torch.tensor([max(-offset, 0), 1 - abs(offset), max(offset, 0)]))
    for colour in range(3):
        kernel[:, colour] = 0
        for row in range(scale):
            for column in range(scale):
                sub_pixel = (colour * scale + row) * scale + column
                kernel[sub_pixel, colour] = torch.outer(taps[row], taps[column])


def write_demo_upscalers(folder: Path) -> list[Path]:
    """Write `demo-x2.safetensors` and `demo-x4.safetensors`; the folder is created if missing."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"demo-x{scale}.safetensors" for scale in (2, 4)]
    for path, scale in zip(paths, (2, 4), strict=True):
        save_file(make_demo_upscaler(scale, seed=scale), path)
        # Readable by the container's user too.
        path.chmod(0o644)
    return paths


def main() -> None:
    """Write the files into the folder named on the command line."""
    for path in write_demo_upscalers(Path(sys.argv[1])):
        print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
