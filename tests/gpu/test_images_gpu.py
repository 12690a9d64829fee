"""On a GPU: pictures leave it through page-locked memory as they leave the CPU."""

import pytest
import torch

from imagefleet_worker.imaging.convert import from_vae_range

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="NOT RUN: page-locked memory needs CUDA, there is none"
)


def test_pictures_from_a_gpu_are_those_from_the_cpu_also_when_buffers_are_used_again() -> None:
    batches = [
        torch.randn(3, 3, 40, 24, generator=torch.Generator().manual_seed(s)) for s in (1, 2)
    ]

    from_gpu = [from_vae_range(batch.cuda()) for batch in batches]

    for batch, pictures in zip(batches, from_gpu, strict=True):
        expected = [picture.tobytes() for picture in from_vae_range(batch)]
        assert [picture.tobytes() for picture in pictures] == expected
