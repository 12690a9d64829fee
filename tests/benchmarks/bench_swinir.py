"""What the mask cache saves: SwinIR-M (random weights, x4), 256 x 256, whole, in one run.

`python -m tests.benchmarks.bench_swinir`; a few minutes on 2 cores. Seconds are CPU seconds of all
threads, and plain spandrel and ours take turns: what else runs on the machine matters little.
"""

import time
from collections.abc import Callable
from typing import cast

import torch
from spandrel import ImageModelDescriptor, ModelLoader
from spandrel.architectures.SwinIR import SwinIR
from torch import Tensor, nn

from imagefleet_worker.upscale.models import Upscaler

_ROUNDS = 2


def swinir_m() -> ImageModelDescriptor[nn.Module]:
    """SwinIR-M as published for real-world x4, native size 64, with seeded random weights."""
    torch.manual_seed(0)
    network = SwinIR(
        img_size=64,
        embed_dim=180,
        depths=[6] * 6,
        num_heads=[6] * 6,
        window_size=8,
        mlp_ratio=2,
        upscale=4,
        upsampler="nearest+conv",
    )
    descriptor = ModelLoader("cpu").load_from_state_dict(network.state_dict())
    assert isinstance(descriptor, ImageModelDescriptor)
    return descriptor


def timed(run: Callable[[Tensor], Tensor], image: Tensor) -> tuple[float, Tensor]:
    """CPU seconds that one call takes, and what it gives."""
    started = time.process_time()
    enlarged = run(image)
    return time.process_time() - started, enlarged


def mask_s(model: nn.Module) -> float:
    """CPU seconds for the masks of one forward at 256 x 256, in all blocks."""
    blocks = [block for block in model.modules() if hasattr(block, "calculate_mask")]
    started = time.process_time()
    for block in blocks:
        calculate = cast("Callable[[tuple[int, int]], Tensor]", block.calculate_mask)
        calculate((256, 256))
    return time.process_time() - started


def main() -> None:
    """Print the table."""
    plain = swinir_m()
    patched = swinir_m()
    cached = Upscaler("swinir-m", patched, torch.float32)
    image = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(1))

    def ours(picture: Tensor) -> Tensor:
        return cached.upscale(
            picture, tile_size=256, tile_overlap=16, on_tile=lambda done, total: None
        )

    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, float32, CPU")
    print("round  spandrel s  ours s  ratio  equal")
    best = [float("inf"), float("inf")]
    for index in range(_ROUNDS):
        plain_s, expected = timed(plain, image)
        ours_s, enlarged = timed(ours, image)
        best = [min(best[0], plain_s), min(best[1], ours_s)]
        equal = torch.equal(enlarged, expected)
        print(f"{index:5}  {plain_s:10.2f}  {ours_s:6.2f}  {plain_s / ours_s:5.2f}  {equal}")
    print(f" best  {best[0]:10.2f}  {best[1]:6.2f}  {best[0] / best[1]:5.2f}")
    # Apart, as a GPU speeds up the rest but not this: spandrel makes masks on the CPU.
    plain_s, ours_s = (mask_s(descriptor.model) for descriptor in (plain, patched))
    print(f"masks  {plain_s:10.3f}  {ours_s:6.3f}  {plain_s / ours_s:5.1f}")


if __name__ == "__main__":
    main()
